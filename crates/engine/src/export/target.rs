//! What is being made: under another name until it is whole and durable.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::folder_of;
use crate::error::{Error, Result};

/// How the name of what is not whole ends.
const ENDING: &str = "partial";

/// A file, or a folder, that is being made. Unless it is finished it goes away.
pub(crate) struct Target {
    path: PathBuf,
    partial: PathBuf,
}

impl Target {
    /// Refuses what is there already, and removes what a killed export of it left.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| Error::invalid(format!("{} is no name for a file", path.display())))?;
        if fs::symlink_metadata(path).is_ok() {
            return Err(Error::refused(format!("{} is there already", path.display()))
                .state("nothing was written")
                .hint("give another name, or remove it"));
        }
        let folder = folder_of(path);
        let start = format!(".{name}.");
        for entry in fs::read_dir(folder).map_err(Error::io("list", folder))?.flatten() {
            let left = entry.file_name();
            let owner = left.to_str().and_then(|left| {
                let (owner, ending) = left.strip_prefix(&start)?.split_once('.')?;
                (ending == ENDING).then(|| owner.parse::<u32>().ok())?
            });
            let is_dead = |owner: u32| !Path::new("/proc").join(owner.to_string()).exists();
            if owner.is_some_and(is_dead) {
                remove(&entry.path());
            }
        }
        let partial = folder.join(format!("{start}{}.{ENDING}", std::process::id()));
        Ok(Self { path: path.to_owned(), partial })
    }

    /// Returns where it is until it is whole.
    pub(crate) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Makes the file, for its owner alone.
    pub(crate) fn make_file(&self) -> Result<File> {
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&self.partial).map_err(Error::io("make", &self.partial))
    }

    /// Makes it durable, and gives it its name.
    pub(crate) fn finish(self) -> Result<PathBuf> {
        let finish = || -> io::Result<()> {
            File::open(&self.partial)?.sync_all()?;
            renameat_with(CWD, &self.partial, CWD, &self.path, RenameFlags::NOREPLACE)?;
            File::open(folder_of(&self.path))?.sync_all()
        };
        finish().map_err(Error::io("finish", &self.path))?;
        Ok(self.path.clone())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // After it is finished there is nothing of this name.
        remove(&self.partial);
    }
}

fn remove(path: &Path) {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    };
    if let Err(error) = removed {
        tracing::warn!(%error, path = %path.display(), "cannot remove what was not finished");
    }
}
