//! Why a stream cannot be read or written.

use tintype_types::{BlockIndex, ByteCount};

/// A migration stream, or what is asked of it, cannot be handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a migration stream of a version that is known.
    #[error("not a QEMU migration stream of version 3: it starts with {start:02x?}")]
    NotAStream {
        /// The first eight bytes.
        start: [u8; 8],
    },
    /// The bytes contradict the format.
    #[error("byte {offset} of the migration stream: {fault}")]
    Malformed {
        /// Where the item with the fault starts, in bytes from the start of the stream.
        offset: u64,
        /// What is wrong.
        fault: String,
    },
    /// The stream uses something that cannot be restored from a snapshot.
    #[error("byte {offset} of the migration stream: {feature} is not supported")]
    Unsupported {
        /// Where the item starts, in bytes from the start of the stream.
        offset: u64,
        /// What it uses, by the name that QEMU gives it.
        feature: String,
    },
    /// The stream claims more than the limits allow.
    #[error("byte {offset} of the migration stream: {what} {found}, and the limit is {limit}")]
    TooLarge {
        /// Where the item starts, in bytes from the start of the stream.
        offset: u64,
        /// What is too large.
        what: &'static str,
        /// What was found, in the unit of `what`.
        found: u64,
        /// The limit, in the same unit.
        limit: u64,
    },
    /// The stream stopped before its end.
    #[error("the migration stream ends at byte {offset}, within {within}")]
    Truncated {
        /// How many bytes there were.
        offset: u64,
        /// What was not complete.
        within: &'static str,
    },
    /// The description of the devices at the end of the stream cannot be read.
    #[error("the description of the devices at the end of the stream is not what QEMU writes")]
    Description {
        /// What the JSON parser says.
        #[source]
        source: serde_json::Error,
    },
    /// The device sections are not those that the description names.
    #[error("the device sections do not agree with their description: {fault}")]
    Sections {
        /// Where they differ.
        fault: String,
    },
    /// A page lies outside its block of RAM.
    #[error("page {} is outside of RAM block `{block}`, which has {length}", page.0)]
    PageOutside {
        /// The block's name.
        block: String,
        /// The block's length.
        length: ByteCount,
        /// The page.
        page: BlockIndex,
    },
    /// A stream would restore a VM without all of its memory.
    #[error("{missing} pages of RAM block `{block}` were not written, the first is {}", first.0)]
    Incomplete {
        /// The block's name.
        block: String,
        /// How many pages are missing.
        missing: u64,
        /// The first of them.
        first: BlockIndex,
    },
}

impl Error {
    /// Returns what sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAStream { .. } => ErrorKind::NotAStream,
            Self::Malformed { .. } | Self::Description { .. } | Self::Sections { .. } => {
                ErrorKind::Malformed
            }
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
            Self::Truncated { .. } => ErrorKind::Truncated,
            Self::PageOutside { .. } | Self::Incomplete { .. } => ErrorKind::Misuse,
        }
    }
}

/// The sorts of failure that a caller may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Not a migration stream, or one of an unknown version.
    NotAStream,
    /// The bytes contradict the format.
    Malformed,
    /// A capability or a device that cannot be restored from a snapshot.
    Unsupported,
    /// More than the limits allow.
    TooLarge,
    /// The stream stopped before its end: the capture failed or was cancelled.
    Truncated,
    /// The caller of a writer gave the wrong pages.
    Misuse,
}
