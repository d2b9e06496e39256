//! Puts a VM back to a snapshot: disks, memory and settings.
//!
//! ```text
//! lease ─ verify the target ─ safety snapshot ─ intent ─┐
//!    ┌──────────────────────────────────────────────────┘
//!    └ end the old QEMU ┬ write the blocks that differ ┬ load ─ run
//!                       └ start QEMU ──────────────────┘
//! ```
//!
//! Nothing is touched before the target is known to be whole. From the intent
//! on the revert is finished, by this command or the next: every step can be
//! done twice.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tintype_repo::{Repository, VerifyLevel};
use tintype_types::{SnapshotId, VmName};
use tintype_vm::{Afterwards, Cancel, Guest};

use crate::Engine;
use crate::details::{Purpose, Snapshot, micros_as_ms};
use crate::disks::{DiskHost, EarlyHost, TargetDisks};
use crate::error::{DAMAGE_HINT, Error, ErrorKind, Result};
use crate::files::{command_line_with_files, start_tpms};
use crate::import::refuse_imported;
use crate::intent::Intent;
use crate::lazy::{LazyStart, LoadMode, WAITING};
use crate::memory;
use crate::observer::Step;
use crate::operations::Reversal;
use crate::snapshots::hold;
use crate::take::{TakeParams, Wish, next_name};
use crate::vms::LeasedVm;
use crate::watchdog::Watchdog;

/// What to revert to, and how.
#[derive(Debug, Clone)]
pub struct RevertParams {
    /// The snapshot.
    pub snapshot: String,
    /// Whether what is overwritten is kept.
    pub safety: bool,
    /// When the guest runs.
    pub load: LoadMode,
    /// Whether media that are missing or others now do not matter.
    pub ignore_media: bool,
}

/// How a revert went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RevertReport {
    /// The VM.
    pub vm: VmName,
    /// The snapshot that it is now.
    pub snapshot: SnapshotId,
    /// The name of that snapshot.
    pub name: tintype_types::SnapshotName,
    /// The snapshot of what was overwritten.
    pub safety_snapshot: Option<SnapshotId>,
    /// Its name.
    pub safety_name: Option<tintype_types::SnapshotName>,
    /// From the start of the command to the guest running.
    pub running_ms: f64,
    /// What QEMU says the guest does.
    pub state: String,
    /// Bytes that were written to the disks.
    pub written_bytes: u64,
    /// Whether memory is still being loaded.
    pub lazy: bool,
    /// What became of the guest's clock.
    pub clock: String,
}

/// How long a process that was told to end may take.
const END_LIMIT: Duration = Duration::from_secs(20);

impl Engine {
    /// Puts a VM back to a snapshot.
    pub fn revert(&self, vm: &VmName, params: &RevertParams) -> Result<RevertReport> {
        let Reverted { report, reversal, repository } = self.put_back_vm(vm, params)?;
        let did = format!("put {vm} back to {vm}@{}", report.name);
        self.log_operation(&repository, "revert", did, reversal);
        Ok(report)
    }

    /// The same, without an entry in the log of operations.
    pub(crate) fn put_back_vm(&self, vm: &VmName, params: &RevertParams) -> Result<Reverted> {
        let began = Instant::now();
        let mut vm = self.lease(vm, "revert")?;
        self.config.observer.step(Step::RevertLease);
        self.check_interruption().map_err(|error| error.state("nothing was changed"))?;
        let repository = self.repository()?;
        let mut target = self.find_snapshot(&repository, &params.snapshot, Some(&vm.name))?;
        let _held = hold(&repository, &mut target)?;
        refuse_imported(&target.details.command_line, "revert", &vm.name)?;
        self.see_to_media(&mut target, params.ignore_media)?;
        let lazy = self.is_lazy(&repository, &target, params.load)?;
        let early = self.start_early_host(&target)?;
        self.refuse_misfit(&repository, &vm, &target, lazy)?;
        self.config.observer.step(Step::RevertVerified);
        self.check_interruption().map_err(|error| error.state("nothing was changed"))?;
        let (mut safety, watchdog) = match params.safety {
            true => self.safety_snapshot(&repository, &mut vm)?,
            false => (None, None),
        };
        self.config.observer.step(Step::RevertSafety);
        let intent = Intent::Revert {
            repository: self.absolute_repository_place(),
            target: target.record.id,
            safety: safety.as_ref().map(|safety| safety.record.id),
        };
        // It takes the place of the safety take's intent: a guest that stands
        // still for it is owed to one of the two at any moment.
        let intended = self.check_interruption().and_then(|()| {
            let held = safety.as_mut().map(|safety| hold(&repository, safety)).transpose()?;
            self.intend(&vm.name, &intent).map(|()| held)
        });
        let _held_safety = intended.map_err(|error| match self.take_back_safety(&vm) {
            Ok(()) => cannot_revert(&vm, &target)
                .because(error)
                .state("nothing was changed; the guest runs on if it ran before"),
            Err(error) => error,
        })?;
        if let Some(watchdog) = watchdog {
            watchdog.dismiss();
        }
        self.config.observer.step(Step::RevertIntent);
        let how = Become { base: safety.as_ref(), lazy, early };
        let became = self.become_snapshot(&repository, &mut vm, &target, how);
        let became = became.map_err(|error| {
            let error = cannot_revert(&vm, &target).because(error);
            let place = self.absolute_repository_place();
            self.go_back(&repository, place, &mut vm, safety.as_ref(), error)
        })?;
        let running_us = became.running_at.duration_since(began).as_micros();
        let running_us = u64::try_from(running_us).unwrap_or(u64::MAX);
        self.forget_intent(&vm.name)?;
        self.config.observer.step(Step::RevertForgotten);
        self.tell_if_too_late();
        let reversal = safety
            .as_ref()
            .map(|safety| Reversal::Revert { vm: vm.state.id, to: safety.record.id });
        let report = RevertReport {
            vm: vm.name.clone(),
            snapshot: target.record.id,
            name: target.record.name,
            safety_snapshot: safety.as_ref().map(|safety| safety.record.id),
            safety_name: safety.map(|safety| safety.record.name),
            running_ms: micros_as_ms(running_us),
            state: became.state,
            written_bytes: became.written_bytes,
            lazy: became.lazy,
            clock: became.clock,
        };
        Ok(Reverted { report, reversal, repository })
    }

    fn tell_if_too_late(&self) {
        if self.config.cancel.is_cancelled() {
            let notice = "it was too late to stop: the VM was being overwritten already, so the revert was finished";
            self.config.observer.notice(notice);
        }
    }

    /// Makes the VM what a snapshot is.
    pub(crate) fn become_snapshot(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        target: &Snapshot,
        how: Become<'_>,
    ) -> Result<Became> {
        let observer = &self.config.observer;
        self.end_loading(vm)?;
        self.distrust_stored_bitmaps(vm)?;
        end_qemu(vm)?;
        observer.step(Step::RevertStopped);
        let folder = self.home.short_lived_folder()?;
        let program = &target.details.command_line.program;
        let host = DiskHost { program, folder: folder.path() };
        let disks = host.open_target(how.early, target)?;
        let from = (repository, target);
        let write = |disks: TargetDisks| disks.write(from, how.base, observer.as_ref());
        let (written, started) = thread::scope(|scope| {
            let writing = disks.map(|disks| scope.spawn(|| write(disks)));
            let started = self.start_beside(repository, vm, target, how.lazy);
            let written = writing.map(|writing| writing.join().expect("writing never panics"));
            (written.unwrap_or(Ok(0)), started)
        });
        let (written_bytes, waiting) = match (written, started) {
            (Ok(written), Ok(waiting)) => (written, waiting),
            (Ok(_), Err(error)) => return Err(error),
            (Err(error), started) => {
                if let Ok(Some(waiting)) = started
                    && let Err(error) = self.give_up_waiting(vm, waiting)
                {
                    tracing::warn!(%error, "who goes on ends it");
                }
                return Err(error);
            }
        };
        observer.step(Step::RevertFlushed);
        let ran = self.run_snapshot(repository, vm, target, how.lazy, waiting)?;
        let running_at = Instant::now();
        observer.step(Step::RevertRunning);
        let (state, clock, lazy) = match ran {
            Some(Ran { mut guest, state, lazy }) => (state, self.settle(&mut guest, target), lazy),
            None => ("stopped".to_owned(), "not set: the VM does not run".to_owned(), false),
        };
        Ok(Became { state, written_bytes, lazy, clock, running_at })
    }

    /// Puts back the settings and the files of a VM, and starts what waits for its memory,
    /// if there is any, while its disks are being written. What does not start beside
    /// that may do so when they are.
    fn start_beside(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        target: &Snapshot,
        lazy: bool,
    ) -> Result<Option<Waiting>> {
        let files = self.home.files_folder(&vm.name);
        vm.state.command_line = command_line_with_files(repository, target, &files)?;
        if target.details.memory.is_empty() || self.filling_state(&vm.name)?.is_some() {
            return Ok(None);
        }
        start_tpms(repository, target)?;
        let started = match lazy {
            true => self.start_lazily(vm, target).map(Waiting::Lazy),
            false => self.launch(vm, &WAITING).map(Waiting::Eager),
        };
        Ok(started.inspect_err(|error| tracing::info!(%error, "it is started later")).ok())
    }

    fn give_up_waiting(&self, vm: &LeasedVm, waiting: Waiting) -> Result<()> {
        match waiting {
            Waiting::Lazy(start) => self.give_up_lazily(vm, start),
            Waiting::Eager(guest) => guest.quit().map_err(Error::step("QEMU does not end")),
        }
    }

    /// Begins to start what will write the disks of a snapshot.
    fn start_early_host(&self, target: &Snapshot) -> Result<Option<EarlyHost>> {
        if target.details.disks.is_empty() {
            return Ok(None);
        }
        let folder = self.home.short_lived_folder()?;
        Ok(Some(EarlyHost::start(&target.details.command_line.program, folder)))
    }

    /// Starts QEMU, unless one is `waiting`, and lets the guest go on from the snapshot's
    /// instant. Disks without memory are started as after a power cut. `None` if the
    /// VM was powered off.
    fn run_snapshot(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        target: &Snapshot,
        lazy: bool,
        waiting: Option<Waiting>,
    ) -> Result<Option<Ran>> {
        let observer = &self.config.observer;
        let has_memory = !target.details.memory.is_empty();
        if waiting.is_none() {
            start_tpms(repository, target)?;
        }
        if !has_memory && target.details.way.is_none() {
            // It was powered off, and is so again.
            self.place(vm, &target.record)?;
            return Ok(None);
        }
        let (mut guest, lazy) = self.load(repository, vm, target, lazy, waiting)?;
        observer.step(Step::RevertLoaded);
        vm.state.process = guest.process();
        vm.state.inventory = target.details.inventory.clone();
        self.place(vm, &target.record)?;
        let run = target.details.was_running;
        let thaw = target.details.quiesced.needs_thaw() && has_memory;
        self.intend(&vm.name, &Intent::Reverted { process: vm.state.process, run, thaw })?;
        observer.step(Step::RevertLineage);
        let cannot = |error| Error::failed("the guest cannot be started").because(error);
        if run {
            guest.start_running().map_err(cannot)?;
        }
        let state = guest.run_state().map_err(cannot)?;
        Ok(Some(Ran { guest, state, lazy }))
    }

    /// Returns a guest that can run, and whether its memory is loaded behind it. It does
    /// not run before it is noted that it may have.
    fn load(
        &self,
        repository: &Repository,
        vm: &LeasedVm,
        target: &Snapshot,
        lazy: bool,
        waiting: Option<Waiting>,
    ) -> Result<(Guest, bool)> {
        let lazily = match waiting {
            Some(Waiting::Eager(guest)) => {
                return Ok((self.load_eagerly(repository, guest, target)?, false));
            }
            Some(Waiting::Lazy(start)) => Some(self.load_lazily(vm, start)),
            None => lazy.then(|| self.launch_lazily(vm, target)),
        };
        match lazily {
            Some(Ok(guest)) => return Ok((guest, true)),
            Some(Err(error)) => self.explain_eager(&error.with_causes()),
            None => {}
        }
        let has_memory = !target.details.memory.is_empty();
        let guest = self.launch(vm, if has_memory { &WAITING } else { &["-S"] })?;
        Ok((self.load_eagerly(repository, guest, target)?, false))
    }

    /// Loads all of the memory.
    fn load_eagerly(
        &self,
        repository: &Repository,
        mut guest: Guest,
        target: &Snapshot,
    ) -> Result<Guest> {
        self.config.observer.step(Step::RevertStarted);
        if !target.details.memory.is_empty()
            && let Err(error) = self.load_memory(repository, &mut guest, target, None)
        {
            // A QEMU that is half loaded is of no use to anybody.
            let _ = guest.quit();
            return Err(error);
        }
        Ok(guest)
    }

    /// Loads the memory of a snapshot, but for the block that is `mapped` already.
    pub(crate) fn load_memory(
        &self,
        repository: &Repository,
        guest: &mut Guest,
        target: &Snapshot,
        mapped: Option<&str>,
    ) -> Result<()> {
        let state = target.device_state(repository)?;
        // What is half overwritten is of no use: this is not interrupted.
        memory::load(repository, guest, target, &state, mapped, &Cancel::default())
    }

    /// Refuses a snapshot that is not whole, or that cannot run here.
    fn refuse_misfit(
        &self,
        repository: &Repository,
        vm: &LeasedVm,
        target: &Snapshot,
        lazy: bool,
    ) -> Result<()> {
        let refused = |why: String| {
            let what = cannot_revert(vm, target).to_string();
            Error::refused(what).because(why).state("nothing was changed")
        };
        if target.record.vm != vm.state.id {
            return Err(refused(format!(
                "it is a snapshot of `{}`, another VM",
                target.record.vm_name
            ))
            .hint(format!("`tintype log {}` lists the snapshots of this VM", vm.name)));
        }
        let line = &target.details.command_line;
        if let Some(word) = tintype_vm::arguments::inherited_descriptor(&line.arguments) {
            return Err(refused(format!(
                "QEMU was started with `{word}`, a file that only its parent had open"
            )));
        }
        if !line.program.exists() {
            return Err(refused(format!(
                "the QEMU of the snapshot, {}, is not there",
                line.program.display()
            ))
            .hint(format!("the snapshot needs QEMU {}", target.details.inventory.qemu_version)));
        }
        for saved in &target.details.disks {
            let name = &saved.disk.name;
            match &saved.disk.file {
                None => {
                    return Err(refused(format!(
                        "the disk `{name}` is not a file of this machine"
                    )));
                }
                Some(path) if !Path::new(path).exists() => {
                    return Err(refused(format!(
                        "the file of the disk `{name}`, {}, is not there",
                        path.display()
                    ))
                    .hint("put it back; what is in it is overwritten, its size and format stay"));
                }
                Some(_) => {}
            }
        }
        let level = if lazy { VerifyLevel::Quick } else { VerifyLevel::StoredNearby };
        let report = repository
            .verify(&[target.record.id], level, &self.supervisor("verifying"))
            .map_err(Error::step("cannot verify the snapshot"))
            .map_err(|error| error.state_unless_known("nothing was changed"))?;
        match report.damaged.first() {
            None if lazy => self
                .check_all_but_memory(repository, target)
                .map_err(|error| error.state_unless_known("nothing was changed")),
            None => Ok(()),
            Some(damage) => Err(refused(damage.to_string()).hint(DAMAGE_HINT)),
        }
    }

    /// Takes a snapshot of what is about to be overwritten. A guest that runs
    /// stands still afterwards: nothing of it may be newer than the snapshot.
    fn safety_snapshot(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
    ) -> Result<(Option<Snapshot>, Option<Watchdog>)> {
        let taken: Vec<_> = self
            .snapshots_of(repository, vm.state.id)?
            .into_iter()
            .map(|snapshot| snapshot.record.name)
            .collect();
        let params = TakeParams {
            message: "taken before a revert, which overwrote this state".to_owned(),
            ..TakeParams::default()
        };
        let name = next_name("safety", &taken);
        let began = Instant::now();
        let cannot = |error: Error| {
            let cannot =
                Error::failed("cannot take a safety snapshot of what the revert overwrites");
            match error.kind() {
                ErrorKind::Interrupted => cannot.because(error),
                _ => cannot
                    .hint("--no-safety reverts without one: what is there now is lost then")
                    .because(error),
            }
            .state_unless_known("nothing was changed")
        };
        let wish = Wish {
            params: &params,
            name,
            purpose: Purpose::Safety,
            afterwards: Afterwards::StandStill,
            began,
        };
        if !vm.is_alive() {
            let taken = self.take_powered_off(repository, vm, wish);
            return taken.map(|taken| (Some(taken), None)).map_err(cannot);
        }
        self.await_loading(vm).map_err(cannot)?;
        let mut guest = vm.connect()?;
        let taken = self.take_running(repository, vm, &mut guest, wish);
        taken.map(|(taken, watchdog)| (Some(taken), Some(watchdog))).map_err(cannot)
    }

    /// Puts back what a failed revert has overwritten, as far as it is known.
    pub(crate) fn go_back(
        &self,
        repository: &Repository,
        place: PathBuf,
        vm: &mut LeasedVm,
        safety: Option<&Snapshot>,
        error: Error,
    ) -> Error {
        let Some(safety) = safety else {
            let state = match vm.is_alive() {
                true => "its QEMU is there, and the guest does not run yet",
                false => "the VM is stopped, and partly overwritten",
            };
            return error
                .state(state)
                .hint(format!("`tintype vm show {}` tries again to finish the revert", vm.name));
        };
        let intent = Intent::Revert { repository: place, target: safety.record.id, safety: None };
        let back = self
            .intend(&vm.name, &intent)
            .and_then(|()| self.become_snapshot(repository, vm, safety, Become::default()));
        match back.and_then(|_| self.forget_intent(&vm.name)) {
            Ok(()) => error.state(format!(
                "the VM is as it was before: it was put back to `{}`",
                safety.record.name
            )),
            Err(again) => error
                .state(format!("the VM is stopped, and could not be put back either: {again}"))
                .hint(format!("`tintype vm show {}` tries again", vm.name)),
        }
    }
}

pub(crate) fn cannot_revert(vm: &LeasedVm, target: &Snapshot) -> Error {
    Error::failed(format!("cannot revert `{}` to `{}`", vm.name, target.record.name))
}

/// How a VM is made what a snapshot is.
#[derive(Default)]
pub(crate) struct Become<'b> {
    /// What its disks are known to be: only the difference is written.
    pub(crate) base: Option<&'b Snapshot>,
    /// Whether its guest runs before its memory is loaded.
    pub(crate) lazy: bool,
    /// What opens its disks, if that was started beforehand.
    pub(crate) early: Option<EarlyHost>,
}

/// A QEMU that was started while its disks were written, and waits for its memory.
enum Waiting {
    Eager(Guest),
    Lazy(LazyStart),
}

/// A revert that is done.
pub(crate) struct Reverted {
    pub(crate) report: RevertReport,
    /// What takes it back, unless what was there is lost.
    pub(crate) reversal: Option<Reversal>,
    pub(crate) repository: Repository,
}

/// A guest that goes on from an earlier instant.
struct Ran {
    guest: Guest,
    /// QEMU's word for what it does.
    state: String,
    /// Whether its memory is still being loaded.
    lazy: bool,
}

/// What a VM has become.
pub(crate) struct Became {
    state: String,
    written_bytes: u64,
    lazy: bool,
    clock: String,
    running_at: Instant,
}

/// Ends the QEMU of a VM, whatever state it is in.
pub(crate) fn end_qemu(vm: &LeasedVm) -> Result<()> {
    if vm.is_alive() { end_connected(vm, vm.connect()) } else { Ok(()) }
}

/// Ends a QEMU that is connected to, or that does not answer any more.
pub(crate) fn end_connected(vm: &LeasedVm, connected: Result<Guest>) -> Result<()> {
    let cannot = |error| Error::failed("the old QEMU does not end").because(error);
    match connected {
        Ok(guest) => guest.quit().map_err(cannot),
        Err(error) => match vm.process() {
            Some(process) => {
                process.kill();
                if process.wait_end(END_LIMIT) { Ok(()) } else { Err(error) }
            }
            None => Ok(()),
        },
    }
}
