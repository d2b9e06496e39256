//! How much room is left for snapshots: on the file system of the repository, and of what
//! budgets allow. A take that cannot fit is refused before it begins, and one that leaves
//! little room says so.

use serde::Serialize;
use tintype_repo::Repository;
use tintype_types::{ByteCount, VmName};

use crate::details::Snapshot;
use crate::doctor::{Finding, Health};
use crate::error::{Error, Result};
use crate::growth::median;
use crate::vms::{LeasedVm, VmState};
use crate::{Engine, is_bucket};

/// So many takes tell what the next one will store.
const RECENT: usize = 5;
/// So many are looked at for that.
const LOOKED_AT: usize = 20;
/// Room for fewer takes is little.
const FEW: u64 = 3;
/// The largest object that is written at once: with less room, half a guess is enough.
const SEGMENT: ByteCount = ByteCount(16 << 20);

/// What bounds snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BoundKind {
    /// The file system of the repository.
    FileSystem,
    /// The budget of the repository.
    Repository,
    /// The budget of a VM.
    Vm,
}

/// How far one thing that bounds snapshots is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Bound {
    /// What it is.
    pub kind: BoundKind,
    /// How much there may be.
    pub limit_bytes: ByteCount,
    /// How much more fits.
    pub free_bytes: ByteCount,
}

/// What room means for the next take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    Ample,
    /// Room for so many takes like the last ones.
    Tight(u64),
    /// Not for one.
    Full,
}

impl Outlook {
    /// Says what is to be said of it.
    fn meaning(self) -> Option<String> {
        match self {
            Self::Ample => None,
            Self::Tight(takes) => Some(format!("room for {takes} more takes like the last ones")),
            Self::Full => Some("no room for another take".to_owned()),
        }
    }
}

impl Bound {
    fn of(kind: BoundKind, limit: ByteCount, used: ByteCount) -> Self {
        let free = ByteCount(limit.get().saturating_sub(used.get()));
        Self { kind, limit_bytes: limit, free_bytes: free }
    }

    /// Says what room means, from what the last takes have stored. Without any, only a
    /// budget that is used up is too little.
    pub(crate) fn outlook(&self, recent: &[ByteCount]) -> Outlook {
        let free = self.free_bytes;
        let Some(least) = recent.iter().min() else {
            let is_budget = self.kind != BoundKind::FileSystem;
            return if is_budget && free.get() == 0 { Outlook::Full } else { Outlook::Ample };
        };
        if free.get() < least.get() / 2 || (free < SEGMENT && free < *least) {
            return Outlook::Full;
        }
        let typical = median(recent.to_vec()).map_or(0, ByteCount::get);
        match free.get().checked_div(typical) {
            Some(takes) if takes < FEW => Outlook::Tight(takes),
            _ => Outlook::Ample,
        }
    }

    fn finding(&self, recent: &[ByteCount]) -> Finding {
        let outlook = self.outlook(recent);
        let health = match outlook {
            Outlook::Ample => Health::Good,
            Outlook::Tight(_) => Health::Fallback,
            Outlook::Full => Health::Missing,
        };
        let meaning = match outlook.meaning() {
            Some(meaning) => format!(
                "{}: {meaning}; `tintype gc --now` frees what is deleted, and `prune` or `rm` delete",
                self.told()
            ),
            None => self.told(),
        };
        Finding { subject: "space".to_owned(), health, meaning }
    }

    /// Names it with what is left of it, as a sentence begins.
    pub fn told(&self) -> String {
        let name = match self.kind {
            BoundKind::FileSystem => "the file system of the repository",
            BoundKind::Repository => "the budget of the repository",
            BoundKind::Vm => "the budget of the VM",
        };
        format!("{name} has {} left of {}", self.free_bytes, self.limit_bytes)
    }
}

impl Engine {
    /// Returns all that bounds the snapshots of a VM, or of all.
    pub(crate) fn bounds(
        &self,
        repository: &Repository,
        vm: Option<&VmState>,
    ) -> Result<Vec<Bound>> {
        let mut bounds: Vec<Bound> = self.file_system(repository).into_iter().collect();
        if let Some(budget) = self.config.budget {
            let usage = repository.usage().map_err(Error::step("cannot list the repository"))?;
            bounds.push(Bound::of(BoundKind::Repository, budget, usage.repository_bytes));
        }
        let budget = vm.and_then(|vm| Some((vm.id, vm.settings.budget?)));
        if let Some((id, budget)) = budget {
            let shares = repository.shares().map_err(Error::step("cannot measure the VM"))?;
            let share = shares.vms.iter().find(|share| share.vm == id);
            let used = share.map_or(ByteCount(0), |share| share.referenced_bytes);
            bounds.push(Bound::of(BoundKind::Vm, budget, used));
        }
        Ok(bounds)
    }

    /// Returns the room on the file system of the repository; `None` for a bucket.
    pub(crate) fn file_system(&self, repository: &Repository) -> Option<Bound> {
        if is_bucket(repository.path()) {
            return None;
        }
        let at = rustix::fs::statvfs(repository.path()).ok()?;
        // What the file system keeps for root is free for root.
        let free = if rustix::process::geteuid().is_root() { at.f_bfree } else { at.f_bavail };
        let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(at.f_frsize));
        Some(Bound {
            kind: BoundKind::FileSystem,
            limit_bytes: bytes(at.f_blocks),
            free_bytes: bytes(free),
        })
    }

    /// Refuses a take for which there is not nearly room.
    pub(crate) fn refuse_if_full(
        &self,
        repository: &Repository,
        vm: &LeasedVm,
        recent: &[ByteCount],
    ) -> Result<()> {
        let bounds = self.bounds(repository, Some(&vm.state))?;
        let Some(full) = bounds.iter().find(|bound| bound.outlook(recent) == Outlook::Full) else {
            return Ok(());
        };
        let least = recent.iter().min().map_or_else(String::new, |least| {
            format!(", and the last takes stored {least} at least")
        });
        Err(Error::refused(format!("there is no room for a snapshot of `{}`", vm.name))
            .because(format!("{}{least}", full.told()))
            .state("no snapshot was taken; nothing was changed")
            .hint(format!(
                "{}`tintype du` shows what takes space; `tintype prune` or `rm`, and then `gc --now`, free it; --ignore-space tries all the same",
                self.hint_of_trash(repository).map_or_else(String::new, |hint| hint + "; ")
            )))
    }

    /// Says after a take that the next ones may not fit.
    pub(crate) fn warn_if_tight(
        &self,
        repository: &Repository,
        vm: &LeasedVm,
        recent: &[ByteCount],
    ) {
        let bounds = self.bounds(repository, Some(&vm.state)).unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot tell how much room is left");
            Vec::new()
        });
        for bound in bounds {
            if let Some(meaning) = bound.outlook(recent).meaning() {
                self.config.observer.notice(&format!("{}: {meaning}", bound.told()));
            }
        }
    }

    /// Says how full the repository is, for the doctor.
    pub(crate) fn space_findings(&self, vm: Option<&VmName>) -> Vec<Finding> {
        let find = || -> Result<Vec<Finding>> {
            let repository = self.repository()?;
            let vm = vm.map(|name| self.vm_state(name)).transpose()?;
            let mut recent = Vec::new();
            if let Some(vm) = &vm {
                let snapshots = self.snapshots_of(&repository, vm.id)?;
                recent =
                    [true, false].map(|with_memory| self::recent(&snapshots, with_memory)).concat();
            }
            let bounds = self.bounds(&repository, vm.as_ref())?;
            Ok(bounds.iter().map(|bound| bound.finding(&recent)).collect())
        };
        // That the repository does not open is a finding of its own.
        find().unwrap_or_default()
    }
}

/// Returns what the last of a VM's takes have stored, with memory or without, but for
/// its first, which stored all.
pub(crate) fn recent(snapshots: &[Snapshot], with_memory: bool) -> Vec<ByteCount> {
    let newest_first = snapshots.iter().skip(1).rev().take(LOOKED_AT);
    let alike = newest_first.filter(|snapshot| snapshot.details.memory.is_empty() != with_memory);
    alike.take(RECENT).map(|snapshot| snapshot.record.stats.stored_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_judged_by_the_last_takes() {
        const MIB: u64 = 1 << 20;
        let check = |kind, free: u64, recent: &[u64], expected: Outlook| {
            let bound = Bound::of(kind, ByteCount(1000 * MIB), ByteCount((1000 - free) * MIB));
            let recent: Vec<ByteCount> = recent.iter().map(|mib| ByteCount(mib * MIB)).collect();
            assert_eq!(bound.outlook(&recent), expected, "{free} MiB for {recent:?}");
        };
        check(BoundKind::FileSystem, 0, &[], Outlook::Ample);
        check(BoundKind::Vm, 0, &[], Outlook::Full);
        check(BoundKind::Vm, 1, &[], Outlook::Ample);
        check(BoundKind::FileSystem, 900, &[100, 90, 120], Outlook::Ample);
        check(BoundKind::FileSystem, 250, &[100, 90, 120], Outlook::Tight(2));
        check(BoundKind::FileSystem, 50, &[100, 90, 120], Outlook::Tight(0));
        check(BoundKind::FileSystem, 44, &[100, 90, 120], Outlook::Full);
        // With less than a segment, the last takes are taken at their word.
        check(BoundKind::FileSystem, 10, &[12, 12], Outlook::Full);
        check(BoundKind::FileSystem, 10, &[12, 9], Outlook::Tight(1));
        check(BoundKind::FileSystem, 1, &[0, 0], Outlook::Ample);
    }
}
