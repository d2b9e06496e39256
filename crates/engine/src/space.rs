//! Says how much space snapshots take: what they need, and what they alone need.

use std::collections::HashMap;

use serde::Serialize;
use tintype_repo::Repository;
use tintype_types::{ByteCount, SnapshotId, SnapshotName, VmName};

use crate::Engine;
use crate::details::{Snapshot, SnapshotReport};
use crate::error::{Error, Result};

/// A snapshot in a log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogEntry {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: SnapshotReport,
    /// The stored bytes that no other snapshot needs; `None` if maps are damaged.
    pub exclusive_bytes: Option<ByteCount>,
}

/// How much space snapshots take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SpaceReport {
    /// All that the repository holds.
    pub repository_bytes: ByteCount,
    /// What these snapshots need together.
    pub referenced_bytes: ByteCount,
    /// What nobody but they needs: deleting all of them frees it.
    pub exclusive_bytes: ByteCount,
    /// What others need too.
    pub shared_bytes: ByteCount,
    /// Each of them, oldest first.
    pub snapshots: Vec<SnapshotSpace>,
}

/// How much space a snapshot takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotSpace {
    /// Its id.
    pub id: SnapshotId,
    /// Its VM.
    pub vm: VmName,
    /// Its name.
    pub name: SnapshotName,
    /// What it needs.
    pub referenced_bytes: ByteCount,
    /// What no other snapshot needs: deleting it frees this much.
    pub exclusive_bytes: ByteCount,
    /// The sizes of its memory and disks.
    pub logical_bytes: ByteCount,
}

impl Engine {
    /// Returns the snapshots of a VM, or all, oldest first, with what each alone needs.
    pub fn log_entries(&self, vm: Option<&VmName>) -> Result<Vec<LogEntry>> {
        let snapshots = self.log(vm)?;
        let shares = self.repository()?.shares().unwrap_or_else(|error| {
            self.config.observer.notice(&format!("cannot say what each snapshot takes: {error}"));
            tintype_repo::Shares::default()
        });
        let exclusive: HashMap<_, _> =
            shares.snapshots.iter().map(|share| (share.id, share.exclusive_bytes)).collect();
        let entry = |snapshot: &Snapshot| LogEntry {
            snapshot: snapshot.report(),
            exclusive_bytes: exclusive.get(&snapshot.record.id).copied(),
        };
        Ok(snapshots.iter().map(entry).collect())
    }

    /// Says how much space some snapshots take together, or all if none are
    /// named. The name of a VM stands for all of its snapshots.
    pub fn space(&self, names: &[String]) -> Result<SpaceReport> {
        let repository = self.repository()?;
        let chosen = self.chosen(&repository, names)?;
        let ids: Vec<_> = chosen.iter().map(|snapshot| snapshot.record.id).collect();
        let cannot = Error::step("cannot say how much space the snapshots take");
        let shares = repository.shares_of(&ids).map_err(cannot)?;
        let usage = repository.usage().map_err(Error::step("cannot list the repository"))?;
        let of = |share: &tintype_repo::SnapshotShare| {
            let record = &chosen.iter().find(|s| s.record.id == share.id)?.record;
            Some(SnapshotSpace {
                id: share.id,
                vm: record.vm_name.clone(),
                name: record.name.clone(),
                referenced_bytes: share.referenced_bytes,
                exclusive_bytes: share.exclusive_bytes,
                logical_bytes: share.logical_bytes,
            })
        };
        let together = shares.together;
        Ok(SpaceReport {
            repository_bytes: usage.repository_bytes,
            referenced_bytes: together.referenced_bytes,
            exclusive_bytes: together.exclusive_bytes,
            shared_bytes: ByteCount(
                together.referenced_bytes.get() - together.exclusive_bytes.get(),
            ),
            snapshots: shares.snapshots.iter().filter_map(of).collect(),
        })
    }

    fn chosen(&self, repository: &Repository, names: &[String]) -> Result<Vec<Snapshot>> {
        if names.is_empty() {
            return self.log(None);
        }
        let mut chosen: Vec<Snapshot> = Vec::new();
        for name in names {
            let of_vm = name.parse().map_or_else(|_| Vec::new(), |vm| self.of(&vm));
            let found = match of_vm.is_empty() {
                true => vec![self.find_snapshot(repository, name, None)?],
                false => of_vm,
            };
            for snapshot in found {
                if !chosen.contains(&snapshot) {
                    chosen.push(snapshot);
                }
            }
        }
        Ok(chosen)
    }

    /// Returns the snapshots of a VM; none if nobody is called that.
    fn of(&self, vm: &VmName) -> Vec<Snapshot> {
        self.log(Some(vm)).unwrap_or_default()
    }
}
