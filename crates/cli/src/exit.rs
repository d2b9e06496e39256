//! The exit codes: a contract with scripts.

use std::process::ExitCode;

use tintype_engine::{Error, ErrorKind};

/// How the command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Done.
    Done = 0,
    /// The request failed.
    Failed = 1,
    /// The request was not understood, or names what is not there.
    Usage = 2,
    /// Done, and damage was found.
    Damage = 3,
    /// Refused to protect data.
    Refused = 4,
    /// tintype is at fault.
    Bug = 70,
    /// Ctrl-C, as shells count it.
    Interrupted = 130,
}

impl Exit {
    /// Returns the code for an error.
    pub(crate) fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::Invalid => Self::Usage,
            ErrorKind::Failed => Self::Failed,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::Interrupted => Self::Interrupted,
            ErrorKind::Bug => Self::Bug,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
