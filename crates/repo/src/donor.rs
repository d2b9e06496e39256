//! Another repository, with keys and ids of its own, that has copies of snapshots
//! of this one, or what they are copies of.
//!
//! Content is the same there by name and position, and by nothing else. What is
//! read of it was verified there; what it means here, others have to prove.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use tintype_types::{BLOCK_SIZE, ByteCount, RepositoryId, SnapshotId};

use crate::copy::named;
use crate::loss::sound;
use crate::reader::ImageReader;
use crate::record::{Origin, SnapshotRecord};
use crate::repository::{Pin, Repository};
use crate::tree::ImageRoot;
use crate::{Error, listing};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// The other repository.
pub(crate) struct Donor<'d> {
    other: &'d Repository,
    /// Whose copies are looked for.
    of: RepositoryId,
    /// What it has, oldest first.
    records: Vec<SnapshotRecord>,
    /// What was asked for, which stays in place; `None` what is not there any more.
    pins: Mutex<HashMap<SnapshotId, Option<Arc<Pin>>>>,
}

impl<'d> Donor<'d> {
    /// Lists what another repository has that one may miss.
    pub(crate) fn new(other: &'d Repository, of: RepositoryId) -> Result<Self, Error> {
        let records = listing::list(&other.vault)?.records;
        Ok(Self { other, of, records, pins: Mutex::default() })
    }

    /// Returns what it has, oldest first.
    pub(crate) fn records(&self) -> &[SnapshotRecord] {
        &self.records
    }

    /// Whether it has any of these snapshots, or any that was taken here.
    pub(crate) fn has_any_of(&self, ours: &[SnapshotRecord]) -> bool {
        let identities = self.records.iter().map(|record| record.identity(self.other.id()));
        let ours: HashSet<_> = ours.iter().map(|record| record.identity(self.of)).collect();
        { identities }.any(|known| known.repository == self.of || ours.contains(&known))
    }

    /// Returns the same snapshot there, which stays in place from now on.
    pub(crate) fn same(&self, record: &SnapshotRecord) -> Result<Option<Arc<Pin>>, Error> {
        self.known_as(record.identity(self.of))
    }

    /// Returns there the snapshot that was taken here under an id.
    pub(crate) fn taken_here(&self, snapshot: SnapshotId) -> Result<Option<Arc<Pin>>, Error> {
        self.known_as(Origin { repository: self.of, snapshot })
    }

    /// Returns the id here of a snapshot there, if it was taken here or is one of these.
    pub(crate) fn here(
        &self,
        record: &SnapshotRecord,
        ours: &[SnapshotRecord],
    ) -> Option<SnapshotId> {
        let identity = record.identity(self.other.id());
        if identity.repository == self.of {
            return Some(identity.snapshot);
        }
        let same = ours.iter().find(|ours| ours.identity(self.of) == identity);
        same.map(|record| record.id)
    }

    fn known_as(&self, origin: Origin) -> Result<Option<Arc<Pin>>, Error> {
        let is_same = |record: &&SnapshotRecord| record.identity(self.other.id()) == origin;
        let Some(record) = self.records.iter().find(is_same) else { return Ok(None) };
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pin) = pins.get(&record.id) {
            return Ok(pin.clone());
        }
        let pin = there(self.other.pin(record.id))?.map(Arc::new);
        pins.insert(record.id, pin.clone());
        Ok(pin)
    }

    /// Opens an image there, if it is of this size.
    pub(crate) fn image(
        &self,
        pin: &Pin,
        name: &str,
        size: ByteCount,
    ) -> Result<Option<(ImageRoot, ImageReader)>, Error> {
        let Some(root) = named(&pin.record().images, name).filter(|root| root.size == size) else {
            return Ok(None);
        };
        Ok(there(self.other.open_image(root))?.map(|reader| (root.clone(), reader)))
    }

    /// Reads a blob there, if it has this length.
    pub(crate) fn blob(&self, pin: &Pin, name: &str, len: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut blobs = pin.record().blobs.iter();
        match blobs.find(|(named, blob)| named == name && blob.len == len) {
            Some((_, blob)) => there(self.other.read_blob(blob)),
            None => Ok(None),
        }
    }
}

/// Reads a block of an image of another repository, filled with zeroes at its end;
/// `None` if it is damaged there.
pub(crate) fn block(reader: &ImageReader, offset: u64) -> Result<Option<Vec<u8>>, Error> {
    let Some(left) = reader.size().get().checked_sub(offset) else { return Ok(None) };
    let len = usize::try_from(left.min(BLOCK)).expect("a block has 4096 bytes");
    let mut bytes = vec![0; BLOCK_SIZE];
    let read = there(reader.read_at(offset, &mut bytes[..len]))?;
    Ok(read.map(|()| bytes))
}

/// What was read; `None` if it is damaged or gone there.
pub(crate) fn there<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Err(Error::NotFound(_)) => Ok(None),
        read => sound(read),
    }
}
