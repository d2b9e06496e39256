//! Writes the records of pages, within sections of a VM's RAM.
//!
//! It knows which pages were written, and nothing of what comes before or after.

use tintype_types::{BlockIndex, ByteCount};

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

    /// Appends what comes before the bytes of a page.
    pub(crate) fn page_header(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
    ) -> Result<(), Error> {
        self.header(out, block, page, wire::PAGE)
    }

    /// Appends a page.
    pub(crate) fn page(
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

    /// Appends a page that is all zero.
    pub(crate) fn zero_page(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
    ) -> Result<(), Error> {
        self.header(out, block, page, wire::ZERO)?;
        out.push(0);
        Ok(())
    }

    /// Appends the record of a page, opening a section if needed.
    fn header(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
        flag: u64,
    ) -> Result<(), Error> {
        let Some(known) = self.state.ram_blocks().get(block.index()) else {
            let (block, length) = (format!("number {}", block.0), ByteCount(0));
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

    /// Checks that all pages were written of those blocks of which all must be.
    pub(crate) fn check_complete(
        &self,
        must_be_whole: impl Fn(RamBlockId) -> bool,
    ) -> Result<(), Error> {
        for (id, block) in RamBlock::numbered(self.state.ram_blocks()) {
            let missing = self.written.missing(id);
            if missing > 0 && must_be_whole(id) {
                let first = self.written.first_missing(id).unwrap_or(BlockIndex(0));
                let block = block.name.clone();
                return Err(Error::Incomplete { block, missing, first });
            }
        }
        Ok(())
    }

    /// Ends the section that is open, if one is.
    pub(crate) fn close(&mut self, out: &mut Vec<u8>) {
        if self.open.take().is_some() {
            wire::put_end_of_pages(out, self.state.ram_section);
        }
    }
}
