//! Deletes snapshots, takes that back, and frees the space of what is gone.

use serde::Serialize;
use tintype_repo::{GcParams, Repository, Skipped};
use tintype_types::{ByteCount, SnapshotId};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::intent::Intent;

/// Snapshots that were deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemovalReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// Their ids.
    pub removed: Vec<SnapshotId>,
    /// The stored bytes that nobody but they needs, which a collection frees; told by a
    /// dry run alone, since it looks through the maps of all snapshots.
    pub freed_bytes: Option<ByteCount>,
}

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UndoReport {
    /// The command that was taken back.
    pub undone: &'static str,
    /// The ids of the snapshots that are there again.
    pub snapshots: Vec<SnapshotId>,
    /// The snapshots as `VM@NAME`.
    pub names: Vec<String>,
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
    /// Why others were not.
    pub not_compacted: Option<NotCompacted>,
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
    /// Deletes snapshots in one act. It can be undone until the next collection. A dry run
    /// says what that would free.
    pub fn remove(&self, names: &[String], dry_run: bool) -> Result<RemovalReport> {
        let repository = self.repository()?;
        let all = self.all_snapshots(&repository)?;
        let mut removed = Vec::new();
        for name in names {
            let id = self.removable(&repository, &all, name)?;
            if !removed.contains(&id) {
                removed.push(id);
            }
        }
        refuse_pinned(&repository, &all, &removed)?;
        self.refuse_needed(&removed)?;
        if dry_run {
            let shares = repository.shares_of(&removed);
            let shares = shares.map_err(Error::step("cannot say what would be freed"))?;
            let freed_bytes = Some(shares.together.exclusive_bytes);
            return Ok(RemovalReport { dry_run, removed, freed_bytes });
        }
        repository.remove_all(&removed).map_err(|error| {
            Error::failed("cannot delete").because(error).state("some may be deleted already")
        })?;
        Ok(RemovalReport { dry_run, removed, freed_bytes: None })
    }

    /// Finds a snapshot to delete; one whose record is damaged, by its whole id.
    fn removable(
        &self,
        repository: &Repository,
        all: &[Snapshot],
        name: &str,
    ) -> Result<SnapshotId> {
        match (self.find_among(all, name, None), name.parse()) {
            (Ok(snapshot), _) => Ok(snapshot.record.id),
            (Err(_), Ok(id)) if repository.snapshot(id).is_err_and(|e| is_damage(&e)) => Ok(id),
            (Err(error), _) => Err(error),
        }
    }

    /// Refuses to delete what an interrupted revert has still to put back.
    fn refuse_needed(&self, ids: &[SnapshotId]) -> Result<()> {
        for vm in self.home.vm_names()? {
            let loading =
                self.loading_state(&vm)?.filter(|_| self.loading(&vm).is_ok_and(|l| l.is_some()));
            if loading.is_some_and(|loading| ids.contains(&loading.snapshot)) {
                return Err(Error::refused(format!(
                    "the memory of `{vm}` is still being loaded from the snapshot"
                ))
                .state("nothing was deleted")
                .hint(format!("`tintype vm show {vm}` says how far it is")));
            }
            let Some(Intent::Revert { target, safety, .. }) = self.intent(&vm)? else { continue };
            if ids.iter().any(|id| *id == target || Some(*id) == safety) {
                return Err(Error::refused(format!("a revert of `{vm}` needs the snapshot"))
                    .state("nothing was deleted")
                    .hint(format!("`tintype vm show {vm}` finishes a revert that was killed")));
            }
        }
        Ok(())
    }

    /// Takes back the last act that destroyed something and can be taken back.
    pub fn undo(&self) -> Result<UndoReport> {
        let records = self.repository()?.undo_last_removal().map_err(|error| {
            Error::failed("cannot undo the deletion")
                .because(error)
                .hint("`tintype log` shows the snapshots that are there")
        })?;
        if records.is_empty() {
            return Err(Error::invalid("there is nothing to undo")
                .state("nothing was changed")
                .hint("a deletion can be undone until `tintype gc` has freed its space"));
        }
        let snapshots = records.iter().map(|record| record.id).collect();
        let names = records.iter().map(|r| format!("{}@{}", r.vm_name, r.name)).collect();
        Ok(UndoReport { undone: "rm", snapshots, names })
    }

    /// Frees what no snapshot needs; in a dry run only says what that is.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<CollectionReport> {
        let mut params = GcParams::default();
        params.dry_run = dry_run;
        let collected = self.repository()?.gc(params, &self.supervisor("collecting"));
        let report = collected.map_err(|error| {
            Error::failed("cannot collect garbage")
                .because(error)
                .state("what snapshots need is where it was")
        })?;
        let compaction = report.compaction;
        let freed = report.freed_bytes.get() + compaction.gain_bytes.get();
        Ok(CollectionReport {
            dry_run,
            segments: report.segments + if dry_run { compaction.segments } else { 0 },
            freed_bytes: ByteCount(freed.saturating_sub(compaction.written_bytes.get())),
            waiting_for: report.waiting_for,
            compacted_segments: compaction.segments,
            not_compacted: compaction.skipped.map(|skipped| match skipped {
                Skipped::NoSpace => NotCompacted::NoSpace,
                Skipped::Damaged => NotCompacted::Damaged,
            }),
        })
    }
}

/// Refuses to delete what is pinned, even if its record is damaged.
fn refuse_pinned(repository: &Repository, all: &[Snapshot], ids: &[SnapshotId]) -> Result<()> {
    let labels = repository.labels().map_err(Error::step("cannot tell what is pinned"))?;
    let is_pinned = |id: &&SnapshotId| labels.of.get(id).is_some_and(|label| label.pinned);
    let Some(id) = ids.iter().find(is_pinned) else { return Ok(()) };
    let found = all.iter().find(|snapshot| snapshot.record.id == *id);
    let name = found.map_or_else(
        || id.to_string(),
        |snapshot| format!("{}@{}", snapshot.record.vm_name, snapshot.record.name),
    );
    Err(Error::refused(format!("`{name}` is pinned"))
        .state("nothing was deleted")
        .hint(format!("`tintype unpin {name}` lets it be deleted")))
}

fn is_damage(error: &tintype_repo::Error) -> bool {
    error.kind() == tintype_repo::Kind::Damaged
}
