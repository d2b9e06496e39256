//! Which disks need not be read whole: those whose changes a bitmap in QEMU has
//! recorded since a snapshot that is still there.
//!
//! A bitmap is a hint, and is relied on only if nothing speaks against it: it is of this
//! VM, of this very process, of that snapshot, on the node of the same device, image and
//! size. Whatever is in doubt is read whole, and the snapshot says why.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tintype_repo::{ImageReader, ImageRoot, Repository};
use tintype_types::{SnapshotId, VmId};
use tintype_vm::{Bitmap, Disk, Guest, ProcessId, bitmap_name};

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
        vm: &LeasedVm,
        guest: &mut Guest,
        disks: &[Disk],
    ) -> Earliers {
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
        let keep = vm.state.tracking.as_ref().map(|tracking| tracking.snapshot);
        if let Err(error) = guest.forget_bitmaps(vm.state.id, keep) {
            tracing::warn!(%error, "a bitmap that is not needed any more stays for now");
        }
    }

    /// Removes all bitmaps of a VM that is about to be forgotten, if its QEMU runs.
    pub(crate) fn forget_all_bitmaps(&self, vm: &LeasedVm) {
        let Ok(mut guest) = vm.connect() else { return };
        if let Err(error) = guest.forget_bitmaps(vm.state.id, None) {
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
            return Err("QEMU was started anew since the snapshot before".to_owned());
        }
        let record = repository.snapshot(tracking.snapshot).ok();
        let snapshot = record.and_then(|record| Snapshot::read(record).ok());
        let snapshot = snapshot.filter(|snapshot| snapshot.record.vm == vm.state.id);
        let snapshot = snapshot.ok_or("the snapshot before is not in this repository")?;
        let bitmaps = guest.bitmaps(vm.state.id).map_err(|error| error.to_string())?;
        Ok(Self { repository, vm: vm.state.id, tracking, snapshot, bitmaps })
    }

    fn earlier(&self, disk: &Disk) -> Result<Earlier, String> {
        let then = self.tracking.disks.iter().find(|then| then.name == disk.name);
        let then = then.ok_or("it was not in the snapshot before")?;
        if then.size != disk.size {
            return Err(format!("its size was {} in the snapshot before", then.size));
        }
        if then != disk {
            return Err("it is another image or device than in the snapshot before".to_owned());
        }
        let name = bitmap_name(self.vm, self.tracking.snapshot);
        let is_its = |bitmap: &&Bitmap| bitmap.node == disk.node && bitmap.name == name;
        let bitmap = self.bitmaps.iter().find(is_its).ok_or("its bitmap was removed")?;
        if !bitmap.is_good {
            return Err("its bitmap has not recorded all the time".to_owned());
        }
        let root = self.snapshot.image(&disk_image(disk)).filter(|root| root.size() == disk.size);
        let root = root.ok_or("it is not in the snapshot before")?.clone();
        let reader = self.repository.open_image(&root).map_err(|error| error.to_string())?;
        Ok(Earlier { root, reader, bitmap: name })
    }
}
