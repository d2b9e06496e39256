//! A second process that outlives a killed take: while a guest may stand still
//! on our behalf, it waits at a pipe. The pipe ends with us; if we did not say
//! that all is well, it repairs what we left, first of all a guest that stands
//! still.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tintype_types::VmName;

use crate::Engine;
use crate::error::{ErrorKind, Result};

/// What a take says when all is well.
const ALL_IS_WELL: &[u8] = b"all is well";

/// How long a watchdog tries to repair: a QEMU that hangs may come back.
const REPAIR_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Between two tries, so that another command can come in between.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A watchdog on duty, or none if it could not be started.
#[derive(Debug)]
pub(crate) struct Watchdog(Option<Child>);

impl Watchdog {
    /// Nobody is on duty.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Puts a process on duty, which waits for the end of its stdin.
    pub(crate) fn start(command: &mut Command) -> Self {
        match command.stdin(Stdio::piped()).spawn() {
            Ok(child) => Self(Some(child)),
            Err(error) => {
                tracing::warn!(%error, "there is no watchdog; the next command repairs what a kill leaves");
                Self(None)
            }
        }
    }

    /// Ends the duty: nothing is left to repair.
    pub(crate) fn dismiss(mut self) {
        let Some(mut child) = self.0.take() else { return };
        if let Some(mut pipe) = child.stdin.take() {
            // If it is gone already, there is nothing to dismiss.
            let _ = pipe.write_all(ALL_IS_WELL);
        }
        let _ = child.wait();
    }
}

impl Engine {
    /// Puts a watchdog on duty for a VM.
    pub(crate) fn watch(&self, vm: &VmName) -> Watchdog {
        let Some((program, arguments)) = self.config.helper.split_first() else {
            return Watchdog::none();
        };
        Watchdog::start(
            Command::new(program)
                .args(arguments)
                .args(["watchdog", vm.as_str()])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                // A Ctrl-C is for us alone.
                .process_group(0),
        )
    }

    /// Is the watchdog: waits for the end of `pipe`, and repairs what its other
    /// end has left unless that said that all is well.
    pub fn keep_watch(&self, vm: &VmName, pipe: &mut dyn Read) -> Result<()> {
        if said_all_is_well(pipe) {
            return Ok(());
        }
        let deadline = Instant::now() + REPAIR_LIMIT;
        loop {
            match self.lease(vm, "repair after a killed take") {
                // The next command repairs it, if anybody can.
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(error) if error.kind() == ErrorKind::Invalid => return Err(error),
                Err(error) => tracing::warn!(%error, "trying again"),
                Ok(_) => return Ok(()),
            }
            sleep(RETRY_INTERVAL);
        }
    }
}

/// Waits for the end of a pipe, and tells whether its other end had nothing left to
/// repair.
pub(crate) fn said_all_is_well(pipe: &mut dyn Read) -> bool {
    let mut said = Vec::new();
    let read = pipe.take(64).read_to_end(&mut said);
    read.is_ok() && said == ALL_IS_WELL
}
