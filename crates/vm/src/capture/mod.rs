//! Takes a guest apart at one instant: memory and disks to the caller's sink,
//! while the guest runs on.
//!
//! There are three ways, which end in the same stream and the same disks:
//!
//! - *iterating*: passes over memory while the guest runs, the last one while it
//!   stands still;
//! - *copy on write*: the guest stands still until QEMU has write-protected its
//!   memory, which is read afterwards;
//! - *stop*: the guest stands still for the whole of its memory.

mod convergence;
mod coverage;
mod disks;
mod memory;
mod pull;
mod sample;
mod sink;
mod ways;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use rustix::fd::AsFd;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tintype_stream::DeviceState;

use crate::abilities::Abilities;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::footprint::Footprint;
use crate::freezer::Freezer;
use crate::guest::Guest;
use crate::inventory::{Disk, PREFIX};
use crate::pause::Pause;
use crate::qmp::Qmp;
use disks::DiskCapture;
use memory::{MemoryReader, MemoryReport, Milestone};
pub use sink::{
    CaptureSink, DiskRead, DiskSink, Earlier, EarlierContent, MemorySink, Moment, Reading,
    SinkError,
};

/// How long QEMU may take to wind up a migration whose stream has ended.
const WIND_UP_LIMIT: Duration = Duration::from_secs(20);

/// A way to capture a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Passes over memory while the guest runs.
    Iterating,
    /// Write-protected memory, read while the guest runs.
    CopyOnWrite,
    /// All of memory while the guest stands still.
    Stop,
}

impl Way {
    /// Returns its name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iterating => "iterating",
            Self::CopyOnWrite => "copy-on-write",
            Self::Stop => "stop",
        }
    }
}

/// What becomes of the guest after its instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Afterwards {
    /// It runs on, if it ran.
    RunOn,
    /// It stands still for ever, because it is about to be replaced. If the
    /// capture fails it runs on all the same.
    StandStill,
}

/// What to capture, and how.
#[derive(Clone, Copy)]
pub struct CaptureParams<'p> {
    /// The disks, from the inventory.
    pub disks: &'p [Disk],
    /// Whether memory is captured.
    pub memory: bool,
    /// The way, or `None` to choose by what QEMU can do and how the guest behaves.
    pub way: Option<Way>,
    /// What QEMU can do.
    pub abilities: &'p Abilities,
    /// What becomes of the guest.
    pub afterwards: Afterwards,
    /// The bitmap that is to record what is written to the disks from the instant on.
    pub record: Option<&'p str>,
    /// Chooses what is read of disks though no write of it was recorded.
    pub seed: u64,
    /// A private folder with a short path, for sockets.
    pub folder: &'p Path,
    /// What freezes the guest's file systems around the instant, if anything.
    pub freezer: Option<&'p Freezer>,
}

/// What was captured.
#[derive(Debug)]
pub struct CaptureReport {
    /// The way that was gone in the end.
    pub way: Way,
    /// How long the guest stood still, by QEMU's clock; zero if it was paused by
    /// its owner.
    pub pause: Duration,
    /// Whether the guest ran before.
    pub was_running: bool,
    /// The state of the devices; `None` without memory.
    pub device_state: Option<DeviceState>,
    /// Bytes of the memory stream.
    pub memory_stream_bytes: u64,
    /// Bytes of the disks that were not known to be zero.
    pub disk_bytes: u64,
}

/// Captures a guest. Whatever happens, the guest runs afterwards if it ran
/// before (see [`Afterwards`]), and QEMU is as it was.
pub fn capture(
    guest: &mut Guest,
    params: &CaptureParams<'_>,
    footprint: &Footprint,
    sink: &dyn CaptureSink,
    cancel: &Cancel,
) -> Result<CaptureReport> {
    if !params.disks.is_empty() {
        params.abilities.require_disk_snapshots()?;
    }
    cancel.check()?;
    let captured = std::thread::scope(|scope| {
        let run = Run { scope, params, sink, cancel };
        run.capture(&mut guest.qmp)
    });
    if captured.is_ok() && params.afterwards == Afterwards::StandStill {
        return captured;
    }
    if let Some(freezer) = params.freezer {
        // Before the guest runs, if it stands still: it is owed to be thawed then.
        freezer.release();
    }
    let erased = guest.erase(footprint);
    if let Some(freezer) = params.freezer {
        freezer.confirm();
    }
    let report = captured?;
    erased?;
    Ok(report)
}

/// One capture under way.
struct Run<'scope, 'env: 'scope> {
    scope: &'scope Scope<'scope, 'env>,
    params: &'env CaptureParams<'env>,
    sink: &'env dyn CaptureSink,
    cancel: &'env Cancel,
}

/// The memory of a guest on its way to the sink.
struct MemoryStream<'scope> {
    milestones: Receiver<Milestone>,
    reader: ScopedJoinHandle<'scope, Result<MemoryReport>>,
    needed: Needed,
    /// Lets the reader go on, if it has a gate.
    gate: Sender<()>,
}

/// While this lives, the memory is needed; then its reader ends, even if QEMU
/// never sends anything.
struct Needed(Cancel);

impl Drop for Needed {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The instant has passed; what is left is to read.
struct Passed<'scope> {
    way: Way,
    pause: Duration,
    was_running: bool,
    memory: Option<MemoryStream<'scope>>,
}

impl<'scope, 'env> Run<'scope, 'env> {
    fn capture(&self, qmp: &mut Qmp) -> Result<CaptureReport> {
        let disks = DiskCapture::prepare(self.params.disks, self.sink, self.params.folder)?;
        disks.pass_sockets(qmp)?;
        disks.start_server(qmp)?;
        let instant = self.pass_instant(qmp, &disks)?;
        self.sink.moment(Moment::AfterPause);
        if let Some(freezer) = self.params.freezer {
            freezer.confirm();
            self.sink.moment(Moment::Thawed);
        }
        disks.open(qmp)?;
        disks.pull(self.cancel, self.params.seed)?;
        self.sink.moment(Moment::DisksRead);
        let memory = match instant.memory {
            Some(stream) => Some(self.finish_memory(qmp, stream)?),
            None => None,
        };
        self.sink.moment(Moment::MemoryRead);
        let disk_bytes = disks.finish()?;
        let memory_stream_bytes = memory.as_ref().map_or(0, |memory| memory.stream_bytes);
        Ok(CaptureReport {
            way: instant.way,
            pause: instant.pause,
            was_running: instant.was_running,
            device_state: memory.map(|memory| memory.state),
            memory_stream_bytes,
            disk_bytes,
        })
    }

    /// Hands QEMU one end of a socket pair and reads the other.
    /// With a gate, the reader stops near the end of the first pass.
    fn open_memory_stream(&self, qmp: &mut Qmp, has_gate: bool) -> Result<MemoryStream<'scope>> {
        let (ours, theirs) = UnixStream::pair().map_err(Error::system("make a pair of sockets"))?;
        if has_gate {
            memory::keep_close(&theirs)?;
        }
        qmp.pass_descriptor(&format!("{PREFIX}memory"), theirs.as_fd())?;
        let (sender, milestones) = crossbeam_channel::unbounded();
        let (gate, opened) = crossbeam_channel::bounded(1);
        let abandoned = Cancel::default();
        let needed = Needed(abandoned.clone());
        let reader = MemoryReader {
            stream: ours,
            sink: self.sink,
            cancel: self.cancel.clone(),
            abandoned,
            milestones: sender,
            gate: has_gate.then_some(opened),
        };
        let reader = self.scope.spawn(move || reader.run());
        Ok(MemoryStream { milestones, reader, needed, gate })
    }

    fn start_migration(qmp: &mut Qmp) -> Result<()> {
        qmp.execute("migrate", json!({"uri": format!("fd:{PREFIX}memory")})).map(drop)
    }

    /// Everything that fixes the disks at their instant, after a migration has
    /// let go of them.
    fn disk_commands(&self, disks: &DiskCapture, migrated: bool) -> Vec<(&'static str, Value)> {
        let mut commands = Vec::new();
        if migrated && self.params.abilities.set_active {
            commands.push(("blockdev-set-active", json!({"active": true})));
        } else if migrated {
            commands.extend(disks.activate_commands());
            commands.extend(disks.target_commands());
        }
        commands.extend(disks.instant_commands(self.params.record));
        commands
    }

    /// Ends the pause: the disks are fixed, and the guest runs on or is kept.
    fn end_pause(
        &self,
        mut pause: Pause<'_>,
        commands: &[(&str, Value)],
    ) -> Result<(Duration, bool)> {
        let was_running = pause.was_running();
        self.sink.moment(Moment::Paused);
        if self.params.afterwards == Afterwards::RunOn {
            return Ok((pause.resume_after(commands)?, was_running));
        }
        pause.qmp().execute_all(commands)?;
        pause.keep();
        Ok((Duration::ZERO, was_running))
    }

    /// Waits for the end of a memory stream and for QEMU's word that it is whole.
    fn finish_memory(&self, qmp: &mut Qmp, stream: MemoryStream<'scope>) -> Result<MemoryReport> {
        let MemoryStream { reader, needed: _needed, .. } = stream;
        let mut report = match reader.join() {
            Ok(report) => report,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let deadline = std::time::Instant::now() + WIND_UP_LIMIT;
        loop {
            let migration = qmp.execute("query-migrate", json!({}))?;
            match (migration["status"].as_str().unwrap_or("none"), report) {
                ("completed", report) => return report,
                (_, Err(error)) => return Err(error),
                ("failed" | "cancelled" | "none", _) => return Err(migration_failure(&migration)),
                _ if std::time::Instant::now() > deadline => {
                    return Err(migration_failure(&migration));
                }
                (_, ok) => report = ok,
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn migration_failure(migration: &Value) -> Error {
    let description = migration["error-desc"].as_str().unwrap_or("it does not say why").to_owned();
    Error::Migration { what: "save its memory", description }
}
