//! What can go wrong with a test's guest. For people: a test fails with it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a guest could not be had, started or talked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A guest has not been built, or not completely.
    #[error("{} is not there: `cargo xtask guests` builds the guests", path.display())]
    NotBuilt {
        /// The file that is missing.
        path: PathBuf,
    },
    /// A QEMU build is not on this machine.
    #[error("QEMU {wanted} is not on this machine: `cargo xtask guests` gets it where it can")]
    NoQemu {
        /// Which one was looked for.
        wanted: String,
    },
    /// The S3 server is not on this machine.
    #[error("{} is not there: `cargo xtask setup` installs the S3 server", path.display())]
    NoS3 {
        /// The file that is missing.
        path: PathBuf,
    },
    /// This machine cannot make a disk that remembers what was written to it.
    #[error("there is no disk that could lose its power: {why}")]
    NoPower {
        /// What is missing.
        why: String,
    },
    /// The S3 server did not do what it was told.
    #[error("the S3 server said {said:?}")]
    S3 {
        /// Its answer.
        said: String,
    },
    /// The system refused something about a file or socket.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it was refused.
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` ended with {status}\n{stderr}")]
    Ended {
        /// The program and its arguments.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// The guest did not do something in time.
    #[error("the guest did not {expected} within {within:?}; its serial line ended with:\n{tail}")]
    Late {
        /// What was waited for.
        expected: String,
        /// How long.
        within: Duration,
        /// The last lines that came from it.
        tail: String,
    },
    /// The serial line broke while an answer was due.
    #[error("the serial line broke while `{command}` ran; it ended with:\n{tail}")]
    Broken {
        /// What was being run.
        command: String,
        /// The last lines that came from it.
        tail: String,
    },
    /// QEMU refused a command, or did not answer.
    #[error("QEMU did not do `{command}`: {message}")]
    Qmp {
        /// The QMP command.
        command: String,
        /// What it said.
        message: String,
    },
    /// A witness did not start.
    #[error("the witness `{name}` did not start in the guest: {message}")]
    Witness {
        /// What it was to be called.
        name: String,
        /// What it said.
        message: String,
    },
    /// A command cannot be sent in one line.
    #[error("a command for the guest must be one line of at most {max} bytes, not {command:?}")]
    Command {
        /// The command.
        command: String,
        /// The longest one, in bytes.
        max: usize,
    },
}

impl Error {
    /// Says that `action` on a file failed; made for `map_err`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }
}
