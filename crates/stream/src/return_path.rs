//! What the receiver of a stream tells its sender.
//!
//! `enum mig_rp_message_type` in `migration/migration.h`; the messages are written
//! by `migrate_send_rp_*` in `migration/migration.c`. The receiver is as
//! untrusted as any QEMU: a request is checked against the blocks that it has.

use tintype_types::{BLOCK_SIZE, BlockIndex};

use crate::cursor::{Cursor, Halt};
use crate::ram::RamBlocks;
use crate::{DeviceState, Error, RamBlock, RamBlockId};

const SHUT: u16 = 1;
const PONG: u16 = 2;
const REQ_PAGES_ID: u16 = 3;
const REQ_PAGES: u16 = 4;
const RECV_BITMAP: u16 = 5;
const RESUME_ACK: u16 = 6;
const SWITCHOVER_ACK: u16 = 7;

/// `RAMBLOCK_RECV_BITMAP_ENDING`, which ends a bitmap.
const BITMAP_ENDING: u64 = 0x0123_4567_89ab_cdef;

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReturnMessage<'b> {
    /// The receiver is done: with everything, or with an error.
    Shut {
        /// Whether it failed.
        failed: bool,
    },
    /// The answer to a ping: everything before it has been acted on.
    Pong(u32),
    /// The guest waits for pages.
    RequestPages {
        /// Their block.
        block: RamBlockId,
        /// The first of them.
        first: BlockIndex,
        /// How many, at least one, all within the block.
        count: u64,
    },
    /// Which pages of a block have arrived.
    ReceivedBitmap {
        /// The block.
        block: RamBlockId,
        /// A bit a page, the lowest bit of the first byte first.
        bitmap: &'b [u8],
    },
    /// An interrupted postcopy goes on.
    ResumeAck,
    /// The sender may stop the guest (never used by snapshots).
    SwitchoverAck,
}

/// An incremental parser of the return path of one connection.
#[derive(Debug)]
pub struct ReturnPathParser {
    blocks: RamBlocks,
    /// The block that a request without a name is for.
    last_block: Option<RamBlockId>,
    offset: u64,
}

impl ReturnPathParser {
    /// Makes a parser for the receiver of this state.
    pub fn new(state: &DeviceState) -> Self {
        let mut blocks = RamBlocks::default();
        for block in state.ram_blocks() {
            blocks.push(block.clone());
        }
        Self { blocks, last_block: None, offset: 0 }
    }

    /// Reads the message at the start of `input`, and how many bytes it has;
    /// `None` if it is not complete. Only a bitmap is longer than 300 bytes: as
    /// long as its block has pages, divided by eight.
    ///
    /// # Errors
    /// The message is malformed.
    pub fn next<'b>(
        &mut self,
        input: &'b [u8],
    ) -> Result<Option<(ReturnMessage<'b>, usize)>, Error> {
        let mut cursor = Cursor::new(input);
        match self.message(&mut cursor) {
            Ok(message) => {
                self.offset = self.offset.saturating_add(cursor.position() as u64);
                Ok(Some((message, cursor.position())))
            }
            Err(Halt::Short(_)) => Ok(None),
            Err(Halt::Bad(error)) => Err(error),
        }
    }

    fn message<'b>(&mut self, cursor: &mut Cursor<'b>) -> Result<ReturnMessage<'b>, Halt> {
        let kind = cursor.be16()?;
        let len = cursor.be16()?;
        match (kind, len) {
            (SHUT, 4) => Ok(ReturnMessage::Shut { failed: cursor.be32()? != 0 }),
            (PONG, 4) => Ok(ReturnMessage::Pong(cursor.be32()?)),
            (REQ_PAGES, 12) => {
                let (start, bytes) = (cursor.be64()?, cursor.be32()?);
                let block = self.last_block;
                let block = block.ok_or_else(|| self.malformed("a request for no block".into()))?;
                self.request(block, start, bytes)
            }
            (REQ_PAGES_ID, 14..) => {
                let (start, bytes) = (cursor.be64()?, cursor.be32()?);
                let block = self.block(cursor, len - 12)?;
                let request = self.request(block, start, bytes)?;
                self.last_block = Some(block);
                Ok(request)
            }
            (RECV_BITMAP, 2..) => {
                let block = self.block(cursor, len)?;
                self.bitmap(cursor, block)
            }
            (RESUME_ACK, 4) if cursor.be32()? == 1 => Ok(ReturnMessage::ResumeAck),
            (SWITCHOVER_ACK, 0) => Ok(ReturnMessage::SwitchoverAck),
            _ => Err(self.malformed(format!("message {kind} of {len} bytes"))),
        }
    }

    /// Reads a counted name that ends a message of which `len` bytes are left.
    fn block(&self, cursor: &mut Cursor<'_>, len: u16) -> Result<RamBlockId, Halt> {
        let name = cursor.name()?;
        let known = std::str::from_utf8(name).ok().and_then(|name| self.blocks.find(name));
        match known {
            Some(block) if name.len() + 1 == usize::from(len) => Ok(block),
            _ => Err(self.malformed(format!("RAM block {:?}", String::from_utf8_lossy(name)))),
        }
    }

    fn request(
        &self,
        block: RamBlockId,
        start: u64,
        bytes: u32,
    ) -> Result<ReturnMessage<'static>, Halt> {
        let page_size = BLOCK_SIZE as u64;
        let bytes = u64::from(bytes);
        let length = self.blocks.get(block).map_or(0, |block| block.length.get());
        let is_within = start.checked_add(bytes).is_some_and(|end| end <= length);
        let is_whole = [start, bytes].iter().all(|number| number.is_multiple_of(page_size));
        if !is_within || !is_whole || bytes == 0 {
            return Err(self.malformed(format!("a request for {bytes} bytes at {start:#x}")));
        }
        let (first, count) = (BlockIndex::containing(start), bytes / page_size);
        Ok(ReturnMessage::RequestPages { block, first, count })
    }

    /// Reads a bitmap, whose length must be that of its block, in whole words.
    fn bitmap<'b>(
        &self,
        cursor: &mut Cursor<'b>,
        block: RamBlockId,
    ) -> Result<ReturnMessage<'b>, Halt> {
        let len = cursor.be64()?;
        let pages = self.blocks.get(block).map_or(0, RamBlock::pages);
        if len != pages.div_ceil(64) * 8 {
            return Err(self.malformed(format!("a bitmap of {len} bytes for {pages} pages")));
        }
        let bitmap = cursor.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
        match cursor.be64()? {
            BITMAP_ENDING => Ok(ReturnMessage::ReceivedBitmap { block, bitmap }),
            ending => Err(self.malformed(format!("a bitmap that ends in {ending:#x}"))),
        }
    }

    fn malformed(&self, fault: String) -> Halt {
        let fault = format!("on the return path, {fault}");
        Error::Malformed { offset: self.offset, fault }.into()
    }
}

#[cfg(test)]
mod tests {
    use tintype_types::ByteCount;

    use super::*;

    fn parser() -> ReturnPathParser {
        let mut blocks = RamBlocks::default();
        for (name, pages) in [("pc.ram", 70), ("rom", 1)] {
            blocks.push(RamBlock { name: name.into(), length: ByteCount(pages << 12) });
        }
        ReturnPathParser { blocks, last_block: None, offset: 0 }
    }

    fn request(block: u16, first: u64, count: u64) -> ReturnMessage<'static> {
        let (block, first) = (RamBlockId(block), BlockIndex(first));
        ReturnMessage::RequestPages { block, first, count }
    }

    /// Checks that the bytes are these messages, however they are cut.
    fn check(bytes: &[u8], expected: &[ReturnMessage<'_>]) {
        let mut parser = parser();
        let mut rest = bytes;
        for message in expected {
            let (found, len) = parser.next(rest).unwrap().unwrap();
            assert_eq!(found, *message);
            for end in 0..len {
                assert_eq!(parser.next(&rest[..end]).unwrap(), None, "cut at {end}");
            }
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
    }

    fn check_refused(bytes: &[u8], fact: &str) {
        let error = parser().next(bytes).unwrap_err().to_string();
        assert!(error.contains(fact), "{error}");
    }

    #[test]
    fn messages_are_those_that_qemu_writes() {
        check(b"\0\x01\0\x04\0\0\0\0", &[ReturnMessage::Shut { failed: false }]);
        check(b"\0\x01\0\x04\0\0\0\x01", &[ReturnMessage::Shut { failed: true }]);
        check(b"\0\x02\0\x04\0\0\0\x03", &[ReturnMessage::Pong(3)]);
        check(b"\0\x06\0\x04\0\0\0\x01", &[ReturnMessage::ResumeAck]);
        check(b"\0\x07\0\0", &[ReturnMessage::SwitchoverAck]);
        check(
            b"\0\x03\0\x13\0\0\0\0\0\0\x10\0\0\0\x10\0\x06pc.ram\
              \0\x04\0\x0c\0\0\0\0\0\x04\0\0\0\0\x60\0\
              \0\x03\0\x10\0\0\0\0\0\0\0\0\0\0\x10\0\x03rom\
              \0\x04\0\x0c\0\0\0\0\0\0\0\0\0\0\x10\0",
            &[request(0, 1, 1), request(0, 64, 6), request(1, 0, 1), request(1, 0, 1)],
        );
        check(
            b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x08\x01\0\0\0\0\0\0\0\
              \x01\x23\x45\x67\x89\xab\xcd\xef",
            &[ReturnMessage::ReceivedBitmap {
                block: RamBlockId(1),
                bitmap: &[1, 0, 0, 0, 0, 0, 0, 0],
            }],
        );
    }

    #[test]
    fn messages_of_another_form_are_refused() {
        check_refused(b"\0\0\0\0", "message 0");
        check_refused(b"\0\x08\0\0", "message 8");
        check_refused(b"\0\x06\0\x04\0\0\0\x02", "message 6");
        check_refused(b"\0\x04\0\x0c\0\0\0\0\0\0\x10\0\0\0\x10\0", "for no block");
        check_refused(b"\0\x03\0\x0f\0\0\0\0\0\0\0\0\0\0\x10\0\x02vm", "\"vm\"");
        check_refused(b"\0\x03\0\x11\0\0\0\0\0\0\0\0\0\0\x10\0\x03rom", "\"rom\"");
        let rom = |start: &[u8; 8], len: &[u8; 4]| {
            [b"\0\x03\0\x10", start.as_slice(), len, b"\x03rom"].concat()
        };
        check_refused(&rom(b"\0\0\0\0\0\0\x10\0", b"\0\0\x10\0"), "at 0x1000");
        check_refused(&rom(b"\0\0\0\0\0\0\0\0", b"\0\0\x20\0"), "8192 bytes");
        check_refused(&rom(b"\0\0\0\0\0\0\0\0", b"\0\0\0\0"), "for 0 bytes");
        check_refused(&rom(b"\0\0\0\0\0\0\0\x01", b"\0\0\0\x01"), "for 1 bytes");
        check_refused(&rom(b"\xff\xff\xff\xff\xff\xff\xf0\0", b"\0\0\x10\0"), "0xffff");
        let bitmap = b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x10";
        check_refused(bitmap, "16 bytes for 1 pages");
        let ending = b"\0\x05\0\x04\x03rom\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        check_refused(ending, "ends in 0x0");
    }
}
