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
