//! What can go wrong in a repository, and where.
//!
//! `Display` gives the facts of one level only; the chain is in `source`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tintype_types::SnapshotId;

use crate::slots::KeySlot;

/// A stable class of [`Error`], for callers that decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An argument does not make sense (alignment, range, name).
    Invalid,
    /// The snapshot or object does not exist.
    NotFound,
    /// There is no repository at the path.
    NotARepository,
    /// The folder holds something else, or a repository already.
    Occupied,
    /// Stored bytes are not what was written.
    Damaged,
    /// The repository has no room left.
    NoSpace,
    /// Another process has ended this session; it has to start over.
    Fenced,
    /// The repository needs a newer version of this program.
    Unsupported,
    /// No key at hand opens the repository.
    Key,
    /// The store does not keep what several hosts rely on.
    UnsafeStore,
    /// The caller asked to stop.
    Interrupted,
    /// The operating system or the network refused an operation.
    Io,
}

/// A place in the repository whose bytes are not what was written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The key of the object, such as `seg/3f/3f…-00000001`.
    pub object: String,
    /// The byte in the object where the damaged part starts, where known.
    pub offset: Option<u64>,
    /// What is wrong with it, as a fragment.
    pub reason: String,
    /// The snapshots that need these bytes, where known (verification knows).
    pub snapshots: Vec<SnapshotId>,
}

impl Damage {
    pub(crate) fn new(object: impl Into<String>, offset: Option<u64>, reason: &str) -> Self {
        Self { object: object.into(), offset, reason: reason.to_owned(), snapshots: Vec::new() }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.object)?;
        if let Some(offset) = self.offset {
            write!(f, " at byte {offset}")?;
        }
        write!(f, " is damaged: {}", self.reason)
    }
}

/// An operation on a repository failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument does not make sense.
    #[error("{0}")]
    Invalid(String),
    /// An object or snapshot does not exist.
    #[error("{0} does not exist in the repository")]
    NotFound(String),
    /// The path holds no repository.
    #[error("{} is not a tintype repository", .0.display())]
    NotARepository(PathBuf),
    /// The path is taken.
    #[error("{} is not empty", .0.display())]
    Occupied(PathBuf),
    /// Stored bytes are not what was written.
    #[error("{0}")]
    Damaged(Damage),
    /// Another process has ended this session.
    #[error("session {0} was ended by another process")]
    Fenced(SnapshotId),
    /// The repository was written by a newer version.
    #[error("{0}")]
    Unsupported(String),
    /// No key at hand opens the repository.
    #[error("{0}")]
    Key(String),
    /// There are slots, and no key at hand opens one of them.
    #[error("none of the keys at hand opens the repository; those that do are {}", names(slots))]
    NoKeyFits {
        /// The slots.
        slots: Vec<KeySlot>,
    },
    /// The store does not keep what several hosts rely on.
    #[error("{place} would lose snapshots: {seen}")]
    UnsafeStore {
        /// The bucket.
        place: String,
        /// What it did, as a fragment.
        seen: String,
    },
    /// The caller asked to stop.
    #[error("it was asked to stop")]
    Interrupted,
    /// A file operation failed, or a request.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// The operation, as a verb.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// An earlier operation of the session failed in the background.
    #[error("the session has failed")]
    Session(#[source] Arc<Error>),
}

impl Error {
    /// Returns the stable class of the error.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Invalid(_) => Kind::Invalid,
            Error::NotFound(_) => Kind::NotFound,
            Error::NotARepository(_) => Kind::NotARepository,
            Error::Occupied(_) => Kind::Occupied,
            Error::Damaged(_) => Kind::Damaged,
            Error::Fenced(_) => Kind::Fenced,
            Error::Unsupported(_) => Kind::Unsupported,
            Error::Key(_) | Error::NoKeyFits { .. } => Kind::Key,
            Error::UnsafeStore { .. } => Kind::UnsafeStore,
            Error::Interrupted => Kind::Interrupted,
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => Kind::NoSpace,
                _ => Kind::Io,
            },
            Error::Session(source) => source.kind(),
        }
    }

    /// Whether a passphrase might have helped.
    pub fn wants_passphrase(&self) -> bool {
        matches!(self, Error::NoKeyFits { slots } if slots.iter().any(|s| s.kind == "passphrase"))
    }

    pub(crate) fn io(operation: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Error::Io { operation, path: path.to_owned(), source: source.into() }
    }

    pub(crate) fn damaged(object: impl Into<String>, offset: Option<u64>, reason: &str) -> Self {
        Error::Damaged(Damage::new(object, offset, reason))
    }
}

fn names(slots: &[KeySlot]) -> String {
    let names = slots.iter().map(|slot| format!("{} ({})", slot.id, slot.kind));
    names.collect::<Vec<_>>().join(", ")
}
