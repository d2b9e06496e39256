//! Software TPMs beside a QEMU (swtpm): found, and started again when the VM is.
//!
//! A TPM's state while the VM runs is in the stream of the devices (QEMU
//! `backends/tpm/tpm_emulator.c`); the files in its folder are what it keeps
//! when it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

use serde::{Deserialize, Serialize};

use crate::arguments::{options, value_of};
use crate::error::{Error, Result};
use crate::process::{CommandLine, Process, ProcessId};

/// How long a TPM may take to end with its VM, or to listen.
const WAIT_LIMIT: Duration = Duration::from_secs(5);

/// One software TPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tpm {
    /// The socket that QEMU connects to.
    pub socket: PathBuf,
    /// How it was started.
    pub command_line: CommandLine,
    /// The folder of its state, if its command line names one.
    pub folder: Option<PathBuf>,
}

impl Tpm {
    /// Finds the TPMs of a VM that run now.
    pub fn all_of(line: &CommandLine) -> Result<Vec<Self>> {
        let mut tpms = Vec::new();
        for socket in sockets(line) {
            let Some(process) = running_at(&socket) else { continue };
            let command_line = CommandLine::of(process)?;
            let folder = state_folder(&command_line);
            tpms.push(Self { socket, command_line, folder });
        }
        Ok(tpms)
    }

    /// Starts the TPM if it does not run. One that ends with its QEMU is waited
    /// for first. `before_start` is called while it does not run.
    pub fn ensure_running(&self, before_start: impl FnOnce() -> Result<()>) -> Result<()> {
        let ends_with_qemu =
            self.command_line.arguments.iter().any(|word| word == "--terminate" || word == "-t");
        match running_at(&self.socket) {
            Some(process) if !ends_with_qemu => {
                tracing::debug!(pid = process.pid, "the TPM runs");
                return Ok(());
            }
            Some(process) => {
                let ended =
                    Process::open(process.pid).is_ok_and(|process| process.wait_end(WAIT_LIMIT));
                if !ended && process.is_alive() {
                    return Ok(());
                }
            }
            None => {}
        }
        before_start()?;
        self.start()
    }

    fn start(&self) -> Result<()> {
        let _ = fs::remove_file(&self.socket);
        let line = &self.command_line;
        Command::new(&line.program)
            .args(&line.arguments)
            .current_dir(&line.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::system(format!("start {}", line.program.display())))?;
        let deadline = Instant::now() + WAIT_LIMIT;
        while !self.socket.exists() {
            if Instant::now() > deadline {
                return Err(Error::unsupported(format!(
                    "the TPM at {} does not start again",
                    self.socket.display()
                )));
            }
            sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

/// Returns the sockets of TPM emulators that a command line names.
fn sockets(line: &CommandLine) -> Vec<PathBuf> {
    let options = options(&line.arguments);
    let values = |name: &'static str| {
        options
            .iter()
            .filter(move |option| option.name == name)
            .filter_map(|option| option.value.as_deref())
    };
    values("tpmdev")
        .filter(|value| value.starts_with("emulator"))
        .filter_map(|value| value_of(value, "chardev"))
        .filter_map(|id| {
            let device =
                values("chardev").find(|value| value_of(value, "id").as_ref() == Some(&id))?;
            Some(line.directory.join(value_of(device, "path")?))
        })
        .collect()
}

/// Finds the swtpm that listens at a socket, by its command line: to connect
/// would take the place of QEMU.
fn running_at(socket: &Path) -> Option<ProcessId> {
    let entries = fs::read_dir("/proc").ok()?;
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).find_map(
        |pid: i32| {
            let process = ProcessId::of(pid).ok()?;
            let line = CommandLine::of(process).ok()?;
            let is_tpm = line.program.file_name().is_some_and(|name| name == "swtpm");
            let listens = line.arguments.iter().any(|word| {
                value_of(word, "path").is_some_and(|path| line.directory.join(path) == socket)
            });
            (is_tpm && listens).then_some(process)
        },
    )
}

fn state_folder(line: &CommandLine) -> Option<PathBuf> {
    let mut words = line.arguments.iter();
    words.find(|word| *word == "--tpmstate")?;
    Some(line.directory.join(value_of(words.next()?, "dir")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_of_a_tpm_is_found() {
        let line = CommandLine {
            program: "/usr/bin/qemu".into(),
            arguments: "-chardev socket,id=a,path=x -chardev socket,id=t,path=run/tpm -tpmdev emulator,id=tpm0,chardev=t -device tpm-tis,tpmdev=tpm0"
                .split(' ')
                .map(str::to_owned)
                .collect(),
            directory: "/srv".into(),
            environment: Vec::new(),
        };
        assert_eq!(sockets(&line), [PathBuf::from("/srv/run/tpm")]);
    }
}
