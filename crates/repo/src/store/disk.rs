//! The few file operations that a local repository needs, and their durability.
//!
//! The real ones are here; `simulation` has others that lose what was not
//! synced. Paths are relative to the repository and use `/`.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, RenameFlags};
use rustix::io::{Errno, pread};

/// The file that keeps space for deletions on a full disk. Not an object.
pub(crate) const RESERVE: &str = "reserve";
/// Its size: deletions, and epochs of about 20,000 segments.
const RESERVE_SIZE: usize = 1 << 20;
/// How many files stay open for reading.
const OPEN_FILES: usize = 256;

/// What a folder has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    File(u64),
    Folder,
    /// Neither: not ours.
    Other,
}

/// A file that was just made, locked until it is dropped.
pub(crate) trait NewFile: Send + Sync + fmt::Debug {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Makes the content durable; not the name.
    fn sync(&self) -> io::Result<()>;
    /// Reads exactly as many bytes as fit.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// File operations below one folder.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Makes a file for the owner only, and locks it.
    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile>>;
    /// Renames a file unless the new name is taken.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    /// Renames a file, in place of what has the new name.
    fn rename_over(&self, from: &str, to: &str) -> io::Result<()>;
    /// Makes a folder for the owner only.
    fn make_folder(&self, path: &str) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_folder(&self, path: &str) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Says what there is; `None` if nothing.
    fn find(&self, path: &str) -> io::Result<Option<Found>>;
    /// Lists a folder.
    fn list(&self, path: &str) -> io::Result<Vec<(String, Found)>>;
    /// Reads just so many bytes.
    fn read(&self, path: &str, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Reads a file up to its end, or one byte more than `max`.
    fn read_all(&self, path: &str, max: u64) -> io::Result<Vec<u8>>;
    /// Whether someone has the file locked.
    fn is_locked(&self, path: &str) -> io::Result<bool>;
    /// Sets some space aside, if there is enough and none is yet.
    fn keep_reserve(&self) -> io::Result<()>;
    /// Gives up the space that was set aside; whether there was any.
    fn use_reserve(&self) -> io::Result<bool>;
}

/// A folder of the file system.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    open: Mutex<HashMap<String, Arc<File>>>,
}

impl Folder {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), open: Mutex::default() }
    }

    /// Makes the folder itself and those above it, durably.
    pub(crate) fn make_root(&self) -> io::Result<()> {
        make_with_parents(&self.root)
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }

    fn open(&self, path: &str) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(path) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(open_object(&self.path(path))?);
        if open.len() >= OPEN_FILES {
            open.clear();
        }
        open.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

#[derive(Debug)]
struct LockedFile(File);

impl NewFile for LockedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

impl Disk for Folder {
    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(self.path(path))?;
        // `flock` belongs to the open file, not to the process.
        file.lock()?;
        Ok(Box::new(LockedFile(file)))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(from), self.path(to));
        match rustix::fs::renameat_with(CWD, &from, CWD, &to, RenameFlags::NOREPLACE) {
            // Some file systems have no such rename; a hard link replaces nothing.
            Err(Errno::INVAL | Errno::NOSYS) => {
                fs::hard_link(&from, &to)?;
                fs::remove_file(&from)
            }
            result => result.map_err(io::Error::from),
        }
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(to);
        Ok(())
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(self.path(path))
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        File::open(self.path(path))?.sync_all()
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        fs::remove_file(self.path(path))
    }

    fn find(&self, path: &str) -> io::Result<Option<Found>> {
        match fs::symlink_metadata(self.path(path)) {
            Ok(metadata) => Ok(Some(found(&metadata))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<(String, Found)>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.path(path))? {
            let entry = entry?;
            // Names that are not UTF-8 are not ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            match entry.metadata() {
                Ok(metadata) => entries.push((name, found(&metadata))),
                // Removed by another process since the folder was read.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    fn read(&self, path: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (file, mut offset) = (self.open(path)?, offset);
        // Not made zero first: for all that is restored that would be a whole write more.
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            match pread(&file, spare_capacity(&mut bytes), offset) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => offset += u64::try_from(read).expect("a usize fits in 64 bits"),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(len);
        Ok(bytes)
    }

    fn read_all(&self, path: &str, max: u64) -> io::Result<Vec<u8>> {
        let file = open_object(&self.path(path))?;
        let limit = max.saturating_add(1);
        let len = file.metadata()?.len().saturating_add(1).min(limit);
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(usize::try_from(len).unwrap_or(0))?;
        file.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn is_locked(&self, path: &str) -> io::Result<bool> {
        match open_object(&self.path(path))?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(fs::TryLockError::WouldBlock) => Ok(true),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    fn keep_reserve(&self) -> io::Result<()> {
        let path = self.path(RESERVE);
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&path);
        let kept = match file {
            // Its name and content need not survive a crash: a new one is made.
            Ok(mut file) => file.write_all(&[0xa5; RESERVE_SIZE]),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        };
        kept.inspect_err(|_| _ = fs::remove_file(&path))
    }

    fn use_reserve(&self) -> io::Result<bool> {
        match fs::remove_file(self.path(RESERVE)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Opens a file that may be anything: follows no link out of the repository,
/// and does not wait for the other end of a pipe.
fn open_object(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = flags.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let is_link = |error: &io::Error| error.raw_os_error() == Some(Errno::LOOP.raw_os_error());
    match opened {
        Ok(file) if file.metadata()?.is_file() => Ok(file),
        Err(error) if !is_link(&error) => Err(error),
        // Neither is an object.
        Ok(_) | Err(_) => Err(ErrorKind::NotFound.into()),
    }
}

fn found(metadata: &fs::Metadata) -> Found {
    if metadata.is_dir() {
        Found::Folder
    } else if metadata.is_file() {
        Found::File(metadata.len())
    } else {
        Found::Other
    }
}

fn make_with_parents(folder: &Path) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    let parent = folder.parent().unwrap_or(Path::new(""));
    make_with_parents(parent)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent)?.sync_all()
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
