//! One block of 4 KiB that says which counter it belongs to and where that stood,
//! in memory and on disks alike. All of its 512 words follow from the two, so a
//! block that is mixed from two moments is noticed, not just one that is old.

use std::sync::atomic::{AtomicU64, Ordering};

/// The size of a block in bytes: one page of memory.
pub(crate) const BLOCK_SIZE: usize = 4096;

/// The number of 64-bit words in a block.
pub(crate) const WORDS: usize = BLOCK_SIZE / 8;

/// A block as it goes to a disk and comes from there, aligned for direct transfers.
#[repr(C, align(4096))]
#[derive(Clone)]
pub(crate) struct Block(pub(crate) [u8; BLOCK_SIZE]);

impl Block {
    /// Returns a block of zeros, which says nothing.
    pub(crate) fn zeroed() -> Box<Self> {
        Box::new(Self([0; BLOCK_SIZE]))
    }

    /// Writes down that the counter `owner` stands at `count`.
    pub(crate) fn set(&mut self, owner: u64, count: u64) {
        for (index, bytes) in self.0.chunks_exact_mut(8).enumerate() {
            bytes.copy_from_slice(&word(owner, count, index).to_le_bytes());
        }
    }

    /// Returns where the counter `owner` stood, or nothing if the block does not
    /// say that from its first byte to its last.
    pub(crate) fn count(&self, owner: u64) -> Option<u64> {
        let words = self.0.chunks_exact(8).map(|bytes| {
            u64::from_le_bytes(bytes.try_into().expect("a chunk of 8 bytes has 8 bytes"))
        });
        count_in(owner, words)
    }
}

/// A page of memory with the same content as a block. Atomic, so that every access
/// really goes to memory.
#[repr(C, align(4096))]
pub(crate) struct Page([AtomicU64; WORDS]);

impl Page {
    /// Returns a page that says that the counter `owner` stands at `count`.
    pub(crate) fn new(owner: u64, count: u64) -> Self {
        let page = Self([const { AtomicU64::new(0) }; WORDS]);
        page.set(owner, count);
        page
    }

    /// Writes down that the counter `owner` stands at `count`.
    pub(crate) fn set(&self, owner: u64, count: u64) {
        for (index, place) in self.0.iter().enumerate() {
            place.store(word(owner, count, index), Ordering::Release);
        }
    }

    /// Returns where the counter `owner` stood, as [`Block::count`] does.
    pub(crate) fn count(&self, owner: u64) -> Option<u64> {
        count_in(owner, self.0.iter().map(|place| place.load(Ordering::Acquire)))
    }

    /// Changes one word of the page to anything else.
    pub(crate) fn scribble(&self, index: usize, value: u64) {
        self.0[index % WORDS].store(value, Ordering::Release);
    }
}

#[cfg(test)]
impl Clone for Page {
    fn clone(&self) -> Self {
        let words = self.0.each_ref().map(|place| AtomicU64::new(place.load(Ordering::Acquire)));
        Self(words)
    }
}

fn count_in(owner: u64, words: impl Iterator<Item = u64>) -> Option<u64> {
    let mut words = words.enumerate();
    let (_, count) = words.next()?;
    words.all(|(index, found)| found == word(owner, count, index)).then_some(count)
}

/// Returns a word of a block: the count first, then what follows from it.
fn word(owner: u64, count: u64, index: usize) -> u64 {
    if index == 0 {
        return count;
    }
    // Odd constants with well spread bits (splitmix64); any would do.
    let index = u64::try_from(index).unwrap_or(u64::MAX);
    let mixed = (count ^ owner.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29) ^ index).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_says_whose_and_where() {
        let mut block = Block::zeroed();
        assert_eq!(block.count(1), None, "zeros say nothing");
        block.set(1, 70);
        assert_eq!(block.count(1), Some(70));
        assert_eq!(block.count(2), None);
        let page = Page::new(1, 70);
        assert_eq!(page.count(1), Some(70));
        page.scribble(511, 0);
        assert_eq!(page.count(1), None);
    }

    #[test]
    fn a_block_of_two_moments_says_nothing() {
        let (mut old, mut new) = (Block::zeroed(), Block::zeroed());
        old.set(1, 70);
        new.set(1, 71);
        for sector in (512..BLOCK_SIZE).step_by(512) {
            let mut mixed = old.clone();
            mixed.0[..sector].copy_from_slice(&new.0[..sector]);
            assert_eq!(mixed.count(1), None, "the first {sector} bytes are newer");
        }
    }
}
