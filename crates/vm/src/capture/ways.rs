//! The three ways to one instant of memory and disks. Each ends with the guest
//! running on (or kept still), and its memory on the way or already here.

use std::time::Duration;

use serde_json::{Value, json};

use super::convergence::{Progress, Verdict, judge};
use super::disks::DiskCapture;
use super::memory::{Milestone, WORTH_A_GATE};
use super::sink::Moment;
use super::{Afterwards, MemoryStream, Passed, Run, Way, migration_failure};
use crate::error::{Error, Result};
use crate::footprint::Footprint;
use crate::freezer::Freezer;
use crate::pause::{Pause, cancel_migration, migration_status, run_state};
use crate::qmp::{Event, Qmp};

/// The pause that an iterating capture aims at, in milliseconds (QEMU's `downtime-limit`).
const AIM_MS: u64 = 10;

/// How often a capture under way looks at its progress.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How long QEMU may take to protect memory, or to stop a guest that is ready.
const STEP_LIMIT: Duration = Duration::from_secs(60);

/// The capability that tells when the guest stands still, and waits then.
const TELL_WHEN_STILL: &str = "pause-before-switchover";

/// How an iterating capture went.
enum Iterated<'scope> {
    Done(Passed<'scope>),
    /// The guest dirties its memory faster than it is read; it runs on.
    TooBusy,
}

impl<'scope> Run<'scope, '_> {
    /// Goes the way that was asked for, or the best that works.
    pub(super) fn pass_instant(
        &self,
        qmp: &mut Qmp,
        disks: &DiskCapture,
    ) -> Result<Passed<'scope>> {
        let early_targets = self.params.abilities.set_active || !self.params.memory;
        if early_targets {
            qmp.execute_all(&disks.target_commands())?;
        }
        if !self.params.memory {
            return self.disks_alone(qmp, disks);
        }
        match self.choose_way(qmp)? {
            Way::Stop => self.stop(qmp, disks),
            Way::CopyOnWrite => self.copy_on_write(qmp, disks),
            Way::Iterating => match self.iterating(qmp, disks)? {
                Iterated::Done(instant) => Ok(instant),
                Iterated::TooBusy => self.copy_on_write(qmp, disks),
            },
        }
    }

    fn choose_way(&self, qmp: &mut Qmp) -> Result<Way> {
        let abilities = self.params.abilities;
        if self.params.afterwards == Afterwards::StandStill {
            return Ok(Way::Stop);
        }
        if run_state(qmp)? != "running" {
            // Nothing has to be quick for a guest that its owner has paused, but it
            // has to be left `paused`. The other ways leave it `postmigrate`, and
            // before 9.0 QEMU ends its own pause by starting the guest, whether or
            // not that ran (migration/migration.c, `bg_migration_vm_start_bh`).
            let stays_paused = abilities.copy_on_write.is_ok() && abilities.set_active;
            return Ok(if stays_paused { Way::CopyOnWrite } else { Way::Stop });
        }
        let can = |way| match way {
            Way::Iterating => abilities.iterating.as_ref(),
            Way::CopyOnWrite => abilities.copy_on_write.as_ref(),
            Way::Stop => Ok(&()),
        };
        let Some(way) = self.params.way else {
            let best = [Way::Iterating, Way::CopyOnWrite].into_iter().find(|way| can(*way).is_ok());
            return Ok(best.unwrap_or(Way::Stop));
        };
        let refused = |reason| {
            Error::unsupported(format!("{} capture cannot be used here: {reason}", way.name()))
        };
        can(way).map(|()| way).map_err(refused)
    }

    fn disks_alone(&self, qmp: &mut Qmp, disks: &DiskCapture) -> Result<Passed<'scope>> {
        self.sink.moment(Moment::BeforePause);
        self.freeze(qmp)?;
        let mut pause = Pause::prepare(qmp)?;
        pause.stop()?;
        self.release();
        let (pause, was_running) = self.end_pause(pause, &self.disk_commands(disks, false))?;
        Ok(Passed { way: Way::Stop, pause, was_running, memory: None })
    }

    fn stop(&self, qmp: &mut Qmp, disks: &DiskCapture) -> Result<Passed<'scope>> {
        Footprint::set_capabilities(qmp, &["events"])?;
        set_parameters(qmp, AIM_MS)?;
        let memory = self.open_memory_stream(qmp, false)?;
        self.sink.moment(Moment::BeforePause);
        self.freeze(qmp)?;
        let mut pause = Pause::prepare(qmp)?;
        pause.stop()?;
        self.release();
        Self::start_migration(pause.qmp())?;
        if let Err(error) = self.await_completion(&mut pause) {
            return Err(give_up(pause, memory, error));
        }
        let (pause, was_running) = self.end_pause(pause, &self.disk_commands(disks, true))?;
        Ok(Passed { way: Way::Stop, pause, was_running, memory: Some(memory) })
    }

    fn copy_on_write(&self, qmp: &mut Qmp, disks: &DiskCapture) -> Result<Passed<'scope>> {
        Footprint::set_capabilities(qmp, &["background-snapshot"])?;
        if !self.params.abilities.set_active {
            qmp.execute_all(&disks.target_commands())?;
        }
        let memory = self.open_memory_stream(qmp, false)?;
        self.sink.moment(Moment::BeforePause);
        self.freeze(qmp)?;
        let mut pause = Pause::prepare(qmp)?;
        pause.stop()?;
        self.release();
        // The disks first: before 9.0 QEMU lets the guest run by itself as soon as
        // its memory is protected (migration/migration.c, `bg_migration_vm_start_bh`).
        let fixed = pause.qmp().execute_all(&self.disk_commands(disks, false));
        if let Err(error) = fixed.and_then(|()| Self::start_migration(pause.qmp())) {
            return Err(give_up(pause, memory, error));
        }
        match memory.milestones.recv_timeout(STEP_LIMIT) {
            Ok(Milestone::Pages) => {}
            Ok(Milestone::Gate | Milestone::End) => {
                let ended = migration_ended(pause.qmp());
                return Err(give_up(pause, memory, ended));
            }
            Err(_) => {
                let what = "protect its memory".to_owned();
                return Err(give_up(pause, memory, Error::Timeout { what, waited: STEP_LIMIT }));
            }
        }
        let (pause, was_running) = self.end_pause(pause, &[])?;
        Ok(Passed { way: Way::CopyOnWrite, pause, was_running, memory: Some(memory) })
    }

    /// QEMU stops the guest by itself when what is left fits the pause aimed at.
    /// To be told when it did (`pause-before-switchover`) adds a round trip to the
    /// pause, and is only of use for a guest that was frozen: its thaw has to be
    /// asked for when it stands still, and not before.
    fn iterating(&self, qmp: &mut Qmp, disks: &DiskCapture) -> Result<Iterated<'scope>> {
        let freezes = self.params.freezer.is_some_and(Freezer::is_idle);
        let told: &[&str] = if freezes { &["events", TELL_WHEN_STILL] } else { &["events"] };
        Footprint::set_capabilities(qmp, told)?;
        set_parameters(qmp, AIM_MS)?;
        let gate = freezes && memory_size(qmp)? >= WORTH_A_GATE;
        if freezes && !gate {
            self.freeze(qmp)?;
        }
        let memory = self.open_memory_stream(qmp, gate)?;
        let mut pause = Pause::prepare(qmp)?;
        Self::start_migration(pause.qmp())?;
        match self.await_last_pass(&mut pause, &memory) {
            Ok(true) => {}
            Ok(false) => {
                drop(pause);
                drop(memory.gate);
                // The reader ends with the stream; what it read is void.
                let _ = memory.reader.join();
                return Ok(Iterated::TooBusy);
            }
            Err(error) => return Err(give_up(pause, memory, error)),
        }
        let (pause, was_running) = self.end_pause(pause, &self.disk_commands(disks, true))?;
        Ok(Iterated::Done(Passed { way: Way::Iterating, pause, was_running, memory: Some(memory) }))
    }

    /// Waits until the last pass is done and the guest stands still; `false` if the
    /// guest is too busy and another way is open: then it runs on.
    fn await_last_pass(&self, pause: &mut Pause<'_>, memory: &MemoryStream<'_>) -> Result<bool> {
        let mut allowed = Duration::from_millis(AIM_MS);
        loop {
            match await_news(pause.qmp())? {
                News::Completed => return Ok(true),
                News::Still => {
                    self.let_go_on(pause)?;
                    continue;
                }
                News::Pass => {
                    self.sink.moment(Moment::BeforePause);
                    continue;
                }
                News::None => {}
            }
            self.cancel.check()?;
            self.look_at_frost()?;
            for milestone in memory.milestones.try_iter() {
                match milestone {
                    Milestone::Pages => {}
                    Milestone::Gate => {
                        self.freeze(pause.qmp())?;
                        // A reader that has failed meanwhile needs no gate.
                        let _ = memory.gate.send(());
                    }
                    Milestone::End => return is_completed(pause.qmp()),
                }
            }
            match judge(&progress(pause.qmp())?) {
                Verdict::AllowPause(longer) if longer > allowed => {
                    allowed = longer;
                    set_parameters(pause.qmp(), millis(longer))?;
                }
                Verdict::GoOn | Verdict::AllowPause(_) => {}
                Verdict::GiveUp if self.may_copy_on_write() => {
                    cancel_migration(pause.qmp())?;
                    // It may have caught up at the last moment.
                    return Ok(is_completed(pause.qmp()).unwrap_or(false));
                }
                // Nothing else works here: stand still for what is left.
                Verdict::GiveUp => {
                    pause.stop()?;
                    return self.await_completion(pause).map(|()| true);
                }
            }
        }
    }

    /// Freezes the file systems of a guest that runs.
    fn freeze(&self, qmp: &mut Qmp) -> Result<()> {
        let Some(freezer) = self.params.freezer else { return Ok(()) };
        if run_state(qmp)? != "running" {
            return freezer.give_up("the guest stood still already");
        }
        freezer.freeze()?;
        self.sink.moment(Moment::Frozen);
        Ok(())
    }

    /// Asks for the thaw of a guest that stands still at its instant.
    fn release(&self) {
        if let Some(freezer) = self.params.freezer {
            freezer.release();
        }
    }

    /// Thaws a guest whose instant does not come in time.
    fn look_at_frost(&self) -> Result<()> {
        match self.params.freezer {
            Some(freezer) if freezer.is_late() => {
                freezer.give_up("its instant did not come in time")
            }
            _ => Ok(()),
        }
    }

    fn may_copy_on_write(&self) -> bool {
        self.params.way.is_none() && self.params.abilities.copy_on_write.is_ok()
    }

    /// Waits until QEMU has sent everything of a guest that stands still.
    fn await_completion(&self, pause: &mut Pause<'_>) -> Result<()> {
        loop {
            match await_news(pause.qmp())? {
                News::Completed => return Ok(()),
                News::Still => self.let_go_on(pause)?,
                News::Pass | News::None => {}
            }
            self.cancel.check()?;
        }
    }

    /// The guest stands still: asks for its thaw, and lets QEMU send the last pages.
    fn let_go_on(&self, pause: &mut Pause<'_>) -> Result<()> {
        if let Some(freezer) = self.params.freezer {
            freezer.release();
            freezer.give_up("the guest stood still before it could be tried")?;
        }
        let go_on = json!({"state": "pre-switchover"});
        pause.qmp().execute("migrate-continue", go_on).map(drop)
    }
}

/// What QEMU tells of a migration under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// It has ended well; the guest stands still.
    Completed,
    /// The guest stands still, and its last pages may be read.
    Still,
    /// Another pass over memory begins.
    Pass,
    /// Nothing, for a while.
    None,
}

/// Waits a while for news; a migration that failed is an error.
fn await_news(qmp: &mut Qmp) -> Result<News> {
    const ENDS: [&str; 4] = ["completed", "failed", "cancelled", "pre-switchover"];
    let is_news = |event: &Event| {
        event.name == "MIGRATION_PASS"
            || ENDS.iter().any(|status| event.is("MIGRATION", "status", status))
    };
    match qmp.wait_event("get on with saving its memory", LOOK_UP, is_news) {
        Ok(event) if event.name == "MIGRATION_PASS" => Ok(News::Pass),
        Ok(event) if event.is("MIGRATION", "status", "completed") => Ok(News::Completed),
        Ok(event) if event.is("MIGRATION", "status", "pre-switchover") => Ok(News::Still),
        Ok(_) => Err(migration_ended(qmp)),
        Err(Error::Timeout { .. }) => Ok(News::None),
        Err(error) => Err(error),
    }
}

/// Says whether a migration that is over was completed; its failure is the error.
fn is_completed(qmp: &mut Qmp) -> Result<bool> {
    match migration_status(qmp)?.as_str() {
        "completed" => Ok(true),
        _ => Err(migration_ended(qmp)),
    }
}

/// Says why QEMU has ended a migration before its time.
fn migration_ended(qmp: &mut Qmp) -> Error {
    match qmp.execute("query-migrate", json!({})) {
        Ok(migration) => migration_failure(&migration),
        Err(error) => error,
    }
}

/// Lets the guest run on, and says why the capture failed: our own reason, which
/// may be why QEMU failed, before QEMU's.
fn give_up(pause: Pause<'_>, memory: MemoryStream<'_>, error: Error) -> Error {
    drop(pause);
    let MemoryStream { reader, needed, .. } = memory;
    drop(needed);
    match reader.join() {
        Ok(Err(own @ (Error::Sink(_) | Error::Stream(_)))) => own,
        _ => error,
    }
}

fn set_parameters(qmp: &mut Qmp, downtime_limit_ms: u64) -> Result<()> {
    // No limit on the speed: QEMU's own is 128 MiB/s.
    let parameters = json!({"max-bandwidth": 0, "downtime-limit": downtime_limit_ms});
    qmp.execute("migrate-set-parameters", parameters).map(drop)
}

fn progress(qmp: &mut Qmp) -> Result<Progress> {
    let migration = qmp.execute("query-migrate", json!({}))?;
    let ram = &migration["ram"];
    let number = |key: &str| ram[key].as_u64().unwrap_or_default();
    Ok(Progress {
        passes: number("dirty-sync-count"),
        transferred: number("transferred"),
        remaining: number("remaining"),
        total: number("total"),
        bytes_per_second: bytes_per_second(&ram["mbps"]),
    })
}

fn memory_size(qmp: &mut Qmp) -> Result<u64> {
    let memory = qmp.execute("query-memory-size-summary", json!({}))?;
    Ok(memory["base-memory"].as_u64().unwrap_or_default())
}

/// QEMU counts in megabits per second, with a fraction.
fn bytes_per_second(mbps: &Value) -> u64 {
    const BYTES_PER_MEGABIT: f64 = 125_000.0;
    let bytes = mbps.as_f64().unwrap_or_default() * BYTES_PER_MEGABIT;
    // The checked conversion to an integer that the standard library has for seconds.
    Duration::try_from_secs_f64(bytes).map_or(0, |duration| duration.as_secs())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
