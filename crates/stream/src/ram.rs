//! The blocks of memory that a VM has, as the stream names them.

use std::collections::HashMap;

use tintype_types::{BLOCK_SIZE, BlockIndex, ByteCount};

/// The contents of a page.
pub type Page = [u8; BLOCK_SIZE];

/// The place of a block in the table of RAM blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RamBlockId(pub u16);

impl RamBlockId {
    /// Returns the place as an index into the table.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// One block of memory: main memory, or the memory of a ROM, table or device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamBlock {
    /// QEMU's name for it, such as `pc.ram` or `/rom@etc/acpi/tables`.
    pub name: String,
    /// Its length, a multiple of a page.
    pub length: ByteCount,
}

impl RamBlock {
    /// Returns how many pages it has.
    pub fn pages(&self) -> u64 {
        self.length.blocks_rounded_up()
    }

    /// Gives each block of a table its id.
    pub fn numbered(blocks: &[Self]) -> impl Iterator<Item = (RamBlockId, &Self)> {
        (0..=u16::MAX).map(RamBlockId).zip(blocks)
    }

    /// Says if a page lies within the block.
    pub fn contains(&self, page: BlockIndex) -> bool {
        page.0 < self.pages()
    }
}

/// The blocks of a stream, in its order, each with a different name.
#[derive(Debug, Clone, Default)]
pub(crate) struct RamBlocks {
    blocks: Vec<RamBlock>,
    by_name: HashMap<String, RamBlockId>,
}

impl RamBlocks {
    /// Adds a block. Returns `None` if one of this name is there, or no id is left.
    pub(crate) fn push(&mut self, block: RamBlock) -> Option<RamBlockId> {
        let id = RamBlockId(u16::try_from(self.blocks.len()).ok()?);
        if self.by_name.contains_key(&block.name) {
            return None;
        }
        self.by_name.insert(block.name.clone(), id);
        self.blocks.push(block);
        Some(id)
    }

    pub(crate) fn as_slice(&self) -> &[RamBlock] {
        &self.blocks
    }

    pub(crate) fn find(&self, name: &str) -> Option<RamBlockId> {
        self.by_name.get(name).copied()
    }

    pub(crate) fn get(&self, id: RamBlockId) -> Option<&RamBlock> {
        self.blocks.get(id.index())
    }

    pub(crate) fn into_vec(self) -> Vec<RamBlock> {
        self.blocks
    }
}
