//! Where captured bytes go. This room does not know what becomes of them.

use serde::{Deserialize, Serialize};
use tintype_stream::RamBlock;
use tintype_types::{ByteCount, Extent};

use crate::inventory::Disk;

/// What a sink says when it fails.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// A moment of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The guest runs, and may be stopped soon: what comes now comes fast. Told
    /// with each pass over memory.
    BeforePause,
    /// The guest runs, and its file systems are frozen.
    Frozen,
    /// The guest stands still.
    Paused,
    /// The guest runs again, or is kept still for good.
    AfterPause,
    /// Its file systems, which were frozen, are thawed, or that was tried in vain.
    Thawed,
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

    /// Says that the guest stands still, and that what comes now is what it wrote last.
    /// Not every way of capture has such pages.
    fn last_pass(&mut self) {}

    /// Says that all pages have come.
    fn finish(self: Box<Self>) -> Result<(), SinkError>;
}

/// Takes the bytes of one disk, each at least once; a byte that comes again is
/// the same. Where nothing comes the disk is what it was, if it is read by a bitmap.
pub trait DiskSink: Send {
    /// Hands out, once, what is known of the state that the sink goes on from, or why
    /// that is nothing and the whole disk is read.
    fn earlier(&mut self) -> Result<Earlier, String>;

    /// Takes bytes, aligned to 4 KiB except at the end of the disk.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// Takes zeros.
    fn write_zeroes(&mut self, extent: Extent) -> Result<(), SinkError>;

    /// Says that all bytes have come, and how.
    fn finish(self: Box<Self>, read: DiskRead) -> Result<(), SinkError>;
}

/// The state of a disk that its next image goes on from.
pub struct Earlier {
    /// The bitmap on the disk's node that has recorded what was written since.
    pub bitmap: String,
    /// Its bytes. To read them may take long, so no guest ever waits for it.
    pub content: Box<dyn EarlierContent>,
}

/// The bytes that a disk had.
pub trait EarlierContent: Send + Sync {
    /// Tells whether these bytes were there.
    fn has(&self, offset: u64, bytes: &[u8]) -> Result<bool, SinkError>;
}

/// How a disk was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRead {
    /// How much of it.
    pub reading: Reading,
    /// Why all of it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The first byte found to differ from the snapshot before though no write of it
    /// was recorded: somebody wrote to the image past QEMU. All was read then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<u64>,
    /// Bytes that were read, zeros not counted.
    pub read_bytes: ByteCount,
}

impl DiskRead {
    /// Says that the whole disk was read, and why.
    pub fn full(why: &str, read_bytes: ByteCount) -> Self {
        Self { reading: Reading::Full, why: Some(why.to_owned()), unrecorded: None, read_bytes }
    }
}

/// How much of a disk was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reading {
    /// What a bitmap says was written since the snapshot before.
    Incremental,
    /// All that is not known to be zero.
    Full,
}
