//! The handshake: greeting, options and their replies.

use super::fields::{self, Fields, check_magic};
use super::{Malformed, code, flags, on_wire};

/// `NBDMAGIC`.
const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`.
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_ERROR: u32 = 1 << 31;

flags! {
    /// What the server offers for the handshake; a client answers with the same bits.
    ClientFlags(u32) {
        /// Fixed newstyle negotiation.
        FIXED_NEWSTYLE = 0;
        /// No 124 zero bytes behind the answer to `EXPORT_NAME`.
        NO_ZEROES = 1;
    }
}

impl ClientFlags {
    /// The length of the client's flags in bytes.
    pub const LEN: usize = 4;

    /// Reads the client's flags.
    pub fn decode(bytes: &[u8; Self::LEN]) -> Self {
        Self(u32::from_be_bytes(*bytes))
    }

    /// Returns the bytes of the client's flags.
    pub fn encode(self) -> [u8; Self::LEN] {
        self.0.to_be_bytes()
    }
}

/// The 18 bytes that a server says first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What the server offers, with the bits of [`ClientFlags`].
    pub flags: u16,
}

impl Greeting {
    /// The length of a greeting in bytes.
    pub const LEN: usize = 18;

    /// Reads a greeting.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD greeting";
        let mut fields = Fields::new(MESSAGE, bytes);
        check_magic(MESSAGE, GREETING_MAGIC, fields.u64()?)?;
        check_magic(MESSAGE, OPTION_MAGIC, fields.u64()?)?;
        let greeting = Self { flags: fields.u16()? };
        fields.end()?;
        Ok(greeting)
    }

    /// Returns the greeting's bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..18].copy_from_slice(&self.flags.to_be_bytes());
        bytes
    }

    /// Returns the flags in the form that a client answers with.
    pub fn client_flags(&self) -> ClientFlags {
        ClientFlags(self.flags.into())
    }
}

code! {
    /// What a client asks for in the handshake. The numbers are those of QEMU's
    /// `include/block/nbd.h`.
    OptionKind(u32) {
        /// Choose an export and go on to transmission, without a way to say no.
        ExportName = 1;
        /// End the connection.
        Abort = 2;
        /// List the exports.
        List = 3;
        /// Start TLS; not served here.
        StartTls = 5;
        /// Describe an export.
        Info = 6;
        /// Describe an export and go on to transmission.
        Go = 7;
        /// Use structured replies.
        StructuredReply = 8;
        /// List metadata contexts.
        ListMetaContext = 9;
        /// Choose metadata contexts.
        SetMetaContext = 10;
        /// Use 64-bit headers; not served here.
        ExtendedHeaders = 11;
    }
}

/// The 16 bytes before an option's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// What is asked for.
    pub kind: OptionKind,
    /// The length of the data in bytes.
    pub len: u32,
}

impl OptionHeader {
    /// The length of the header in bytes.
    pub const LEN: usize = 16;

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD option";
        let mut fields = Fields::new(MESSAGE, bytes);
        check_magic(MESSAGE, OPTION_MAGIC, fields.u64()?)?;
        let header = Self { kind: OptionKind::from_number(fields.u32()?), len: fields.u32()? };
        fields.end()?;
        Ok(header)
    }

    /// Returns the header's bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[12..16].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

code! {
    /// What a server answers to an option.
    OptionReplyKind(u32) {
        /// Done; no data.
        Ack = 1;
        /// One export of the list.
        Server = 2;
        /// One fact about an export.
        Info = 3;
        /// One metadata context.
        MetaContext = 4;
        /// The option is not known.
        Unsupported = 0x8000_0001;
        /// The server does not want it.
        Policy = 0x8000_0002;
        /// The option's data is wrong.
        Invalid = 0x8000_0003;
        /// The server's platform lacks it.
        Platform = 0x8000_0004;
        /// TLS has to be started first.
        TlsRequired = 0x8000_0005;
        /// There is no such export.
        UnknownExport = 0x8000_0006;
        /// The server is going away.
        Shutdown = 0x8000_0007;
        /// The client has to ask for the block sizes.
        BlockSizeRequired = 0x8000_0008;
        /// The option's data is too long.
        TooBig = 0x8000_0009;
    }
}

impl OptionReplyKind {
    /// Returns whether the option failed; the data is then a message for people.
    pub const fn is_error(self) -> bool {
        self.number() & REPLY_ERROR != 0
    }
}

/// The 20 bytes before the data of an option's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionReplyHeader {
    /// The option that is answered.
    pub option: OptionKind,
    /// The answer.
    pub kind: OptionReplyKind,
    /// The length of the data in bytes.
    pub len: u32,
}

impl OptionReplyHeader {
    /// The length of the header in bytes.
    pub const LEN: usize = 20;

    /// Reads a header.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD option reply";
        let mut fields = Fields::new(MESSAGE, bytes);
        check_magic(MESSAGE, OPTION_REPLY_MAGIC, fields.u64()?)?;
        let header = Self {
            option: OptionKind::from_number(fields.u32()?),
            kind: OptionReplyKind::from_number(fields.u32()?),
            len: fields.u32()?,
        };
        fields.end()?;
        Ok(header)
    }

    /// Returns the header's bytes.
    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.option.number().to_be_bytes());
        bytes[12..16].copy_from_slice(&self.kind.number().to_be_bytes());
        bytes[16..20].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

code! {
    /// A sort of fact about an export.
    InfoKind(u16) {
        /// Size and flags.
        Export = 0;
        /// The name that the server uses.
        Name = 1;
        /// Words for people.
        Description = 2;
        /// Block sizes.
        BlockSize = 3;
    }
}

/// The data of the options `INFO` and `GO`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportRequest {
    /// The export.
    pub name: String,
    /// The facts that the client would like to know.
    pub infos: Vec<InfoKind>,
}

impl ExportRequest {
    /// Reads the data.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("the option INFO or GO", bytes);
        let name = fields.name()?;
        let count = usize::from(fields.u16()?);
        let mut infos = Vec::with_capacity(count.min(fields.left() / 2));
        for _ in 0..count {
            infos.push(InfoKind::from_number(fields.u16()?));
        }
        fields.end()?;
        Ok(Self { name, infos })
    }

    /// Returns the bytes of the data.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_name(&mut bytes, &self.name);
        let count = u16::try_from(self.infos.len()).expect("there are few kinds of facts");
        bytes.extend(count.to_be_bytes());
        for info in &self.infos {
            bytes.extend(info.number().to_be_bytes());
        }
        bytes
    }
}

flags! {
    /// What an export can do, in bits that the protocol calls transmission flags.
    ExportFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0;
        /// It cannot be written.
        READ_ONLY = 1;
        /// It knows `FLUSH`.
        FLUSH = 2;
        /// It knows the flag `FUA`.
        FUA = 3;
        /// It is slow to seek.
        ROTATIONAL = 4;
        /// It knows `TRIM`.
        TRIM = 5;
        /// It knows `WRITE_ZEROES`.
        WRITE_ZEROES = 6;
        /// It knows the flag `DF`.
        DO_NOT_FRAGMENT = 7;
        /// Several connections see one cache.
        MULTI_CONN = 8;
        /// It knows `CACHE`.
        CACHE = 10;
        /// It knows the flag `FAST_ZERO`.
        FAST_ZERO = 11;
    }
}

/// The sizes that requests should keep to, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of it; a power of two.
    pub minimum: u32,
    /// Requests of multiples of it work best; a power of two.
    pub preferred: u32,
    /// The most that one read or write may carry.
    pub maximum: u32,
}

/// The data of an `INFO` reply: one fact about an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Info {
    /// Size and flags.
    Export {
        /// The size in bytes.
        size: u64,
        /// What the export can do.
        flags: ExportFlags,
    },
    /// Block sizes, checked to make sense.
    BlockSize(BlockSizes),
    /// A fact that is of no use here.
    Other(InfoKind),
}

impl Info {
    /// Reads the data.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("an NBD export fact", bytes);
        let info = match InfoKind::from_number(fields.u16()?) {
            InfoKind::Export => {
                Self::Export { size: fields.u64()?, flags: ExportFlags(fields.u16()?) }
            }
            InfoKind::BlockSize => Self::BlockSize(
                BlockSizes {
                    minimum: fields.u32()?,
                    preferred: fields.u32()?,
                    maximum: fields.u32()?,
                }
                .checked()?,
            ),
            other => {
                fields.rest();
                Self::Other(other)
            }
        };
        fields.end()?;
        Ok(info)
    }

    /// Returns the bytes of the data; a fact of no use has no more than its kind.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Export { size, flags } => [
                &InfoKind::Export.number().to_be_bytes()[..],
                &size.to_be_bytes(),
                &flags.0.to_be_bytes(),
            ]
            .concat(),
            Self::BlockSize(sizes) => [
                &InfoKind::BlockSize.number().to_be_bytes()[..],
                &sizes.minimum.to_be_bytes(),
                &sizes.preferred.to_be_bytes(),
                &sizes.maximum.to_be_bytes(),
            ]
            .concat(),
            Self::Other(kind) => kind.number().to_be_bytes().to_vec(),
        }
    }
}

impl BlockSizes {
    fn checked(self) -> Result<Self, Malformed> {
        let error = |field, value: u32| {
            Err(Malformed::Value { message: "an NBD export fact", field, value: value.into() })
        };
        if !self.minimum.is_power_of_two() || self.minimum > super::MAX_PAYLOAD_LEN {
            return error("minimum block size", self.minimum);
        }
        if !self.preferred.is_power_of_two() || self.preferred < self.minimum {
            return error("preferred block size", self.preferred);
        }
        if self.maximum < self.minimum {
            return error("maximum block size", self.maximum);
        }
        Ok(self)
    }
}

/// The data of the options `LIST_META_CONTEXT` and `SET_META_CONTEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextRequest {
    /// The export.
    pub export: String,
    /// The contexts that are asked for, such as `base:allocation`.
    pub queries: Vec<String>,
}

impl ContextRequest {
    /// Reads the data.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new("the option META_CONTEXT", bytes);
        let export = fields.name()?;
        let count = super::in_memory(fields.u32()?);
        let mut queries = Vec::with_capacity(count.min(fields.left() / 4));
        for _ in 0..count {
            queries.push(fields.name()?);
        }
        fields.end()?;
        Ok(Self { export, queries })
    }

    /// Returns the bytes of the data.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_name(&mut bytes, &self.export);
        bytes.extend(on_wire(self.queries.len()).to_be_bytes());
        for query in &self.queries {
            put_name(&mut bytes, query);
        }
        bytes
    }
}

/// The data of a `META_CONTEXT` reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextReply {
    /// The number that block status replies use for the context.
    pub id: u32,
    /// The context.
    pub name: String,
}

impl ContextReply {
    /// Reads the data.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        const MESSAGE: &str = "an NBD metadata context";
        let mut fields = Fields::new(MESSAGE, bytes);
        Ok(Self { id: fields.u32()?, name: fields::name(MESSAGE, fields.rest())? })
    }

    /// Returns the bytes of the data.
    pub fn encode(&self) -> Vec<u8> {
        [&self.id.to_be_bytes()[..], self.name.as_bytes()].concat()
    }
}

/// The data of a `SERVER` reply: one export of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListReply {
    /// The export.
    pub name: String,
}

impl ListReply {
    /// Reads the data; what a server says behind the name is skipped.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        Ok(Self { name: Fields::new("an NBD list entry", bytes).name()? })
    }

    /// Returns the bytes of the data.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_name(&mut bytes, &self.name);
        bytes
    }
}

fn put_name(bytes: &mut Vec<u8>, name: &str) {
    bytes.extend(on_wire(name.len()).to_be_bytes());
    bytes.extend(name.as_bytes());
}
