//! The commands that a sender gives to a receiver between sections.
//!
//! `enum qemu_vm_cmd` in `migration/savevm.c`. This is a codec: what may be sent
//! when is for the caller to know.

use crate::cursor::{Cursor, Halt, printable};
use crate::{Error, wire};

const OPEN_RETURN_PATH: u16 = 1;
const PING: u16 = 2;
const POSTCOPY_ADVISE: u16 = 3;
const POSTCOPY_LISTEN: u16 = 4;
const POSTCOPY_RUN: u16 = 5;
const POSTCOPY_RAM_DISCARD: u16 = 6;
const PACKAGED: u16 = 7;
const ENABLE_COLO: u16 = 8;
const POSTCOPY_RESUME: u16 = 9;
const RECV_BITMAP: u16 = 10;
const SWITCHOVER_START: u16 = 11;

/// The only version of the message that discards memory.
const DISCARD_VERSION: u8 = 0;

/// One command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Answer on the same connection from now on.
    OpenReturnPath,
    /// Answer with a [`crate::ReturnMessage::Pong`] of the same number. The
    /// return path must be open.
    Ping(u32),
    /// Postcopy may follow; must agree with the receiver's capability.
    PostcopyAdvise {
        /// The sizes of all host pages that back RAM, OR-ed together.
        host_page_sizes: u64,
        /// The size of the guest's pages.
        page_size: u64,
    },
    /// Write-protect memory and ask for pages that are touched.
    PostcopyListen,
    /// Start the guest.
    PostcopyRun,
    /// Forget the contents of ranges of a block.
    PostcopyRamDiscard {
        /// The block's name.
        block: String,
        /// The ranges, in bytes from the start of the block; not empty.
        ranges: Vec<DiscardRange>,
    },
    /// This many bytes follow, which are a stream of their own.
    Packaged {
        /// How many bytes.
        length: u32,
    },
    /// Keep two VMs in step (never used by snapshots).
    EnableColo,
    /// Go on with a postcopy that lost its connection.
    PostcopyResume,
    /// Tell which pages of a block have arrived.
    ReceivedBitmap {
        /// The block's name.
        block: String,
    },
    /// The guest has stopped; the devices' state follows.
    SwitchoverStart,
}

/// A range of bytes of a block of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiscardRange {
    /// Where it starts, in bytes from the start of the block.
    pub start: u64,
    /// How many bytes it has.
    pub length: u64,
}

impl Command {
    /// Returns the name that QEMU gives the command.
    pub fn name(&self) -> &'static str {
        match self {
            Self::OpenReturnPath => "OPEN_RETURN_PATH",
            Self::Ping(_) => "PING",
            Self::PostcopyAdvise { .. } => "POSTCOPY_ADVISE",
            Self::PostcopyListen => "POSTCOPY_LISTEN",
            Self::PostcopyRun => "POSTCOPY_RUN",
            Self::PostcopyRamDiscard { .. } => "POSTCOPY_RAM_DISCARD",
            Self::Packaged { .. } => "PACKAGED",
            Self::EnableColo => "ENABLE_COLO",
            Self::PostcopyResume => "POSTCOPY_RESUME",
            Self::ReceivedBitmap { .. } => "RECV_BITMAP",
            Self::SwitchoverStart => "SWITCHOVER_START",
        }
    }

    /// Appends the command to a stream, between two sections.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (id, payload) = match self {
            Self::OpenReturnPath => (OPEN_RETURN_PATH, Vec::new()),
            Self::Ping(number) => (PING, number.to_be_bytes().into()),
            Self::PostcopyAdvise { host_page_sizes, page_size } => {
                let sizes = [host_page_sizes.to_be_bytes(), page_size.to_be_bytes()];
                (POSTCOPY_ADVISE, sizes.concat())
            }
            Self::PostcopyListen => (POSTCOPY_LISTEN, Vec::new()),
            Self::PostcopyRun => (POSTCOPY_RUN, Vec::new()),
            Self::PostcopyRamDiscard { block, ranges } => {
                (POSTCOPY_RAM_DISCARD, discard_payload(block, ranges))
            }
            Self::Packaged { length } => (PACKAGED, length.to_be_bytes().into()),
            Self::EnableColo => (ENABLE_COLO, Vec::new()),
            Self::PostcopyResume => (POSTCOPY_RESUME, Vec::new()),
            Self::ReceivedBitmap { block } => {
                let mut payload = Vec::new();
                wire::put_name(&mut payload, block);
                (RECV_BITMAP, payload)
            }
            Self::SwitchoverStart => (SWITCHOVER_START, Vec::new()),
        };
        let len = u16::try_from(payload.len()).expect("ranges that fit one message were given");
        out.push(wire::COMMAND);
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(&payload);
    }

    /// Reads what follows the byte that says that a command follows.
    pub(crate) fn read(cursor: &mut Cursor<'_>, offset: u64) -> Result<Self, Halt> {
        let id = cursor.be16()?;
        let len = cursor.be16()?;
        let payload = match (id, len) {
            (PING | PACKAGED, 4) | (POSTCOPY_ADVISE, 16) => cursor.bytes(len.into())?,
            (POSTCOPY_RAM_DISCARD | RECV_BITMAP, 1..) => cursor.bytes(len.into())?,
            _ => &[],
        };
        let mut inner = Cursor::new(payload);
        let command = Self::read_payload(id, len, &mut inner);
        match command {
            Ok(Some(command)) if inner.position() == usize::from(len) => Ok(command),
            _ => {
                let fault = format!("command {id} of {len} bytes");
                Err(Error::Malformed { offset, fault }.into())
            }
        }
    }

    fn read_payload(id: u16, len: u16, payload: &mut Cursor<'_>) -> Result<Option<Self>, Halt> {
        Ok(Some(match id {
            OPEN_RETURN_PATH => Self::OpenReturnPath,
            PING => Self::Ping(payload.be32()?),
            POSTCOPY_ADVISE => Self::PostcopyAdvise {
                host_page_sizes: payload.be64()?,
                page_size: payload.be64()?,
            },
            POSTCOPY_LISTEN => Self::PostcopyListen,
            POSTCOPY_RUN => Self::PostcopyRun,
            POSTCOPY_RAM_DISCARD => return read_discard(len, payload),
            PACKAGED => Self::Packaged { length: payload.be32()? },
            ENABLE_COLO => Self::EnableColo,
            POSTCOPY_RESUME => Self::PostcopyResume,
            RECV_BITMAP => match printable(payload.name()?) {
                Some(block) => Self::ReceivedBitmap { block: block.to_owned() },
                None => return Ok(None),
            },
            SWITCHOVER_START => Self::SwitchoverStart,
            _ => return Ok(None),
        }))
    }
}

/// Version, counted name, a zero byte, then the ranges.
fn discard_payload(block: &str, ranges: &[DiscardRange]) -> Vec<u8> {
    let mut payload = vec![DISCARD_VERSION];
    wire::put_name(&mut payload, block);
    payload.push(0);
    for range in ranges {
        payload.extend_from_slice(&range.start.to_be_bytes());
        payload.extend_from_slice(&range.length.to_be_bytes());
    }
    payload
}

fn read_discard(len: u16, payload: &mut Cursor<'_>) -> Result<Option<Command>, Halt> {
    let version = payload.u8()?;
    let name = payload.name()?;
    let end_of_name = payload.u8()?;
    let mut ranges = Vec::new();
    while payload.position() < usize::from(len) {
        ranges.push(DiscardRange { start: payload.be64()?, length: payload.be64()? });
    }
    Ok(match printable(name) {
        Some(block) if version == DISCARD_VERSION && end_of_name == 0 && !ranges.is_empty() => {
            Some(Command::PostcopyRamDiscard { block: block.to_owned(), ranges })
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the command has this form, and is read from it.
    fn check(command: &Command, bytes: &[u8]) {
        let mut out = Vec::new();
        command.write(&mut out);
        assert_eq!(out, bytes, "{command:?}");
        let mut cursor = Cursor::new(&bytes[1..]);
        assert_eq!(Command::read(&mut cursor, 0).unwrap(), *command);
        assert_eq!(cursor.position(), bytes.len() - 1);
        for end in 1..bytes.len() {
            let cut = Command::read(&mut Cursor::new(&bytes[1..end]), 0);
            assert!(matches!(cut, Err(Halt::Short(_))), "{command:?} cut at {end}");
        }
    }

    #[test]
    fn commands_have_the_form_that_qemu_reads() {
        check(&Command::OpenReturnPath, b"\x08\0\x01\0\0");
        check(&Command::Ping(7), b"\x08\0\x02\0\x04\0\0\0\x07");
        check(
            &Command::PostcopyAdvise { host_page_sizes: 0x20_1000, page_size: 0x1000 },
            b"\x08\0\x03\0\x10\0\0\0\0\0\x20\x10\0\0\0\0\0\0\0\x10\0",
        );
        check(&Command::PostcopyListen, b"\x08\0\x04\0\0");
        check(&Command::PostcopyRun, b"\x08\0\x05\0\0");
        check(
            &Command::PostcopyRamDiscard {
                block: "ab".into(),
                ranges: vec![DiscardRange { start: 0x1000, length: 0x3000 }],
            },
            b"\x08\0\x06\0\x15\0\x02ab\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x30\0",
        );
        check(&Command::Packaged { length: 258 }, b"\x08\0\x07\0\x04\0\0\x01\x02");
        check(&Command::EnableColo, b"\x08\0\x08\0\0");
        check(&Command::PostcopyResume, b"\x08\0\x09\0\0");
        check(&Command::ReceivedBitmap { block: "ab".into() }, b"\x08\0\x0a\0\x03\x02ab");
        check(&Command::SwitchoverStart, b"\x08\0\x0b\0\0");
    }

    #[test]
    fn commands_of_another_form_are_refused() {
        let check = |bytes: &[u8]| {
            let read = Command::read(&mut Cursor::new(bytes), 0);
            assert!(matches!(read, Err(Halt::Bad(_))), "{bytes:?}: {read:?}");
        };
        check(b"\0\0\0\0");
        check(b"\0\x0c\0\0");
        check(b"\0\x01\0\x01\0");
        check(b"\0\x02\0\x02\0\0");
        check(b"\0\x03\0\0");
        check(b"\0\x06\0\x05\0\x02ab\0");
        check(b"\0\x06\0\x06\0\x02ab\0\0");
        check(b"\0\x06\0\x15\x01\x02ab\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\0\x30\0");
        check(b"\0\x0a\0\x03\x01ab");
        check(b"\0\x0a\0\x03\x03ab");
    }
}
