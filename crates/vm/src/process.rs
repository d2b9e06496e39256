//! The process of one QEMU: who it is, what started it, whether it still runs.
//!
//! A process id alone is reused by the kernel, so a process is its id and its
//! start time together.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One process for ever: its id, and when it started in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The kernel's process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
}

impl ProcessId {
    /// Looks at the process that has this id now. One that has ended and whose
    /// parent has not taken note of it yet is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the name in parentheses, which may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = fields.split_whitespace();
        if matches!(fields.next(), Some("Z" | "X" | "x")) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let start_time = fields
            .nth(18)
            .and_then(|field| field.parse().ok())
            .ok_or_else(|| io::Error::other("`/proc/PID/stat` has no start time"))?;
        Ok(Self { pid, start_time })
    }

    /// Tells whether the process still runs.
    pub fn is_alive(self) -> bool {
        Self::of(self.pid).is_ok_and(|now| now == self)
    }

    /// Tells whether the process has ended, or does within `limit`. A process
    /// that was killed closes its sockets some time before it is gone.
    pub fn ends_within(self, limit: Duration) -> bool {
        Process::open(self.pid).map_or_else(
            |_| !self.is_alive(),
            |process| process.id != self || process.wait_end(limit),
        )
    }
}

/// How a QEMU was started: what is needed to start it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommandLine {
    /// The program file.
    pub program: PathBuf,
    /// The arguments, without the program's name.
    pub arguments: Vec<String>,
    /// The directory that relative paths start from.
    pub directory: PathBuf,
    /// Variables of the environment that change what QEMU does.
    pub environment: Vec<(String, String)>,
}

/// The variables of a QEMU's environment that its next start needs.
const KEPT_VARIABLES: [&str; 5] =
    ["QEMU_MODULE_DIR", "TMPDIR", "XDG_RUNTIME_DIR", "DISPLAY", "HOME"];

impl CommandLine {
    /// Reads how a running process was started.
    pub fn of(process: ProcessId) -> Result<Self> {
        let place = |what: &str| format!("/proc/{}/{what}", process.pid);
        let read = |what: &str| {
            fs::read(place(what)).map_err(Error::system(format!("read {}", place(what))))
        };
        let link = |what: &str| {
            fs::read_link(place(what)).map_err(Error::system(format!("read {}", place(what))))
        };
        let words = |bytes: Vec<u8>| -> Result<Vec<String>> {
            bytes
                .split(|&byte| byte == 0)
                .map(|word| {
                    String::from_utf8(word.to_vec()).map_err(|_| {
                        Error::unsupported("the command line of QEMU is not UTF-8 text")
                    })
                })
                .collect()
        };
        let mut arguments = words(read("cmdline")?)?;
        // Each argument ends in NUL, so the last piece is empty and not one.
        arguments.pop();
        if arguments.is_empty() {
            return Err(Error::Gone { during: "reading its command line".to_owned() });
        }
        arguments.remove(0);
        let environment = read("environ")?
            .split(|&byte| byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once('='))
            .filter(|(name, _)| KEPT_VARIABLES.contains(name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Self { program: link("exe")?, arguments, directory: link("cwd")?, environment })
    }
}

/// A running process that can be watched and killed without a mistake.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    handle: OwnedFd,
}

impl Process {
    /// Opens a process by its id.
    pub fn open(pid: i32) -> Result<Self> {
        let fail = |source: io::Error| Error::System {
            operation: format!("look at the process {pid}"),
            source,
        };
        let known = Pid::from_raw(pid)
            .ok_or_else(|| fail(io::Error::other("it is in another process namespace")))?;
        let handle = pidfd_open(known, PidfdFlags::empty()).map_err(|error| fail(error.into()))?;
        // Read after the handle was opened: it is of the process that the handle holds.
        Ok(Self { id: ProcessId::of(pid).map_err(fail)?, handle })
    }

    /// Returns its identity.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// Waits until the process has ended; tells whether it did in time.
    pub fn wait_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            };
            match poll(&mut [PollFd::new(&self.handle, PollFlags::IN)], Some(&left)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return !self.id.is_alive(),
            }
        }
    }

    /// Kills the process at once. Nothing happens if it has ended.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_known_watched_and_killed() {
        let mut child = Command::new("sleep").arg("60").spawn();
        let child = child.as_mut().unwrap();
        let process = Process::open(i32::try_from(child.id()).unwrap()).unwrap();
        while CommandLine::of(process.id()).is_ok_and(|c| c.arguments != ["60"]) {
            std::thread::yield_now();
        }
        assert!(process.id().is_alive());
        process.kill();
        assert!(process.wait_end(Duration::from_secs(5)));
        assert!(!process.id().is_alive(), "a process that nobody waited for is not alive");
        child.wait().unwrap();
        assert!(!process.id().is_alive());
    }
}
