//! Which disks need not be read whole: those whose changes a bitmap in QEMU has
//! recorded since a snapshot that is still there.
//!
//! A bitmap is a hint, and is relied on only if nothing speaks against it: it is of this
//! VM, of this very process or taken over from the image (`stored.rs`), of that snapshot,
//! on the node of the same device, image and size. Whatever is in doubt is read whole, and
//! the snapshot says why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tintype_repo::{ImageReader, ImageRoot, Repository};
use tintype_types::{SnapshotId, VmId};
use tintype_vm::{BackingFile, Bitmap, Disk, Guest, ProcessId, bitmap_name};

use crate::Engine;
use crate::details::{Snapshot, disk_image};
use crate::vms::LeasedVm;

/// What records what is written to the disks of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tracking {
    /// The snapshot from whose instant on it is recorded.
    pub(crate) snapshot: SnapshotId,
    /// The QEMU that does.
    pub(crate) process: ProcessId,
    /// The disks, as they were then.
    pub(crate) disks: Vec<Disk>,
    /// The disks whose bitmaps that QEMU was to store when it was stopped, with what their
    /// images are based on (`stored.rs`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) stored: BTreeMap<String, Vec<BackingFile>>,
    /// The disks of which nothing is recorded any more, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) lost: BTreeMap<String, String>,
}

impl Tracking {
    /// From an instant on, by bitmaps in QEMU's memory.
    pub(crate) fn begin(snapshot: SnapshotId, process: ProcessId, disks: Vec<Disk>) -> Self {
        Self { snapshot, process, disks, stored: BTreeMap::new(), lost: BTreeMap::new() }
    }

    /// Finds the bitmap that has recorded all that was written to a disk, or says why
    /// there is none.
    pub(crate) fn bitmap<'b>(
        &self,
        vm: VmId,
        disk: &Disk,
        bitmaps: &'b [Bitmap],
    ) -> Result<&'b Bitmap, String> {
        if let Some(why) = self.lost.get(&disk.name) {
            return Err(why.clone());
        }
        let then = self.disks.iter().find(|then| then.name == disk.name);
        let then = then.ok_or("it was not in the snapshot before")?;
        refuse_other(then, disk)?;
        if then.node != disk.node {
            return Err(OTHER.to_owned());
        }
        let name = bitmap_name(vm, self.snapshot);
        let is_its = |bitmap: &&Bitmap| bitmap.node == disk.node && bitmap.name == name;
        let bitmap = bitmaps.iter().find(is_its).ok_or("its bitmap was removed")?;
        if bitmap.is_good { Ok(bitmap) } else { Err(GAPS.to_owned()) }
    }
}

/// Why a disk is read whole.
pub(crate) const ANEW: &str = "QEMU was started anew since the snapshot before";
pub(crate) const GAPS: &str = "its bitmap has not recorded all the time";
const OTHER: &str = "it is another image or device than in the snapshot before";

/// Refuses a disk that is not the one that it was, wherever QEMU has it now.
pub(crate) fn refuse_other(then: &Disk, now: &Disk) -> Result<(), String> {
    if then.size != now.size {
        return Err(format!("its size was {} in the snapshot before", then.size));
    }
    let there = Disk { node: now.node.clone(), ..then.clone() };
    if there == *now { Ok(()) } else { Err(OTHER.to_owned()) }
}

/// The state of a disk that its next image goes on from.
pub(crate) struct Earlier {
    /// The image of that state.
    pub(crate) root: ImageRoot,
    /// What reads it.
    pub(crate) reader: ImageReader,
    /// The bitmap that has recorded all writes since.
    pub(crate) bitmap: String,
}

/// For each disk, by its name, what its next image goes on from, or why it is read whole.
pub(crate) type Earliers = BTreeMap<String, Result<Earlier, String>>;

/// Has all disks read whole, for one reason.
pub(crate) fn whole(disks: &[Disk], why: &str) -> Earliers {
    disks.iter().map(|disk| (disk.name.clone(), Err(why.to_owned()))).collect()
}

impl Engine {
    /// Finds out for each disk whether what has changed since a snapshot is known.
    pub(crate) fn earlier_states(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        guest: &mut Guest,
        disks: &[Disk],
    ) -> Earliers {
        if let Err(error) = self.take_over_stored_bitmaps(vm, guest) {
            return whole(
                disks,
                &format!("its bitmap cannot be taken over: {}", error.with_causes()),
            );
        }
        match Basis::find(repository, vm, guest) {
            Ok(basis) => {
                disks.iter().map(|disk| (disk.name.clone(), basis.earlier(disk))).collect()
            }
            Err(why) => whole(disks, &why),
        }
    }

    /// Removes the bitmaps of a VM that no later take relies on. What cannot be removed
    /// now is removed after the next take; it does no harm until then.
    pub(crate) fn forget_other_bitmaps(&self, vm: &LeasedVm, guest: &mut Guest) {
        let tracking = vm.state.tracking.as_ref();
        let keep = tracking.map(|tracking| tracking.snapshot);
        let stored = tracking.filter(|tracking| !tracking.stored.is_empty());
        let stored = stored.map(|tracking| tracking.snapshot);
        let forgotten = guest.forget_bitmaps(vm.state.id, keep);
        let forgotten = forgotten.and_then(|()| guest.forget_stored_bitmaps(vm.state.id, stored));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "a bitmap that is not needed any more stays for now");
        }
    }

    /// Removes all bitmaps of a VM that is about to be forgotten.
    pub(crate) fn forget_all_bitmaps(&self, vm: &LeasedVm) {
        if !vm.is_alive() {
            return self.remove_from_images(vm);
        }
        let Ok(mut guest) = vm.connect() else { return };
        let forgotten = guest.forget_bitmaps(vm.state.id, None);
        let forgotten = forgotten.and_then(|()| guest.forget_stored_bitmaps(vm.state.id, None));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "a bitmap stays in QEMU until that ends");
        }
    }
}

/// The snapshot since which changes are recorded, and the bitmaps that do so.
struct Basis<'a> {
    repository: &'a Repository,
    vm: VmId,
    tracking: &'a Tracking,
    snapshot: Snapshot,
    bitmaps: Vec<Bitmap>,
}

impl<'a> Basis<'a> {
    fn find(
        repository: &'a Repository,
        vm: &'a LeasedVm,
        guest: &mut Guest,
    ) -> Result<Self, String> {
        let Some(tracking) = &vm.state.tracking else {
            return Err("nothing has recorded its changes yet".to_owned());
        };
        if tracking.process != guest.process() {
            return Err(ANEW.to_owned());
        }
        let record = repository.snapshot(tracking.snapshot).ok();
        let snapshot = record.and_then(|record| Snapshot::read(record).ok());
        let snapshot = snapshot.filter(|snapshot| snapshot.record.vm == vm.state.id);
        let snapshot = snapshot.ok_or("the snapshot before is not in this repository")?;
        let bitmaps = guest.bitmaps(vm.state.id).map_err(|error| error.to_string())?;
        Ok(Self { repository, vm: vm.state.id, tracking, snapshot, bitmaps })
    }

    fn earlier(&self, disk: &Disk) -> Result<Earlier, String> {
        let bitmap = self.tracking.bitmap(self.vm, disk, &self.bitmaps)?;
        let root = self.snapshot.image(&disk_image(disk)).filter(|root| root.size() == disk.size);
        let root = root.ok_or("it is not in the snapshot before")?.clone();
        let reader = self.repository.open_image(&root).map_err(|error| error.to_string())?;
        Ok(Earlier { root, reader, bitmap: bitmap.name.clone() })
    }
}
