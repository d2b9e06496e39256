//! Objects as files of a local directory.
//!
//! put-if-absent = a temporary file, written, synced, read back, and renamed
//! without replacing, then a sync of the folder. Temporary files are locked
//! while they are written, so that a leftover is known from one in use.
//! Files are 0600 and folders 0700: this is guest memory.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::disk::{Disk, Folder, Found, NewFile, RESERVE};
use super::{Hold, Holder, Listed, Objects, Put, Store, is_key};
use crate::{Error, Kind};

/// The folder of temporary files.
const TEMPORARY: &str = "tmp";

/// A directory of objects.
#[derive(Debug)]
pub(crate) struct LocalStore {
    disk: Box<dyn Disk>,
    /// For messages only.
    root: PathBuf,
    /// Folders whose names are durable, as far as this process has seen to it.
    durable: Mutex<HashSet<String>>,
}

#[derive(Debug)]
struct Held(#[expect(dead_code, reason = "held for its lock")] Box<dyn NewFile>);

impl Hold for Held {}

impl LocalStore {
    /// Makes the folder, or takes one that holds nothing but the leftovers of
    /// an interrupted call of this function.
    pub(crate) fn create(root: &Path) -> Result<Self, Error> {
        let folder = Folder::new(root);
        folder.make_root().map_err(|error| Error::io("create folder", root, error))?;
        let store = Self::on(Box::new(folder), root);
        store.check_empty()?;
        Ok(store)
    }

    /// Takes the folder as it is.
    pub(crate) fn open(root: &Path) -> Self {
        Self::on(Box::new(Folder::new(root)), root)
    }

    /// Takes a folder of any kind of disk.
    pub(crate) fn on(disk: Box<dyn Disk>, root: &Path) -> Self {
        Self { disk, root: root.to_owned(), durable: Mutex::default() }
    }

    fn check_empty(&self) -> Result<(), Error> {
        let entries = self.disk.list("").map_err(|e| self.error("read folder", "", e))?;
        let ours = |name: &str| name == TEMPORARY || name == "keys";
        match entries.iter().all(|(name, _)| ours(name)) {
            true => Ok(()),
            false => Err(Error::Occupied(self.root.clone())),
        }
    }

    fn error(&self, operation: &'static str, path: &str, error: io::Error) -> Error {
        Error::io(operation, &self.root.join(path), error)
    }

    /// Like `error`, for an object that may not exist.
    fn object_error(&self, operation: &'static str, key: &str, error: io::Error) -> Error {
        match error.kind() {
            ErrorKind::NotFound => Error::NotFound(key.to_owned()),
            ErrorKind::UnexpectedEof => Error::damaged(key, None, "it ends early"),
            _ => self.error(operation, key, error),
        }
    }

    /// Writes the bytes to a new locked temporary file, durably.
    fn write_temporary(&self, bytes: &[u8]) -> Result<(String, Box<dyn NewFile>), Error> {
        self.make_folder(TEMPORARY)?;
        let path = format!("{TEMPORARY}/{}", tintype_types::SnapshotId::random());
        let mut file = self.disk.create(&path).map_err(|e| self.error("create", &path, e))?;
        let written =
            file.write(bytes).and_then(|()| file.sync()).and_then(|()| read_back(&*file, bytes));
        match written {
            Ok(()) => Ok((path, file)),
            Err(source) => {
                // The failed write is the error to report, and a leftover is
                // swept at the next open.
                let _ = self.disk.remove(&path);
                Err(self.error("write", &path, source))
            }
        }
    }

    /// Publishes the bytes under the key and returns the locked file.
    fn publish(&self, key: &str, bytes: &[u8]) -> Result<Option<Box<dyn NewFile>>, Error> {
        debug_assert!(is_key(key), "{key}");
        // A file whose sync failed may have lost data that a second sync would
        // not report, and a sweep may take a file before it is locked: either
        // way the second attempt writes a new file.
        self.publish_once(key, bytes).or_else(|first| match first.kind() {
            Kind::NoSpace => Err(first),
            _ => self.publish_once(key, bytes),
        })
    }

    fn publish_once(&self, key: &str, bytes: &[u8]) -> Result<Option<Box<dyn NewFile>>, Error> {
        let folder = folder_of(key);
        self.make_folder(folder)?;
        let (temporary, file) = self.write_temporary(bytes)?;
        match self.disk.rename_new(&temporary, key) {
            Ok(()) => self.sync_folder(folder).map(|()| Some(file)),
            Err(error) => {
                let _ = self.disk.remove(&temporary);
                match error.kind() {
                    // It may be the work of a first attempt whose sync failed,
                    // and who hears that it exists relies on it.
                    ErrorKind::AlreadyExists => self.sync_folder(folder).map(|()| None),
                    _ => Err(self.error("publish", key, error)),
                }
            }
        }
    }

    /// Makes a folder and those above it, durably. That the folder is there
    /// does not say so: who made it may have been stopped before its sync.
    fn make_folder(&self, folder: &str) -> Result<(), Error> {
        let durable = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if folder.is_empty() || durable().contains(folder) {
            return Ok(());
        }
        self.make_folder(folder_of(folder))?;
        match self.disk.make_folder(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.error("create folder", folder, error)),
        }
        self.sync_folder(folder_of(folder))?;
        durable().insert(folder.to_owned());
        Ok(())
    }

    fn sync_folder(&self, folder: &str) -> Result<(), Error> {
        self.disk.sync_folder(folder).map_err(|e| self.error("sync folder", folder, e))
    }

    /// Lists files below a folder; a folder that is not there is empty.
    fn list_folder(&self, folder: &str, found: &mut Vec<Listed>) -> Result<(), Error> {
        let entries = match self.disk.list(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.error("read folder", folder, error)),
        };
        for (name, entry) in entries {
            if folder.is_empty() && name == RESERVE {
                continue;
            }
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match entry {
                Found::Folder => self.list_folder(&key, found)?,
                Found::File(size) => found.push(Listed { key, size }),
                Found::Other => {}
            }
        }
        Ok(())
    }
}

impl Objects for LocalStore {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        Ok(if self.publish(key, bytes)?.is_some() { Put::Created } else { Put::Existed })
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.disk.read_all(key, max).map_err(|e| self.object_error("read", key, e))?;
        if u64::try_from(bytes.len()).is_ok_and(|len| len > max) {
            return Err(Error::damaged(key, None, "it is larger than such an object can be"));
        }
        Ok(bytes)
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.disk.read(key, offset, len).map_err(|error| self.object_error("read", key, error))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        match self.disk.find(key).map_err(|e| self.error("inspect", key, e))? {
            Some(Found::File(size)) => Ok(Some(size)),
            Some(Found::Folder | Found::Other) | None => Ok(None),
        }
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut found = Vec::new();
        self.list_folder(folder_of(prefix), &mut found)?;
        found.retain(|listed| listed.key.starts_with(prefix));
        found.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        let folder = folder_of(key);
        self.make_folder(folder)?;
        let (temporary, _file) = self.write_temporary(bytes)?;
        let renamed = self.disk.rename_over(&temporary, key);
        renamed.map_err(|error| self.error("replace", key, error))?;
        self.sync_folder(folder)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        match self.disk.remove(key) {
            Ok(()) => self.sync_folder(folder_of(key)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.error("remove", key, error)),
        }
    }
}

impl Store for LocalStore {
    fn put_held(&self, key: &str, bytes: &[u8]) -> Result<Option<Box<dyn Hold>>, Error> {
        let file = self.publish(key, bytes)?;
        Ok(file.map(|file| Box::new(Held(file)) as Box<dyn Hold>))
    }

    fn holder(&self, key: &str) -> Result<Holder, Error> {
        match self.disk.is_locked(key) {
            Ok(true) => Ok(Holder::Alive),
            Ok(false) => Ok(Holder::Gone),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Holder::Gone),
            Err(error) => Err(self.error("lock", key, error)),
        }
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }

    fn has_late_writes(&self) -> bool {
        false
    }

    fn keep_reserve(&self) {
        if let Err(error) = self.disk.keep_reserve() {
            tracing::debug!(%error, "no space is set aside for deletions");
        }
    }

    fn use_reserve(&self) -> Result<bool, Error> {
        self.disk.use_reserve().map_err(|error| self.error("remove", RESERVE, error))
    }

    fn settle(&self, folder: &str) -> Result<(), Error> {
        let entries = match self.disk.list(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(self.error("read folder", folder, error)),
        };
        let folders = entries.into_iter().filter(|(_, found)| matches!(found, Found::Folder));
        folders.into_iter().try_for_each(|(name, _)| self.sync_folder(&format!("{folder}/{name}")))
    }

    fn sweep(&self) -> Result<(), Error> {
        let mut found = Vec::new();
        self.list_folder(TEMPORARY, &mut found)?;
        for Listed { key, .. } in found {
            if self.holder(&key)? == Holder::Gone {
                self.delete(&key)?;
            }
        }
        Ok(())
    }
}

/// Returns the part of a path before the last slash.
pub(super) fn folder_of(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Compares what the file system gives back with what was written.
fn read_back(file: &dyn NewFile, bytes: &[u8]) -> io::Result<()> {
    let mut buffer = vec![0; bytes.len().min(1 << 20)];
    let mut offset = 0_u64;
    for chunk in bytes.chunks(1 << 20) {
        let read = &mut buffer[..chunk.len()];
        file.read(offset, read)?;
        if read != chunk {
            return Err(io::Error::other("the file system gives back other bytes"));
        }
        offset += u64::try_from(chunk.len()).expect("a usize fits in 64 bits");
    }
    Ok(())
}
