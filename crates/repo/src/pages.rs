//! The blocks of one window that wait to be stored.
//!
//! A window is 2 MiB: 32 regions of 16 blocks. Memory is proportional to the
//! blocks that came, so scattered pages are cheap to hold.

use tintype_types::BLOCK_SIZE;

/// Blocks of a window.
pub(crate) const WINDOW_BLOCKS: usize = 512;
/// Bytes of a window.
pub(crate) const WINDOW_SIZE: u64 = 2 << 20;

const ABSENT: u16 = u16::MAX;
const ZERO: u16 = u16::MAX - 1;

/// What is known of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Page<'a> {
    /// Nothing came for it.
    Absent,
    /// It is to be zero.
    Zero,
    /// It has these bytes, which may be zeroes too.
    Bytes(&'a [u8; BLOCK_SIZE]),
}

/// Blocks of one window; the last version of each.
#[derive(Debug)]
pub(crate) struct Pages {
    slots: Box<[u16; WINDOW_BLOCKS]>,
    data: Vec<u8>,
    present: usize,
}

impl Default for Pages {
    fn default() -> Self {
        Self { slots: Box::new([ABSENT; WINDOW_BLOCKS]), data: Vec::new(), present: 0 }
    }
}

impl Pages {
    /// Makes an empty window that uses the memory of an old one.
    pub(crate) fn reusing(mut data: Vec<u8>) -> Self {
        data.clear();
        Self { data, ..Self::default() }
    }

    /// Returns the memory, if it is that of a full window.
    pub(crate) fn into_memory(self) -> Option<Vec<u8>> {
        let full = WINDOW_BLOCKS * BLOCK_SIZE;
        (full..=2 * full).contains(&self.data.capacity()).then_some(self.data)
    }

    /// Takes whole blocks from block `first` on.
    pub(crate) fn put(&mut self, first: usize, bytes: &[u8]) {
        let count = bytes.len() / BLOCK_SIZE;
        let slots = &mut self.slots[first..first + count];
        if slots.iter().all(|slot| *slot >= ZERO) {
            self.present += slots.iter().filter(|slot| **slot == ABSENT).count();
            let next = u16::try_from(self.data.len() / BLOCK_SIZE).expect("put is bounded below");
            slots.iter_mut().zip(next..).for_each(|(slot, index)| *slot = index);
            self.data.extend_from_slice(bytes);
        } else {
            for (block, bytes) in (first..).zip(bytes.chunks_exact(BLOCK_SIZE)) {
                self.put_block(block, bytes);
            }
        }
    }

    fn put_block(&mut self, block: usize, bytes: &[u8]) {
        match self.slots[block] {
            slot if slot >= ZERO => self.put(block, bytes),
            slot => {
                let start = usize::from(slot) * BLOCK_SIZE;
                self.data[start..start + BLOCK_SIZE].copy_from_slice(bytes);
            }
        }
    }

    /// Makes `count` blocks zero from block `first` on.
    pub(crate) fn put_zeroes(&mut self, first: usize, count: usize) {
        for slot in &mut self.slots[first..first + count] {
            self.present += usize::from(*slot == ABSENT);
            *slot = ZERO;
        }
    }

    /// Returns what is known of a block.
    pub(crate) fn page(&self, block: usize) -> Page<'_> {
        match self.slots[block] {
            ABSENT => Page::Absent,
            ZERO => Page::Zero,
            slot => Page::Bytes(&self.data.as_chunks().0[usize::from(slot)]),
        }
    }

    /// Whether nothing came.
    pub(crate) fn is_empty(&self) -> bool {
        self.present == 0
    }

    /// Whether there is no more to gather: every block came, or so many
    /// versions of some that slots could run out.
    pub(crate) fn is_full(&self) -> bool {
        self.present == WINDOW_BLOCKS || self.data.len() >= 16 * WINDOW_BLOCKS * BLOCK_SIZE
    }

    /// Returns how many bytes of memory the pages take.
    pub(crate) fn weight(&self) -> usize {
        self.data.capacity() + size_of::<[u16; WINDOW_BLOCKS]>()
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // Equal to itself shifted by one, and zero at the front: one memcmp.
    bytes.first().is_none_or(|first| *first == 0 && bytes[1..] == bytes[..bytes.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_version_of_a_block_counts() {
        let mut pages = Pages::default();
        pages.put(3, &[1; 2 * BLOCK_SIZE]);
        pages.put(4, &[2; 2 * BLOCK_SIZE]);
        pages.put_zeroes(5, 2);
        pages.put(6, &[3; BLOCK_SIZE]);
        assert_eq!(pages.page(2), Page::Absent);
        assert_eq!(pages.page(3), Page::Bytes(&[1; BLOCK_SIZE]));
        assert_eq!(pages.page(4), Page::Bytes(&[2; BLOCK_SIZE]));
        assert_eq!(pages.page(5), Page::Zero);
        assert_eq!(pages.page(6), Page::Bytes(&[3; BLOCK_SIZE]));
        assert!(!pages.is_full());
        pages.put_zeroes(0, WINDOW_BLOCKS);
        assert!(pages.is_full());
    }

    #[test]
    fn zero_is_every_byte() {
        let mut bytes = [0; BLOCK_SIZE];
        assert!(is_zero(&bytes));
        for at in [0, 1, 2047, BLOCK_SIZE - 1] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
            bytes[at] = 0;
        }
    }
}
