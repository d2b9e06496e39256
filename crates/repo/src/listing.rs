//! Listing snapshots: outcomes without the tombstones.

use std::collections::HashSet;
use std::sync::Arc;

use tintype_types::SnapshotId;

use crate::Error;
use crate::error::Damage;
use crate::gone::Deletions;
use crate::record::{MAX_OUTCOME, Outcome, SnapshotRecord, outcome_key};
use crate::store::Listed;
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
    let mut listing = Listing::default();
    let mut outcomes = vault.store.list(PREFIX)?;
    outcomes.retain(|listed| !session_of(&listed.key).is_some_and(|id| deletions.has(id)));
    for outcome in read_listed(vault, &outcomes) {
        match outcome {
            Ok(Outcome::Committed(record)) => listing.records.push(*record),
            Ok(Outcome::Aborted) => {}
            Err(Error::Damaged(damage)) => listing.damaged.push(damage),
            // Removed since it was listed.
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    listing.records.sort_by_key(|record| (record.sequence, record.created, record.id));
    Ok(listing)
}

/// Returns the highest sequence number of all snapshots whose records are
/// there, deleted or not: a deletion may be undone.
pub(crate) fn newest_sequence(vault: &Vault) -> Result<u64, Error> {
    let mut newest = 0;
    for outcome in read_listed(vault, &vault.store.list(PREFIX)?) {
        match outcome {
            Ok(Outcome::Committed(record)) => newest = newest.max(record.sequence),
            Ok(Outcome::Aborted) | Err(Error::Damaged(_) | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newest)
}

/// Returns one snapshot, if it is committed and not deleted.
pub(crate) fn one(vault: &Vault, id: SnapshotId) -> Result<SnapshotRecord, Error> {
    if Deletions::read(vault)?.has(id) {
        return Err(Error::NotFound(format!("snapshot {id}")));
    }
    match read(vault, &outcome_key(id)) {
        Ok(Outcome::Committed(record)) => Ok(*record),
        Ok(Outcome::Aborted) | Err(Error::NotFound(_)) => {
            Err(Error::NotFound(format!("snapshot {id}")))
        }
        Err(error) => Err(error),
    }
}

/// Returns the sessions that were committed, deleted or not.
pub(crate) fn committed(vault: &Vault) -> Result<HashSet<SnapshotId>, Error> {
    let mut committed = HashSet::new();
    for outcome in read_listed(vault, &vault.store.list(PREFIX)?) {
        match outcome {
            Ok(Outcome::Committed(record)) => drop(committed.insert(record.id)),
            Ok(Outcome::Aborted) | Err(Error::Damaged(_) | Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(committed)
}

/// Reads outcomes that were listed just now, so that they are there: what they
/// say never changes, and may be known already.
fn read_listed(vault: &Vault, outcomes: &[Listed]) -> Vec<Result<Outcome, Error>> {
    vault.at_once(outcomes, |listed| read_known(vault, &listed.key))
}

fn read_known(vault: &Vault, key: &str) -> Result<Outcome, Error> {
    let session = session_of(key);
    if let Some(record) = session.and_then(|id| vault.records.get(&id)) {
        return Ok(Outcome::Committed(Box::new(SnapshotRecord::clone(&record))));
    }
    let outcome = vault
        .unchanging(key, MAX_OUTCOME, |bytes| Outcome::decode(&vault.keys, vault.id, key, bytes))?;
    if let (Outcome::Committed(record), Some(id)) = (&outcome, session) {
        let weight = record.details.to_string().len() + 64 * record.images.len();
        vault.records.insert(id, Arc::new(SnapshotRecord::clone(record)), weight);
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
