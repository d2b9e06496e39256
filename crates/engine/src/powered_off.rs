//! Takes a snapshot of a VM whose QEMU does not run: its disks, read from the
//! images, and its settings as it was last started.

use tintype_repo::{Repository, SessionParams, SnapshotDraft};
use tintype_vm::CaptureSink;

use crate::Engine;
use crate::details::{Details, Snapshot};
use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::files;
use crate::media::Medium;
use crate::observer::Step;
use crate::quiesce::{Quiesce, Quiesced};
use crate::sink::{Collected, SessionSink};
use crate::take::{TakeParams, Wish};
use crate::vms::LeasedVm;

impl Engine {
    pub(crate) fn take_powered_off(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        wish: Wish<'_>,
    ) -> Result<Snapshot> {
        let Wish { params, name, purpose, began, .. } = wish;
        refuse_to_freeze(params)?;
        let parent = self.parent(repository, vm)?;
        let session = repository
            .begin(SessionParams::default())
            .map_err(Error::step("cannot write to the repository"))?;
        let sink = SessionSink::new(&session, parent.as_ref(), &self.config.observer);
        let disks = params.disks(&vm.state.inventory)?;
        let folder = self.home.short_lived_folder()?;
        let host = DiskHost { program: &vm.state.command_line.program, folder: folder.path() };
        let created = self.now();
        host.read(&disks, |disk| sink.disk(disk))
            .map_err(|error| error.state("no snapshot was taken; nothing was changed"))?;
        let line = &vm.state.command_line;
        let files = files::save(&sink, line, &vm.state.inventory, &[])
            .map_err(Error::step("cannot keep the files that the settings name"))?;
        let Collected { images, memory, disks } = sink.into_collected();
        let mut inventory = vm.state.inventory.clone();
        for saved in &disks {
            let then = inventory.disks.iter_mut().find(|disk| disk.name == saved.disk.name);
            then.into_iter().for_each(|disk| disk.size = saved.disk.size);
        }
        let details = Details {
            purpose,
            message: params.message.clone(),
            tags: params.tags.clone(),
            way: None,
            pause_us: 0,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            was_running: false,
            memory,
            disks,
            command_line: line.clone(),
            media: Medium::all_of(&inventory),
            inventory,
            files,
            tpms: Vec::new(),
            quiesced: Quiesced::not("the VM did not run"),
        };
        let draft = SnapshotDraft {
            vm: vm.state.id,
            vm_name: vm.name.clone(),
            name,
            parent: vm.state.current,
            created,
            images,
            blobs: Vec::new(),
            details: serde_json::to_value(details).expect("our own values are plain data"),
        };
        self.config.observer.step(Step::TakeStored);
        self.check_interruption().map_err(|error| error.state("no snapshot was taken"))?;
        let record = session
            .commit(draft)
            .map_err(Error::step("the repository did not keep the snapshot"))?;
        self.config.observer.step(Step::TakeCommitted);
        if params.full {
            self.forget_stored(vm);
        }
        self.place(vm, &record)?;
        Snapshot::read(record)
    }
}

/// Refuses what needs a guest that runs.
fn refuse_to_freeze(params: &TakeParams) -> Result<()> {
    if params.quiesce.mode == Quiesce::Require {
        return Err(Error::refused("the guest's file systems cannot be frozen")
            .because("the VM does not run".to_owned())
            .state("no snapshot was taken; nothing was changed"));
    }
    Ok(())
}
