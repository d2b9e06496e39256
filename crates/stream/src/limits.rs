//! What a stream may claim before it is refused.

use tintype_types::ByteCount;

/// The most bytes a [`crate::Parser`] wants to see at once: a page record with
/// the longest name has 4,360. A read buffer of this size always makes progress.
pub const MAX_STEP: usize = 8192;

/// Bounds on what an untrusted stream can make its reader hold in memory.
///
/// The pages themselves are handed out and never held, so the length of a stream
/// is for the caller to bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most RAM blocks. A VM with many devices has about a hundred: one for
    /// each memory device, ROM and table.
    pub max_ram_blocks: u16,
    /// The most RAM in all blocks together.
    pub max_ram: ByteCount,
    /// The most that is kept beside the pages: block table, device sections and
    /// their description. A usual VM has less than 1 MiB, one with virtual GPUs
    /// tens of MiB.
    pub max_device_state: ByteCount,
}

impl Default for Limits {
    /// 4,096 blocks, 16 TiB of RAM, 256 MiB of device state.
    fn default() -> Self {
        Self {
            max_ram_blocks: 4096,
            max_ram: ByteCount(16 << 40),
            max_device_state: ByteCount(256 << 20),
        }
    }
}
