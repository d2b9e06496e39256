//! Requests of the transmission phase, and the error numbers of their replies.

use std::fmt;

use super::fields::{Fields, check_magic};
use super::{Malformed, code, flags};

const REQUEST_MAGIC: u32 = 0x2560_9513;

code! {
    /// What a request asks for.
    Command(u16) {
        /// Read bytes.
        Read = 0;
        /// Write bytes, which follow the request.
        Write = 1;
        /// End the connection; there is no reply.
        Disconnect = 2;
        /// Make all writes that were answered durable.
        Flush = 3;
        /// Say that the bytes are no longer needed.
        Trim = 4;
        /// Read ahead; not served here.
        Cache = 5;
        /// Make the bytes read as zeros.
        WriteZeroes = 6;
        /// Tell which bytes are allocated.
        BlockStatus = 7;
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Disconnect => "disconnect",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::Cache => "cache",
            Self::WriteZeroes => "write zeroes",
            Self::BlockStatus => "block status",
            Self::Other(number) => return write!(f, "command {number}"),
        })
    }
}

flags! {
    /// How a request is to be done.
    CommandFlags(u16) {
        /// Durable before the reply ("force unit access").
        FUA = 0;
        /// Zeros must be allocated.
        NO_HOLE = 1;
        /// One data chunk only.
        DO_NOT_FRAGMENT = 2;
        /// One descriptor for each context only.
        ONE_DESCRIPTOR = 3;
        /// Fail with `ENOTSUP` if zeroing is no faster than writing.
        FAST_ZERO = 4;
    }
}

/// The 28 bytes of a request; the data of a write follows them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// How it is to be done.
    pub flags: CommandFlags,
    /// What is asked for.
    pub command: Command,
    /// Ties replies to the request.
    pub handle: u64,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// How many bytes it is about.
    pub len: u32,
}

impl Request {
    /// The length of a request in bytes.
    pub const LEN: usize = 28;

    /// Returns the request's bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.0.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.number().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.handle.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// Reads a request.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD request";
        let mut fields = Fields::new(MESSAGE, bytes);
        check_magic(MESSAGE, REQUEST_MAGIC.into(), fields.u32()?.into())?;
        let request = Self {
            flags: CommandFlags(fields.u16()?),
            command: Command::from_number(fields.u16()?),
            handle: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        };
        fields.end()?;
        Ok(request)
    }
}

/// The error number of a reply. The protocol fixes their values to those of
/// Linux; zero is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

impl Errno {
    /// No error.
    pub const OK: Self = Self(0);
    /// Not permitted, or the export is read-only.
    pub const EPERM: Self = Self(1);
    /// Input or output failed.
    pub const EIO: Self = Self(5);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// The request makes no sense.
    pub const EINVAL: Self = Self(22);
    /// Out of space, or a write past the end.
    pub const ENOSPC: Self = Self(28);
    /// Too much at once.
    pub const EOVERFLOW: Self = Self(75);
    /// Not supported.
    pub const ENOTSUP: Self = Self(95);
    /// The server is going away.
    pub const ESHUTDOWN: Self = Self(108);

    /// Returns the protocol's number for an error of the operating system: those
    /// that the protocol has no number for become [`Errno::EIO`].
    pub fn from_io(error: &std::io::Error) -> Self {
        use rustix::io::Errno as Os;
        match Os::from_io_error(error) {
            Some(Os::PERM | Os::ROFS | Os::ACCESS) => Self::EPERM,
            Some(Os::NOMEM) => Self::ENOMEM,
            Some(Os::INVAL) => Self::EINVAL,
            Some(Os::NOSPC | Os::DQUOT | Os::FBIG) => Self::ENOSPC,
            Some(Os::OVERFLOW) => Self::EOVERFLOW,
            Some(Os::OPNOTSUPP) => Self::ENOTSUP,
            Some(Os::SHUTDOWN) => Self::ESHUTDOWN,
            Some(_) => Self::EIO,
            None => Self::from_kind(error.kind()),
        }
    }

    fn from_kind(kind: std::io::ErrorKind) -> Self {
        use std::io::ErrorKind as Kind;
        match kind {
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => Self::EPERM,
            Kind::OutOfMemory => Self::ENOMEM,
            Kind::InvalidInput => Self::EINVAL,
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::ENOSPC,
            Kind::Unsupported => Self::ENOTSUP,
            _ => Self::EIO,
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match *self {
            Self::OK => "no error",
            Self::EPERM => "operation not permitted",
            Self::EIO => "input/output error",
            Self::ENOMEM => "out of memory",
            Self::EINVAL => "invalid argument",
            Self::ENOSPC => "no space left on device",
            Self::EOVERFLOW => "value too large",
            Self::ENOTSUP => "operation not supported",
            Self::ESHUTDOWN => "server is shutting down",
            Self(number) => return write!(f, "error {number}"),
        })
    }
}
