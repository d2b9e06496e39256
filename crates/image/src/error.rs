//! What can go wrong with images and with the QEMU that opens them.

use std::io;
use std::path::PathBuf;

use crate::spec::UnknownFormat;

/// An image could not be opened, read, written or made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process has the image open in a way that excludes us.
    #[error("image {} is in use by another process: {message}", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// What QEMU says.
        message: String,
    },
    /// QEMU cannot open the image.
    #[error("cannot open image {} as {format}: {message}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// The format that it was opened as.
        format: String,
        /// What QEMU says.
        message: String,
    },
    /// A path is not of an image that can be opened.
    #[error("{} cannot be opened as an image: {reason}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// An image's header names a backing file that is not opened here.
    #[error("image {} has the backing file `{backing}`, which is not opened: {reason}", path.display())]
    Backing {
        /// The image.
        path: PathBuf,
        /// What its header names.
        backing: String,
        /// Why it is not opened.
        reason: &'static str,
    },
    /// An image's header names a backing format that is not opened here.
    #[error("image {} has a backing file of a format that is not opened", path.display())]
    BackingFormat {
        /// The image.
        path: PathBuf,
        /// The format.
        source: UnknownFormat,
    },
    /// Reading or writing an image failed.
    #[error("cannot {operation} image {}", path.display())]
    Access {
        /// What was being done.
        operation: &'static str,
        /// The image.
        path: PathBuf,
        /// Why.
        source: tintype_nbd::Error,
    },
    /// An image file could not be made.
    #[error("cannot create image {}", path.display())]
    Create {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU could not be started.
    #[error("cannot start {}", qemu.display())]
    Start {
        /// The program.
        qemu: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// QEMU ended although it was not asked to, or with an error.
    #[error("{} ended by itself during {command}: {message}", qemu.display())]
    Died {
        /// The program.
        qemu: PathBuf,
        /// What it was to do.
        command: String,
        /// What it wrote to its standard error.
        message: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not answer {command} in time")]
    TimedOut {
        /// What it was to do.
        command: String,
    },
    /// The connection to QEMU failed.
    #[error("the connection to QEMU failed during {command}")]
    Connection {
        /// What it was to do.
        command: String,
        /// Why.
        source: io::Error,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {message}")]
    Refused {
        /// The command.
        command: String,
        /// What it says.
        message: String,
    },
    /// QEMU said what it should not.
    #[error("QEMU's answer to {command} makes no sense: {reason}")]
    Nonsense {
        /// The command.
        command: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Sorts errors by what a caller can do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The image is open elsewhere: stop that VM, or go through it.
    InUse,
    /// The image cannot be opened as it was described.
    Open,
    /// A read or write failed.
    Access,
    /// An image could not be made.
    Create,
    /// QEMU could not be started, died, or did not do what it should.
    Qemu,
    /// Something took too long.
    TimedOut,
}

impl Error {
    /// Returns the sort of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::InUse { .. } => ErrorKind::InUse,
            Self::Open { .. }
            | Self::Path { .. }
            | Self::Backing { .. }
            | Self::BackingFormat { .. } => ErrorKind::Open,
            Self::Access { source, .. } if source.kind() == tintype_nbd::ErrorKind::TimedOut => {
                ErrorKind::TimedOut
            }
            Self::Access { .. } => ErrorKind::Access,
            Self::Create { .. } => ErrorKind::Create,
            Self::TimedOut { .. } => ErrorKind::TimedOut,
            Self::Start { .. }
            | Self::Died { .. }
            | Self::Connection { .. }
            | Self::Refused { .. }
            | Self::Nonsense { .. } => ErrorKind::Qemu,
        }
    }
}
