//! Puts a saved VM together again into a stream that QEMU loads.
//!
//! Every page of every block is written, zero pages too. A fresh QEMU's memory
//! is not all zero: device ROMs, firmware and ACPI tables are there before the
//! stream is loaded. A zero page costs nine bytes, and QEMU's receiver looks
//! before it writes (`ram_handle_zero` in `migration/ram.c`).

use std::collections::HashSet;

use tintype_types::BlockIndex;

use crate::{Coverage, DeviceState, Error, Page, RamBlock, RamBlockId, wire};

/// After how many pages a section ends. QEMU ends one after 50 ms at the latest;
/// its receiver sets no bound.
const SECTION_PAGES: u32 = 16 * 1024;

/// Writes the records of pages, in sections of the RAM of one VM.
#[derive(Debug)]
pub(crate) struct PageWriter<'s> {
    state: &'s DeviceState,
    last_block: Option<RamBlockId>,
    /// How many pages the section has that is open, if one is.
    open: Option<u32>,
    pub(crate) written: Coverage,
}

impl<'s> PageWriter<'s> {
    pub(crate) fn new(state: &'s DeviceState) -> Self {
        let written = Coverage::new(state.ram_blocks());
        Self { state, last_block: None, open: None, written }
    }

    /// Appends the record of a page, without the page, opening a section if needed.
    pub(crate) fn header(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
        flag: u64,
    ) -> Result<(), Error> {
        let Some(known) = self.state.ram_blocks().get(block.index()) else {
            let (block, length) = (format!("number {}", block.0), Default::default());
            return Err(Error::PageOutside { block, length, page });
        };
        if !known.contains(page) {
            let (block, length) = (known.name.clone(), known.length);
            return Err(Error::PageOutside { block, length, page });
        }
        if self.open.is_some_and(|pages| pages >= SECTION_PAGES) {
            self.close(out);
        }
        if self.open.is_none() {
            wire::put_continued_section(out, wire::SECTION_PART, self.state.ram_section);
        }
        self.open = Some(self.open.unwrap_or(0) + 1);
        if self.last_block == Some(block) {
            out.extend_from_slice(&(page.offset() | flag | wire::CONTINUE).to_be_bytes());
        } else {
            out.extend_from_slice(&(page.offset() | flag).to_be_bytes());
            wire::put_name(out, &known.name);
            self.last_block = Some(block);
        }
        self.written.insert(block, page);
        Ok(())
    }

    /// Ends the section that is open, if one is.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            wire::put_end_of_pages(out, self.state.ram_section);
        }
    }
}

/// Writes a stream that restores a VM before it runs.
///
/// The methods append to a buffer of the caller's, who sends and clears it.
/// First [`Self::start`], then pages in any order, then [`Self::finish`].
#[derive(Debug)]
pub struct RestoreWriter<'s> {
    state: &'s DeviceState,
    pages: PageWriter<'s>,
    partial: HashSet<RamBlockId>,
}

impl<'s> RestoreWriter<'s> {
    /// Makes a writer for a saved VM.
    pub fn new(state: &'s DeviceState) -> Self {
        Self { state, pages: PageWriter::new(state), partial: HashSet::new() }
    }

    /// Declares that pages of a block that are not written are to keep what the
    /// receiver has: right for memory that is already there, such as a file
    /// that is mapped, or that is known to be all zero.
    pub fn allow_partial(&mut self, block: RamBlockId) {
        self.partial.insert(block);
    }

    /// Appends everything that comes before the pages.
    pub fn start(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.state.before_pages());
    }

    /// Appends a page.
    ///
    /// # Errors
    /// The page is outside of its block.
    pub fn page(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
        bytes: &Page,
    ) -> Result<(), Error> {
        self.page_header(out, block, page)?;
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends what comes before the bytes of a page, which the caller must send
    /// next: for those who send pages from where they are.
    ///
    /// # Errors
    /// The page is outside of its block.
    pub fn page_header(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
    ) -> Result<(), Error> {
        self.pages.header(out, block, page, wire::PAGE)
    }

    /// Appends a page that is all zero.
    ///
    /// # Errors
    /// The page is outside of its block.
    pub fn zero_page(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
    ) -> Result<(), Error> {
        self.pages.header(out, block, page, wire::ZERO)?;
        out.push(0);
        Ok(())
    }

    /// Appends everything that comes after the pages, which makes the receiver
    /// run the VM or leave it paused, as it was saved.
    ///
    /// # Errors
    /// A page was not written, and its block may not be partial; nothing is appended.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        for (id, block) in RamBlock::numbered(self.state.ram_blocks()) {
            let missing = self.pages.written.missing(id);
            if missing > 0 && !self.partial.contains(&id) {
                let first = self.pages.written.first_missing(id).unwrap_or(BlockIndex(0));
                let block = block.name.clone();
                return Err(Error::Incomplete { block, missing, first });
            }
        }
        self.pages.close(out);
        out.extend_from_slice(self.state.after_pages());
        Ok(())
    }
}
