//! The bytes of the NBD protocol, as plain functions over values.
//!
//! Fixed newstyle negotiation, simple and structured replies, as in the
//! protocol's `doc/proto.md` and QEMU's `include/block/nbd.h`. All numbers are
//! big-endian. Nothing here reads a socket, allocates more than the bytes it was
//! given, or panics on any input. Left out on purpose: TLS, oldstyle
//! negotiation, 64-bit extended headers.

mod fields;
mod handshake;
mod options;
mod reply;
mod request;

pub use handshake::{
    ClientFlags, Greeting, OptionHeader, OptionKind, OptionReplyHeader, OptionReplyKind,
};
pub use options::{
    BlockSizes, ContextReply, ContextRequest, ExportFlags, ExportRequest, Info, InfoKind, ListReply,
};
pub use reply::{
    BlockStatusReply, Chunk, ChunkKind, DataReply, ErrorReply, HoleReply, ReplyStart,
    StatusDescriptor, StatusFlags,
};
pub use request::{Command, CommandFlags, Errno, Request};

/// The longest export or context name, in bytes: the protocol's limit for any string.
pub const MAX_NAME_LEN: usize = 4096;

/// The most bytes that one read or write may carry: QEMU's `NBD_MAX_BUFFER_SIZE`.
pub const MAX_PAYLOAD_LEN: u32 = 32 << 20;

/// The most bytes of data that one option or option reply may carry here.
pub const MAX_OPTION_LEN: u32 = 64 << 10;

/// Bytes do not follow the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A message does not start with its magic number.
    #[error("{message} starts with {found:#x} and not with its magic number")]
    Magic {
        /// The message that was expected.
        message: &'static str,
        /// What stands in the magic number's place.
        found: u64,
    },
    /// A message has fewer or more bytes than its fields need.
    #[error("{message} has a wrong length")]
    Length {
        /// The message.
        message: &'static str,
    },
    /// A name is not UTF-8, has a NUL, or is longer than [`MAX_NAME_LEN`].
    #[error("{message} has a name that is not text of at most {MAX_NAME_LEN} bytes")]
    Name {
        /// The message.
        message: &'static str,
    },
    /// A field has a value that the protocol forbids.
    #[error("{message} has a {field} of {value}, which is not allowed")]
    Value {
        /// The message.
        message: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

/// Defines a set of bits with the flags that it can have; bits that are not
/// known are kept.
macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($bits:ty) { $($(#[$flag_doc:meta])* $flag:ident = $bit:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name(pub $bits);

        impl $name {
            $($(#[$flag_doc])* pub const $flag: Self = Self(1 << $bit);)*

            /// Returns the flags of both.
            #[must_use]
            pub const fn with(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// Returns whether all flags of `other` are set.
            pub const fn has(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Returns whether no flag other than those of `allowed` is set.
            pub const fn within(self, allowed: Self) -> bool {
                self.0 & !allowed.0 == 0
            }
        }
    };
}

/// Defines a number that names one of several things; numbers that are not
/// known are kept.
macro_rules! code {
    ($(#[$doc:meta])* $name:ident($number:ty) { $($(#[$variant_doc:meta])* $variant:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A number that has no meaning here.
            Other($number),
        }

        impl $name {
            /// Returns what the number means.
            pub const fn from_number(number: $number) -> Self {
                match number {
                    $($value => Self::$variant,)*
                    other => Self::Other(other),
                }
            }

            /// Returns the number on the wire.
            pub const fn number(self) -> $number {
                match self {
                    $(Self::$variant => $value,)*
                    Self::Other(number) => number,
                }
            }
        }
    };
}

pub(crate) use {code, flags};

/// Converts a length on the wire to one in memory.
pub(crate) fn in_memory(len: u32) -> usize {
    usize::try_from(len).expect("an address has at least 32 bits here")
}

/// Converts a length in memory, which the caller has bounded, to one on the wire.
pub(crate) fn on_wire(len: usize) -> u32 {
    u32::try_from(len).expect("messages are bounded far below 4 GiB")
}

#[cfg(test)]
mod tests;
