//! Restores a VM that runs before its memory has arrived (postcopy).
//!
//! ```text
//! configuration | return path? ping 1 | advise | RAM set-up | [switchover] |
//! discard every block | package: { listen | device sections | ping 3 | run } |
//! pages, each once, the requested ones first | RAM end | end of stream
//! ```
//!
//! QEMU's receiver asks for a page only if it was told to discard it, hence the
//! discards of memory that never arrived (`migration/postcopy-ram.c`). Which page
//! goes when is the caller's to decide; [`crate::ReturnPathParser`] reads what
//! the receiver asks for.

use tintype_types::{BLOCK_SIZE, BlockIndex};

use crate::page_writer::PageWriter;
use crate::{Command, DeviceState, DiscardRange, Error, Page, RamBlock, RamBlockId, wire};

/// The number of the ping that tells that the receiver reads.
const PING_START: u32 = 1;
/// Writes a stream that restores a VM while it runs.
///
/// The methods append to a buffer of the caller's, who sends and clears it.
/// First [`Self::start`], then every page once in any order, then
/// [`Self::finish`]. The receiver needs the capability `postcopy-ram`, and memory
/// backed by host pages of 4 KiB.
///
/// When the connection is lost the guest waits for its pages. After the command
/// `migrate-recover`, another writer goes on: instead of [`Self::start`] it uses
/// [`Self::ask_received`], [`Self::received`] for each answer, [`Self::resume`].
#[derive(Debug)]
pub struct PostcopyWriter<'s> {
    state: &'s DeviceState,
    pages: PageWriter<'s>,
}

impl<'s> PostcopyWriter<'s> {
    /// The number of the [`crate::ReturnMessage::Pong`] that comes when the
    /// devices are loaded and the guest is about to run.
    pub const LOADED_PING: u32 = 3;

    /// Makes a writer for a saved VM.
    pub fn new(state: &'s DeviceState) -> Self {
        Self { state, pages: PageWriter::new(state) }
    }

    /// Appends everything that comes before the pages: with it the guest runs.
    ///
    /// # Errors
    /// The device sections are longer than a package can be.
    pub fn start(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let package = self.package()?;
        out.extend_from_slice(self.state.before_setup());
        Command::OpenReturnPath.write(out);
        Command::Ping(PING_START).write(out);
        let page_size = BLOCK_SIZE as u64;
        Command::PostcopyAdvise { host_page_sizes: page_size, page_size }.write(out);
        out.extend_from_slice(self.state.setup());
        if self.state.has_switchover {
            Command::SwitchoverStart.write(out);
        }
        for block in self.state.ram_blocks().iter().filter(|block| block.pages() > 0) {
            let ranges = vec![DiscardRange { start: 0, length: block.length.get() }];
            Command::PostcopyRamDiscard { block: block.name.clone(), ranges }.write(out);
        }
        out.extend_from_slice(&package);
        Ok(())
    }

    /// Makes the part that the receiver reads as a whole before it acts on it.
    fn package(&self) -> Result<Vec<u8>, Error> {
        let mut inner = Vec::new();
        Command::PostcopyListen.write(&mut inner);
        inner.extend_from_slice(self.state.device_sections());
        Command::Ping(Self::LOADED_PING).write(&mut inner);
        Command::PostcopyRun.write(&mut inner);
        let length = u32::try_from(inner.len()).map_err(|_| Error::TooLarge {
            offset: self.state.devices.start as u64,
            what: "the bytes of device sections in a package are",
            found: inner.len() as u64,
            limit: u32::MAX.into(),
        })?;
        let mut package = Vec::with_capacity(inner.len() + 16);
        Command::Packaged { length }.write(&mut package);
        package.append(&mut inner);
        Ok(package)
    }

    /// Says if a page is still to be written.
    pub fn wants(&self, block: RamBlockId, page: BlockIndex) -> bool {
        let known = self.state.ram_blocks().get(block.index());
        known.is_some_and(|known| known.contains(page)) && !self.pages.written.contains(block, page)
    }

    /// Returns how many pages of a block are still to be written.
    pub fn missing(&self, block: RamBlockId) -> u64 {
        self.pages.written.missing(block)
    }

    /// Appends a page, unless it was written before: the receiver fails when a
    /// page arrives twice. Says if it was appended.
    ///
    /// # Errors
    /// The page is outside of its block.
    pub fn page(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
        bytes: &Page,
    ) -> Result<bool, Error> {
        if self.pages.written.contains(block, page) {
            return Ok(false);
        }
        self.pages.page(out, block, page, bytes).map(|()| true)
    }

    /// Appends a page that is all zero, unless it was written before. Says if it
    /// was appended.
    ///
    /// # Errors
    /// The page is outside of its block.
    pub fn zero_page(
        &mut self,
        out: &mut Vec<u8>,
        block: RamBlockId,
        page: BlockIndex,
    ) -> Result<bool, Error> {
        if self.pages.written.contains(block, page) {
            return Ok(false);
        }
        self.pages.zero_page(out, block, page).map(|()| true)
    }

    /// Appends the end of the stream: the VM no longer depends on its sender.
    ///
    /// # Errors
    /// A page was not written; nothing is appended.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.pages.check_complete(|_| true)?;
        self.pages.close(out);
        wire::put_continued_section(out, wire::SECTION_END, self.state.ram_section);
        wire::put_end_of_pages(out, self.state.ram_section);
        out.push(wire::EOF);
        Ok(())
    }

    /// Appends the question which pages of each block have arrived. The receiver
    /// answers with a [`crate::ReturnMessage::ReceivedBitmap`] for each.
    pub fn ask_received(&self, out: &mut Vec<u8>) {
        for block in self.state.ram_blocks() {
            Command::ReceivedBitmap { block: block.name.clone() }.write(out);
        }
    }

    /// Takes the answer for one block: a bit a page, the lowest bit of the first
    /// byte first.
    pub fn received(&mut self, block: RamBlockId, bitmap: &[u8]) {
        let pages = self.state.ram_blocks().get(block.index()).map_or(0, RamBlock::pages);
        for (page, byte) in (0..pages).zip(bitmap.iter().flat_map(|byte| [byte; 8])) {
            if byte >> (page % 8) & 1 == 1 {
                self.pages.written.insert(block, BlockIndex(page));
            }
        }
    }

    /// Appends the command to go on; the receiver answers with
    /// [`crate::ReturnMessage::ResumeAck`] and asks again for what it needs.
    pub fn resume(&self, out: &mut Vec<u8>) {
        Command::PostcopyResume.write(out);
    }
}
