//! Everything of a saved VM but the contents of its memory and disks.
//!
//! ```text
//! header | configuration | RAM set-up | [early devices] | [switchover] |
//! RAM end, no pages | device sections | end of stream | description (JSON)
//!                   ^ pages belong between the set-up and what follows it
//! ```
//!
//! It is a valid migration stream of a VM that has no pages to send, so it needs
//! no format of its own, and QEMU's own tools can read it. All bytes are as they
//! were sent but two: the section that ends RAM is written anew, and what is
//! meant for the receiver of a live migration (return path, pings) is left out.

use std::ops::Range;

use crate::section::split_sections;
use crate::{Description, Error, Event, Limits, Parser, RamBlock, Section, Step};

/// The state of a VM's devices, and the table of its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceState {
    pub(crate) bytes: Vec<u8>,
    pub(crate) machine: String,
    pub(crate) ram_section: u32,
    pub(crate) blocks: Vec<RamBlock>,
    /// Where the first section is.
    pub(crate) setup_at: usize,
    /// Where pages belong.
    pub(crate) pages_at: usize,
    /// Whether the devices' sections are announced to the receiver.
    pub(crate) has_switchover: bool,
    /// The device sections, without the byte that ends the stream.
    pub(crate) devices: Range<usize>,
    pub(crate) description: Range<usize>,
}

impl DeviceState {
    /// Reads what [`Self::as_bytes`] returned.
    ///
    /// # Errors
    /// The bytes are not exactly that.
    pub fn from_bytes(bytes: &[u8], limits: Limits) -> Result<Self, Error> {
        let mut parser = Parser::new(limits);
        let mut rest = bytes;
        loop {
            match parser.next(rest)? {
                Step::Event { event: Event::Page { .. } | Event::ZeroPage { .. }, .. } => {
                    let fault = "a page, which a device state does not have".into();
                    return Err(Error::Malformed { offset: parser.offset(), fault });
                }
                Step::Event { consumed, .. } => rest = rest.get(consumed..).unwrap_or_default(),
                Step::NeedMore { .. } => break,
            }
        }
        let offset = parser.offset();
        let state = parser.finish()?;
        if state.bytes != bytes {
            let fault = "the bytes are a stream, but not one without pages".into();
            return Err(Error::Malformed { offset, fault });
        }
        Ok(state)
    }

    /// Returns the state as bytes: a stream without pages.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the state as bytes without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Returns the machine type with its version, such as `pc-q35-10.0`.
    pub fn machine(&self) -> &str {
        &self.machine
    }

    /// Returns the table of RAM blocks; a [`crate::RamBlockId`] is a place in it.
    pub fn ram_blocks(&self) -> &[RamBlock] {
        &self.blocks
    }

    /// Makes a receiver that is not told otherwise run the VM, whatever state it was
    /// in when it was saved (`vmstate_globalstate` in `migration/global_state.c`: the
    /// length of a name with its final NUL, and the name in 100 bytes).
    ///
    /// # Errors
    /// The sections are not those that the description names, or this one has
    /// another form.
    pub fn set_running(&mut self) -> Result<(), Error> {
        const NAME: &[u8] = b"running\0";
        const LEN: usize = 4 + 100;
        let start = self.bytes.as_ptr().addr();
        let sections = self.sections()?;
        let section = sections.iter().find(|section| section.name == "globalstate");
        let state = section.map(|section| section.state).filter(|state| state.len() == LEN);
        let Some(state) = state else {
            let fault = "it does not say whether the VM ran".to_owned();
            return Err(Error::Sections { fault });
        };
        let at = state.as_ptr().addr() - start;
        let mut value = [0; LEN];
        value[3] = 8;
        value[4..4 + NAME.len()].copy_from_slice(NAME);
        self.bytes[at..at + LEN].copy_from_slice(&value);
        Ok(())
    }

    /// Returns the JSON text that describes the device sections.
    pub fn description_bytes(&self) -> &[u8] {
        &self.bytes[self.description.clone()]
    }

    /// Returns what the description says.
    ///
    /// # Errors
    /// It is not what QEMU writes.
    pub fn description(&self) -> Result<Description, Error> {
        Description::parse(self.description_bytes())
    }

    /// Splits the device sections, and so checks that each one is complete.
    ///
    /// # Errors
    /// They are not those that the description names, in its order.
    pub fn sections(&self) -> Result<Vec<Section<'_>>, Error> {
        split_sections(self.device_sections(), &self.description()?)
    }

    /// Returns the stream from its start to the first section.
    pub(crate) fn before_setup(&self) -> &[u8] {
        &self.bytes[..self.setup_at]
    }

    /// Returns the sections that describe memory.
    pub(crate) fn setup(&self) -> &[u8] {
        &self.bytes[self.setup_at..self.pages_at]
    }

    /// Returns the stream from its start to where pages belong.
    pub(crate) fn before_pages(&self) -> &[u8] {
        &self.bytes[..self.pages_at]
    }

    /// Returns the stream from where pages belong to its end.
    pub(crate) fn after_pages(&self) -> &[u8] {
        &self.bytes[self.pages_at..]
    }

    /// Returns the device sections, back to back.
    pub(crate) fn device_sections(&self) -> &[u8] {
        &self.bytes[self.devices.clone()]
    }

    /// Checks that pages had the size that the parser took them for.
    pub(crate) fn check_page_size(&self) -> Result<(), Error> {
        let page_size = Description::page_size(self.description_bytes())?;
        if page_size == tintype_types::BLOCK_SIZE as u64 {
            return Ok(());
        }
        let offset = self.description.start as u64;
        Err(Error::Unsupported { offset, feature: format!("a page size of {page_size} bytes") })
    }
}
