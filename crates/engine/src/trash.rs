//! The trash: what is deleted and can be put back. Lists it, puts single snapshots
//! back, and frees what has waited there for its grace.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use tintype_repo::{
    Deleted, Due, GcParams, Kind, RecompressionParams, Repository, Skipped, TrashShares,
};
use tintype_types::{ByteCount, SnapshotId, VmName};

use crate::Engine;
use crate::details::{Snapshot, SnapshotReport};
use crate::error::{DAMAGE_HINT, Error, Result};
use crate::grace::{Calendar, Wait};
use crate::operations::Times;

/// A snapshot that is deleted and can be put back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeletedSnapshot {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotReport,
    /// When it was deleted, by the clock of who did.
    pub deleted: Option<Timestamp>,
    /// Until when a collection leaves it, if it is not told otherwise; `None` if
    /// when it was deleted is not known.
    pub kept_until: Option<Timestamp>,
    /// The stored bytes that nobody else needs, deleted or not; `None` if maps are
    /// damaged.
    pub exclusive_bytes: Option<ByteCount>,
}

/// What waits in the trash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TrashReport {
    /// How many deleted snapshots.
    pub snapshots: usize,
    /// The stored bytes that they alone need; `None` if maps are damaged.
    pub bytes: Option<ByteCount>,
    /// When the first of them goes, with the first collection after that.
    pub until: Option<Timestamp>,
    /// How many stay although their time is over, since the clock may have jumped.
    pub doubted: usize,
}

/// What to free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CollectionParams {
    /// Only say what would be freed.
    pub dry_run: bool,
    /// Whether what is deleted goes at once, without its grace.
    pub now: bool,
    /// Whether what was compressed fast is compressed again, to be smaller.
    pub recompress: bool,
}

/// What a collection has freed, or would free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CollectionReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Segments that were removed.
    pub segments: u64,
    /// How many bytes fewer the repository has; in a dry run as far as it can be
    /// told beforehand.
    pub freed_bytes: ByteCount,
    /// Snapshots being taken that have to end first.
    pub waiting_for: u64,
    /// Segments of which little was needed, that were emptied first.
    pub compacted_segments: u64,
    /// Segments that were compressed again, and so emptied too.
    pub recompressed_segments: u64,
    /// Why others were not.
    pub not_compacted: Option<NotCompacted>,
    /// Deleted snapshots that are damaged and do not tell all that they need: what was
    /// stored before them was left for them, whoever else needs it.
    pub damaged_deleted: u64,
    /// What can still be put back.
    pub trash: TrashReport,
}

/// Why segments were not emptied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NotCompacted {
    /// There is no room for what is moved.
    NoSpace,
    /// Something is damaged.
    Damaged,
}

impl Engine {
    /// Lists what is deleted and can be put back, of a VM or of all, the newest
    /// deletion first.
    pub fn deleted(&self, vm: Option<&VmName>) -> Result<Vec<DeletedSnapshot>> {
        let repository = self.repository()?;
        let deleted = deletions(&repository)?;
        let reckoning = self.reckoning(&repository, &deleted)?;
        let waits: HashMap<SnapshotId, Option<Timestamp>> =
            deleted.iter().map(|one| (one.id, reckoning.kept_until(one))).collect();
        let shares = self.trash_shares(&repository, &deleted, &nothing());
        let id = vm.and_then(|vm| self.vm_state(vm).ok()).map(|state| state.id);
        let is_of = |snapshot: &Snapshot| match (vm, id) {
            (_, Some(id)) => snapshot.record.vm == id,
            (Some(vm), None) => snapshot.record.vm_name == *vm,
            (None, None) => true,
        };
        let mut found = self.in_trash(&repository, deleted)?;
        found.retain(|(snapshot, _)| is_of(snapshot));
        let alone = |snapshot: &Snapshot| shares.as_ref()?.alone.get(&snapshot.record.id).copied();
        let listed = found.into_iter().map(|(snapshot, deleted)| DeletedSnapshot {
            exclusive_bytes: alone(&snapshot),
            kept_until: waits.get(&snapshot.record.id).copied().flatten(),
            snapshot: snapshot.report(),
            deleted,
        });
        Ok(listed.collect())
    }

    /// Returns the snapshots that are deleted, with what was said of them, and when
    /// each was.
    pub(crate) fn in_trash(
        &self,
        repository: &Repository,
        deleted: Vec<Deleted>,
    ) -> Result<Vec<(Snapshot, Option<Timestamp>)>> {
        let labels = repository.labels().map_err(Error::step("cannot list what is deleted"))?;
        let mut found = Vec::new();
        for Deleted { id, at, record, .. } in deleted {
            let Some(snapshot) = record.and_then(|record| Snapshot::read(record).ok()) else {
                let notice = format!("the record of a deleted snapshot cannot be read: {id}");
                self.config.observer.notice(&notice);
                continue;
            };
            let label = labels.of.get(&id);
            found.push((label.map_or(snapshot.clone(), |label| snapshot.labelled(label)), at));
        }
        Ok(found)
    }

    /// Frees what no snapshot needs, and of what is deleted that whose grace is over;
    /// in a dry run only says what that is.
    pub fn collect_garbage(&self, params: CollectionParams) -> Result<CollectionReport> {
        let CollectionParams { dry_run, now, recompress } = params;
        let repository = self.repository()?;
        let due = if now { Due::All } else { self.due(&repository, dry_run)? };
        let mut collection = GcParams::default();
        (collection.dry_run, collection.due) = (dry_run, due.clone());
        collection.recompression = recompress.then(RecompressionParams::default);
        let collected = repository.gc(collection, &self.supervisor("collecting"));
        let report = collected.map_err(|error| self.not_collected(&repository, error))?;
        let (compaction, recompression) = (report.compaction, report.recompression);
        let both = [compaction, recompression];
        let gain: u64 = both.iter().map(|moved| moved.gain_bytes.get()).sum();
        let written = both.iter().map(|moved| moved.written_bytes.get()).sum();
        let emptied: u64 = both.iter().map(|moved| moved.segments).sum();
        let freed = report.freed_bytes.get() + gain;
        let freed_bytes = ByteCount(freed.saturating_sub(written));
        if !dry_run && report.segments > 0 {
            self.log_operation(&repository, "gc", format!("freed {freed_bytes}"), None);
        }
        let gone = if dry_run { due } else { nothing() };
        Ok(CollectionReport {
            dry_run,
            segments: report.segments + if dry_run { emptied } else { 0 },
            freed_bytes,
            waiting_for: report.waiting_for,
            damaged_deleted: report.damaged_deleted,
            compacted_segments: compaction.segments,
            recompressed_segments: recompression.segments,
            not_compacted: recompression.skipped.or(compaction.skipped).map(
                |skipped| match skipped {
                    Skipped::NoSpace => NotCompacted::NoSpace,
                    Skipped::Damaged => NotCompacted::Damaged,
                },
            ),
            trash: self.trash(&repository, &gone)?,
        })
    }

    fn not_collected(&self, repository: &Repository, error: tintype_repo::Error) -> Error {
        let is_damage = error.kind() == Kind::Damaged;
        let failed = Error::failed("cannot collect garbage")
            .because(error)
            .state("what snapshots need is where it was");
        let has_trash = repository.deleted().is_ok_and(|deleted| !deleted.is_empty());
        match is_damage && has_trash {
            true => failed.hint(format!(
                "{DAMAGE_HINT}; if it is of a snapshot that is deleted, `tintype gc --now` goes on without it"
            )),
            false => failed,
        }
    }

    /// Returns the deletions whose grace is over. One that is only over if the clock
    /// has not jumped is not; but then the time now is left in the log, for the next.
    fn due(&self, repository: &Repository, dry_run: bool) -> Result<Due> {
        let deleted = deletions(repository)?;
        let reckoning = self.reckoning(repository, &deleted)?;
        let waits: Vec<_> = deleted.iter().map(|one| (one, reckoning.wait(one))).collect();
        let doubted = waits.iter().filter(|(_, wait)| matches!(wait, Wait::Doubted(_))).count();
        let ahead = waits.iter().filter(|(_, wait)| matches!(wait, Wait::Ahead(_)));
        let ahead: Vec<&Deleted> = ahead.map(|(one, _)| *one).collect();
        let is_new = ahead.iter().any(|one| !reckoning.times.have_met(one));
        let is_news = reckoning.calendar.is_news() && doubted + ahead.len() > 0;
        if (is_new || is_news) && !dry_run {
            let met = ahead.iter().map(|one| (one.id, one.number)).collect();
            self.log_kept(repository, kept(doubted, ahead.len()), met);
        }
        let over = waits.iter().filter(|(_, wait)| *wait == Wait::Over);
        Ok(Due::Only(over.map(|(one, _)| (one.id, one.number)).collect()))
    }

    /// Reads the times of what is known to have happened.
    fn reckoning(&self, repository: &Repository, deleted: &[Deleted]) -> Result<Reckoning> {
        let (now, grace) = (self.now(), self.config.grace);
        let simple = Calendar::new(now, grace, []);
        // Whatever happened, what waits for its time is not due.
        let matters = |at: Timestamp| simple.end(at) <= now || simple.is_ahead(at);
        if !deleted.iter().any(|one| one.at.is_some_and(matters)) {
            return Ok(Reckoning { calendar: simple, times: Times::default() });
        }
        let snapshots = self.all_snapshots(repository)?;
        let mut known: Vec<_> = snapshots.iter().map(|snapshot| snapshot.record.created).collect();
        known.extend(deleted.iter().filter_map(|one| one.at));
        let records = deleted.iter().filter_map(|one| one.record.as_ref());
        known.extend(records.map(|record| record.created));
        let times = self.times_of_operations(repository)?;
        known.extend(&times.all);
        Ok(Reckoning { calendar: Calendar::new(now, grace, known), times })
    }

    /// Says what waits in the trash, as if what is due was gone.
    pub(crate) fn trash(&self, repository: &Repository, due: &Due) -> Result<TrashReport> {
        let mut deleted = deletions(repository)?;
        deleted.retain(|one| match due {
            Due::All => false,
            Due::Only(due) => !due.contains(&(one.id, one.number)),
        });
        let reckoning = self.reckoning(repository, &deleted)?;
        let waits: Vec<Wait> = deleted.iter().map(|one| reckoning.wait(one)).collect();
        let shares = self.trash_shares(repository, &deleted, due);
        Ok(TrashReport {
            snapshots: deleted.len(),
            bytes: shares.map(|shares| shares.bytes),
            until: waits.iter().filter_map(|wait| wait.until()).min(),
            doubted: waits.iter().filter(|wait| matches!(wait, Wait::Doubted(_))).count(),
        })
    }

    /// Counts what is kept for deleted snapshots alone; `None` if that cannot be told.
    fn trash_shares(
        &self,
        repository: &Repository,
        deleted: &[Deleted],
        due: &Due,
    ) -> Option<TrashShares> {
        if deleted.is_empty() {
            return Some(TrashShares::default());
        }
        let shares = repository.trash_shares(due);
        let shares = shares.inspect_err(|error| {
            self.config.observer.notice(&format!("cannot say what the trash holds: {error}"));
        });
        shares.ok()
    }

    /// Says what the trash holds and what frees it, if there is anything in it.
    pub(crate) fn hint_of_trash(&self, repository: &Repository) -> Option<String> {
        let trash = self.trash(repository, &nothing()).ok()?;
        let bytes = trash.bytes.filter(|bytes| bytes.get() > 0)?;
        Some(format!("`tintype gc --now` frees {bytes} of deleted snapshots"))
    }
}

/// What tells how long deletions wait.
struct Reckoning {
    calendar: Calendar,
    times: Times,
}

impl Reckoning {
    fn wait(&self, deleted: &Deleted) -> Wait {
        self.calendar.wait(deleted.at, self.times.since_met(deleted))
    }

    /// Returns until when a deletion can be undone at least, as far as that is known.
    fn kept_until(&self, deleted: &Deleted) -> Option<Timestamp> {
        let at = deleted.at?;
        match self.calendar.is_ahead(at) {
            true => self.wait(deleted).until(),
            false => Some(self.calendar.end(at)),
        }
    }
}

/// Says for the log what was kept, and why.
fn kept(doubted: usize, ahead: usize) -> String {
    let mut parts = Vec::new();
    if doubted > 0 {
        parts.push(format!(
            "kept {doubted} deleted snapshots whose time seems to be over: the clock may have jumped"
        ));
    }
    match ahead {
        0 => {}
        1 => parts.push("met a deletion that is dated ahead of the clock".to_owned()),
        more => parts.push(format!("met {more} deletions that are dated ahead of the clock")),
    }
    parts.join("; ")
}

fn deletions(repository: &Repository) -> Result<Vec<Deleted>> {
    repository.deleted().map_err(Error::step("cannot list what is deleted"))
}

fn nothing() -> Due {
    Due::Only(HashSet::new())
}
