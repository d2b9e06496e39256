//! Knows after a stop and a start what has changed of the disks since a snapshot, where
//! their format can store that.
//!
//! A stop has QEMU store its bitmaps in the images when it closes them (`tintype_vm`'s
//! `stored.rs` says what that is worth), and writes down before what the images are based
//! on. The next take takes them over: into bitmaps of QEMU's memory, as each take leaves
//! them; then it notes that they count, and removes those in the images. Whatever comes
//! in between, the image itself has the bitmap of what it holds, or none, or one that is
//! inconsistent. What a revert overwrites has none.

use std::collections::BTreeMap;

use tintype_types::VmId;
use tintype_vm::{Bitmap, Disk, Guest, can_store, stored_name};

use crate::Engine;
use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::intent::Intent;
use crate::observer::Step;
use crate::tracking::{ANEW, GAPS, Tracking, refuse_other};
use crate::vms::LeasedVm;

/// Why a disk is read whole after a stop that was to store its bitmap.
const NOT_STORED: &str = "its image has no bitmap of what was written since the snapshot before";
const NOT_CLOSED: &str = "its bitmap is inconsistent: its image was not closed well";
const OTHER_BASE: &str = "a file that its image is based on has changed since the VM was stopped";

impl Engine {
    /// Has QEMU store what it has recorded of the disks when it ends. Tells whether there
    /// is an intent now: there is none if nothing can be stored.
    pub(crate) fn store_bitmaps(&self, vm: &mut LeasedVm, guest: &mut Guest) -> Result<bool> {
        let (id, process) = (vm.state.id, guest.process());
        let Some(tracking) = vm.state.tracking.as_mut() else { return Ok(false) };
        // What was stored before is on the nodes of a QEMU that was started since, and is
        // stored again.
        if tracking.process != process {
            return Ok(false);
        }
        let disks = storable(tracking, id, guest)?;
        if disks.is_empty() {
            return Ok(false);
        }
        let snapshot = tracking.snapshot;
        self.intend(&vm.name, &Intent::Stop { process })?;
        self.config.observer.step(Step::StopIntent);
        self.save(vm)?;
        guest.forget_stored_bitmaps(id, None)?;
        for disk in disks {
            if let Err(error) = guest.store_bitmap(&disk, id, snapshot) {
                tracing::warn!(%error, disk = disk.name, "no bitmap of it is stored");
            }
        }
        self.config.observer.step(Step::StopStored);
        Ok(true)
    }

    /// Removes what a stop has stored that did not come about.
    pub(crate) fn unstore_bitmaps(&self, vm: &mut LeasedVm, guest: &mut Guest) -> Result<()> {
        guest.forget_stored_bitmaps(vm.state.id, None)?;
        self.distrust_stored_bitmaps(vm)
    }

    /// Notes that no stored bitmap is relied on any more.
    pub(crate) fn distrust_stored_bitmaps(&self, vm: &mut LeasedVm) -> Result<()> {
        match &mut vm.state.tracking {
            Some(tracking) if !tracking.stored.is_empty() => {
                tracking.stored.clear();
                self.save(vm)
            }
            _ => Ok(()),
        }
    }

    /// Lets a QEMU that was started since go on with the bitmaps in the images. They are
    /// removed from there when it is noted that those of this QEMU count.
    pub(crate) fn take_over_stored_bitmaps(
        &self,
        vm: &mut LeasedVm,
        guest: &mut Guest,
    ) -> Result<()> {
        let id = vm.state.id;
        let Some(tracking) = vm.state.tracking.as_mut() else { return Ok(()) };
        if tracking.stored.is_empty() {
            return Ok(());
        }
        // Those of a take that was killed here: they do not count yet.
        guest.forget_bitmaps(id, None)?;
        let (disks, bitmaps) = (guest.inventory()?.disks, guest.stored_bitmaps(id)?);
        let stored = Stored { tracking, vm: id, disks: &disks, bitmaps: &bitmaps };
        let (mut known, mut lost) = (Vec::new(), BTreeMap::new());
        for then in &tracking.disks {
            match stored.take_over(then, guest) {
                Ok(disk) => known.push(disk),
                Err(why) => {
                    self.tell_lost(tracking, then, &why);
                    lost.insert(then.name.clone(), why);
                }
            }
        }
        self.config.observer.step(Step::TakeMerged);
        *tracking = Tracking { lost, ..Tracking::begin(tracking.snapshot, guest.process(), known) };
        self.save(vm)?;
        self.config.observer.step(Step::TakeTakenOver);
        Ok(guest.forget_stored_bitmaps(id, None)?)
    }

    /// Says why a disk is read whole of which a stop has stored what was written.
    fn tell_lost(&self, tracking: &Tracking, disk: &Disk, why: &str) {
        if tracking.stored.contains_key(&disk.name) {
            let name = &disk.name;
            self.config.observer.notice(&format!("all of the disk `{name}` will be read: {why}"));
        }
    }

    /// Removes the bitmaps from the images of a VM that does not run, also what is left
    /// there of older snapshots.
    pub(crate) fn remove_from_images(&self, vm: &LeasedVm) {
        for disk in vm.state.inventory.writable_disks().filter(|disk| can_store(disk)) {
            let removed = self.home.short_lived_folder().and_then(|folder| {
                let program = &vm.state.command_line.program;
                DiskHost { program, folder: folder.path() }.remove_bitmaps(disk, vm.state.id)
            });
            if let Err(error) = removed {
                self.tell_left(vm, disk, &error);
            }
        }
    }

    /// Removes the bitmaps from the images of a VM that does not run, none of which counts
    /// any more.
    pub(crate) fn forget_stored(&self, vm: &mut LeasedVm) {
        self.remove_from_images(vm);
        vm.state.tracking = None;
    }

    fn tell_left(&self, vm: &LeasedVm, disk: &Disk, error: &Error) {
        let tracking = vm.state.tracking.as_ref();
        if tracking.is_some_and(|tracking| tracking.stored.contains_key(&disk.name)) {
            self.config.observer.notice(&format!(
                "a dirty bitmap stays in the image of the disk `{}` ({}); `qemu-img bitmap --remove` removes it",
                disk.name,
                error.with_causes()
            ));
        }
    }
}

/// What is found of stored bitmaps after a start.
struct Stored<'s> {
    tracking: &'s Tracking,
    vm: VmId,
    disks: &'s [Disk],
    bitmaps: &'s [Bitmap],
}

impl Stored<'_> {
    /// Makes a bitmap of QEMU's memory of the stored one of a disk, or says why nobody
    /// knows what has changed. Returns where the disk is now.
    fn take_over(&self, then: &Disk, guest: &mut Guest) -> Result<Disk, String> {
        let files = self.tracking.stored.get(&then.name).ok_or(ANEW)?;
        let disk = self.disks.iter().find(|disk| disk.name == then.name);
        let disk = disk.ok_or("it is not there any more")?;
        refuse_other(then, disk)?;
        let name = stored_name(self.vm, self.tracking.snapshot, &disk.name);
        let is_its = |bitmap: &&Bitmap| bitmap.node == disk.node && bitmap.name == name;
        let bitmap = self.bitmaps.iter().find(is_its).ok_or(NOT_STORED)?;
        match bitmap {
            Bitmap { is_inconsistent: true, .. } => return Err(NOT_CLOSED.to_owned()),
            Bitmap { is_good: false, .. } => return Err(GAPS.to_owned()),
            _ => {}
        }
        let now = guest.backing_files(disk).map_err(|error| error.to_string())?;
        if now != *files {
            return Err(OTHER_BASE.to_owned());
        }
        let taken_over = guest.take_over_bitmap(disk, self.vm, self.tracking.snapshot);
        taken_over.map(|()| disk.clone()).map_err(|error| error.to_string())
    }
}

/// Notes what the disks are based on whose bitmaps can be stored, and returns them.
fn storable(tracking: &mut Tracking, vm: VmId, guest: &mut Guest) -> Result<Vec<Disk>> {
    let (inventory, bitmaps) = (guest.inventory()?, guest.bitmaps(vm)?);
    let mut storable = Vec::new();
    for disk in inventory.writable_disks() {
        let recorded = tracking.bitmap(vm, disk, &bitmaps);
        let files = recorded.and_then(|_| guest.backing_files(disk).map_err(|e| e.to_string()));
        match files {
            Ok(files) => {
                tracking.stored.insert(disk.name.clone(), files);
                storable.push(disk.clone());
            }
            Err(why) => tracing::info!(disk = disk.name, why, "no bitmap of it is stored"),
        }
    }
    Ok(storable)
}
