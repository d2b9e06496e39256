//! A guest that stands still, as a value: who holds a [`Pause`] owes the guest
//! its resumption, and dropping it pays, on every path.
//!
//! This is the only file that stops or continues a guest (`cargo xtask tidy`
//! checks it).
//!
//! ```text
//!             prepare            stop, or QEMU itself          resume
//!  running ───────────▶ armed ───────────────────────▶ still ─────────▶ running
//!                         │                              │
//!                         └────────── drop ──────────────┴─ cancel, cont ─▶ running
//! ```

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::qmp::Qmp;

/// How long a resumption is tried before it is reported as failed.
const RESUME_LIMIT: Duration = Duration::from_secs(20);

/// Between two tries of a resumption that QEMU is not ready for.
const RETRY_INTERVAL: Duration = Duration::from_micros(300);

/// The debt to a guest that may stand still.
pub(crate) struct Pause<'q> {
    qmp: &'q mut Qmp,
    owed: bool,
    was_running: bool,
}

impl<'q> Pause<'q> {
    /// Notes whether the guest runs. From here on it may be stopped, by
    /// [`Self::stop`] or by a migration that ends; one that stood still already
    /// is left so.
    pub(crate) fn prepare(qmp: &'q mut Qmp) -> Result<Self> {
        let was_running = run_state(qmp)? == "running";
        qmp.forget_events();
        Ok(Self { qmp, owed: was_running, was_running })
    }

    /// The guest's monitor.
    pub(crate) fn qmp(&mut self) -> &mut Qmp {
        self.qmp
    }

    /// Tells whether the guest ran when this began.
    pub(crate) fn was_running(&self) -> bool {
        self.was_running
    }

    /// Stops the guest. When this returns, its processors stand still and its
    /// disk requests are done and flushed (QEMU `system/cpus.c`, `do_vm_stop`).
    pub(crate) fn stop(&mut self) -> Result<()> {
        if self.was_running { self.qmp.execute("stop", json!({})).map(drop) } else { Ok(()) }
    }

    /// Runs commands and then lets the guest go on, all in one round trip.
    /// Returns how long it stood still, by QEMU's own clock. If a command was
    /// refused the guest runs all the same, and the refusal is the error.
    pub(crate) fn resume_after(mut self, commands: &[(&str, Value)]) -> Result<Duration> {
        if !self.was_running {
            self.qmp.execute_all(commands)?;
            return Ok(Duration::ZERO);
        }
        let commands_and_cont = [commands, &[("cont", json!({}))]].concat();
        let done = self.qmp.execute_all(&commands_and_cont);
        let running = ensure_running(self.qmp);
        self.owed = running.is_err();
        if let Err(error) = done
            && !is_too_early(&error)
        {
            return Err(error);
        }
        running?;
        self.stood_still()
    }

    /// Gives up the debt: the guest is to stay as it is, because it is about to
    /// be replaced.
    pub(crate) fn keep(mut self) {
        self.owed = false;
    }

    /// The time from the first `STOP` to the last `RESUME`.
    fn stood_still(&mut self) -> Result<Duration> {
        let resume =
            self.qmp.wait_event("resume the guest", RESUME_LIMIT, |e| e.name == "RESUME")?;
        let stop = self.qmp.take_event(|e| e.name == "STOP");
        let stop = stop.ok_or_else(|| Error::protocol("a RESUME without a STOP"))?;
        let us = resume.timestamp_us.saturating_sub(stop.timestamp_us);
        Ok(Duration::from_micros(u64::try_from(us).unwrap_or(0)))
    }
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if self.owed
            && let Err(error) = ensure_running(self.qmp)
        {
            match error {
                Error::Gone { .. } => tracing::debug!("there is no guest any more to resume"),
                error => tracing::error!(%error, "the guest could not be resumed"),
            }
        }
    }
}

/// Makes a guest run that we stopped, or that a migration of ours stopped,
/// whatever state that left it in. A guest that stands still for a reason of
/// its own (an I/O error, a panic, its own shutdown) is left so.
pub(crate) fn ensure_running(qmp: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + RESUME_LIMIT;
    loop {
        match run_state(qmp)?.as_str() {
            "running" => return Ok(()),
            "paused" | "postmigrate" | "finish-migrate" | "prelaunch" | "save-vm" => {}
            own => {
                tracing::warn!(state = own, "the guest stands still for a reason of its own");
                return Ok(());
            }
        }
        cancel_migration(qmp)?;
        match qmp.execute("cont", json!({})) {
            Ok(_) => {}
            Err(error) if is_too_early(&error) && Instant::now() < deadline => {
                sleep(RETRY_INTERVAL)
            }
            Err(error) => return Err(error),
        }
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: "resume the guest".to_owned(),
                waited: RESUME_LIMIT,
            });
        }
    }
}

/// Lets a guest run that was loaded, or that its owner wants to run.
pub(crate) fn start_running(qmp: &mut Qmp) -> Result<()> {
    qmp.execute("cont", json!({})).map(drop)
}

/// Cancels a migration that is under way and waits until it has ended.
pub(crate) fn cancel_migration(qmp: &mut Qmp) -> Result<()> {
    let deadline = Instant::now() + RESUME_LIMIT;
    while is_under_way(&migration_status(qmp)?) {
        qmp.execute("migrate_cancel", json!({}))?;
        if Instant::now() > deadline {
            return Err(Error::Timeout {
                what: "cancel saving the memory".to_owned(),
                waited: RESUME_LIMIT,
            });
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Returns the state of the guest in QEMU's words: `running`, `paused`.
pub(crate) fn run_state(qmp: &mut Qmp) -> Result<String> {
    let status = qmp.execute("query-status", json!({}))?;
    let state = status["status"].as_str();
    state.map(str::to_owned).ok_or_else(|| Error::protocol("a status without `status`"))
}

/// Returns the state of the last migration, `none` if there was none.
pub(crate) fn migration_status(qmp: &mut Qmp) -> Result<String> {
    let migration = qmp.execute("query-migrate", json!({}))?;
    Ok(migration["status"].as_str().unwrap_or("none").to_owned())
}

fn is_under_way(migration: &str) -> bool {
    !matches!(migration, "none" | "completed" | "failed" | "cancelled")
}

/// QEMU's answer to `cont` while a migration is being wound up.
fn is_too_early(error: &Error) -> bool {
    matches!(error, Error::Refused { command, description, .. }
        if command == "cont" && description.contains("not finalized"))
}
