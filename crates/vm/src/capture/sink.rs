//! Where captured bytes go. This room does not know what becomes of them.

use tintype_stream::RamBlock;
use tintype_types::Extent;

use crate::inventory::Disk;

/// What a sink says when it fails.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// A moment of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The guest runs, and may be stopped soon: what comes now comes fast. Told
    /// with each pass over memory.
    BeforePause,
    /// The guest stands still.
    Paused,
    /// The guest runs again, or is kept still for good.
    AfterPause,
    /// The disks have come; memory may still come.
    DisksRead,
    /// All has come.
    MemoryRead,
}

/// Takes a VM apart: memory to one place, each disk to another.
pub trait CaptureSink: Sync {
    /// Is told of the moments of the capture, in order. Called on the thread
    /// that controls the guest: it must return at once.
    fn moment(&self, _moment: Moment) {}

    /// Begins memory with these blocks. Called again when a capture starts over;
    /// what the memory before it got is void then.
    fn memory(&self, blocks: &[RamBlock]) -> Result<Box<dyn MemorySink>, SinkError>;

    /// Begins a disk.
    fn disk(&self, disk: &Disk) -> Result<Box<dyn DiskSink>, SinkError>;
}

/// Takes the pages of all blocks of memory. A page may come again: the last
/// counts. A page that never comes is zero.
pub trait MemorySink: Send {
    /// Takes a page of the block with this place in the table.
    fn page(&mut self, block: usize, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// Takes a page that is all zero.
    fn zero_page(&mut self, block: usize, offset: u64) -> Result<(), SinkError>;

    /// Says that all pages have come.
    fn finish(self: Box<Self>) -> Result<(), SinkError>;
}

/// Takes the bytes of one disk, each at least once; a byte that comes again is
/// the same.
pub trait DiskSink: Send {
    /// Takes bytes, aligned to 4 KiB except at the end of the disk.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// Takes zeros.
    fn write_zeroes(&mut self, extent: Extent) -> Result<(), SinkError>;

    /// Says that all bytes have come.
    fn finish(self: Box<Self>) -> Result<(), SinkError>;
}
