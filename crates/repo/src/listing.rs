//! Listing snapshots: outcomes without the tombstones.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tintype_types::SnapshotId;

use crate::Error;
use crate::error::Damage;
use crate::gone::Deletions;
use crate::history::{History, Reading};
use crate::record::{MAX_OUTCOME, Outcome, SnapshotRecord};
use crate::vault::Vault;

const PREFIX: &str = "outcome/";

/// The snapshots of a repository.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// Those whose records are good, oldest first.
    pub records: Vec<SnapshotRecord>,
    /// The records that cannot be read; they hide no other snapshot.
    pub damaged: Vec<Damage>,
}

/// Lists all snapshots that are not deleted.
pub(crate) fn list(vault: &Vault) -> Result<Listing, Error> {
    let deletions = Deletions::read(vault)?;
    list_without(vault, |id| deletions.has(id))
}

/// Lists all snapshots, also those that are deleted and can be put back; says which
/// these are.
pub(crate) fn list_with_trash(vault: &Vault) -> Result<(Listing, HashSet<SnapshotId>), Error> {
    let deletions = Deletions::read(vault)?;
    let listing = list_without(vault, |id| deletions.has_collected(id))?;
    let ids = listing.records.iter().map(|record| record.id);
    let deleted = ids.filter(|id| deletions.has(*id)).collect();
    Ok((listing, deleted))
}

fn list_without(vault: &Vault, leaves_out: impl Fn(SnapshotId) -> bool) -> Result<Listing, Error> {
    let history = History::read(vault, Reading::Known, leaves_out)?;
    let mut listing = Listing::default();
    for id in history.snapshots() {
        match history.current(id) {
            Ok(record) => listing.records.extend(record),
            Err(Error::Damaged(damage)) => {
                listing.damaged.push(Damage { snapshots: vec![id], ..damage });
            }
            Err(error) => return Err(error),
        }
    }
    listing.damaged.extend(history.damaged.into_values());
    listing.records.sort_by_key(|record| (record.sequence, record.created, record.id));
    Ok(listing)
}

/// Returns what is there of copies that were not finished.
pub(crate) fn parts(vault: &Vault) -> Result<Vec<SnapshotRecord>, Error> {
    let deletions = Deletions::read(vault)?;
    let mut outcomes = outcomes(vault)?;
    outcomes.retain(|(id, _)| deletions.has_collected(*id));
    let mut parts = Vec::new();
    for outcome in vault.at_once(&outcomes, |(_, key)| read_known(vault, key)) {
        match outcome {
            Ok(Outcome::Committed(record)) if record.part.is_some() => parts.push(*record),
            Ok(_) | Err(Error::Damaged(_) | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(parts)
}

/// Returns the highest sequence number of all snapshots whose records are
/// there, deleted or not: a deletion may be undone.
pub(crate) fn newest_sequence(vault: &Vault) -> Result<u64, Error> {
    let mut newest = 0;
    for (_, outcome) in read_all(vault)? {
        match outcome {
            Ok(Outcome::Committed(record)) => newest = newest.max(record.sequence),
            Ok(Outcome::Moved(_) | Outcome::Aborted)
            | Err(Error::Damaged(_) | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

/// Returns one snapshot, if it is committed and not deleted.
pub(crate) fn one(vault: &Vault, id: SnapshotId) -> Result<SnapshotRecord, Error> {
    let deletions = Deletions::read(vault)?;
    if deletions.has(id) {
        return Err(Error::NotFound(format!("snapshot {id}")));
    }
    let mut history = History::read(vault, Reading::Known, |id| deletions.has(id))?;
    match (history.current(id)?, history.damaged.remove(&id)) {
        (Some(record), _) => Ok(record),
        (None, Some(damage)) => Err(Error::Damaged(damage)),
        (None, None) => Err(Error::NotFound(format!("snapshot {id}"))),
    }
}

/// Returns the sessions that were committed, with a snapshot or a move, deleted
/// or not.
pub(crate) fn committed(vault: &Vault) -> Result<HashSet<SnapshotId>, Error> {
    let mut committed = HashSet::new();
    for (session, outcome) in read_all(vault)? {
        match outcome {
            Ok(Outcome::Committed(_) | Outcome::Moved(_)) => drop(committed.insert(session)),
            Ok(Outcome::Aborted) | Err(Error::Damaged(_) | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(committed)
}

/// Lists the sessions that have an outcome, each with its key.
pub(crate) fn outcomes(vault: &Vault) -> Result<Vec<(SnapshotId, String)>, Error> {
    let listed = vault.store.list(PREFIX)?.into_iter();
    Ok(listed.filter_map(|listed| Some((session_of(&listed.key)?, listed.key))).collect())
}

type Read = Result<Outcome, Error>;

fn read_all(vault: &Vault) -> Result<impl Iterator<Item = (SnapshotId, Read)>, Error> {
    let outcomes = outcomes(vault)?;
    let read = vault.at_once(&outcomes, |(_, key)| read_known(vault, key));
    Ok(outcomes.into_iter().map(|(session, _)| session).zip(read))
}

/// Reads an outcome that was listed just now, so that it is there: what it says
/// never changes, and may be known already.
pub(crate) fn read_known(vault: &Vault, key: &str) -> Result<Outcome, Error> {
    let session = session_of(key);
    if let Some(outcome) = session.and_then(|id| vault.outcomes.get(&id)) {
        return Ok(Outcome::clone(&outcome));
    }
    let len = AtomicUsize::new(0);
    let outcome = vault.unchanging(key, MAX_OUTCOME, |bytes| {
        len.store(bytes.len(), Relaxed);
        Outcome::decode(&vault.keys, vault.id, key, bytes)
    })?;
    if let (Outcome::Committed(_) | Outcome::Moved(_), Some(id)) = (&outcome, session) {
        vault.outcomes.insert(id, Arc::new(outcome.clone()), len.into_inner());
    }
    Ok(outcome)
}

/// Returns the session of an outcome's key.
pub(crate) fn session_of(key: &str) -> Option<SnapshotId> {
    key.strip_prefix(PREFIX)?.parse().ok()
}

/// Reads an outcome, as it is now.
pub(crate) fn read(vault: &Vault, key: &str) -> Result<Outcome, Error> {
    let bytes = vault.store.get(key, MAX_OUTCOME)?;
    Outcome::decode(&vault.keys, vault.id, key, &bytes)
}
