//! Slots: who is at work in the repository.
//!
//! ```text
//! slot/<epoch>/<id>   "writer", or "reader" and the snapshot it reads
//! ```
//!
//! A writer reads the newest epoch, puts its slot, and reads the epoch again;
//! if it moved, the slot is abandoned. So a collector that has begun an epoch
//! sees the slots of all writers that do not know of it. A reader puts its
//! slot and then looks whether the snapshot is there; a collector reads the
//! deletions and then the slots, so one of the two sees the other.

use tintype_types::SnapshotId;

use crate::Error;
use crate::epoch::{self, Segments};
use crate::listing;
use crate::quarantine;
use crate::record::SnapshotRecord;
use crate::signed;
use crate::store::Hold;
use crate::vault::Vault;

const KIND: &str = "slot";
const WRITER: &str = "writer";
const READER: &str = "reader ";

/// A slot of this process. Held until dropped; `release` also removes it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub id: SnapshotId,
    pub key: String,
    /// What a writer must not refer to.
    pub forbidden: Segments,
    hold: Box<dyn Hold>,
}

/// A slot of anyone.
#[derive(Debug)]
pub(crate) struct Registered {
    pub key: String,
    pub epoch: u64,
    pub session: SnapshotId,
}

/// Registers a writer.
pub(crate) fn register_writer(vault: &Vault) -> Result<Slot, Error> {
    loop {
        let before = epoch::newest(vault)?;
        let slot = put(vault, before.0, WRITER.to_owned())?;
        let after = epoch::newest(vault)?;
        if after.0 == before.0 {
            let mut forbidden = epoch::forbidden(vault, after)?;
            forbidden.extend(quarantine::read(vault)?);
            return Ok(Slot { forbidden, ..slot });
        }
        slot.release(vault)?;
    }
}

/// Registers a reader of a snapshot and returns its record.
pub(crate) fn register_reader(
    vault: &Vault,
    snapshot: SnapshotId,
) -> Result<(Slot, SnapshotRecord), Error> {
    let slot = put_reader(vault, snapshot)?;
    match listing::one(vault, snapshot) {
        Ok(record) => Ok((slot, record)),
        Err(error) => {
            slot.release(vault)?;
            Err(error)
        }
    }
}

/// Registers a reader of a snapshot that may not be there.
pub(crate) fn put_reader(vault: &Vault, snapshot: SnapshotId) -> Result<Slot, Error> {
    put(vault, epoch::newest(vault)?.0, format!("{READER}{snapshot}"))
}

/// Returns the snapshot that a slot's holder reads, `None` for a writer.
pub(crate) fn read_snapshot(vault: &Vault, key: &str) -> Result<Option<SnapshotId>, Error> {
    let lines = signed::read(vault, key, KIND)?;
    let line = lines.first().map_or("", String::as_str);
    match line.strip_prefix(READER).map(str::parse) {
        Some(Ok(snapshot)) => Ok(Some(snapshot)),
        None if line == WRITER => Ok(None),
        _ => Err(Error::damaged(key, None, "it cannot be understood")),
    }
}

/// Lists all slots.
pub(crate) fn list(vault: &Vault) -> Result<Vec<Registered>, Error> {
    let slots = vault.store.list("slot/")?.into_iter();
    Ok(slots
        .filter_map(|listed| {
            let (epoch, session) = listed.key["slot/".len()..].split_once('/')?;
            let (epoch, session) = (epoch.parse().ok()?, session.parse().ok()?);
            Some(Registered { key: listed.key, epoch, session })
        })
        .collect())
}

fn put(vault: &Vault, epoch: u64, line: String) -> Result<Slot, Error> {
    let id = SnapshotId::random();
    let key = format!("slot/{epoch:08}/{id}");
    let object = signed::encode(vault, &key, KIND, &[line]);
    match vault.store.put_held(&key, &object)? {
        Some(hold) => Ok(Slot { id, key, forbidden: Segments::new(), hold }),
        // It was put, and ended by another process before that was known here.
        None => Err(Error::Fenced(id)),
    }
}

impl Slot {
    /// Removes the slot.
    pub(crate) fn release(self, vault: &Vault) -> Result<(), Error> {
        let result = vault.store.delete(&self.key);
        drop(self.hold);
        result
    }
}
