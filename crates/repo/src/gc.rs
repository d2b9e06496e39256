//! Collecting garbage: removing segments that no snapshot needs.
//!
//! ```text
//! mark ─► ep/n ─► end or wait for sessions older than n ─► end deletions
//!      ─► mark again ─► ep/n.final ─► delete ─► ep/n.done
//! ```
//!
//! Any host may do it, several at once, and it may be killed anywhere: the
//! next call goes on. Clocks play no part: the caller says which deletions are
//! due, and the others are left to be undone. Why it is safe is in
//! `docs/locking.md`; `tests/it/protocol.rs` checks it.

use std::collections::HashSet;

use tintype_types::ByteCount;

use crate::Error;
use crate::compact::CompactionReport;
use crate::epoch::{self, Segments, Stage};
use crate::gone::{self, Deletions, Due};
use crate::heal;
use crate::index;
use crate::label;
use crate::listing;
use crate::mark::{self, Needed};
use crate::pointer::SegmentName;
use crate::record::outcome_key;
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
    /// Deleted snapshots that can be put back and do not tell all that they need, being
    /// damaged: what was stored before them was left, whoever needs it.
    pub damaged_deleted: u64,
    /// What was moved, so that the segments that it was in could be removed.
    pub compaction: CompactionReport,
    /// What was compressed again, and moved for that.
    pub recompression: CompactionReport,
}

impl GcReport {
    /// Adds what was collected while something was moved; returns what was.
    pub(crate) fn add(&mut self, more: Self) -> CompactionReport {
        self.segments += more.segments;
        self.freed_bytes.0 += more.freed_bytes.get();
        self.waiting_for = more.waiting_for;
        more.compaction
    }
}

/// How to collect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Collection<'c> {
    pub dry_run: bool,
    pub due: &'c Due,
}

/// Collects garbage; in a dry run only says what would be removed.
///
/// An epoch that another collector has begun is finished first: what was deleted
/// since then is not in it.
pub(crate) fn collect(
    vault: &Vault,
    Collection { dry_run, due }: Collection<'_>,
    supervisor: &dyn Supervisor,
) -> Result<GcReport, Error> {
    if dry_run {
        let Garbage { condemned, damaged_deleted, .. } = mark(vault, due)?;
        let waiting_for = writers_at_work(vault)?;
        return Ok(GcReport { waiting_for, damaged_deleted, ..report(vault, &condemned)? });
    }
    heal::watch_sessions(vault, supervisor)?;
    heal::end_dead_sessions(vault)?;
    let mut total = GcReport::default();
    loop {
        supervisor.check()?;
        let (epoch, is_own) = match epoch::newest(vault)? {
            (epoch, Stage::Condemned | Stage::Final) => (epoch, false),
            (epoch, Stage::Done) => {
                let garbage = mark(vault, due)?;
                total.damaged_deleted = garbage.damaged_deleted;
                match begin(vault, epoch::after(epoch)?, &garbage)? {
                    Some(begun) => begun,
                    None => break,
                }
            }
        };
        let GcReport { segments, freed_bytes, waiting_for, .. } =
            finish(vault, epoch, due, supervisor)?;
        total.segments += segments;
        total.freed_bytes.0 += freed_bytes.0;
        total.waiting_for = waiting_for;
        if is_own || waiting_for > 0 {
            break;
        }
    }
    forget_strays(vault)?;
    Ok(total)
}

/// Begins an epoch, unless there is nothing to do; returns it, and whether no
/// other collector was first.
fn begin(vault: &Vault, epoch: u64, garbage: &Garbage) -> Result<Option<(u64, bool)>, Error> {
    if garbage.condemned.is_empty() && !garbage.forgettable {
        return Ok(None);
    }
    let put = epoch::put(vault, epoch, Stage::Condemned, &garbage.condemned)?;
    Ok(Some((epoch, put == Put::Created)))
}

/// Does what an epoch still needs, unless sessions have to end before.
fn finish(
    vault: &Vault,
    epoch: u64,
    due: &Due,
    supervisor: &dyn Supervisor,
) -> Result<GcReport, Error> {
    let waiting_for = end_older_sessions(vault, epoch)?;
    if waiting_for > 0 {
        return Ok(GcReport { waiting_for, ..GcReport::default() });
    }
    let doomed = finalize(vault, epoch, due)?;
    let report = report(vault, &doomed)?;
    for segment in &doomed {
        supervisor.check()?;
        vault.store.delete(&segment.key())?;
    }
    end_needless_moves(vault)?;
    forget_collected(vault)?;
    epoch::put(vault, epoch, Stage::Done, &Segments::new())?;
    Ok(report)
}

/// What can go.
struct Garbage {
    /// The segments that nothing needs but what is due.
    condemned: Segments,
    /// Whether there are deleted snapshots or old moves to forget.
    forgettable: bool,
    damaged_deleted: u64,
}

fn mark(vault: &Vault, due: &Due) -> Result<Garbage, Error> {
    // In this order: what is needed was stored before it could be needed.
    let needed = Needed::read(vault, |deletions, id| deletions.has_due(id, due))?;
    let forgettable = needed.forgettable;
    let marked = needed.segments(vault)?;
    let present = mark::present(vault)?;
    // A listing that lacks what must be there is not to be trusted.
    if let Some(missing) = marked.missing(&present) {
        return Err(Error::damaged(missing.key(), None, "it is missing"));
    }
    let condemned = present.into_iter().filter(|segment| !marked.keeps(segment)).collect();
    Ok(Garbage { condemned, forgettable, damaged_deleted: marked.damaged })
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
fn finalize(vault: &Vault, epoch: u64, due: &Due) -> Result<Segments, Error> {
    match epoch::read(vault, epoch, Stage::Final) {
        Err(Error::NotFound(_)) => {}
        result => return result,
    }
    Deletions::read(vault)?.collect_due(vault, due)?;
    let doomed = decide(vault, epoch)?;
    match epoch::put(vault, epoch, Stage::Final, &doomed)? {
        Put::Created => Ok(doomed),
        Put::Existed => epoch::read(vault, epoch, Stage::Final),
    }
}

/// Returns what was condemned and is not needed. A snapshot whose deletion is open
/// can still be undone.
fn decide(vault: &Vault, epoch: u64) -> Result<Segments, Error> {
    let condemned = epoch::read(vault, epoch, Stage::Condemned)?;
    let marked = Needed::read(vault, Deletions::has_collected)?.segments(vault)?;
    Ok(condemned.into_iter().filter(|segment| !marked.keeps(segment)).collect())
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

/// Ends the moves that others have followed, like deleted snapshots.
fn end_needless_moves(vault: &Vault) -> Result<(), Error> {
    match Needed::read(vault, Deletions::has_collected) {
        Ok(needed) => needed.needless_moves.iter().try_for_each(|id| gone::collect(vault, *id)),
        // Which they are is not known; a later call does it.
        Err(Error::Damaged(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Removes the outcomes of snapshots whose content is gone for good, and of moves
/// that others have followed. One whose session has still a slot is left: who
/// ends a session without an outcome takes it for one that never had any.
fn forget_collected(vault: &Vault) -> Result<(), Error> {
    let deletions = Deletions::read(vault)?;
    let mut at_work = mark::read_by_others(vault)?;
    let labels = label::numbers(&vault.store.list(label::PREFIX)?);
    let outcomes = listing::outcomes(vault)?;
    let recorded: HashSet<_> = outcomes.into_iter().map(|(session, _)| session).collect();
    label::forget(vault, &labels, |id| deletions.has_collected(id) && !at_work.contains(&id))?;
    at_work.extend(slot::list(vault)?.into_iter().map(|registered| registered.session));
    let forgettable: Vec<_> =
        deletions.collected().filter(|session| !at_work.contains(session)).collect();
    if !forgettable.is_empty() {
        // A slot that comes back with the next power loss would be of a session
        // without an outcome.
        vault.store.settle("slot")?;
    }
    for session in forgettable {
        if recorded.contains(&session) {
            vault.store.delete(&index::key(session))?;
            vault.store.delete(&outcome_key(session))?;
        }
        gone::forget(vault, session)?;
    }
    Ok(())
}

/// Removes labels of what is no snapshot: puts that took effect after theirs was forgotten.
fn forget_strays(vault: &Vault) -> Result<(), Error> {
    // In this order: a session has registered before a label is put for it, and leaves
    // after its outcome was.
    let labels = label::numbers(&vault.store.list(label::PREFIX)?);
    if labels.is_empty() {
        return Ok(());
    }
    let at_work: HashSet<_> = slot::list(vault)?.into_iter().map(|slot| slot.session).collect();
    let outcomes = listing::outcomes(vault)?;
    let recorded: HashSet<_> = outcomes.into_iter().map(|(session, _)| session).collect();
    label::forget(vault, &labels, |id| !recorded.contains(&id) && !at_work.contains(&id))
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
