//! Repairs what a killed command left, before the next one does anything.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tintype_repo::Pin;
use tintype_types::{SnapshotId, VmName};
use tintype_vm::{Footprint, ProcessId};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::intent::Intent;
use crate::revert::{Become, cannot_revert};
use crate::snapshots::hold;
use crate::vms::{DEATH_LIMIT, LeasedVm};

/// How long a QEMU takes at most from its start until it listens.
const START_LIMIT: Duration = Duration::from_secs(1);

/// The same, where a second one beside it would take its place.
const PATIENT_START_LIMIT: Duration = Duration::from_secs(5);

/// Between two looks whether it does.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

impl Engine {
    /// Finishes or takes back what the last command was about to do. Doing it
    /// twice is the same as once.
    pub(crate) fn heal(&self, vm: &mut LeasedVm) -> Result<()> {
        let intent = self.intent(&vm.name)?;
        if intent == Some(Intent::Start) {
            await_start(vm, PATIENT_START_LIMIT);
        }
        if !matches!(intent, Some(Intent::Revert { .. } | Intent::Clone { .. })) {
            // Before anything is asked of QEMU: it may wait for memory, or a disk, itself.
            self.mend_loading(vm)?;
            self.mend_filling(vm)?;
        }
        match intent {
            None => return Ok(()),
            // What there is of it is noted by who asked for this.
            Some(Intent::Start) => {}
            Some(Intent::Take { footprint, freezes, hooks }) => {
                let thawing = freezes.then(|| self.ask_thaw(vm));
                self.erase(vm, &footprint)?;
                if let Some(agent) = thawing
                    && vm.is_alive()
                {
                    self.see_thawed(&vm.name, agent);
                }
                if let Some(snapshot) = hooks {
                    self.make_up_for_hooks(&vm.name, &snapshot);
                }
                self.config.observer.notice(&format!(
                    "a take of `{}` had been interrupted; what it left is cleaned up",
                    vm.name
                ));
            }
            Some(Intent::Revert { repository, target, safety }) => {
                self.finish_revert(vm, repository, target, safety)?;
            }
            Some(Intent::Reverted { process, run, thaw }) => {
                if run {
                    unless_ended(process, || Ok(vm.connect()?.start_running()?)).map_err(
                        Error::step(format!("cannot let `{}` run, which was reverted", vm.name)),
                    )?;
                }
                if run && thaw && process.is_alive() {
                    self.see_thawed(&vm.name, self.ask_thaw(vm));
                }
            }
            Some(Intent::Stop { process }) => self.take_back_stop(vm, process)?,
            Some(Intent::Clone { folder }) => {
                await_start(vm, START_LIMIT);
                self.remove_clone(vm, &folder)?;
                self.config.observer.notice(&format!(
                    "`{}` was being made of a snapshot when that was interrupted; it is removed",
                    vm.name
                ));
                return Err(Error::no_such_vm(&vm.name));
            }
        }
        self.forget_intent(&vm.name)
    }

    fn finish_revert(
        &self,
        vm: &mut LeasedVm,
        place: PathBuf,
        target: SnapshotId,
        safety: Option<SnapshotId>,
    ) -> Result<()> {
        let repository = self.repository_at(&place)?;
        let read = |id| -> Result<(Snapshot, Pin)> {
            let record =
                repository.snapshot(id).map_err(Error::step("cannot read the snapshot"))?;
            let mut snapshot = Snapshot::read(record)?;
            let held = hold(&repository, &mut snapshot)?;
            Ok((snapshot, held))
        };
        let (mut target, _held) = read(target)?;
        let (safety, _held_safety) = safety.map(read).transpose()?.unzip();
        self.config.observer.notice(&format!(
            "a revert of `{}` to `{}` had been interrupted; it is finished now",
            vm.name, target.record.name
        ));
        // Whoever began it had them, or was ready to go without.
        if let Err(error) = self.see_to_media(&mut target, true) {
            tracing::warn!(%error, "QEMU will not find it");
        }
        await_start(vm, START_LIMIT);
        // What the disks are now is not known: all of them is compared.
        let became = self.become_snapshot(&repository, vm, &target, Become::default());
        became.map(drop).map_err(|error| {
            let error = cannot_revert(vm, &target).because(error);
            self.go_back(&repository, place, vm, safety.as_ref(), error)
        })
    }

    /// Takes back a take that was to be followed by a revert, which will not be.
    pub(crate) fn take_back_safety(&self, vm: &LeasedVm) -> Result<()> {
        if let Some(Intent::Take { footprint, .. }) = self.intent(&vm.name)? {
            self.erase(vm, &footprint)?;
        }
        self.forget_intent(&vm.name)
    }

    /// Takes back what a stop has stored, of a VM that was not stopped.
    fn take_back_stop(&self, vm: &mut LeasedVm, process: ProcessId) -> Result<()> {
        let taken_back = unless_ended(process, || {
            let mut guest = vm.connect()?;
            self.unstore_bitmaps(vm, &mut guest)?;
            self.config.observer.notice(&format!(
                "a stop of `{}` had been interrupted; it runs on, and what it left is cleaned up",
                vm.name
            ));
            Ok(())
        });
        taken_back.map_err(cannot_repair(&vm.name, "stop", "the guest runs, or shuts down"))
    }

    /// Takes back what a take has changed in QEMU, and lets the guest run.
    fn erase(&self, vm: &LeasedVm, footprint: &Footprint) -> Result<()> {
        let erased = unless_ended(footprint.process, || {
            let mut guest = vm.connect()?;
            guest.erase(footprint)?;
            self.forget_other_bitmaps(vm, &mut guest);
            Ok(())
        });
        erased.map_err(cannot_repair(&vm.name, "take", "the guest may stand still until then"))
    }
}

fn cannot_repair(vm: &VmName, interrupted: &str, state: &str) -> impl FnOnce(Error) -> Error {
    move |error| {
        Error::failed(format!("cannot repair what an interrupted {interrupted} left in `{vm}`"))
            .hint(format!(
                "try again; if QEMU does not answer, `tintype vm stop {vm} --force` ends it"
            ))
            .state(state)
            .because(error)
    }
}

/// Waits for the QEMU that the killed command may have started and that does not
/// listen yet: it would hold the disks.
fn await_start(vm: &LeasedVm, limit: Duration) {
    let deadline = Instant::now() + limit;
    while !vm.is_alive() && Instant::now() < deadline {
        sleep(RETRY_INTERVAL);
    }
}

/// Repairs a QEMU, which is not needed when it has ended or does so meanwhile.
pub(crate) fn unless_ended(process: ProcessId, repair: impl FnOnce() -> Result<()>) -> Result<()> {
    if !process.is_alive() {
        return Ok(());
    }
    repair().or_else(|error| if process.ends_within(DEATH_LIMIT) { Ok(()) } else { Err(error) })
}
