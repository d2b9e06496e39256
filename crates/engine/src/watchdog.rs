//! A second process that outlives a killed take: while a guest may stand still
//! on our behalf, it waits at a pipe. The pipe ends with us; if we did not say
//! that all is well, it repairs what we left, first of all a guest that stands
//! still.
//!
//! While the guest's file systems are frozen it has a share in the channel to the
//! guest's agent, as its standard output, and thaws them: when we end, and when the
//! limit is over, whatever holds us up.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fd::{AsFd, OwnedFd};
use tintype_types::VmName;
use tintype_vm::Agent;

use crate::Engine;
use crate::error::{ErrorKind, Result};

/// What a take says when all is well.
const ALL_IS_WELL: &str = "all is well";

/// What it says before it freezes the guest, with a limit in milliseconds.
const WILL_FREEZE: &str = "will freeze for ms: ";

/// What it says when the guest is thawed.
const HAS_THAWED: &str = "has thawed";

/// How long a watchdog tries to repair: a QEMU that hangs may come back.
const REPAIR_LIMIT: Duration = Duration::from_secs(10 * 60);

/// Between two tries, so that another command can come in between.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// When nobody is frozen, nobody has to be thawed.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The longest line of a take.
const MAX_LINE: u64 = 100;

/// A watchdog on duty, or none if it could not be started.
#[derive(Debug)]
pub(crate) struct Watchdog(Option<Child>);

/// What a watchdog hears.
#[derive(Debug)]
pub(crate) struct WatchdogPipe(File);

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
            let _ = writeln!(pipe, "{ALL_IS_WELL}");
        }
        let _ = child.wait();
    }

    /// Returns a share in the pipe that it listens to; `None` if nobody does.
    pub(crate) fn pipe(&self) -> Option<WatchdogPipe> {
        let pipe = self.0.as_ref()?.stdin.as_ref()?.as_fd().try_clone_to_owned().ok()?;
        Some(WatchdogPipe(File::from(pipe)))
    }
}

impl WatchdogPipe {
    pub(crate) fn will_freeze(&self, limit: Duration) {
        let _ = writeln!(&self.0, "{WILL_FREEZE}{}", limit.as_millis());
    }

    pub(crate) fn has_thawed(&self) {
        let _ = writeln!(&self.0, "{HAS_THAWED}");
    }
}

impl Engine {
    /// Puts a watchdog on duty for a VM, with a share in the channel to its agent
    /// if the guest may be frozen.
    pub(crate) fn watch(&self, vm: &VmName, channel: Option<OwnedFd>) -> Watchdog {
        let Some((program, arguments)) = self.config.helper.split_first() else {
            return Watchdog::none();
        };
        Watchdog::start(
            Command::new(program)
                .args(arguments)
                .args(["watchdog", vm.as_str()])
                .stdout(channel.map_or_else(Stdio::null, Stdio::from))
                .stderr(Stdio::null())
                // A Ctrl-C is for us alone.
                .process_group(0),
        )
    }

    /// Is the watchdog: waits for the end of `pipe`, and repairs what its other
    /// end has left unless that said that all is well. `channel` may lead to the
    /// guest's agent.
    pub fn keep_watch(
        &self,
        vm: &VmName,
        pipe: impl Read + Send + 'static,
        channel: OwnedFd,
    ) -> Result<()> {
        let mut agent = agent_behind(channel);
        if wait_for_end(&listen(pipe), agent.as_mut()) == End::Well {
            return Ok(());
        }
        if let (Some(agent), Ok(mut inherited)) = (agent, self.inherited.lock()) {
            *inherited = Some(agent);
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
    read.is_ok() && said.trim_ascii_end() == ALL_IS_WELL.as_bytes()
}

/// How a take has ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Well,
    Killed,
}

/// Waits for the end of a take, and thaws the guest when its time is over.
fn wait_for_end(words: &Receiver<String>, mut agent: Option<&mut Agent>) -> End {
    let mut thaw_at: Option<Instant> = None;
    let mut thaw = || {
        if let Some(Err(error)) = agent.as_mut().map(|agent| agent.ask_thaw()) {
            tracing::warn!(%error, "cannot thaw the guest");
        }
    };
    loop {
        let wait = thaw_at.map_or(NEVER, |at| at.saturating_duration_since(Instant::now()));
        match words.recv_timeout(wait) {
            Ok(word) if word == ALL_IS_WELL => return End::Well,
            Ok(word) if word == HAS_THAWED => thaw_at = None,
            Ok(word) => {
                let limit = word.strip_prefix(WILL_FREEZE).and_then(|ms| ms.parse().ok());
                thaw_at = limit.map(|ms| Instant::now() + Duration::from_millis(ms));
            }
            Err(RecvTimeoutError::Timeout) => {
                if thaw_at.is_some() {
                    thaw();
                }
                thaw_at = None;
            }
            Err(RecvTimeoutError::Disconnected) => {
                if thaw_at.is_some() {
                    thaw();
                }
                return End::Killed;
            }
        }
    }
}

/// Reads what the take says, line by line, until it ends.
fn listen(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, words) = channel();
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        loop {
            let mut word = String::new();
            match pipe.by_ref().take(MAX_LINE).read_line(&mut word) {
                Ok(1..) if sender.send(word.trim_end().to_owned()).is_ok() => {}
                _ => return,
            }
        }
    });
    words
}

/// Takes over the channel to an agent, if this is one.
fn agent_behind(channel: OwnedFd) -> Option<Agent> {
    let file = File::from(channel);
    let is_socket = file.metadata().is_ok_and(|data| data.file_type().is_socket());
    is_socket.then(|| Agent::over(UnixStream::from(OwnedFd::from(file))))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says `words`, ends, and tells how the watchdog sees it and what it writes to
    /// the agent.
    fn check(words: &str, wait: Duration, expected: End, thaws: bool) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut pipe, other_end) = UnixStream::pair().unwrap();
        let mut agent = Agent::over(theirs);
        pipe.write_all(words.as_bytes()).unwrap();
        let teller = std::thread::spawn(move || {
            sleep(wait);
            drop(pipe);
        });
        assert_eq!(wait_for_end(&listen(other_end), Some(&mut agent)), expected, "{words}");
        teller.join().unwrap();
        drop(agent);
        let mut written = Vec::new();
        { ours }.read_to_end(&mut written).unwrap();
        let written = String::from_utf8_lossy(&written);
        assert_eq!(written.matches("guest-fsfreeze-thaw").count(), usize::from(thaws), "{words}");
    }

    #[test]
    fn a_guest_is_thawed_when_its_time_is_over_or_the_take_ends() {
        let (soon, later) = (Duration::from_millis(1), Duration::from_millis(300));
        check("", soon, End::Killed, false);
        check("all is well\n", soon, End::Well, false);
        check("will freeze for ms: 60000\n", soon, End::Killed, true);
        check("will freeze for ms: 60000\nhas thawed\n", soon, End::Killed, false);
        check("will freeze for ms: 10\n", later, End::Killed, true);
        check("will freeze for ms: 10\nhas thawed\nall is well\n", later, End::Well, false);
    }
}
