//! What all outcomes say together: which snapshots were taken, and where the
//! content of each is now.
//!
//! ```text
//! outcome/<S>   committed: the record of S, version 0 of its places
//! outcome/<C>   moved: version 1 of the places of S, made of version 0
//! outcome/<D>   moved: version 2, made of version 1
//! ```
//!
//! The highest version counts, and of two that were made of the same one, that
//! of the session with the higher id: whoever reads the same outcomes takes the
//! same version. A version that does not count now never will, since outcomes
//! are only added; what is forgotten has one above it.

use std::collections::{BTreeMap, HashMap};

use tintype_types::SnapshotId;

use crate::Error;
use crate::error::Damage;
use crate::listing;
use crate::record::{Moved, NamedImage, Outcome, SnapshotRecord, outcome_key};
use crate::vault::Vault;

/// How often outcomes are listed when each time one goes before it is read.
const ATTEMPTS: usize = 100;

/// Whether what is known of an outcome will do, or it is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    Known,
    Fresh,
}

/// The outcomes of one listing.
#[derive(Debug, Default)]
pub(crate) struct History {
    records: BTreeMap<SnapshotId, SnapshotRecord>,
    /// The versions of a snapshot's places, by their number and session.
    versions: HashMap<SnapshotId, BTreeMap<(u32, SnapshotId), Moved>>,
    /// The snapshots of each move.
    moves: BTreeMap<SnapshotId, Vec<SnapshotId>>,
    /// What cannot be read, by its session.
    pub damaged: BTreeMap<SnapshotId, Damage>,
}

impl History {
    /// Reads all outcomes but those of sessions that are to be left out.
    pub(crate) fn read(
        vault: &Vault,
        reading: Reading,
        leaves_out: impl Fn(SnapshotId) -> bool,
    ) -> Result<Self, Error> {
        let mut vanished = String::new();
        for _ in 0..ATTEMPTS {
            let mut outcomes = listing::outcomes(vault)?;
            outcomes.retain(|(id, _)| !leaves_out(*id));
            let read = vault.at_once(&outcomes, |(_, key)| match reading {
                Reading::Known => listing::read_known(vault, key),
                Reading::Fresh => listing::read(vault, key),
            });
            // What went since it was listed may have been a move that another
            // has followed, which is not listed here.
            let mut all = read.iter().zip(&outcomes);
            match all.find(|(outcome, _)| matches!(outcome, Err(Error::NotFound(_)))) {
                Some((_, (_, key))) => vanished.clone_from(key),
                None => return Self::of(outcomes.into_iter().map(|(id, _)| id).zip(read)),
            }
        }
        Err(Error::damaged(vanished, None, "it is listed and not there"))
    }

    fn of(
        outcomes: impl Iterator<Item = (SnapshotId, Result<Outcome, Error>)>,
    ) -> Result<Self, Error> {
        let mut history = Self::default();
        for (session, outcome) in outcomes {
            match outcome {
                Ok(Outcome::Committed(record)) => _ = history.records.insert(record.id, *record),
                Ok(Outcome::Moved(moved)) => history.add(session, moved),
                Ok(Outcome::Aborted) => {}
                Err(Error::Damaged(damage)) => _ = history.damaged.insert(session, damage),
                Err(error) => return Err(error),
            }
        }
        Ok(history)
    }

    fn add(&mut self, session: SnapshotId, moved: Vec<Moved>) {
        self.moves.insert(session, moved.iter().map(|moved| moved.snapshot).collect());
        for moved in moved {
            let versions = self.versions.entry(moved.snapshot).or_default();
            versions.insert((moved.version, session), moved);
        }
    }

    /// Fails if an outcome is damaged: nobody knows what it may have moved.
    pub(crate) fn must_be_whole(&self) -> Result<(), Error> {
        match self.damaged.values().next() {
            Some(damage) => Err(Error::Damaged(damage.clone())),
            None => Ok(()),
        }
    }

    /// Returns all snapshots, deleted or not.
    pub(crate) fn snapshots(&self) -> impl Iterator<Item = SnapshotId> + '_ {
        self.records.keys().copied()
    }

    /// Returns a snapshot with the places that count; `None` if there is none.
    pub(crate) fn current(&self, id: SnapshotId) -> Result<Option<SnapshotRecord>, Error> {
        let Some(record) = self.records.get(&id) else { return Ok(None) };
        let Some(((_, session), moved)) = self.versions(id).next_back() else {
            return Ok(Some(record.clone()));
        };
        placed(record, *session, moved).map(Some)
    }

    /// Returns a snapshot with the places that do not count any more, as far as
    /// they can be understood.
    pub(crate) fn superseded(&self, id: SnapshotId) -> Vec<SnapshotRecord> {
        let Some(record) = self.records.get(&id) else { return Vec::new() };
        let moved = self.versions(id).map(|((_, session), moved)| placed(record, *session, moved));
        let mut all: Vec<_> = [Ok(record.clone())].into_iter().chain(moved).collect();
        all.pop();
        all.into_iter().flatten().collect()
    }

    /// Returns the sequence numbers of the snapshots that were taken here and never
    /// moved: each is above those of all snapshots that it may refer to. That does not
    /// hold for copies, which keep their order, and for what was mended.
    pub(crate) fn in_sequence(&self) -> HashMap<SnapshotId, u64> {
        let is_sure = |record: &&SnapshotRecord| {
            let is_own = record.origin.is_none() && record.part.is_none();
            is_own && !self.versions.contains_key(&record.id)
        };
        let sure = self.records.values().filter(is_sure);
        sure.map(|record| (record.id, record.sequence)).collect()
    }

    /// Returns the number that the next version of a snapshot's places has.
    pub(crate) fn next_version(&self, id: SnapshotId) -> Result<u32, Error> {
        let newest = self.versions(id).next_back().map_or(0, |((version, _), _)| *version);
        let next = newest.checked_add(1);
        next.ok_or_else(|| Error::Invalid(format!("snapshot {id} was moved too often")))
    }

    /// Returns the moves without which nothing changes: another one counts for
    /// each of their snapshots that is there, and nobody reads it.
    pub(crate) fn needless_moves(
        &self,
        is_gone: impl Fn(SnapshotId) -> bool,
        is_read: impl Fn(SnapshotId) -> bool,
    ) -> Vec<SnapshotId> {
        let counts = |session: SnapshotId, snapshot: SnapshotId| {
            let newest = self.versions(snapshot).next_back();
            newest.is_some_and(|((_, newest), _)| *newest == session)
        };
        let needs = |session: SnapshotId, snapshot: SnapshotId| {
            self.records.contains_key(&snapshot)
                && (is_read(snapshot) || (!is_gone(snapshot) && counts(session, snapshot)))
        };
        let needless = self.moves.iter().filter(|(session, snapshots)| {
            !snapshots.iter().any(|snapshot| needs(**session, *snapshot))
        });
        needless.map(|(session, _)| *session).collect()
    }

    fn versions(
        &self,
        id: SnapshotId,
    ) -> impl DoubleEndedIterator<Item = (&(u32, SnapshotId), &Moved)> {
        self.versions.get(&id).into_iter().flatten()
    }
}

/// Returns a record with its content at other places. They must be of the same
/// images and blobs; that their content is the same nobody can tell from here.
fn placed(
    record: &SnapshotRecord,
    session: SnapshotId,
    moved: &Moved,
) -> Result<SnapshotRecord, Error> {
    let image = |image: &NamedImage| (image.name.clone(), image.root.size);
    let images = record.images.iter().map(image).eq(moved.images.iter().map(image));
    let blobs = record.blobs.iter().map(|(name, blob)| (name, blob.len));
    let blobs = blobs.eq(moved.blobs.iter().map(|(name, blob)| (name, blob.len)));
    if !images || !blobs {
        let reason = "it moves other images than the snapshot has";
        return Err(Error::damaged(outcome_key(session), None, reason));
    }
    let (images, blobs) = (moved.images.clone(), moved.blobs.clone());
    Ok(SnapshotRecord { images, blobs, ..record.clone() })
}
