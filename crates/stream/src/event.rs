//! What a parser tells while a stream arrives.

use tintype_types::{BLOCK_SIZE, BlockIndex};

use crate::RamBlockId;

/// The outcome of looking at the bytes that have arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'b> {
    /// Something is complete.
    Event {
        /// How many bytes of the input are done with, this event's included.
        consumed: usize,
        /// What it is.
        event: Event<'b>,
    },
    /// The rest of the input is the beginning of something that is not complete.
    NeedMore {
        /// How many bytes of the input are done with: they must be dropped here
        /// as well, and may be more than none.
        consumed: usize,
        /// How many bytes the input must hold, after those, for the next step;
        /// at most [`crate::MAX_STEP`].
        at_least: usize,
    },
}

/// One thing in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'b> {
    /// The machine type with its version, such as `pc-q35-10.0`.
    Configuration {
        /// Its name.
        machine: &'b str,
    },
    /// The table of RAM blocks is complete; [`crate::Parser::ram_blocks`] has it.
    RamSetup,
    /// A section with pages begins. In a copy-on-write capture, the first one
    /// says that QEMU has write-protected all memory: the guest may run.
    RamSection {
        /// Whether more sections with pages may follow.
        phase: RamPhase,
    },
    /// A page of memory. The same page may come again: the last one counts.
    Page {
        /// The block of RAM that it belongs to.
        block: RamBlockId,
        /// Its place in the block, always within its length.
        page: BlockIndex,
        /// Its contents, a part of the parser's input.
        bytes: &'b [u8; BLOCK_SIZE],
    },
    /// A page of memory that is all zero.
    ZeroPage {
        /// The block of RAM that it belongs to.
        block: RamBlockId,
        /// Its place in the block, always within its length.
        page: BlockIndex,
    },
    /// The section with pages is complete.
    RamSectionEnd {
        /// Whether more sections with pages may follow.
        phase: RamPhase,
    },
    /// Memory is complete and this much of what follows it has been kept: the
    /// device sections and their description. They have no length in the
    /// stream, so this goes on until the sender closes it.
    DeviceBytes {
        /// How many bytes.
        count: usize,
    },
}

/// The place of a section with pages in the sequence of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RamPhase {
    /// More sections may follow (`QEMU_VM_SECTION_PART`).
    Iterating,
    /// This is the last one (`QEMU_VM_SECTION_END`): the guest has stopped. A
    /// copy-on-write capture has no such section.
    Last,
}
