//! Objects in memory: the simplest that a store can be, and some that are
//! flawed as real ones are.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::{Listed, Objects, Put};
use crate::Error;

/// What is wrong with a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Every put is accepted.
    IgnoresConditions,
    /// Puts that meet do not see each other.
    LooksThenWrites,
    /// New objects are not in listings.
    ListsLate,
    /// Deleted objects are still there.
    DeletesLate,
    /// Nothing can be written.
    ReadOnly,
}

/// Objects in memory; clones are the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    flaw: Option<Flaw>,
}

impl Memory {
    pub(crate) fn with(flaw: Option<Flaw>) -> Self {
        Self { flaw, ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.objects.lock().expect("no test panics with the objects locked")
    }

    fn find(&self, key: &str) -> Result<Vec<u8>, Error> {
        self.lock().get(key).cloned().ok_or_else(|| Error::NotFound(key.to_owned()))
    }
}

impl Objects for Memory {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        if self.flaw == Some(Flaw::ReadOnly) {
            return Err(Error::io("put", Path::new(key), ErrorKind::PermissionDenied));
        }
        let is_taken = match self.flaw {
            Some(Flaw::IgnoresConditions) => false,
            Some(Flaw::LooksThenWrites) => {
                let was_taken = self.lock().contains_key(key);
                std::thread::sleep(Duration::from_millis(50));
                was_taken
            }
            _ => return Ok(put_if_absent(&mut self.lock(), key, bytes)),
        };
        if is_taken {
            return Ok(Put::Existed);
        }
        self.lock().insert(key.to_owned(), bytes.to_vec());
        Ok(Put::Created)
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.find(key)?;
        match u64::try_from(bytes.len()).is_ok_and(|len| len <= max) {
            true => Ok(bytes),
            false => Err(Error::damaged(key, None, "it is larger than such an object can be")),
        }
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.find(key)?;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let range = bytes.get(start..start.saturating_add(len));
        range.map(<[u8]>::to_vec).ok_or_else(|| Error::damaged(key, None, "it ends early"))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        Ok(self.lock().get(key).map(|bytes| u64::try_from(bytes.len()).unwrap()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let is_late = self.flaw == Some(Flaw::ListsLate);
        let objects = self.lock();
        let found = objects.iter().filter(|(key, _)| key.starts_with(prefix) && !is_late);
        let listed = |(key, bytes): (&String, &Vec<u8>)| Listed {
            key: key.clone(),
            size: u64::try_from(bytes.len()).unwrap(),
        };
        Ok(found.map(listed).collect())
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.lock().insert(key.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        if self.flaw != Some(Flaw::DeletesLate) {
            self.lock().remove(key);
        }
        Ok(())
    }
}

fn put_if_absent(objects: &mut BTreeMap<String, Vec<u8>>, key: &str, bytes: &[u8]) -> Put {
    match objects.entry(key.to_owned()) {
        Entry::Occupied(_) => Put::Existed,
        Entry::Vacant(place) => {
            place.insert(bytes.to_vec());
            Put::Created
        }
    }
}
