//! Names of segments, ids of content, and pointers to frames.
//!
//! A pointer says where a frame is and what it must be; it can be followed
//! without any index. It does not say how to decode the frame: the frame does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tintype_types::SnapshotId;

use crate::wire::{Fields, Malformed};

/// The keyed hash of one block's 4096 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockId(pub [u8; BLOCK_ID_LEN]);

/// Bytes of the id of a block.
pub(crate) const BLOCK_ID_LEN: usize = 16;

/// The keyed hash of the ids of a frame's blocks, in order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct FrameId(pub [u8; 20]);

/// The keyed hash of a node's or a blob chunk's bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub [u8; 32]);

macro_rules! hex_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
                f.write_str(")")
            }
        }
    )*};
}
hex_debug!(BlockId, FrameId, NodeId);

/// The name of a segment: the session that wrote it and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentName {
    pub session: SnapshotId,
    pub number: u32,
}

impl SegmentName {
    /// Returns the object key.
    pub(crate) fn key(&self) -> String {
        format!("{}{:08x}", segment_prefix(self.session), self.number)
    }

    /// Reads the object key; `None` if it is not one.
    pub(crate) fn from_key(key: &str) -> Option<Self> {
        let (session, number) = key.strip_prefix("seg/")?.split_once('/')?.1.split_once('-')?;
        let name =
            Self { session: session.parse().ok()?, number: u32::from_str_radix(number, 16).ok()? };
        (name.key() == key).then_some(name)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.session.as_bytes());
        out.extend_from_slice(&self.number.to_le_bytes());
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> Result<Self, Malformed> {
        Ok(Self { session: SnapshotId::from_bytes(fields.array()?), number: fields.u32()? })
    }
}

/// Returns what the keys of all segments of a session start with.
pub(crate) fn segment_prefix(session: SnapshotId) -> String {
    format!("seg/{:02x}/{session}-", session.as_bytes()[0])
}

/// Where a frame is: its segment, its number there, its first byte, and its
/// length with the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub segment: SegmentName,
    pub number: u16,
    pub offset: u32,
    pub len: u32,
}

/// A frame of blocks: where it is and what it must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FramePointer {
    pub place: Place,
    /// How many blocks the frame holds, 1 to 32.
    pub blocks: u8,
    pub id: FrameId,
}

/// A node or blob chunk: where it is and what it must be.
///
/// Its text is `SESSION-NUMBER.FRAME.OFFSET.LENGTH.ID`, all hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct NodePointer {
    pub place: Place,
    pub id: NodeId,
}

impl fmt::Display for NodePointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { segment, number, offset, len } = self.place;
        write!(f, "{}-{:x}.{number:x}.{offset:x}.{len:x}.", segment.session, segment.number)?;
        self.id.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Text is not a pointer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("text is not a pointer into a repository")]
pub(crate) struct ParsePointerError;

impl FromStr for NodePointer {
    type Err = ParsePointerError;

    fn from_str(text: &str) -> Result<Self, ParsePointerError> {
        parse(text).ok_or(ParsePointerError)
    }
}

fn parse(text: &str) -> Option<NodePointer> {
    let mut fields = text.split('.');
    let (session, segment) = fields.next()?.split_once('-')?;
    let place = Place {
        segment: SegmentName {
            session: session.parse().ok()?,
            number: u32::from_str_radix(segment, 16).ok()?,
        },
        number: u16::from_str_radix(fields.next()?, 16).ok()?,
        offset: u32::from_str_radix(fields.next()?, 16).ok()?,
        len: u32::from_str_radix(fields.next()?, 16).ok()?,
    };
    let pointer = NodePointer { place, id: NodeId(unhex(fields.next()?)?) };
    (pointer.to_string() == text).then_some(pointer)
}

/// Reads exactly `N` bytes of lower-case hexadecimal digits.
pub(crate) fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N { None } else { unhex_bytes(text)?.try_into().ok() }
}

/// Reads bytes of lower-case hexadecimal digits.
pub(crate) fn unhex_bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    let mut bytes = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let [high, low] = pair.map(|digit| VALUES[usize::from(digit)]);
        // No digit is over 15, and what is none has all bits.
        if high | low > 15 {
            return None;
        }
        bytes.push(high << 4 | low);
    }
    Some(bytes)
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// What each byte is worth as a digit: 255 if it is none. All snapshot records go
/// through it whenever snapshots are listed.
const VALUES: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut digit = 0u8;
    while digit < 16 {
        values[DIGITS[digit as usize] as usize] = digit;
        digit += 1;
    }
    values
};

impl TryFrom<String> for NodePointer {
    type Error = ParsePointerError;

    fn try_from(text: String) -> Result<Self, ParsePointerError> {
        text.parse()
    }
}

impl From<NodePointer> for String {
    fn from(pointer: NodePointer) -> String {
        pointer.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_pointers_survive_their_text() {
        let segment = SegmentName { session: SnapshotId::random(), number: 0x12f };
        assert_eq!(SegmentName::from_key(&segment.key()), Some(segment));
        let pointer = NodePointer {
            place: Place { segment, number: 7, offset: 64, len: 4242 },
            id: NodeId([0xab; 32]),
        };
        assert_eq!(pointer.to_string().parse(), Ok(pointer));
    }

    #[test]
    fn other_text_is_refused() {
        for text in ["", "a-b.c", "..", "seg/../x-1", "0-0.0.0.0.00"] {
            assert!(text.parse::<NodePointer>().is_err(), "{text}");
            assert_eq!(SegmentName::from_key(text), None);
        }
    }
}
