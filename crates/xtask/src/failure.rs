//! Why a chore could not be done, for people; nothing matches on it.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

/// Why a chore could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The system refused something about a file.
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{command}`")]
    Start {
        command: String,
        #[source]
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{command}` ended with {status}\n{stderr}")]
    Ended { command: String, status: std::process::ExitStatus, stderr: String },
    /// A guest did not do what was expected.
    #[error("the guest misbehaved")]
    Guest(#[from] tintype_testkit::Error),
    /// Everything else.
    #[error("{0}")]
    Other(String),
}

impl Failure {
    /// Says that `action` on a file failed; made for `map_err`.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { action, path, source }
    }

    /// Prints the failure with its causes.
    pub(crate) fn print(&self) {
        eprintln!("error: {self}");
        let mut cause = self.source();
        while let Some(error) = cause {
            eprintln!("  caused by: {error}");
            cause = error.source();
        }
    }
}
