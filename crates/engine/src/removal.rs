//! Deletes snapshots, lists what can be put back, and frees the space of what is gone.

use jiff::Timestamp;
use serde::Serialize;
use tintype_repo::{Deleted, GcParams, Repository, Skipped};
use tintype_types::{ByteCount, SnapshotId, VmName};

use crate::Engine;
use crate::details::{Snapshot, SnapshotReport};
use crate::error::{Error, Result};
use crate::intent::Intent;
use crate::operations::{Reversal, listed};

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

/// A snapshot that is deleted and can be put back.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeletedSnapshot {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotReport,
    /// When it was deleted, by the clock of who did.
    pub deleted: Option<Timestamp>,
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
        if dry_run {
            refuse_pinned(&repository, &all, &removed)?;
            self.refuse_needed(&removed)?;
            let shares = repository.shares_of(&removed);
            let shares = shares.map_err(Error::step("cannot say what would be freed"))?;
            let freed_bytes = Some(shares.together.exclusive_bytes);
            return Ok(RemovalReport { dry_run, removed, freed_bytes });
        }
        let names = names_of(&all, &removed);
        self.delete_all(&repository, &all, &removed)?;
        let reversal = Reversal::Restore { snapshots: removed.clone() };
        let did = format!("deleted {}", listed(&names));
        self.log_operation(&repository, "rm", did, Some(reversal));
        Ok(RemovalReport { dry_run, removed, freed_bytes: None })
    }

    /// Deletes snapshots in one act, unless something stands against one of them.
    pub(crate) fn delete_all(
        &self,
        repository: &Repository,
        all: &[Snapshot],
        ids: &[SnapshotId],
    ) -> Result<()> {
        refuse_pinned(repository, all, ids)?;
        self.refuse_needed(ids)?;
        repository.remove_all(ids).map_err(|error| {
            Error::failed("cannot delete").because(error).state("some may be deleted already")
        })
    }

    /// Lists what is deleted and can be put back, of a VM or of all, the newest
    /// deletion first.
    pub fn deleted(&self, vm: Option<&VmName>) -> Result<Vec<DeletedSnapshot>> {
        let repository = self.repository()?;
        let deleted = repository.deleted().map_err(Error::step("cannot list what is deleted"))?;
        let labels = repository.labels().map_err(Error::step("cannot list what is deleted"))?;
        let id = vm.and_then(|vm| self.vm_state(vm).ok()).map(|state| state.id);
        let is_of = |snapshot: &Snapshot| match (vm, id) {
            (_, Some(id)) => snapshot.record.vm == id,
            (Some(vm), None) => snapshot.record.vm_name == *vm,
            (None, None) => true,
        };
        let mut found = Vec::new();
        for Deleted { id, at, record, .. } in deleted {
            let Some(snapshot) = record.and_then(|record| Snapshot::read(record).ok()) else {
                let notice = format!("the record of a deleted snapshot cannot be read: {id}");
                self.config.observer.notice(&notice);
                continue;
            };
            let snapshot = match labels.of.get(&id) {
                Some(label) => snapshot.labelled(label),
                None => snapshot,
            };
            if is_of(&snapshot) {
                found.push(DeletedSnapshot { snapshot: snapshot.report(), deleted: at });
            }
        }
        Ok(found)
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

    /// Frees what no snapshot needs; in a dry run only says what that is.
    pub fn collect_garbage(&self, dry_run: bool) -> Result<CollectionReport> {
        let mut params = GcParams::default();
        params.dry_run = dry_run;
        let repository = self.repository()?;
        let collected = repository.gc(params, &self.supervisor("collecting"));
        let report = collected.map_err(|error| {
            Error::failed("cannot collect garbage")
                .because(error)
                .state("what snapshots need is where it was")
        })?;
        let compaction = report.compaction;
        let freed = report.freed_bytes.get() + compaction.gain_bytes.get();
        let freed_bytes = ByteCount(freed.saturating_sub(compaction.written_bytes.get()));
        if !dry_run && report.segments > 0 {
            self.log_operation(&repository, "gc", format!("freed {freed_bytes}"), None);
        }
        Ok(CollectionReport {
            dry_run,
            segments: report.segments + if dry_run { compaction.segments } else { 0 },
            freed_bytes,
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
    let name = names_of(all, &[*id]).concat();
    Err(Error::refused(format!("`{name}` is pinned"))
        .state("nothing was deleted")
        .hint(format!("`tintype unpin {name}` lets it be deleted")))
}

/// Returns snapshots as people name them.
pub(crate) fn names_of(all: &[Snapshot], ids: &[SnapshotId]) -> Vec<String> {
    let name = |id: &SnapshotId| {
        let found = all.iter().find(|snapshot| snapshot.record.id == *id);
        found.map_or_else(|| id.to_string(), |s| format!("{}@{}", s.record.vm_name, s.record.name))
    };
    ids.iter().map(name).collect()
}

fn is_damage(error: &tintype_repo::Error) -> bool {
    error.kind() == tintype_repo::Kind::Damaged
}
