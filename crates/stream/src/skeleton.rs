//! A stream without its pages, while it is being put together.

use std::ops::Range;

use tintype_types::ByteCount;

use crate::{DeviceState, Error, RamBlock, wire};

/// The bytes of a stream that are not pages, and where its parts are.
#[derive(Debug)]
pub(crate) struct Skeleton {
    bytes: Vec<u8>,
    limit: ByteCount,
    machine: String,
    ram_section: Option<u32>,
    /// Where the first section is.
    setup_at: usize,
    /// Where pages belong: after the set-up, before the end of RAM.
    pages_at: Option<usize>,
    has_seen_pages: bool,
    has_switched_over: bool,
    tail_at: Option<usize>,
}

impl Skeleton {
    pub(crate) fn new(limit: ByteCount) -> Self {
        Self {
            bytes: Vec::new(),
            limit,
            machine: String::new(),
            ram_section: None,
            setup_at: 0,
            pages_at: None,
            has_seen_pages: false,
            has_switched_over: false,
            tail_at: None,
        }
    }

    /// Appends bytes of the stream that stand at `offset`.
    pub(crate) fn keep(&mut self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        let found = (self.bytes.len() as u64).saturating_add(bytes.len() as u64);
        if found > self.limit.get() {
            let what = "the bytes beside the pages are at least";
            return Err(Error::TooLarge { offset, what, found, limit: self.limit.get() });
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    pub(crate) fn set_machine(&mut self, machine: &str) {
        machine.clone_into(&mut self.machine);
    }

    /// Notes that the configuration is over.
    pub(crate) fn begin_setup(&mut self) {
        self.setup_at = self.bytes.len();
    }

    pub(crate) fn set_ram_section(&mut self, section: u32) {
        self.ram_section = Some(section);
    }

    pub(crate) fn ram_section(&self) -> Option<u32> {
        self.ram_section
    }

    /// Notes that the set-up is over, since a section with pages begins.
    pub(crate) fn begin_pages(&mut self) {
        self.has_seen_pages = true;
        self.pages_at.get_or_insert(self.bytes.len());
    }

    pub(crate) fn has_seen_pages(&self) -> bool {
        self.has_seen_pages
    }

    /// Notes that the command of this name follows; false if one was there already.
    pub(crate) fn begin_switchover(&mut self) -> bool {
        self.pages_at.get_or_insert(self.bytes.len());
        !std::mem::replace(&mut self.has_switched_over, true)
    }

    /// Writes an end of RAM without pages, whether or not the stream had one,
    /// and notes that everything that follows are device sections.
    pub(crate) fn begin_tail(&mut self) {
        let section = self.ram_section.expect("the parser has seen pages of this section");
        wire::put_continued_section(&mut self.bytes, wire::SECTION_END, section);
        wire::put_end_of_pages(&mut self.bytes, section);
        self.tail_at = Some(self.bytes.len());
    }

    /// Checks that the stream ended where it should, and completes the state.
    pub(crate) fn finish(self, blocks: Vec<RamBlock>, offset: u64) -> Result<DeviceState, Error> {
        let truncated = Error::Truncated { offset, within: "the device sections" };
        let (Some(tail_at), Some(pages_at), Some(ram_section)) =
            (self.tail_at, self.pages_at, self.ram_section)
        else {
            return Err(truncated);
        };
        let Some(tail) = split_tail(&self.bytes[tail_at..]) else { return Err(truncated) };
        let state = DeviceState {
            machine: self.machine,
            ram_section,
            blocks,
            setup_at: self.setup_at,
            pages_at,
            has_switchover: self.has_switched_over,
            devices: tail_at..tail_at + tail.devices_end,
            description: tail_at + tail.description.start..tail_at + tail.description.end,
            bytes: self.bytes,
        };
        state.check_page_size()?;
        Ok(state)
    }
}

struct Tail {
    devices_end: usize,
    description: Range<usize>,
}

/// Finds the end of the device sections from the back: the description has a
/// length that must lead exactly to the end of the stream. The first match from
/// there is the only one, since JSON text has no zero byte.
fn split_tail(tail: &[u8]) -> Option<Tail> {
    let start = (0..tail.len().checked_sub(5)?).rev().find(|&end| {
        let rest = &tail[end..];
        rest.starts_with(&[wire::EOF, wire::DESCRIPTION])
            && rest[2..]
                .first_chunk()
                .is_some_and(|len| usize::try_from(u32::from_be_bytes(*len)) == Ok(rest.len() - 6))
    })?;
    Some(Tail { devices_end: start, description: start + 6..tail.len() })
}
