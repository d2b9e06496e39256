//! Takes a snapshot: memory, settings and disks of one instant into the
//! repository.
//!
//! ```text
//! lease ─ preflight ─ intent ─ capture (the instant is in here) ─ stored
//!                                        ─ committed ─ intent forgotten
//! ```

use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use tintype_repo::{Repository, Session, SessionParams, SnapshotDraft, SnapshotRecord};
use tintype_types::{SnapshotId, SnapshotName, VmName};
use tintype_vm::{
    Abilities, Afterwards, CaptureParams, CaptureReport, CommandLine, Disk, Footprint, Freezer,
    Guest, Hardware, Inventory, Tpm, Way, bitmap_name, capture,
};

use crate::Engine;
use crate::details::{DEVICE_STATE, Details, Purpose, Snapshot};
use crate::error::{Error, Result};
use crate::files;
use crate::hooks::Hooks;
use crate::import::refuse_imported;
use crate::intent::Intent;
use crate::labels::{check_message, check_tags, refuse_name};
use crate::media::Medium;
use crate::observer::Step;
use crate::operations::Reversal;
use crate::quiesce::{AgentOrWhy, QuiesceParams, Quiesced};
use crate::room::recent;
use crate::sink::{Collected, SessionSink};
use crate::tracking::{Tracking, whole};
use crate::vms::{DEATH_LIMIT, LeasedVm};
use crate::watchdog::Watchdog;

/// What to take.
#[derive(Debug, Clone, Default)]
pub struct TakeParams {
    /// The snapshot's name; one is made if there is none.
    pub name: Option<SnapshotName>,
    /// What its maker writes about it.
    pub message: String,
    /// Its tags.
    pub tags: Vec<(String, String)>,
    /// Whether memory is left out.
    pub without_memory: bool,
    /// The way of capture, or `None` to choose the best.
    pub way: Option<Way>,
    /// The names of disks that are left out.
    pub excluded_disks: Vec<String>,
    /// Whether all disks are read whole, and no bitmap is left in QEMU.
    pub full: bool,
    /// Whether it is tried even if there is not nearly room.
    pub ignore_space: bool,
    /// Whether the guest's file systems are frozen around the instant.
    pub quiesce: QuiesceParams,
}

impl TakeParams {
    /// Returns the disks that the snapshot copies.
    pub(crate) fn disks<'d>(&self, inventory: &'d Inventory) -> Result<Vec<&'d Disk>> {
        let mut disks: Vec<&Disk> = inventory.writable_disks().collect();
        for name in &self.excluded_disks {
            if !disks.iter().any(|disk| disk.name == *name) {
                let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
                return Err(Error::invalid(format!("there is no disk `{name}` to leave out"))
                    .hint(format!("the disks are: {}", names.join(", "))));
            }
        }
        disks.retain(|disk| !self.excluded_disks.contains(&disk.name));
        Ok(disks)
    }
}

impl Engine {
    /// Takes a snapshot of a VM. When this returns, it is durable and was read back.
    pub fn take(&self, vm: &VmName, params: &TakeParams) -> Result<Snapshot> {
        let taken = self
            .try_take(vm, params)
            .map_err(|error| error.state_unless_known("no snapshot was taken").hint_if_full())?;
        self.prune_after_take(vm);
        Ok(taken)
    }

    fn try_take(&self, vm: &VmName, params: &TakeParams) -> Result<Snapshot> {
        let began = Instant::now();
        check_tags(&params.tags)?;
        check_message(&params.message)?;
        let mut vm = self.lease(vm, "take")?;
        self.config.observer.step(Step::TakeLease);
        self.check_interruption()?;
        let repository = self.repository()?;
        let earlier = self.snapshots_of(&repository, vm.state.id)?;
        let name = snapshot_name(&earlier, &vm.name, params.name.as_ref())?;
        let wish =
            Wish { params, name, purpose: Purpose::Asked, afterwards: Afterwards::RunOn, began };
        let is_alive = vm.is_alive();
        if !is_alive {
            refuse_imported(&vm.state.command_line, "take a snapshot of", &vm.name)?;
        }
        let recent = recent(&earlier, is_alive && !params.without_memory);
        if !params.ignore_space {
            self.refuse_if_full(&repository, &vm, &recent)?;
        }
        self.await_filling(&vm)?;
        let snapshot = match is_alive {
            true => self.take_alive(&repository, &mut vm, wish)?,
            false => self.take_powered_off(&repository, &mut vm, wish)?,
        };
        self.log_take(&repository, &snapshot);
        self.warn_if_tight(&repository, &vm, &recent);
        Ok(snapshot)
    }

    fn take_alive(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        wish: Wish<'_>,
    ) -> Result<Snapshot> {
        self.await_loading(vm)?;
        let mut guest = vm.connect()?;
        let (snapshot, watchdog) = self.take_running(repository, vm, &mut guest, wish)?;
        self.forget_intent(&vm.name)?;
        watchdog.dismiss();
        self.config.observer.step(Step::TakeForgotten);
        Ok(snapshot)
    }

    fn log_take(&self, repository: &Repository, taken: &Snapshot) {
        let did = format!("took {}@{}", taken.record.vm_name, taken.record.name);
        let reversal = Reversal::Delete { snapshots: vec![taken.record.id] };
        self.log_operation(repository, "take", did, Some(reversal));
    }

    /// Takes a snapshot of a VM whose QEMU runs. The intent is still there
    /// afterwards, and a watchdog on duty.
    pub(crate) fn take_running(
        &self,
        repository: &Repository,
        vm: &mut LeasedVm,
        guest: &mut Guest,
        wish: Wish<'_>,
    ) -> Result<(Snapshot, Watchdog)> {
        let what = format!("cannot take a snapshot of `{}`", vm.name);
        let cannot = |error| Error::failed(&*what).because(error);
        let parent = self.parent(repository, vm)?;
        let untouched = |error: Error| error.state("nothing was changed; the guest runs as before");
        let plan = self.preflight(vm, guest, &wish).map_err(untouched)?;
        let agent = self.find_agent(guest, &wish.params.quiesce).map_err(untouched)?;
        let hooks = self.wished_hooks(vm, &wish).map_err(untouched)?;
        self.config.observer.step(Step::TakePreflight);
        let session = repository
            .begin(SessionParams::default())
            .map_err(Error::step("cannot write to the repository"))?;
        let footprint = guest.footprint(&plan.disks).map_err(cannot)?;
        let intent = Intent::Take {
            footprint: footprint.clone(),
            freezes: agent.is_ok(),
            hooks: (!hooks.is_empty()).then(|| wish.name.clone()),
        };
        let watchdog = self.intend_take(vm, &intent, &agent).map_err(untouched)?;
        let tried = self.make_ready(guest, agent, &wish, &hooks, &watchdog);
        let (abilities, folder, freezer) = match tried {
            Ok(tried) => tried,
            Err(error) => {
                self.end_hooks(&hooks);
                return Err(self.take_back(vm, guest, &footprint, watchdog, error));
            }
        };
        self.config.observer.step(Step::TakeIntent);
        let earliers = match wish.reads_whole() {
            None => self.earlier_states(repository, vm, guest, &plan.disks),
            Some(why) => whole(&plan.disks, why),
        };
        let sink = SessionSink::new(&session, parent.as_ref(), &self.config.observer);
        let sink = sink.going_on_from(earliers).with_hooks(&hooks);
        let record = wish.reads_whole().is_none().then(|| bitmap_name(vm.state.id, session.id()));
        let capture_params = CaptureParams {
            disks: &plan.disks,
            memory: plan.memory,
            way: wish.params.way,
            abilities: &abilities,
            afterwards: wish.afterwards,
            record: record.as_deref(),
            seed: seed_of(session.id()),
            folder: folder.path(),
            freezer: freezer.as_ref().ok(),
        };
        let created = self.now();
        let captured = capture(guest, &capture_params, &footprint, &sink, &self.config.cancel);
        self.end_instant(vm, &hooks, &freezer);
        let draft = captured.map_err(cannot).and_then(|captured| {
            let quiesced = self.quiesced(&freezer, wish.params.quiesce.mode)?;
            let taken = Taken { captured, created, quiesced, line: plan.line };
            self.draft(vm, guest, sink, taken, &session, &wish)
        });
        self.config.observer.step(Step::TakeStored);
        let record = match draft.and_then(|draft| self.store(session, draft)) {
            Ok(record) => record,
            Err(error) => return Err(self.take_back(vm, guest, &footprint, watchdog, error)),
        };
        self.config.observer.step(Step::TakeCommitted);
        wish.note_tracking(vm, guest, record.id, plan.disks);
        Ok((self.note_taken(vm, guest, record)?, watchdog))
    }

    /// Says durably what the take is about to change, and has somebody wait to take it back.
    fn intend_take(&self, vm: &LeasedVm, intent: &Intent, agent: &AgentOrWhy) -> Result<Watchdog> {
        self.intend(&vm.name, intent)?;
        let channel = agent.as_ref().ok().and_then(|agent| agent.share().ok());
        Ok(self.watch(&vm.name, channel))
    }

    /// Ends what was begun around the instant, whatever came of it.
    fn end_instant(&self, vm: &LeasedVm, hooks: &Arc<Hooks>, freezer: &Result<Freezer, String>) {
        self.end_hooks(hooks);
        self.tell_if_frozen(&vm.name, freezer);
    }

    fn store(&self, session: Session, draft: SnapshotDraft) -> Result<SnapshotRecord> {
        self.check_interruption()?;
        session.commit(draft).map_err(Error::step("the repository did not keep the snapshot"))
    }

    /// Notes where the VM is now. The old bitmaps record on until it is noted that the
    /// new ones are relied on.
    fn note_taken(
        &self,
        vm: &mut LeasedVm,
        guest: &mut Guest,
        record: SnapshotRecord,
    ) -> Result<Snapshot> {
        self.place(vm, &record)?;
        self.forget_other_bitmaps(vm, guest);
        let snapshot = Snapshot::read(record)?;
        self.tell_unrecorded(&snapshot);
        Ok(snapshot)
    }

    /// Does what comes under the intent before the capture: to know what QEMU can do,
    /// it is tried.
    fn make_ready(
        &self,
        guest: &mut Guest,
        agent: AgentOrWhy,
        wish: &Wish<'_>,
        hooks: &Hooks,
        watchdog: &Watchdog,
    ) -> Result<Ready> {
        let abilities = guest.abilities().map_err(Error::step("cannot ask QEMU what it can do"))?;
        self.check_interruption()?;
        hooks.run_pre()?;
        let freezer = self.freezer(agent, &wish.params.quiesce, watchdog)?;
        Ok((abilities, self.home.short_lived_folder()?, freezer))
    }

    /// Returns the user's programs for a take; what a revert overwrites has none.
    fn wished_hooks(&self, vm: &LeasedVm, wish: &Wish<'_>) -> Result<Arc<Hooks>> {
        match wish.purpose {
            Purpose::Asked => self.hooks(&vm.name, &wish.name),
            Purpose::Safety | Purpose::Imported => Ok(Arc::default()),
        }
    }

    /// Ends a command that was asked to stop and has changed nothing yet.
    pub(crate) fn check_interruption(&self) -> Result<()> {
        self.config.cancel.check().map_err(Error::step("it was asked to stop"))
    }

    /// Takes back what a failed take has changed. What cannot be taken back now,
    /// the watchdog or the next command does: the intent stays.
    fn take_back(
        &self,
        vm: &LeasedVm,
        guest: &mut Guest,
        footprint: &Footprint,
        watchdog: Watchdog,
        error: Error,
    ) -> Error {
        let erased = guest.erase(footprint).map_err(|error| error.to_string());
        self.forget_other_bitmaps(vm, guest);
        let has_ended = erased.is_err() && guest.process().ends_within(DEATH_LIMIT);
        let done = if has_ended { Ok(()) } else { erased };
        let forgotten =
            done.and_then(|()| self.forget_intent(&vm.name).map_err(|error| error.to_string()));
        if forgotten.is_ok() {
            watchdog.dismiss();
        }
        match forgotten {
            Ok(()) if has_ended => {
                let hint =
                    format!("`tintype vm start {0}` or `tintype revert {0} …` starts it", vm.name);
                error.state("no snapshot was taken; the QEMU of this VM has ended").hint(hint)
            }
            Ok(()) => error.state("no snapshot was taken; the guest runs as before"),
            Err(left) => error
                .state(format!("no snapshot was taken; QEMU is not as it was yet: {left}"))
                .hint(format!("`tintype vm show {}` repairs it", vm.name)),
        }
    }

    /// Says if an image was written past QEMU. The snapshot has what is there now.
    fn tell_unrecorded(&self, snapshot: &Snapshot) {
        for saved in &snapshot.details.disks {
            if let Some(at) = saved.read.as_ref().and_then(|read| read.unrecorded) {
                self.config.observer.notice(&format!(
                    "the disk `{}` has changed at byte {at} though QEMU has not written there: somebody wrote to its image past QEMU; all of it was read, and the snapshot has what is there now",
                    saved.disk.name
                ));
            }
        }
    }

    /// Finds out whether a capture can work, before anything is touched. What a
    /// revert overwrites is taken in any state, and as far as QEMU can.
    fn preflight(&self, vm: &LeasedVm, guest: &mut Guest, wish: &Wish<'_>) -> Result<Plan> {
        let why = |error| Error::failed("this VM cannot be captured now").because(error);
        let overwritten = wish.purpose == Purpose::Safety;
        let fit = if overwritten { guest.refuse_block_jobs() } else { guest.refuse_unfit() };
        fit.map_err(why)?;
        let blockers = guest.memory_blockers().map_err(why)?;
        let hardware = guest.hardware(&vm.state.command_line).map_err(why)?;
        let can_load = blockers.is_empty() && hardware.unknown.is_empty();
        let memory = !wish.params.without_memory && (can_load || !overwritten);
        if memory && !blockers.is_empty() {
            return Err(Error::refused("QEMU cannot save the memory of this VM")
                .because(blockers.join("; "))
                .hint("take the disks alone with --no-memory, or remove the device; `tintype doctor VM` says more"));
        }
        if memory && !hardware.unknown.is_empty() {
            return Err(Error::refused("what this VM consists of now cannot be written down, and a snapshot with its memory would not load")
                .because(hardware.unknown.join("; "))
                .hint("take the disks alone with --no-memory, or start the VM anew with that on its command line"));
        }
        self.tell_hardware(&hardware);
        let inventory = guest.inventory().map_err(why)?;
        let disks = wish.params.disks(&inventory)?.into_iter().cloned().collect();
        let line = CommandLine { arguments: hardware.arguments, ..vm.state.command_line.clone() };
        Ok(Plan { memory, disks, line })
    }

    /// Says that the snapshot will start with other hardware than the VM has started with.
    fn tell_hardware(&self, hardware: &Hardware) {
        let Hardware { changes, unknown, .. } = hardware;
        if !changes.is_empty() {
            self.config.observer.notice(&format!(
                "since QEMU started {}: the snapshot's command line says so",
                changes.join(", and ")
            ));
        }
        if !unknown.is_empty() {
            self.config.observer.notice(&format!(
                "the snapshot has no memory, and not all of the hardware: {}",
                unknown.join("; ")
            ));
        }
    }

    fn draft(
        &self,
        vm: &LeasedVm,
        guest: &mut Guest,
        sink: SessionSink<'_>,
        taken: Taken,
        session: &Session,
        wish: &Wish<'_>,
    ) -> Result<SnapshotDraft> {
        let Taken { captured, created, quiesced, line } = taken;
        refuse_changed_meanwhile(vm, guest, wish, &line)?;
        let inventory = guest.inventory().map_err(Error::step("cannot look at the VM"))?;
        let tpms = Tpm::all_of(&line).map_err(Error::step("cannot look at the TPM of the VM"))?;
        let files = files::save(&sink, &line, &inventory, &tpms)
            .map_err(Error::step("cannot keep the files that the settings name"))?;
        let Collected { images, memory, disks } = sink.into_collected();
        let mut blobs = Vec::new();
        if let Some(state) = captured.device_state {
            // QEMU's word that it is complete is no proof.
            state.sections().map_err(Error::step("the state of the devices is not whole"))?;
            let blob = session.blob(state.as_bytes());
            blobs.push((
                DEVICE_STATE.to_owned(),
                blob.map_err(Error::step("cannot keep the device state"))?,
            ));
        }
        let details = Details {
            purpose: wish.purpose,
            message: wish.params.message.clone(),
            tags: wish.params.tags.clone(),
            way: Some(captured.way),
            pause_us: u64::try_from(captured.pause.as_micros()).unwrap_or(u64::MAX),
            duration_ms: u64::try_from(wish.began.elapsed().as_millis()).unwrap_or(u64::MAX),
            was_running: captured.was_running,
            memory,
            disks,
            command_line: line,
            media: Medium::all_of(&inventory),
            inventory,
            files,
            tpms,
            quiesced,
        };
        Ok(SnapshotDraft {
            vm: vm.state.id,
            vm_name: vm.name.clone(),
            name: wish.name.clone(),
            parent: vm.state.current,
            created,
            images,
            blobs,
            details: serde_json::to_value(details).expect("our own values are plain data"),
        })
    }

    /// Notes that the VM's state is now that of a snapshot.
    pub(crate) fn place(&self, vm: &mut LeasedVm, record: &SnapshotRecord) -> Result<()> {
        vm.state.current = Some(record.id);
        self.save(vm)
    }

    /// Returns the snapshot that the VM's state came from, if it is still there.
    pub(crate) fn parent(
        &self,
        repository: &Repository,
        vm: &LeasedVm,
    ) -> Result<Option<Snapshot>> {
        match vm.state.current.map(|id| repository.snapshot(id)) {
            Some(Ok(record)) => Snapshot::read(record).map(Some),
            // Gone, or of another repository: then nothing is compared.
            Some(Err(error)) => {
                tracing::info!(%error, "the parent snapshot is not there");
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

/// Checks a wished name, or makes one: `s1`, `s2`, …
fn snapshot_name(
    earlier: &[Snapshot],
    vm: &VmName,
    wished: Option<&SnapshotName>,
) -> Result<SnapshotName> {
    let taken: Vec<SnapshotName> =
        earlier.iter().map(|snapshot| snapshot.record.name.clone()).collect();
    match wished {
        Some(name) => refuse_name(name, taken.iter(), vm.as_str()).map(|()| name.clone()),
        None => Ok(next_name("s", &taken)),
    }
}

/// Returns the first of `s1`, `s2`, … that is free after the highest taken.
pub(crate) fn next_name(start: &str, taken: &[SnapshotName]) -> SnapshotName {
    let highest = taken
        .iter()
        .filter_map(|name| name.as_str().strip_prefix(start)?.parse::<u64>().ok())
        .max()
        .unwrap_or(0);
    SnapshotName::new(&format!("{start}{}", highest.saturating_add(1)))
        .expect("letters and digits are a name")
}

/// What a take is to become.
pub(crate) struct Wish<'p> {
    pub(crate) params: &'p TakeParams,
    pub(crate) name: SnapshotName,
    pub(crate) purpose: Purpose,
    pub(crate) afterwards: Afterwards,
    pub(crate) began: Instant,
}

impl Wish<'_> {
    /// Says why all disks are read whole and nothing is recorded from the instant on.
    /// What a revert overwrites has no other proof: the revert writes what differs from it.
    fn reads_whole(&self) -> Option<&'static str> {
        let overwritten = self.purpose == Purpose::Safety;
        let asked = self.params.full.then_some("that was asked for");
        asked.or(overwritten.then_some("a revert was about to overwrite it"))
    }

    fn note_tracking(
        &self,
        vm: &mut LeasedVm,
        guest: &Guest,
        snapshot: SnapshotId,
        disks: Vec<Disk>,
    ) {
        if self.reads_whole().is_none() {
            vm.state.tracking = Some(Tracking::begin(snapshot, guest.process(), disks));
        } else if self.params.full {
            vm.state.tracking = None;
        }
    }
}

/// Refuses a snapshot that would not load, because something was plugged or unplugged
/// while it was taken. A guest that is about to be replaced has our filters still.
fn refuse_changed_meanwhile(
    vm: &LeasedVm,
    guest: &mut Guest,
    wish: &Wish<'_>,
    line: &CommandLine,
) -> Result<()> {
    if wish.afterwards == Afterwards::StandStill {
        return Ok(());
    }
    let hardware = guest.hardware(&vm.state.command_line);
    let hardware = hardware.map_err(Error::step("cannot look at the VM"))?;
    if hardware.arguments == line.arguments {
        return Ok(());
    }
    Err(Error::failed("the hardware of the VM was changed while the snapshot was taken")
        .hint("try again"))
}

/// Draws other blocks for each snapshot, and the same ones for the same.
fn seed_of(snapshot: SnapshotId) -> u64 {
    let (seed, _) = snapshot.as_bytes().split_first_chunk().expect("an id has 16 bytes");
    u64::from_le_bytes(*seed)
}

/// What QEMU can do, a folder for sockets, and what freezes the guest.
type Ready = (Abilities, tempfile::TempDir, Result<Freezer, String>);

/// What a capture has brought besides the images.
struct Taken {
    captured: CaptureReport,
    created: Timestamp,
    quiesced: Quiesced,
    /// What starts the VM with the hardware that it had.
    line: CommandLine,
}

/// What a capture will touch.
struct Plan {
    memory: bool,
    disks: Vec<Disk>,
    /// What starts the VM with the hardware that it has now.
    line: CommandLine,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_made_in_order() {
        let check = |taken: &[&str], expected: &str| {
            let taken: Vec<_> = taken.iter().map(|name| SnapshotName::new(name).unwrap()).collect();
            assert_eq!(next_name("s", &taken).as_str(), expected);
        };
        check(&[], "s1");
        check(&["s1", "before-upgrade", "s9", "sx"], "s10");
        check(&["s1", "s3"], "s4");
    }
}
