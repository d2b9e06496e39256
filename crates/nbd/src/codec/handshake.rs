//! The frame of the handshake: greeting, option headers, reply headers.

use super::fields::{Fields, check_magic};
use super::{Malformed, code, flags};

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
