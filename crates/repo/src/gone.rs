//! Deleted snapshots: tombstones, and what became of them.
//!
//! ```text
//! gone/<snapshot>-<n>        the n-th deletion of a snapshot: when it was deleted
//! gone/<snapshot>-<n>.end    "undone" or "collected", whichever was put first
//! gone/<session>-0.end       "collected": the session moved content, and others
//!                            have moved it on
//! ```
//!
//! A snapshot is gone while a deletion has no end or was collected. A deletion
//! and its undoing are one write each, so neither can be half done, and undo
//! and collection cannot both win.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::Timestamp;
use tintype_types::SnapshotId;

use crate::Error;
use crate::listing;
use crate::record::{Outcome, SnapshotRecord, outcome_key};
use crate::signed;
use crate::store::Put;
use crate::vault::Vault;

/// What its objects are signed as.
pub(crate) const KIND: &str = "gone";
const UNDONE: &str = "undone";
const COLLECTED: &str = "collected";

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Open,
    Undone,
    Collected,
}

/// The open deletions that a collection ends. Which of them have waited long enough
/// is for the caller to say: no clock is looked at here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Due {
    /// All, also those that come while it is under way.
    #[default]
    All,
    /// These, as [`Deleted`] names them, and no others.
    Only(HashSet<(SnapshotId, u32)>),
}

impl Due {
    fn has(&self, snapshot: SnapshotId, number: u32) -> bool {
        match self {
            Self::All => true,
            Self::Only(these) => these.contains(&(snapshot, number)),
        }
    }
}

/// All deletions of a repository.
#[derive(Debug, Default)]
pub(crate) struct Deletions {
    by_snapshot: HashMap<SnapshotId, BTreeMap<u32, End>>,
}

impl Deletions {
    pub(crate) fn read(vault: &Vault) -> Result<Self, Error> {
        let mut deletions = Self::default();
        let listed = vault.store.list("gone/")?;
        let ends = vault.at_once(&listed, |listed| match listed.key.ends_with(".end") {
            true => read_end(vault, &listed.key).map(Some),
            false => Ok(None),
        });
        for (listed, end) in listed.iter().zip(ends) {
            let name = &listed.key["gone/".len()..];
            let name = name.strip_suffix(".end").unwrap_or(name);
            let Some((snapshot, number)) = parse(name) else { continue };
            let of_snapshot = deletions.by_snapshot.entry(snapshot).or_default();
            let known = of_snapshot.entry(number).or_insert(End::Open);
            if let Some(end) = end? {
                *known = end;
            }
        }
        Ok(deletions)
    }

    /// Whether a snapshot is deleted.
    pub(crate) fn has(&self, snapshot: SnapshotId) -> bool {
        self.by_snapshot
            .get(&snapshot)
            .is_some_and(|ends| ends.values().any(|end| *end != End::Undone))
    }

    /// Whether a snapshot is deleted for good.
    pub(crate) fn has_collected(&self, snapshot: SnapshotId) -> bool {
        self.by_snapshot
            .get(&snapshot)
            .is_some_and(|ends| ends.values().any(|end| *end == End::Collected))
    }

    /// Whether a snapshot is deleted for good, or will be when what is due is ended.
    pub(crate) fn has_due(&self, snapshot: SnapshotId, due: &Due) -> bool {
        self.by_snapshot.get(&snapshot).is_some_and(|ends| {
            ends.iter().any(|(number, end)| match end {
                End::Collected => true,
                End::Open => due.has(snapshot, *number),
                End::Undone => false,
            })
        })
    }

    /// Returns the deletions that can still be undone.
    fn open(&self) -> impl Iterator<Item = (SnapshotId, u32)> + '_ {
        self.by_snapshot.iter().flat_map(|(snapshot, ends)| {
            let open = ends.iter().filter(|(_, end)| **end == End::Open);
            open.map(|(number, _)| (*snapshot, *number))
        })
    }

    /// Returns the snapshots whose content nobody can ask for again.
    pub(crate) fn collected(&self) -> impl Iterator<Item = SnapshotId> + '_ {
        self.by_snapshot.keys().copied().filter(|snapshot| self.has_collected(*snapshot))
    }

    /// Ends the open deletions that are due for good; some may be undone before.
    pub(crate) fn collect_due(&self, vault: &Vault, due: &Due) -> Result<(), Error> {
        for (snapshot, number) in self.open().filter(|(id, number)| due.has(*id, *number)) {
            put_end(vault, snapshot, number, COLLECTED)?;
        }
        Ok(())
    }
}

/// Marks the outcome of a session that moved content as one to forget, as if it
/// were a collected snapshot: nobody can undo what was never a deletion.
pub(crate) fn collect(vault: &Vault, session: SnapshotId) -> Result<(), Error> {
    put_end(vault, session, 0, COLLECTED).map(drop)
}

/// Whether a snapshot was ever deleted, as far as that is not forgotten.
pub(crate) fn is_known(vault: &Vault, snapshot: SnapshotId) -> Result<bool, Error> {
    Ok(!vault.store.list(&format!("gone/{snapshot}-"))?.is_empty())
}

/// Deletes snapshots. Deleting one twice is one deletion. What is deleted at the
/// same instant is one act.
pub(crate) fn delete(vault: &Vault, ids: &[SnapshotId], at: Timestamp) -> Result<(), Error> {
    let deletions = Deletions::read(vault)?;
    for snapshot in ids.iter().filter(|id| !deletions.has(**id)) {
        let undone = deletions.by_snapshot.get(snapshot).map_or(0, BTreeMap::len);
        let number =
            u32::try_from(undone).map_err(|_| Error::Invalid("deleted too often".into()))?;
        let key = key(*snapshot, number);
        let object = signed::encode(vault, &key, KIND, &[at.to_string()]);
        vault.store.put_if_absent(&key, &object)?;
    }
    Ok(())
}

/// Deletes for good a snapshot that is not there yet, so that nobody will see it.
pub(crate) fn delete_beforehand(vault: &Vault, snapshot: SnapshotId) -> Result<(), Error> {
    // In this order there is no deletion that could be undone. An end without a
    // deletion means nothing.
    put_end(vault, snapshot, 0, COLLECTED)?;
    let key = key(snapshot, 0);
    let object = signed::encode(vault, &key, KIND, &[Timestamp::now().to_string()]);
    vault.store.put_if_absent(&key, &object).map(drop)
}

/// A snapshot that is deleted, and whose deletion can be undone.
#[derive(Debug, Clone, PartialEq)]
pub struct Deleted {
    /// Its id.
    pub id: SnapshotId,
    /// The number of its deletion: it may have been deleted before, and put back.
    pub number: u32,
    /// When it was deleted, by the clock of who did; `None` if that cannot be read.
    pub at: Option<Timestamp>,
    /// The snapshot; `None` if its record cannot be read.
    pub record: Option<SnapshotRecord>,
}

/// Returns what is deleted and can still be undone, the newest deletion first.
pub(crate) fn undoable(vault: &Vault) -> Result<Vec<Deleted>, Error> {
    let deletions = Deletions::read(vault)?;
    let open: Vec<_> = deletions.open().filter(|(id, _)| !deletions.has_collected(*id)).collect();
    let read = |(id, number): &(SnapshotId, u32)| {
        let at = read_instant(vault, &key(*id, *number))?;
        match listing::read_known(vault, &outcome_key(*id)) {
            Ok(Outcome::Committed(record)) => {
                Ok(Some(Deleted { id: *id, number: *number, at, record: Some(*record) }))
            }
            Err(Error::Damaged(_)) => {
                Ok(Some(Deleted { id: *id, number: *number, at, record: None }))
            }
            // Forgotten since it was listed, or of nothing.
            Ok(Outcome::Aborted | Outcome::Moved(_)) | Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    };
    let found = vault.at_once(&open, read).into_iter().collect::<Result<Vec<_>, Error>>()?;
    let mut found: Vec<_> = found.into_iter().flatten().collect();
    found.sort_by_key(|deleted| (Reverse(deleted.at), deleted.id));
    Ok(found)
}

/// Undoes the deletion of a snapshot, unless it was collected.
pub(crate) fn undo(vault: &Vault, snapshot: SnapshotId) -> Result<(), Error> {
    let deletions = Deletions::read(vault)?;
    let ends = deletions.by_snapshot.get(&snapshot);
    let last = ends.and_then(BTreeMap::last_key_value);
    match last {
        None | Some((_, End::Undone)) => Ok(()),
        Some((number, End::Open)) if put_end(vault, snapshot, *number, UNDONE)? == End::Undone => {
            Ok(())
        }
        Some(_) => Err(Error::NotFound(format!("the content of snapshot {snapshot}"))),
    }
}

/// Removes all traces of a collected snapshot. The outcome has to be gone, and
/// must not come back: where a put may arrive late, they stay for ever.
pub(crate) fn forget(vault: &Vault, snapshot: SnapshotId) -> Result<(), Error> {
    if vault.store.has_late_writes() {
        return Ok(());
    }
    let prefix = format!("gone/{snapshot}-");
    // Deletions before their ends: a deletion without an end is one more that
    // hides the snapshot, an end without a deletion means nothing.
    let mut keys: Vec<_> = vault.store.list(&prefix)?.into_iter().map(|l| l.key).collect();
    keys.sort_by_key(|key| key.ends_with(".end"));
    keys.iter().try_for_each(|key| vault.store.delete(key))
}

/// Replaces an object that cannot be read by what it is taken for: a deletion of
/// now, so that it is not due early, and an end that is none.
pub(crate) fn settle(vault: &Vault, key: &str) -> Result<bool, Error> {
    let line = match key.ends_with(".end") {
        true => UNDONE.to_owned(),
        false => Timestamp::now().to_string(),
    };
    vault.store.replace(key, &signed::encode(vault, key, KIND, &[line])).map(|()| true)
}

fn put_end(vault: &Vault, snapshot: SnapshotId, number: u32, end: &str) -> Result<End, Error> {
    let key = format!("{}.end", key(snapshot, number));
    let object = signed::encode(vault, &key, KIND, &[end.to_owned()]);
    match vault.store.put_if_absent(&key, &object)? {
        Put::Created if end == UNDONE => Ok(End::Undone),
        Put::Created => Ok(End::Collected),
        Put::Existed => read_end(vault, &key),
    }
}

fn read_end(vault: &Vault, key: &str) -> Result<End, Error> {
    let lines = match signed::read_unchanging(vault, key, KIND) {
        // Only what was collected is forgotten, its outcome before its end.
        Err(Error::NotFound(_)) => return Ok(End::Collected),
        // Nothing is lost by a snapshot that comes back, even if it is not all
        // there any more; by one that is taken for collected, all is.
        Err(Error::Damaged(damage)) => {
            tracing::warn!(%damage, "a deletion is taken for undone");
            return Ok(End::Undone);
        }
        lines => lines?,
    };
    match lines.as_slice() {
        [line] if line == UNDONE => Ok(End::Undone),
        [line] if line == COLLECTED => Ok(End::Collected),
        _ => Err(Error::damaged(key, None, "it cannot be understood")),
    }
}

/// Reads when a snapshot was deleted; `None` if that cannot be read.
fn read_instant(vault: &Vault, key: &str) -> Result<Option<Timestamp>, Error> {
    match signed::read_unchanging(vault, key, KIND) {
        Ok(lines) => Ok(lines.first().and_then(|line| line.parse().ok())),
        // Forgotten since it was listed.
        Err(Error::NotFound(_)) => Ok(None),
        Err(Error::Damaged(damage)) => {
            tracing::warn!(%damage, "when a snapshot was deleted is not known");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn key(snapshot: SnapshotId, number: u32) -> String {
    format!("gone/{snapshot}-{number}")
}

/// Reads the name of a deletion.
pub(crate) fn parse(name: &str) -> Option<(SnapshotId, u32)> {
    let (snapshot, number) = name.split_once('-')?;
    Some((snapshot.parse().ok()?, number.parse().ok()?))
}
