//! Puts a saved VM together again into a stream that QEMU loads.
//!
//! Every page of every block is written, zero pages too. A fresh QEMU's memory
//! is not all zero: device ROMs, firmware and ACPI tables are there before the
//! stream is loaded. A zero page costs nine bytes, and QEMU's receiver looks
//! before it writes (`ram_handle_zero` in `migration/ram.c`).

use std::collections::HashSet;

use tintype_types::BlockIndex;

use crate::page_writer::PageWriter;
use crate::{DeviceState, Error, Page, RamBlockId};

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
        self.pages.page(out, block, page, bytes)
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
        self.pages.page_header(out, block, page)
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
        self.pages.zero_page(out, block, page)
    }

    /// Appends everything that comes after the pages, which makes the receiver
    /// run the VM or leave it paused, as it was saved.
    ///
    /// # Errors
    /// A page was not written, and its block may not be partial; nothing is appended.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.pages.check_complete(|block| !self.partial.contains(&block))?;
        self.pages.close(out);
        out.extend_from_slice(self.state.after_pages());
        Ok(())
    }
}
