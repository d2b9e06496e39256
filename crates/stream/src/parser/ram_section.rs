//! The RAM section: its table of blocks, and its records of pages.
//!
//! `ram_save_setup` and `save_page_header` in `migration/ram.c`.

use tintype_types::{BlockIndex, ByteCount};

use super::{FooterOf, Parser, State, Taken};
use crate::cursor::{Cursor, Halt, printable};
use crate::{Event, RamBlock, RamBlockId, RamPhase, wire};

impl Parser {
    pub(super) fn table_size<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let word = Cursor::new(input).be64()?;
        if word & wire::FLAGS_MASK != wire::MEM_SIZE {
            return Err(self.malformed(format!("RAM record {word:#x} where the table belongs")));
        }
        let total = word & !wire::FLAGS_MASK;
        if total > self.limits.max_ram.get() {
            let limit = self.limits.max_ram.get();
            return Err(self.too_large("the bytes of RAM are", total, limit));
        }
        self.keep(&word.to_be_bytes())?;
        self.state = State::BlockTable { remaining: total };
        Ok((8, None))
    }

    pub(super) fn table_entry<'b>(&mut self, input: &'b [u8], remaining: u64) -> Taken<'b> {
        if remaining == 0 {
            self.state = State::SetupEnd;
            return Ok((0, None));
        }
        let mut cursor = Cursor::new(input);
        let name = cursor.name()?;
        let length = cursor.be64()?;
        let Some(name) = printable(name) else {
            let name = String::from_utf8_lossy(name);
            return Err(self.malformed(format!("RAM block name {name:?}")));
        };
        let Some(rest) = remaining.checked_sub(length) else {
            return Err(self.malformed(format!("RAM block {name:?} is longer than all RAM")));
        };
        if length % tintype_types::BLOCK_SIZE as u64 != 0 {
            return Err(self.malformed(format!("RAM block {name:?} has {length} bytes")));
        }
        let count = self.blocks.as_slice().len() as u64;
        if count >= u64::from(self.limits.max_ram_blocks) {
            let limit = self.limits.max_ram_blocks.into();
            return Err(self.too_large("the number of RAM blocks is at least", count + 1, limit));
        }
        self.keep(&input[..cursor.position()])?;
        let block = RamBlock { name: name.to_owned(), length: ByteCount(length) };
        if self.blocks.push(block).is_none() {
            return Err(self.malformed(format!("a second RAM block {name:?}")));
        }
        self.state = State::BlockTable { remaining: rest };
        Ok((cursor.position(), None))
    }

    pub(super) fn setup_end<'b>(&mut self, input: &'b [u8]) -> Taken<'b> {
        let word = Cursor::new(input).be64()?;
        if word != wire::EOS {
            return Err(self.bad_record(word));
        }
        self.keep(&word.to_be_bytes())?;
        let section = self.ram_section()?;
        self.state = State::Footer { section, of: FooterOf::Setup };
        Ok((8, None))
    }

    pub(super) fn record<'b>(&mut self, input: &'b [u8], phase: RamPhase) -> Taken<'b> {
        let mut cursor = Cursor::new(input);
        let word = cursor.be64()?;
        if word == wire::EOS {
            let section = self.ram_section()?;
            self.state = State::Footer { section, of: FooterOf::Pages(phase) };
            return Ok((cursor.position(), None));
        }
        let flags = word & wire::FLAGS_MASK & !wire::CONTINUE;
        if flags != wire::PAGE && flags != wire::ZERO {
            return Err(self.bad_record(word));
        }
        let block = match word & wire::CONTINUE {
            0 => self.named_block(&mut cursor)?,
            _ => self
                .last_block
                .ok_or_else(|| self.malformed("a page before any block was named".into()))?,
        };
        let page = BlockIndex::containing(word);
        if !self.blocks.get(block).is_some_and(|block| block.contains(page)) {
            let name = self.blocks.get(block).map_or("no block", |block| &block.name);
            return Err(self.malformed(format!("page {} is outside of {name:?}", page.0)));
        }
        let event = if flags == wire::PAGE {
            Event::Page { block, page, bytes: cursor.array()? }
        } else if cursor.u8()? == 0 {
            Event::ZeroPage { block, page }
        } else {
            return Err(self.bad_record(word));
        };
        self.last_block = Some(block);
        Ok((cursor.position(), Some(event)))
    }

    fn named_block(&self, cursor: &mut Cursor<'_>) -> Result<RamBlockId, Halt> {
        let name = cursor.name()?;
        let found = std::str::from_utf8(name).ok().and_then(|name| self.blocks.find(name));
        found.ok_or_else(|| {
            self.malformed(format!("no RAM block is called {:?}", String::from_utf8_lossy(name)))
        })
    }

    fn bad_record(&self, word: u64) -> Halt {
        let flags = word & wire::FLAGS_MASK;
        let feature = match flags & !wire::CONTINUE {
            wire::XBZRLE => "the capability \"xbzrle\"",
            wire::COMPRESS_PAGE => "the capability \"compress\"",
            wire::MULTIFD_FLUSH => "the capability \"multifd\"",
            wire::HOOK => "RDMA",
            wire::ZERO => "a page filled with one value that is not zero",
            _ => return self.malformed(format!("RAM record {word:#x}")),
        };
        self.unsupported(feature.to_owned())
    }
}
