//! One guest: the QEMU process and its monitor, owned by one task.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::abilities::Abilities;
use crate::agent::AgentChannel;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::footprint::Footprint;
use crate::hardware::{Hardware, compare};
use crate::inventory::{Disk, Inventory, memory_blockers, refuse_block_jobs};
use crate::pause;
use crate::process::{CommandLine, Process, ProcessId};
use crate::qmp::Qmp;

/// How long a QEMU that was told to quit may take.
const QUIT_LIMIT: Duration = Duration::from_secs(20);

/// Between two looks whether the wait for QEMU's end is to stop.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A running QEMU, held by its monitor: while this value lives, no other
/// program drives the guest.
pub struct Guest {
    pub(crate) qmp: Qmp,
    process: Process,
    command_line: CommandLine,
    socket: PathBuf,
}

impl Guest {
    /// Connects to the QEMU that listens on a monitor socket.
    pub fn connect(socket: &Path) -> Result<Self> {
        let qmp = Qmp::connect(socket)?;
        let process = Process::open(qmp.peer())?;
        let command_line = CommandLine::of(process.id())?;
        Ok(Self { qmp, process, command_line, socket: socket.to_owned() })
    }

    /// Returns who the QEMU process is.
    pub fn process(&self) -> ProcessId {
        self.process.id()
    }

    /// Returns how QEMU was started.
    pub fn command_line(&self) -> &CommandLine {
        &self.command_line
    }

    /// Returns the monitor socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the state of the guest in QEMU's words: `running`, `paused`.
    pub fn run_state(&mut self) -> Result<String> {
        pause::run_state(&mut self.qmp)
    }

    /// Asks what is in the VM.
    pub fn inventory(&mut self) -> Result<Inventory> {
        Inventory::ask(&mut self.qmp, &self.command_line.directory)
    }

    /// Asks what this QEMU can do.
    pub fn abilities(&mut self) -> Result<Abilities> {
        Abilities::ask(&mut self.qmp)
    }

    /// Finds the channel to the guest agent.
    pub fn agent_channel(&mut self) -> Result<AgentChannel> {
        AgentChannel::find(&mut self.qmp, &self.command_line.directory)
    }

    /// Returns what stops QEMU from saving this VM's memory, in QEMU's words.
    pub fn memory_blockers(&mut self) -> Result<Vec<String>> {
        memory_blockers(&mut self.qmp)
    }

    /// Refuses a VM that is in a state or in use such that no good snapshot of
    /// it can be taken now, and says why.
    pub fn refuse_unfit(&mut self) -> Result<()> {
        let state = self.run_state()?;
        if !["running", "paused", "prelaunch"].contains(&state.as_str()) {
            return Err(Error::unsupported(format!(
                "the guest is in the state `{state}`; a snapshot is taken of a guest that runs or is paused"
            )));
        }
        self.refuse_block_jobs()
    }

    /// Refuses a VM on which somebody else's block job runs.
    pub fn refuse_block_jobs(&mut self) -> Result<()> {
        refuse_block_jobs(&mut self.qmp)
    }

    /// Compares the VM with the command line that it is started with.
    pub fn hardware(&mut self, line: &CommandLine) -> Result<Hardware> {
        compare(&mut self.qmp, &line.arguments, &line.directory)
    }

    /// Writes down what a capture of these disks will change in QEMU.
    pub fn footprint(&mut self, disks: &[Disk]) -> Result<Footprint> {
        Footprint::before(&mut self.qmp, self.process.id(), disks)
    }

    /// Takes back what an interrupted capture left. The guest runs again first.
    pub fn erase(&mut self, footprint: &Footprint) -> Result<()> {
        if footprint.process == self.process.id() { footprint.erase(&mut self.qmp) } else { Ok(()) }
    }

    /// Lets a loaded guest run.
    pub fn start_running(&mut self) -> Result<()> {
        pause::start_running(&mut self.qmp)
    }

    /// Asks the guest's system to shut down, as its power button would.
    pub fn press_power_button(&mut self) -> Result<()> {
        self.qmp.execute("system_powerdown", json!({})).map(drop)
    }

    /// Waits for QEMU's end. Tells whether it came in time.
    pub fn wait_end(&self, limit: Duration, cancel: &Cancel) -> Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if self.process.wait_end(left.min(LOOK_INTERVAL)) {
                return Ok(true);
            }
            if left.is_zero() {
                return Ok(false);
            }
            cancel.check()?;
        }
    }

    /// Ends QEMU: by its monitor, which closes the images well, or by force when
    /// that takes too long. When this returns the process is gone.
    pub fn quit(mut self) -> Result<()> {
        match self.qmp.execute("quit", json!({})) {
            Ok(_) | Err(Error::Gone { .. }) => {}
            Err(error) => tracing::warn!(%error, "QEMU does not take `quit`"),
        }
        if self.process.wait_end(QUIT_LIMIT) {
            return Ok(());
        }
        self.process.kill();
        if self.process.wait_end(QUIT_LIMIT) {
            return Ok(());
        }
        Err(Error::Timeout { what: "end".to_owned(), waited: 2 * QUIT_LIMIT })
    }
}
