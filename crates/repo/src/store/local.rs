//! Objects as files of a local directory.
//!
//! put-if-absent = a temporary file, written, synced, read back, and renamed
//! without replacing, then a sync of the folder. Temporary files are locked
//! while they are written, so that a leftover is known from one in use.
//! Locks are `flock`: they belong to the open file, not to the process, and
//! end with it. Files are 0600 and folders 0700: this is guest memory.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, RenameFlags};

use super::{Hold, Holder, Listed, Put, Store};
use crate::Error;

/// The folder of temporary files.
const TEMPORARY: &str = "tmp";
/// How many segment files stay open for reading.
const OPEN_FILES: usize = 256;

/// A directory of objects.
#[derive(Debug)]
pub(crate) struct LocalStore {
    root: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
}

/// An open, locked file.
#[derive(Debug)]
struct LockedFile(#[expect(dead_code, reason = "held for its lock")] File);

impl Hold for LockedFile {}

impl LocalStore {
    /// Makes the folder, or takes one that holds nothing but the leftovers of
    /// an interrupted call of this function.
    pub(crate) fn create(root: &Path) -> Result<Self, Error> {
        make_folder(root)?;
        let entries = fs::read_dir(root).map_err(|e| Error::io("read folder", root, e))?;
        for entry in entries {
            let name = entry.map_err(|e| Error::io("read folder", root, e))?.file_name();
            if name != TEMPORARY && name != "keys" {
                return Err(Error::Occupied(root.to_owned()));
            }
        }
        make_folder(&root.join(TEMPORARY))?;
        Ok(Self::open(root))
    }

    /// Takes the folder as it is.
    pub(crate) fn open(root: &Path) -> Self {
        Self { root: root.to_owned(), open: Mutex::default() }
    }

    fn path(&self, key: &str) -> PathBuf {
        debug_assert!(
            key.bytes()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"./-".contains(&c))
                && !key.contains("..")
        );
        self.root.join(key)
    }

    /// Writes the bytes to a new locked temporary file, durably.
    fn write_temporary(&self, bytes: &[u8]) -> Result<(PathBuf, File), Error> {
        let name = tintype_types::SnapshotId::random().to_string();
        let path = self.root.join(TEMPORARY).join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|e| Error::io("create", &path, e))?;
        let written = file
            .lock()
            .and_then(|()| (&file).write_all(bytes))
            .and_then(|()| file.sync_data())
            .and_then(|()| read_back(&file, bytes));
        match written {
            Ok(()) => Ok((path, file)),
            Err(source) => {
                // The failed write is the error to report, and a leftover is
                // swept at the next open.
                let _ = fs::remove_file(&path);
                Err(Error::io("write", &path, source))
            }
        }
    }

    /// Publishes the bytes under the key and returns the locked file.
    fn publish(&self, key: &str, bytes: &[u8]) -> Result<Option<File>, Error> {
        // A file whose sync failed may have lost data that a second sync would
        // not report, and a sweep may take a file before it is locked: either
        // way the second attempt writes a new file.
        self.publish_once(key, bytes).or_else(|first| match first.kind() {
            crate::Kind::NoSpace => Err(first),
            _ => self.publish_once(key, bytes),
        })
    }

    fn publish_once(&self, key: &str, bytes: &[u8]) -> Result<Option<File>, Error> {
        let path = self.path(key);
        let folder = path.parent().expect("a key lies within the root");
        make_folder(folder)?;
        let (temporary, file) = self.write_temporary(bytes)?;
        match rename_new(&temporary, &path) {
            Ok(()) => {
                sync_folder(folder)?;
                Ok(Some(file))
            }
            Err(error) => {
                let _ = fs::remove_file(&temporary);
                match error.kind() {
                    // It may be the work of a first attempt whose sync failed,
                    // and who hears that it exists relies on it.
                    ErrorKind::AlreadyExists => sync_folder(folder).map(|()| None),
                    _ => Err(Error::io("publish", &path, error)),
                }
            }
        }
    }

    fn open_file(&self, key: &str) -> Result<Arc<File>, Error> {
        let cached = |open: &HashMap<String, Arc<File>>| open.get(key).cloned();
        if let Some(file) = cached(&self.open.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(file);
        }
        let path = self.path(key);
        let file = Arc::new(File::open(&path).map_err(|e| not_found(key, "open", &path, e))?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN_FILES {
            open.clear();
        }
        open.insert(key.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

impl Store for LocalStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        Ok(if self.publish(key, bytes)?.is_some() { Put::Created } else { Put::Existed })
    }

    fn put_held(&self, key: &str, bytes: &[u8]) -> Result<Option<Box<dyn Hold>>, Error> {
        let file = self.publish(key, bytes)?;
        Ok(file.map(|file| Box::new(LockedFile(file)) as Box<dyn Hold>))
    }

    fn holder(&self, key: &str) -> Result<Holder, Error> {
        let path = self.path(key);
        match File::open(&path) {
            Ok(file) => holder_of(&file, &path),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Holder::Gone),
            Err(error) => Err(Error::io("open", &path, error)),
        }
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        let path = self.path(key);
        let file = File::open(&path).map_err(|e| not_found(key, "open", &path, e))?;
        let mut bytes = Vec::new();
        let len = file
            .take(max.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| Error::io("read", &path, e))?;
        if u64::try_from(len).is_ok_and(|len| len > max) {
            return Err(Error::damaged(key, None, "it is larger than such an object can be"));
        }
        Ok(bytes)
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        match self.open_file(key)?.read_exact_at(&mut bytes, offset) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                Err(Error::damaged(key, Some(offset), "it ends early"))
            }
            Err(error) => Err(Error::io("read", &self.path(key), error)),
        }
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        let path = self.path(key);
        match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("inspect", &path, error)),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let folder = prefix.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut found = Vec::new();
        list_folder(&self.root.join(folder), folder, &mut found)?;
        found.retain(|listed| listed.key.starts_with(prefix));
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key);
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().expect("a key lies within the root")),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io("remove", &path, error)),
        }
    }

    fn sweep(&self) -> Result<(), Error> {
        let mut found = Vec::new();
        list_folder(&self.root.join(TEMPORARY), TEMPORARY, &mut found)?;
        for Listed { key, .. } in found {
            if self.holder(&key)? == Holder::Gone {
                self.delete(&key)?;
            }
        }
        Ok(())
    }
}

fn holder_of(file: &File, path: &Path) -> Result<Holder, Error> {
    match file.try_lock_shared() {
        Ok(()) => Ok(Holder::Gone),
        Err(fs::TryLockError::WouldBlock) => Ok(Holder::Alive),
        Err(fs::TryLockError::Error(error)) => Err(Error::io("lock", path, error)),
    }
}

/// Lists files below a folder; a folder that is not there is empty.
fn list_folder(folder: &Path, key: &str, found: &mut Vec<Listed>) -> Result<(), Error> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io("read folder", folder, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("read folder", folder, e))?;
        // Names that are not UTF-8 are not ours.
        let Ok(name) = entry.file_name().into_string() else { continue };
        let key = if key.is_empty() { name } else { format!("{key}/{name}") };
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => list_folder(&entry.path(), &key, found)?,
            Ok(metadata) if metadata.is_file() => found.push(Listed { key, size: metadata.len() }),
            Ok(_) => {}
            // Removed by another process since the folder was read.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("inspect", &entry.path(), error)),
        }
    }
    Ok(())
}

fn not_found(key: &str, operation: &'static str, path: &Path, error: io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::NotFound(key.to_owned()),
        _ => Error::io(operation, path, error),
    }
}

/// Makes a folder and those above it, durably, for the owner only.
fn make_folder(folder: &Path) -> Result<(), Error> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        make_folder(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => sync_folder(folder.parent().unwrap_or(Path::new("."))),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::io("create folder", folder, error)),
    }
}

fn sync_folder(folder: &Path) -> Result<(), Error> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io("sync folder", folder, error))
}

/// Renames a file unless the new name is taken, on file systems without such
/// a rename by a hard link.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            fs::hard_link(from, to)?;
            fs::remove_file(from)
        }
        result => result.map_err(io::Error::from),
    }
}

/// Compares what the file system gives back with what was written.
fn read_back(file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; bytes.len().min(1 << 20)];
    let mut offset = 0_u64;
    for chunk in bytes.chunks(1 << 20) {
        let read = &mut buffer[..chunk.len()];
        file.read_exact_at(read, offset)?;
        if read != chunk {
            return Err(io::Error::other("the file system gives back other bytes"));
        }
        offset += u64::try_from(chunk.len()).expect("a usize fits in 64 bits");
    }
    Ok(())
}
