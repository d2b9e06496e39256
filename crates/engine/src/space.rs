//! Says how much space snapshots take: what they need, and what they alone need.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use tintype_repo::{Due, Repository, SessionStats, Shares};
use tintype_types::{BLOCK_SIZE, ByteCount, SnapshotId, SnapshotName, VmId, VmName};

use crate::Engine;
use crate::details::{Snapshot, SnapshotReport};
use crate::error::{Error, Result};
use crate::growth::{Growth, Stored, days_to_fill, growth, number};
use crate::room::Bound;
use crate::trash::TrashReport;

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
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SpaceReport {
    /// All that the repository holds.
    pub repository_bytes: ByteCount,
    /// What these snapshots need together.
    pub referenced_bytes: ByteCount,
    /// What nobody but they needs: deleting all of them frees it.
    pub exclusive_bytes: ByteCount,
    /// What others need too.
    pub shared_bytes: ByteCount,
    /// The sizes of all their memories and disks.
    pub logical_bytes: ByteCount,
    /// How many times as large that is as what they need.
    pub ratio: Ratio,
    /// Their VMs.
    pub vms: Vec<VmSpace>,
    /// What bounds the repository.
    pub bounds: Vec<Bound>,
    /// What is deleted and can be put back, of all VMs.
    pub trash: TrashReport,
    /// In how many days the first of these is full, as all VMs grow now.
    pub days_to_full: Option<f64>,
    /// Each of them, oldest first.
    pub snapshots: Vec<SnapshotSpace>,
}

/// How many times as much as is kept; `None` where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// All memories and disks, to what they need.
    pub overall: Option<f64>,
    /// The part of it that comes from keeping once what is the same, holes included.
    pub deduplication: Option<f64>,
    /// The part of it that comes from compression: new blocks, to what they were stored in.
    pub compression: Option<f64>,
}

/// How much space the snapshots of a VM take.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmSpace {
    /// Its name.
    pub vm: VmName,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// What they need together.
    pub referenced_bytes: ByteCount,
    /// How much more its takes store in a day; `None` if there are too few to tell.
    pub growth: Option<Growth>,
    /// How much they may need.
    pub budget_bytes: Option<ByteCount>,
    /// In how many days that is used up.
    pub days_to_budget: Option<f64>,
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
            Shares::default()
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
        let logical = shares.snapshots.iter().filter(|share| ids.contains(&share.id));
        let sizes = logical.map(|share| share.logical_bytes.get());
        let logical_bytes = ByteCount(sizes.fold(0, u64::saturating_add));
        let vms = self.vm_spaces(&self.log(None)?, &shares)?;
        let growth: f64 = vms.values().flat_map(|vm| vm.growth).map(|g| g.bytes_per_day).sum();
        let bounds = self.bounds(&repository, None)?;
        let fills = bounds.iter().filter_map(|bound| days_to_fill(bound.free_bytes, growth));
        let is_chosen = |id: &VmId| chosen.iter().any(|snapshot| snapshot.record.vm == *id);
        Ok(SpaceReport {
            repository_bytes: usage.repository_bytes,
            referenced_bytes: together.referenced_bytes,
            exclusive_bytes: together.exclusive_bytes,
            shared_bytes: ByteCount(
                together.referenced_bytes.get() - together.exclusive_bytes.get(),
            ),
            logical_bytes,
            ratio: ratio(&chosen, logical_bytes, together.referenced_bytes),
            days_to_full: fills.min_by(f64::total_cmp),
            bounds,
            trash: self.trash(&repository, &Due::Only(HashSet::new()))?,
            vms: vms.into_iter().filter(|(id, _)| is_chosen(id)).map(|(_, vm)| vm).collect(),
            snapshots: shares.snapshots.iter().filter_map(of).collect(),
        })
    }

    /// Says how much each VM takes, and how fast that grows.
    fn vm_spaces(&self, all: &[Snapshot], shares: &Shares) -> Result<BTreeMap<VmId, VmSpace>> {
        let mut budgets = HashMap::new();
        for name in self.home.vm_names()? {
            // One that cannot be read says so where it is needed.
            let Ok(state) = self.vm_state(&name) else { continue };
            budgets.extend(state.settings.budget.map(|budget| (state.id, budget)));
        }
        let space = |share: &tintype_repo::VmShare| {
            let of_vm: Vec<_> =
                all.iter().filter(|snapshot| snapshot.record.vm == share.vm).collect();
            let stored = |snapshot: &&Snapshot| Stored {
                at: snapshot.record.created,
                bytes: snapshot.record.stats.stored_bytes,
            };
            let growth = growth(&of_vm.iter().map(stored).collect::<Vec<_>>());
            let budget_bytes = budgets.get(&share.vm).copied();
            let days_to_budget = budget_bytes.zip(growth).and_then(|(budget, growth)| {
                let left = budget.get().saturating_sub(share.referenced_bytes.get());
                days_to_fill(ByteCount(left), growth.bytes_per_day)
            });
            let space = VmSpace {
                vm: of_vm.last()?.record.vm_name.clone(),
                snapshots: of_vm.len(),
                referenced_bytes: share.referenced_bytes,
                growth,
                budget_bytes,
                days_to_budget,
            };
            Some((share.vm, space))
        };
        Ok(shares.vms.iter().filter_map(space).collect())
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

/// Says how much less than their size snapshots need, and what makes it less.
fn ratio(snapshots: &[Snapshot], logical: ByteCount, referenced: ByteCount) -> Ratio {
    let part = |whole: u64, part: u64| (part > 0).then(|| number(whole) / number(part));
    let (mut new, mut stored) = (0_u64, 0_u64);
    for SessionStats { new_blocks, stored_bytes, .. } in snapshots.iter().map(|s| s.record.stats) {
        new = new.saturating_add(new_blocks.saturating_mul(BLOCK_SIZE as u64));
        stored = stored.saturating_add(stored_bytes.get());
    }
    let overall = part(logical.get(), referenced.get());
    let compression = part(new, stored);
    let deduplication = overall.zip(compression).map(|(overall, part)| overall / part);
    Ratio { overall, deduplication, compression }
}
