//! Collecting garbage: removing segments that no snapshot needs.
//!
//! ```text
//! mark ─► ep/n ─► end or wait for sessions older than n ─► end deletions
//!      ─► mark again ─► ep/n.final ─► delete ─► ep/n.done
//! ```
//!
//! Any host may do it, several at once, and it may be killed anywhere: the
//! next call goes on. Clocks play no part. Why it is safe is in
//! `docs/locking.md`; `tests/it/protocol.rs` checks it.

use std::collections::HashSet;

use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::epoch::{self, Segments, Stage};
use crate::gone::{self, Deletions};
use crate::heal;
use crate::index;
use crate::label;
use crate::listing;
use crate::pointer::SegmentName;
use crate::reach;
use crate::record::{Outcome, SnapshotRecord, outcome_key};
use crate::slot;
use crate::store::{Holder, Put};
use crate::supervisor::Supervisor;
use crate::vault::Vault;

/// What a collection has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Segments that were removed, or would be in a dry run.
    pub segments: u64,
    /// Their bytes.
    pub freed_bytes: ByteCount,
    /// Snapshots being taken that have to end before more can be removed; a later
    /// call goes on. 0 when the collection is finished. In a dry run, those that would be waited for.
    pub waiting_for: u64,
}

/// Collects garbage; in a dry run only says what would be removed.
///
/// An epoch that another collector has begun is finished first: what was deleted
/// since then is not in it.
pub(crate) fn collect(
    vault: &Vault,
    dry_run: bool,
    supervisor: &dyn Supervisor,
) -> Result<GcReport, Error> {
    if dry_run {
        let (condemned, _) = mark(vault)?;
        let waiting_for = writers_at_work(vault)?;
        return Ok(GcReport { waiting_for, ..report(vault, &condemned)? });
    }
    heal::watch_sessions(vault, supervisor)?;
    heal::end_dead_sessions(vault)?;
    let mut total = GcReport::default();
    loop {
        supervisor.check()?;
        let (epoch, is_own) = match epoch::newest(vault)? {
            (epoch, Stage::Condemned | Stage::Final) => (epoch, false),
            (epoch, Stage::Done) => match begin(vault, epoch::after(epoch)?)? {
                Some(begun) => begun,
                None => return Ok(total),
            },
        };
        let GcReport { segments, freed_bytes, waiting_for } = finish(vault, epoch, supervisor)?;
        total.segments += segments;
        total.freed_bytes.0 += freed_bytes.0;
        total.waiting_for = waiting_for;
        if is_own || waiting_for > 0 {
            return Ok(total);
        }
    }
}

/// Begins an epoch, unless there is nothing to do; returns it, and whether no
/// other collector was first.
fn begin(vault: &Vault, epoch: u64) -> Result<Option<(u64, bool)>, Error> {
    let (condemned, needless) = mark(vault)?;
    if condemned.is_empty() && !needless {
        return Ok(None);
    }
    let put = epoch::put(vault, epoch, Stage::Condemned, &condemned)?;
    Ok(Some((epoch, put == Put::Created)))
}

/// Does what an epoch still needs, unless sessions have to end before.
fn finish(vault: &Vault, epoch: u64, supervisor: &dyn Supervisor) -> Result<GcReport, Error> {
    let waiting_for = end_older_sessions(vault, epoch)?;
    if waiting_for > 0 {
        return Ok(GcReport { waiting_for, ..GcReport::default() });
    }
    let doomed = finalize(vault, epoch)?;
    let report = report(vault, &doomed)?;
    for segment in &doomed {
        supervisor.check()?;
        vault.store.delete(&segment.key())?;
    }
    forget_collected(vault)?;
    epoch::put(vault, epoch, Stage::Done, &Segments::new())?;
    Ok(report)
}

/// Returns the segments that nothing needs, and whether there are deleted
/// snapshots to forget.
fn mark(vault: &Vault) -> Result<(Segments, bool), Error> {
    // In this order: what is needed was stored before it could be needed.
    let (records, forgettable) = needed_records(vault, Deletions::has)?;
    let needed = reach::segments(vault, &records)?;
    let present = present(vault)?;
    // A listing that lacks what must be there is not to be trusted.
    if let Some(missing) = needed.iter().find(|segment| !present.contains(segment)) {
        return Err(Error::damaged(missing.key(), None, "it is missing"));
    }
    Ok((present.difference(&needed).copied().collect(), forgettable))
}

fn present(vault: &Vault) -> Result<Segments, Error> {
    let listed = vault.store.list("seg/")?;
    Ok(listed.iter().filter_map(|listed| SegmentName::from_key(&listed.key)).collect())
}

/// Returns the snapshots that are not deleted, in one sense or the other, or
/// that someone reads; and whether there are others.
fn needed_records(
    vault: &Vault,
    is_deleted: fn(&Deletions, SnapshotId) -> bool,
) -> Result<(Vec<SnapshotRecord>, bool), Error> {
    let deletions = Deletions::read(vault)?;
    let pinned = pinned(vault)?;
    let mut records = Vec::new();
    let mut forgettable = !vault.store.has_late_writes()
        && deletions.collected().any(|snapshot| !pinned.contains(&snapshot));
    for listed in vault.store.list("outcome/")? {
        let id = listing::session_of(&listed.key);
        if id.is_some_and(|id| is_deleted(&deletions, id) && !pinned.contains(&id)) {
            forgettable = true;
            continue;
        }
        match listing::read(vault, &listed.key) {
            Ok(Outcome::Committed(record)) => records.push(*record),
            // Removed since it was listed.
            Ok(Outcome::Aborted) | Err(Error::NotFound(_)) => {}
            // What a damaged record needs is not known: nothing is removed.
            Err(error) => return Err(error),
        }
    }
    Ok((records, forgettable))
}

/// Returns the sessions of which there is an outcome.
fn recorded(vault: &Vault) -> Result<HashSet<SnapshotId>, Error> {
    let listed = vault.store.list("outcome/")?;
    Ok(listed.iter().filter_map(|listed| listing::session_of(&listed.key)).collect())
}

/// Returns the snapshots that readers have registered for.
fn pinned(vault: &Vault) -> Result<HashSet<SnapshotId>, Error> {
    let mut pinned = HashSet::new();
    for registered in slot::list(vault)? {
        match slot::read_snapshot(vault, &registered.key) {
            Ok(snapshot) => pinned.extend(snapshot),
            // Released since it was listed.
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pinned)
}

/// Ends the dead ones of the writers that may not know of the epoch; returns
/// how many still live.
fn end_older_sessions(vault: &Vault, epoch: u64) -> Result<u64, Error> {
    let mut alive = 0;
    for registered in slot::list(vault)? {
        if registered.epoch >= epoch {
            continue;
        }
        match slot::read_snapshot(vault, &registered.key) {
            Ok(None) => {}
            Ok(Some(_)) | Err(Error::NotFound(_)) => continue,
            Err(error) => return Err(error),
        }
        match vault.store.holder(&registered.key)? {
            Holder::Alive | Holder::Unsure { .. } => alive += 1,
            Holder::Gone => heal::end(vault, registered.session, &registered.key)?,
        }
    }
    Ok(alive)
}

/// Returns how many writers live, of any epoch.
fn writers_at_work(vault: &Vault) -> Result<u64, Error> {
    let mut alive = 0;
    for registered in slot::list(vault)? {
        let is_writer = match slot::read_snapshot(vault, &registered.key) {
            Ok(read) => read.is_none(),
            Err(Error::NotFound(_)) => false,
            Err(error) => return Err(error),
        };
        if is_writer && vault.store.holder(&registered.key)? == Holder::Alive {
            alive += 1;
        }
    }
    Ok(alive)
}

/// Decides what is deleted; from here on nothing is undone.
fn finalize(vault: &Vault, epoch: u64) -> Result<Segments, Error> {
    match epoch::read(vault, epoch, Stage::Final) {
        Err(Error::NotFound(_)) => {}
        result => return result,
    }
    let doomed = decide(vault, epoch)?;
    match epoch::put(vault, epoch, Stage::Final, &doomed)? {
        Put::Created => Ok(doomed),
        Put::Existed => epoch::read(vault, epoch, Stage::Final),
    }
}

/// Ends the open deletions, and returns what was condemned and is not needed.
fn decide(vault: &Vault, epoch: u64) -> Result<Segments, Error> {
    let condemned = epoch::read(vault, epoch, Stage::Condemned)?;
    Deletions::read(vault)?.collect_open(vault)?;
    // A snapshot whose deletion came after that can still be undone.
    let (records, _) = needed_records(vault, Deletions::has_collected)?;
    let needed = reach::segments(vault, &records)?;
    Ok(condemned.difference(&needed).copied().collect())
}

/// Replaces the decision of the epoch under way if that is what is damaged;
/// whether it was.
///
/// Others may still act on the old decision. Nothing in it can be needed again,
/// since nothing new refers to what was condemned until the epoch is done; so
/// they may do different things, and neither harms.
pub(crate) fn decide_again(vault: &Vault, damaged: &str) -> Result<bool, Error> {
    let (epoch, stage) = epoch::newest(vault)?;
    if stage != Stage::Final || damaged != epoch::key(epoch, Stage::Final) {
        return Ok(false);
    }
    match decide(vault, epoch) {
        Ok(doomed) => epoch::replace(vault, damaged, &doomed).map(|()| true),
        Err(Error::Damaged(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the records of snapshots whose content is gone for good.
fn forget_collected(vault: &Vault) -> Result<(), Error> {
    let deletions = Deletions::read(vault)?;
    let pinned = pinned(vault)?;
    // In this order: a snapshot has its record before it has a label.
    let labels = label::numbers(&vault.store.list(label::PREFIX)?);
    let recorded = recorded(vault)?;
    label::forget(vault, &labels, |id| {
        !recorded.contains(&id) || deletions.has_collected(id) && !pinned.contains(&id)
    })?;
    for snapshot in deletions.collected().filter(|snapshot| !pinned.contains(snapshot)) {
        if recorded.contains(&snapshot) {
            vault.store.delete(&index::key(snapshot))?;
            vault.store.delete(&outcome_key(snapshot))?;
        }
        gone::forget(vault, snapshot)?;
    }
    Ok(())
}

fn report(vault: &Vault, segments: &Segments) -> Result<GcReport, Error> {
    let mut report = GcReport::default();
    for listed in vault.store.list("seg/")? {
        if SegmentName::from_key(&listed.key).is_some_and(|name| segments.contains(&name)) {
            report.segments += 1;
            report.freed_bytes.0 += listed.size;
        }
    }
    Ok(report)
}
