//! Why an image is refused.

use std::io;

/// An image cannot be read, or must not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is not what it is said to be, or contradicts its format.
    #[error("{0}")]
    Malformed(String),
    /// It uses what is not opened here.
    #[error("{what}")]
    Unsupported {
        /// What it uses.
        what: String,
        /// What makes an image without that, if anything does.
        hint: Option<&'static str>,
    },
    /// It claims more than is believed.
    #[error("{what}: {found}, and the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much it claims.
        found: u64,
        /// How much there may be.
        limit: u64,
    },
}

impl Error {
    /// Returns what makes an image that is not refused.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unsupported { hint, .. } => *hint,
            _ => None,
        }
    }
}

pub(crate) fn malformed(fault: impl Into<String>) -> Error {
    Error::Malformed(fault.into())
}

pub(crate) fn unsupported(what: impl Into<String>) -> Error {
    Error::Unsupported { what: what.into(), hint: None }
}

/// Refuses more of something than there may be.
pub(crate) fn limit(what: &'static str, found: u64, limit: u64) -> Result<(), Error> {
    if found > limit { Err(Error::TooLarge { what, found, limit }) } else { Ok(()) }
}

/// Refuses what must not be, with a reason.
pub(crate) fn require(is_right: bool, fault: impl Into<String>) -> Result<(), Error> {
    if is_right { Ok(()) } else { Err(malformed(fault)) }
}
