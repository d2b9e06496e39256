//! What can go wrong, with the operation, the place and the number.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::codec::{ChunkKind, Command, Errno, Malformed, OptionKind, OptionReplyKind};

/// An NBD connection or operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be reached.
    #[error("cannot connect to the NBD socket {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The handshake broke off.
    #[error("the NBD handshake for export `{export}` broke off")]
    Handshake {
        /// The export that was asked for.
        export: String,
        /// Why.
        source: io::Error,
    },
    /// The server broke the protocol in the handshake.
    #[error("the NBD server broke the protocol in the handshake for export `{export}`")]
    HandshakeProtocol {
        /// The export that was asked for.
        export: String,
        /// How.
        source: Violation,
    },
    /// The server said no in the handshake.
    #[error("the NBD server refused {option:?} for export `{export}`: {reply:?} {message}")]
    Refused {
        /// The export that was asked for.
        export: String,
        /// What was refused.
        option: OptionKind,
        /// Why.
        reply: OptionReplyKind,
        /// What the server says about it; may be empty.
        message: String,
    },
    /// The connection was lost or did not answer in time; it cannot be used again.
    #[error("the NBD connection failed during {operation}")]
    Connection {
        /// What was being done.
        operation: Operation,
        /// Why.
        source: io::Error,
    },
    /// The server broke the protocol; the connection cannot be used again.
    #[error("the NBD server broke the protocol during {operation}")]
    Protocol {
        /// What was being done.
        operation: Operation,
        /// How.
        source: Violation,
    },
    /// The server answered with an error; the connection is still good.
    #[error("the NBD server failed {operation}: {errno} (errno {}) {message}", errno.0)]
    Remote {
        /// What was asked for.
        operation: Operation,
        /// The error.
        errno: Errno,
        /// What the server says about it; may be empty.
        message: String,
    },
    /// The export cannot do what was asked for; nothing was sent.
    #[error("{operation} is not possible on this NBD export: {reason}")]
    Impossible {
        /// What was asked for.
        operation: Operation,
        /// Why not.
        reason: &'static str,
    },
    /// An earlier failure made the connection useless; nothing was sent.
    #[error("{operation} was not sent: the NBD connection failed before")]
    Broken {
        /// What was asked for.
        operation: Operation,
    },
    /// A server could not be started.
    #[error("cannot start an NBD server")]
    Start {
        /// Why.
        source: io::Error,
    },
}

/// Sorts errors by what a caller can do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// There is no connection: no socket, or no one listens.
    Connect,
    /// The server does not want to: no such export, or it lacks a feature.
    Refused,
    /// The peer did not answer in time.
    TimedOut,
    /// The connection was lost.
    Disconnected,
    /// The peer broke the protocol.
    Protocol,
    /// The server reported an error for one operation.
    Remote,
    /// The caller asked for what cannot be done.
    Impossible,
    /// The operating system refused a resource.
    Start,
}

impl Error {
    /// Returns the sort of the error.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Connect { .. } => ErrorKind::Connect,
            Self::Refused { .. } => ErrorKind::Refused,
            Self::Handshake { source, .. } | Self::Connection { source, .. } => match source.kind()
            {
                io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                _ => ErrorKind::Disconnected,
            },
            Self::HandshakeProtocol { .. } | Self::Protocol { .. } => ErrorKind::Protocol,
            Self::Remote { .. } => ErrorKind::Remote,
            Self::Impossible { .. } => ErrorKind::Impossible,
            Self::Broken { .. } => ErrorKind::Disconnected,
            Self::Start { .. } => ErrorKind::Start,
        }
    }
}

/// What was asked of a server, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// The command.
    pub command: Command,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How many bytes it is about.
    pub len: u64,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.command {
            Command::Flush | Command::Disconnect => self.command.fmt(f),
            command => write!(f, "{command} of {} bytes at offset {}", self.len, self.offset),
        }
    }
}

/// How a peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A message cannot be decoded.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The server does not speak fixed newstyle, or lacks the option `GO`.
    #[error("it does not speak fixed newstyle negotiation")]
    NotFixedNewstyle,
    /// An option was answered as if it had been another.
    #[error("it answered option {found:?} where {expected:?} was asked")]
    OtherOption {
        /// What was asked.
        expected: OptionKind,
        /// What was answered.
        found: OptionKind,
    },
    /// An option got an answer that does not fit it.
    #[error("it answered {option:?} with {reply:?}")]
    UnexpectedOptionReply {
        /// What was asked.
        option: OptionKind,
        /// What was answered.
        reply: OptionReplyKind,
    },
    /// An option got more answers than make sense.
    #[error("it sent too many answers to {option:?}")]
    TooManyReplies {
        /// What was asked.
        option: OptionKind,
    },
    /// An export was accepted without its size.
    #[error("it did not say how large the export is")]
    NoSize,
    /// The export is larger than 2^63 - 1 bytes.
    #[error("it says that the export has {size} bytes")]
    TooLarge {
        /// The size that it says.
        size: u64,
    },
    /// A message says that it is longer than any may be.
    #[error("a message of {len} bytes is longer than any may be")]
    TooLong {
        /// The length that it says.
        len: u32,
    },
    /// A reply belongs to no request.
    #[error("a reply has the handle {handle}, which no request has")]
    UnknownHandle {
        /// The handle.
        handle: u64,
    },
    /// A simple reply came where only a structured one may.
    #[error("a simple reply came where a structured one must")]
    SimpleReply,
    /// A structured reply came although none was negotiated.
    #[error("a structured reply came although none was negotiated")]
    StructuredReply,
    /// A chunk came that does not fit the request.
    #[error("a chunk of kind {kind:?} came that does not fit the request")]
    UnexpectedChunk {
        /// Its kind.
        kind: ChunkKind,
    },
    /// A chunk is outside its request.
    #[error("a chunk of {len} bytes at offset {offset} is outside its request")]
    OutsideRequest {
        /// Where the chunk starts.
        offset: u64,
        /// How long it is.
        len: u64,
    },
    /// The chunks of a reply overlap, or leave bytes out, or are too many.
    #[error("the chunks of a reply do not cover the request exactly once")]
    BadCover,
    /// The reply to a block status request has none for the context.
    #[error("a block status reply does not describe the context")]
    NoStatus,
    /// A reply has more than one error.
    #[error("a reply has more than one error")]
    SecondError,
    /// A block status reply describes a context twice.
    #[error("a block status reply describes the context {context} twice")]
    SecondStatus {
        /// The server's number for the context.
        context: u32,
    },
    /// A client set flags in the handshake that were not offered.
    #[error("the client set the handshake flags {flags:#x}")]
    ClientFlags {
        /// The flags.
        flags: u32,
    },
}

/// What ends a connection, before it is known what was being done.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The socket failed.
    Io(io::Error),
    /// The peer broke the protocol.
    Violation(Violation),
}

impl Fault {
    /// Makes the error that a caller sees.
    pub(crate) fn during(self, operation: Operation) -> Error {
        match self {
            Self::Io(source) => Error::Connection { operation, source },
            Self::Violation(source) => Error::Protocol { operation, source },
        }
    }

    /// Makes the error that a caller of the handshake sees.
    pub(crate) fn in_handshake(self, export: &str) -> Error {
        let export = export.to_owned();
        match self {
            Self::Io(source) => Error::Handshake { export, source },
            Self::Violation(source) => Error::HandshakeProtocol { export, source },
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Violation(violation) => violation.fmt(f),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Violation(malformed.into())
    }
}
