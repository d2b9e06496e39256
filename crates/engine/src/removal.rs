//! Deletes snapshots: they go to the trash, and can be put back from there.

use jiff::Timestamp;
use serde::Serialize;
use tintype_repo::Repository;
use tintype_types::{ByteCount, SnapshotId};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::intent::Intent;
use crate::observer::Step;
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

impl Engine {
    /// Deletes snapshots in one act. It can be undone until a collection ends it, when
    /// its grace is over. A dry run says what that would free.
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
        repository.remove_all(ids, instant_of_deletion(all, self.now())).map_err(|error| {
            Error::failed("cannot delete").because(error).state("some may be deleted already")
        })?;
        self.config.observer.step(Step::Deleted);
        Ok(())
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
            if self.filling_state(&vm)?.is_some_and(|filling| ids.contains(&filling.snapshot)) {
                return Err(Error::refused(format!(
                    "the disks of `{vm}` are still being filled from the snapshot"
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
}

/// Returns the time of a deletion: that of our clock, but none before a snapshot
/// was taken. A clock that has gone back must not make a deletion look old.
pub(crate) fn instant_of_deletion(all: &[Snapshot], now: Timestamp) -> Timestamp {
    let newest = all.iter().map(|snapshot| snapshot.record.created).max();
    newest.unwrap_or_default().max(now)
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
