//! The data of options and of their replies: exports, facts about them, contexts.

use super::fields::{self, Fields};
use super::{Malformed, code, flags, on_wire};

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
