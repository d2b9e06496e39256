//! Replies of the transmission phase: simple ones and structured chunks.

use super::fields::{Fields, check_magic};
use super::{Errno, Malformed, code, flags};

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;
const DONE: u16 = 1;
const ERROR_BIT: u16 = 1 << 15;

code! {
    /// What the payload of a chunk is.
    ChunkKind(u16) {
        /// Nothing; ends the reply.
        None = 0;
        /// Bytes that were read.
        Data = 1;
        /// Bytes that read as zeros.
        Hole = 2;
        /// Descriptors of one metadata context.
        BlockStatus = 5;
        /// The request failed.
        Error = 0x8001;
        /// The request failed at a known offset.
        ErrorOffset = 0x8002;
    }
}

impl ChunkKind {
    /// Returns whether the chunk says that the request failed, known kind or not.
    pub const fn is_error(self) -> bool {
        self.number() & ERROR_BIT != 0
    }
}

/// The 20 bytes before the payload of a structured reply's chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Whether the reply ends with this chunk.
    pub done: bool,
    /// What the payload is.
    pub kind: ChunkKind,
    /// The handle of the request.
    pub handle: u64,
    /// The length of the payload in bytes.
    pub len: u32,
}

/// The part of a reply that tells what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyStart {
    /// A simple reply; the data of a successful read follows.
    Simple {
        /// Whether the request worked.
        errno: Errno,
        /// The handle of the request.
        handle: u64,
    },
    /// A chunk of a structured reply; its payload follows.
    Chunk(Chunk),
}

impl ReplyStart {
    /// The length of a simple reply in bytes, which is also how many bytes tell
    /// the two sorts apart.
    pub const SIMPLE_LEN: usize = 16;
    /// The length of a chunk's start in bytes.
    pub const CHUNK_LEN: usize = 20;

    /// Returns how many bytes the reply that begins with `first` starts with:
    /// [`ReplyStart::SIMPLE_LEN`] or [`ReplyStart::CHUNK_LEN`].
    pub fn len_of(first: &[u8; Self::SIMPLE_LEN]) -> Result<usize, Malformed> {
        const MESSAGE: &str = "an NBD reply";
        let magic = Fields::new(MESSAGE, first).u32()?;
        match magic {
            SIMPLE_MAGIC => Ok(Self::SIMPLE_LEN),
            CHUNK_MAGIC => Ok(Self::CHUNK_LEN),
            found => Err(Malformed::Magic { message: MESSAGE, found: found.into() }),
        }
    }

    /// Reads the start of a reply, which has the length that
    /// [`ReplyStart::len_of`] says.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD reply";
        let mut fields = Fields::new(MESSAGE, bytes);
        let magic = fields.u32()?;
        let reply = if magic == SIMPLE_MAGIC {
            Self::Simple { errno: Errno(fields.u32()?), handle: fields.u64()? }
        } else {
            check_magic(MESSAGE, CHUNK_MAGIC.into(), magic.into())?;
            Self::Chunk(Chunk {
                done: fields.u16()? & DONE != 0,
                kind: ChunkKind::from_number(fields.u16()?),
                handle: fields.u64()?,
                len: fields.u32()?,
            })
        };
        fields.end()?;
        Ok(reply)
    }

    /// Returns the bytes of a simple reply without its data.
    pub fn encode_simple(errno: Errno, handle: u64) -> [u8; Self::SIMPLE_LEN] {
        let mut bytes = [0; Self::SIMPLE_LEN];
        bytes[0..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&errno.0.to_be_bytes());
        bytes[8..16].copy_from_slice(&handle.to_be_bytes());
        bytes
    }
}

impl Chunk {
    /// Returns the bytes before the payload.
    pub fn encode(&self) -> [u8; ReplyStart::CHUNK_LEN] {
        let mut bytes = [0; ReplyStart::CHUNK_LEN];
        bytes[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&if self.done { DONE } else { 0 }.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.handle.to_be_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// The fields before the bytes of a [`ChunkKind::Data`] chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataReply {
    /// Where the bytes belong.
    pub offset: u64,
}

impl DataReply {
    /// The length of the fields in bytes.
    pub const LEN: usize = 8;

    /// Reads the fields; the data follows them.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self { offset: u64::from_be_bytes(*bytes) }
    }

    /// Returns the bytes of the fields.
    pub fn encode(&self) -> [u8; Self::LEN] {
        self.offset.to_be_bytes()
    }
}

/// The payload of a [`ChunkKind::Hole`] chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HoleReply {
    /// Where the zeros start.
    pub offset: u64,
    /// How many there are.
    pub len: u32,
}

impl HoleReply {
    /// The length of the payload in bytes.
    pub const LEN: usize = 12;

    /// Reads the payload.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("an NBD hole chunk", bytes);
        let hole = Self { offset: fields.u64()?, len: fields.u32()? };
        fields.end()?;
        Ok(hole)
    }

    /// Returns the bytes of the payload.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&self.offset.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// The payload of an error chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorReply {
    /// What went wrong; never [`Errno::OK`].
    pub errno: Errno,
    /// What the server says about it; may be empty.
    pub message: String,
}

impl ErrorReply {
    /// Reads the payload of any error chunk; fields that a kind has behind the
    /// message are skipped, and what is not text in the message is replaced.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD error chunk";
        let mut fields = Fields::new(MESSAGE, bytes);
        let errno = fields.u32()?;
        if errno == 0 {
            return Err(Malformed::Value { message: MESSAGE, field: "error", value: 0 });
        }
        let len = usize::from(fields.u16()?);
        let message = String::from_utf8_lossy(fields.bytes(len)?).into_owned();
        Ok(Self { errno: Errno(errno), message })
    }

    /// Returns the payload of a [`ChunkKind::Error`] chunk; a message of more
    /// than 64 KiB is left out.
    pub fn encode(&self) -> Vec<u8> {
        let (len, message) = match u16::try_from(self.message.len()) {
            Ok(len) => (len, self.message.as_bytes()),
            Err(_) => (0, &[][..]),
        };
        [&self.errno.0.to_be_bytes()[..], &len.to_be_bytes(), message].concat()
    }
}

flags! {
    /// What the metadata context `base:allocation` says about bytes, or
    /// `qemu:dirty-bitmap:NAME`: then only the last one holds.
    StatusFlags(u32) {
        /// No storage is allocated for them.
        HOLE = 0;
        /// They read as zeros.
        ZERO = 1;
        /// They were written to since the bitmap was made or cleared.
        DIRTY = 0;
    }
}

/// What a metadata context says about the next bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusDescriptor {
    /// How many bytes it is about; never zero.
    pub len: u32,
    /// What it says; the meaning is the context's.
    pub flags: StatusFlags,
}

/// The payload of a [`ChunkKind::BlockStatus`] chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockStatusReply {
    /// The number that the server gave the context.
    pub context: u32,
    /// Descriptors of consecutive bytes from the request's offset; at least one.
    pub descriptors: Vec<StatusDescriptor>,
}

impl BlockStatusReply {
    /// Reads the payload.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD block status chunk";
        let mut fields = Fields::new(MESSAGE, bytes);
        let context = fields.u32()?;
        if fields.left() == 0 {
            return Err(Malformed::Length { message: MESSAGE });
        }
        let mut descriptors = Vec::with_capacity(fields.left() / 8);
        while fields.left() > 0 {
            let len = fields.u32()?;
            if len == 0 {
                return Err(Malformed::Value { message: MESSAGE, field: "length", value: 0 });
            }
            descriptors.push(StatusDescriptor { len, flags: StatusFlags(fields.u32()?) });
        }
        Ok(Self { context, descriptors })
    }

    /// Returns the bytes of the payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.descriptors.len());
        bytes.extend(self.context.to_be_bytes());
        for descriptor in &self.descriptors {
            bytes.extend(descriptor.len.to_be_bytes());
            bytes.extend(descriptor.flags.0.to_be_bytes());
        }
        bytes
    }
}
