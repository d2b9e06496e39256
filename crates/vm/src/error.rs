//! What can go wrong between tintype and one QEMU, with the facts of each case.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// A result whose error is this room's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The stable kinds of [`Error`], for callers that branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// QEMU cannot be reached.
    Unreachable,
    /// QEMU answered what no QEMU answers.
    Protocol,
    /// QEMU refused a command.
    Refused,
    /// QEMU did not answer in time.
    Timeout,
    /// The QEMU process ended.
    Gone,
    /// This VM cannot do what was asked.
    Unsupported,
    /// The memory of the guest could not be captured or loaded.
    Memory,
    /// A disk of the guest could not be captured.
    Disk,
    /// The agent in the guest did not do its part.
    Agent,
    /// The caller asked to stop.
    Cancelled,
    /// The caller's sink refused what was captured.
    Sink,
    /// The operating system refused.
    System,
}

/// An error of this room.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens on the monitor socket.
    #[error("cannot connect to the QMP socket {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The monitor does not greet: QEMU hangs or another client holds it.
    #[error("QEMU does not greet on {path} within {} s: it hangs, or another client holds this monitor", waited.as_secs())]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// The peer does not speak QMP.
    #[error("QEMU sent what is not QMP: {what}")]
    Protocol {
        /// What is wrong with it.
        what: String,
    },
    /// QEMU answered a command with an error.
    #[error("QEMU refused `{command}`: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        description: String,
    },
    /// QEMU did not do something in time.
    #[error("QEMU did not {what} within {} ms", waited.as_millis())]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// The monitor was closed: the process ended.
    #[error("QEMU is gone: its monitor closed during `{during}`")]
    Gone {
        /// What was under way.
        during: String,
    },
    /// The QEMU that was started ended before its monitor answered.
    #[error("QEMU ended at once ({status}): {words}")]
    NotStarted {
        /// How it ended.
        status: ExitStatus,
        /// The last that it said.
        words: String,
    },
    /// This VM, or its QEMU, cannot do it.
    #[error("{reason}")]
    Unsupported {
        /// Why, naming the device or the version.
        reason: String,
    },
    /// The migration stream is broken.
    #[error("the memory stream of the guest is broken")]
    Stream(#[source] tintype_stream::Error),
    /// QEMU failed to write or load the migration stream.
    #[error("QEMU could not {what}: {description}")]
    Migration {
        /// Save or load, in words.
        what: &'static str,
        /// QEMU's words.
        description: String,
    },
    /// A disk could not be read at its instant.
    #[error("disk `{disk}` could not be captured: {reason}")]
    Disk {
        /// The disk's name.
        disk: String,
        /// Why.
        reason: String,
        /// The cause, if it has a type.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The agent in the guest did not do its part.
    #[error("the guest agent {what}")]
    Agent {
        /// What it did instead, as the rest of the sentence.
        what: String,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Cancelled,
    /// The caller's sink failed.
    #[error("what was captured could not be kept")]
    Sink(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The operating system refused.
    #[error("cannot {operation}")]
    System {
        /// What we tried, with the path.
        operation: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Returns the stable kind of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } | Self::NoGreeting { .. } => ErrorKind::Unreachable,
            Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Refused { .. } => ErrorKind::Refused,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Gone { .. } => ErrorKind::Gone,
            Self::NotStarted { .. } | Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Stream(_) | Self::Migration { .. } => ErrorKind::Memory,
            Self::Disk { .. } => ErrorKind::Disk,
            Self::Agent { .. } => ErrorKind::Agent,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Sink(_) => ErrorKind::Sink,
            Self::System { .. } => ErrorKind::System,
        }
    }

    /// Makes an [`Error::Unsupported`].
    pub fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported { reason: reason.into() }
    }

    pub(crate) fn agent(what: impl Into<String>) -> Self {
        Self::Agent { what: what.into() }
    }

    pub(crate) fn protocol(what: impl Into<String>) -> Self {
        Self::Protocol { what: what.into() }
    }

    /// Adapts an I/O error: `.map_err(Error::system("bind", path))`.
    pub(crate) fn system(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::System { operation, source }
    }
}
