//! Starts a QEMU that outlives us, and waits until its monitor answers.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::process::CommandLine;

/// How long a QEMU may take until its monitor answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How to start a QEMU.
#[derive(Debug, Clone, Copy)]
pub struct LaunchParams<'p> {
    /// The program, its arguments and where it runs.
    pub command_line: &'p CommandLine,
    /// Arguments for this start alone, after the others.
    pub extra: &'p [&'p str],
    /// The monitor socket that QEMU makes.
    pub socket: &'p Path,
    /// Where QEMU's own words go.
    pub log: &'p Path,
}

/// Starts QEMU in a process group of its own, without a terminal.
pub fn launch(params: &LaunchParams<'_>) -> Result<Guest> {
    // What is there is of a QEMU that has ended: it would take our connection for nothing.
    let _ = fs::remove_file(params.socket);
    let mut child = spawn(params)?;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(status) = child.try_wait().map_err(Error::system("wait for QEMU"))? {
            return Err(Error::NotStarted { status, words: last_words(params.log) });
        }
        if params.socket.exists() {
            match Guest::connect(params.socket) {
                Ok(guest) => return Ok(guest),
                // One that ends while it starts closes its monitor: its words say why.
                Err(Error::Connect { .. } | Error::Gone { .. }) => {}
                Err(error) => return Err(kill(child, error)),
            }
        }
        if Instant::now() > deadline {
            let error = Error::Timeout { what: "start".to_owned(), waited: START_LIMIT };
            return Err(kill(child, error));
        }
        sleep(Duration::from_millis(2));
    }
}

fn spawn(params: &LaunchParams<'_>) -> Result<Child> {
    let line = params.command_line;
    let log = log_file(params.log)?;
    let again = log.try_clone().map_err(Error::system("share the log of QEMU"))?;
    Command::new(&line.program)
        .args(&line.arguments)
        .args(params.extra)
        .current_dir(&line.directory)
        .envs(line.environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(again)
        .process_group(0)
        .spawn()
        .map_err(Error::system(format!("start {}", line.program.display())))
}

fn log_file(path: &Path) -> Result<File> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::system(format!("open {}", path.display())))
}

fn kill(mut child: Child, error: Error) -> Error {
    let _ = child.kill();
    let _ = child.wait();
    error
}

/// Returns the end of what QEMU said, for an error message.
fn last_words(log: &Path) -> String {
    const LINES: usize = 3;
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(2000)..]).into_owned();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if lines.is_empty() {
        return format!("it said nothing in {}", PathBuf::from(log).display());
    }
    lines[lines.len().saturating_sub(LINES)..].join("; ")
}
