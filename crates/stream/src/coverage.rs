//! Which pages of a VM's memory have been seen or written.
//!
//! A restore must write all of them. A capture may lack some: QEMU does not send
//! pages that the guest does not use (memory that is not plugged in, free pages
//! that the guest told it of), and a restore writes those as zero.

use tintype_types::BlockIndex;

use crate::{RamBlock, RamBlockId};

/// How many pages one piece of the set covers: 1 GiB of memory in 32 KiB.
const PIECE_PAGES: u64 = 1 << 18;
const WORD_PAGES: u64 = 64;

/// A set of pages of RAM blocks, one bit a page, held only where there are any.
#[derive(Debug, Clone)]
pub struct Coverage {
    blocks: Vec<BlockCoverage>,
}

#[derive(Debug, Clone)]
struct BlockCoverage {
    pages: u64,
    covered: u64,
    pieces: Vec<Option<Box<[u64]>>>,
}

impl Coverage {
    /// Makes an empty set for these blocks.
    pub fn new(blocks: &[RamBlock]) -> Self {
        let block = |block: &RamBlock| BlockCoverage {
            pages: block.pages(),
            covered: 0,
            pieces: Vec::new(),
        };
        Self { blocks: blocks.iter().map(block).collect() }
    }

    /// Adds a page and says if it is new. A page outside of its block is not added.
    pub fn insert(&mut self, block: RamBlockId, page: BlockIndex) -> bool {
        let Some(block) = self.blocks.get_mut(block.index()) else { return false };
        if page.0 >= block.pages {
            return false;
        }
        let (piece, word, bit) = place(page);
        if block.pieces.len() <= piece {
            block.pieces.resize(piece + 1, None);
        }
        let words = block.pieces[piece]
            .get_or_insert_with(|| vec![0; place_count(PIECE_PAGES / WORD_PAGES)].into());
        let new = words[word] & bit == 0;
        words[word] |= bit;
        block.covered += u64::from(new);
        new
    }

    /// Says if a page is in the set.
    pub fn contains(&self, block: RamBlockId, page: BlockIndex) -> bool {
        self.blocks.get(block.index()).is_some_and(|block| block.contains(page))
    }

    /// Returns how many pages of a block are not in the set.
    pub fn missing(&self, block: RamBlockId) -> u64 {
        self.blocks.get(block.index()).map_or(0, |block| block.pages - block.covered)
    }

    /// Returns the first page of a block that is not in the set.
    pub fn first_missing(&self, block: RamBlockId) -> Option<BlockIndex> {
        let block = self.blocks.get(block.index())?;
        (0..block.pages).map(BlockIndex).find(|page| !block.contains(*page))
    }
}

impl BlockCoverage {
    fn contains(&self, page: BlockIndex) -> bool {
        let (piece, word, bit) = place(page);
        self.pieces.get(piece).and_then(Option::as_ref).is_some_and(|words| words[word] & bit != 0)
    }
}

/// Returns the piece, the word within it and the bit within that.
fn place(page: BlockIndex) -> (usize, usize, u64) {
    let piece = place_count(page.0 / PIECE_PAGES);
    let word = place_count(page.0 % PIECE_PAGES / WORD_PAGES);
    (piece, word, 1 << (page.0 % WORD_PAGES))
}

fn place_count(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use tintype_types::ByteCount;

    use super::*;

    #[test]
    fn every_page_counts_once() {
        let block = |pages| RamBlock { name: "a".into(), length: ByteCount(pages * 4096) };
        let mut coverage = Coverage::new(&[block(3), block(PIECE_PAGES + 1)]);
        let (small, large) = (RamBlockId(0), RamBlockId(1));
        assert!(coverage.insert(small, BlockIndex(1)));
        assert!(!coverage.insert(small, BlockIndex(1)));
        assert!(!coverage.insert(small, BlockIndex(3)));
        assert!(!coverage.insert(RamBlockId(2), BlockIndex(0)));
        assert_eq!(coverage.missing(small), 2);
        assert_eq!(coverage.first_missing(small), Some(BlockIndex(0)));
        assert!(coverage.insert(large, BlockIndex(PIECE_PAGES)));
        assert!(coverage.contains(large, BlockIndex(PIECE_PAGES)));
        assert!(!coverage.contains(large, BlockIndex(0)));
        assert_eq!(coverage.missing(large), PIECE_PAGES);
        for page in 0..3 {
            coverage.insert(small, BlockIndex(page));
        }
        assert_eq!((coverage.missing(small), coverage.first_missing(small)), (0, None));
    }
}
