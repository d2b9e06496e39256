//! Listing snapshots: outcomes without the tombstones.

use tintype_types::SnapshotId;

use crate::Error;
use crate::error::Damage;
use crate::gone::Deletions;
use crate::record::{MAX_OUTCOME, Outcome, SnapshotRecord, outcome_key};
use crate::vault::Vault;

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
    for listed in vault.store.list("outcome/")? {
        let session = listed.key.strip_prefix("outcome/").expect("the prefix was asked for");
        if session.parse().is_ok_and(|id| deletions.has(id)) {
            continue;
        }
        match read(vault, &listed.key) {
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
    for listed in vault.store.list("outcome/")? {
        match read(vault, &listed.key) {
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

/// Reads an outcome.
pub(crate) fn read(vault: &Vault, key: &str) -> Result<Outcome, Error> {
    let bytes = vault.store.get(key, MAX_OUTCOME)?;
    Outcome::decode(&vault.keys, vault.id, key, &bytes)
}
