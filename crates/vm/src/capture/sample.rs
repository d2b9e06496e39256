//! Draws blocks from those that a bitmap calls clean, to be read all the same: a
//! bitmap is a hint, and a write past QEMU leaves no mark in it.

use tintype_types::{BLOCK_SIZE, ByteCount, Extent};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// How many blocks are drawn by chance.
const DRAWN: usize = 64;

/// Where file systems and partition tables keep what changes with every use of them:
/// the first blocks, and those of the first partition of today's installers.
const BUSY_PLACES: [u64; 4] = [0, BLOCK, 1 << 20, (1 << 20) + BLOCK];

/// A sample of clean blocks, each as likely as any other, and of busy places.
#[derive(Debug)]
pub(super) struct Sample {
    size: u64,
    random: u64,
    blocks_seen: u64,
    drawn: [Option<u64>; DRAWN],
    busy: Vec<u64>,
}

impl Sample {
    /// Begins a sample of a disk. The same seed draws the same blocks.
    pub(super) fn new(size: ByteCount, seed: u64) -> Self {
        Self {
            size: size.get(),
            random: seed,
            blocks_seen: 0,
            drawn: [None; DRAWN],
            busy: Vec::new(),
        }
    }

    /// Offers clean bytes, in the order of the disk.
    pub(super) fn offer(&mut self, extent: Extent) {
        let first = extent.offset.div_ceil(BLOCK);
        let last_block = if extent.end() == self.size {
            self.size.div_ceil(BLOCK)
        } else {
            extent.end() / BLOCK
        };
        let Some(blocks) = last_block.checked_sub(first).filter(|blocks| *blocks > 0) else {
            return;
        };
        self.blocks_seen += blocks;
        for at in 0..DRAWN {
            if self.next() % self.blocks_seen < blocks {
                self.drawn[at] = Some((first + self.next() % blocks) * BLOCK);
            }
        }
        let end_of_disk = self.size.saturating_sub(1) / BLOCK * BLOCK;
        let is_offered = |place: &u64| (first * BLOCK..last_block * BLOCK).contains(place);
        self.busy.extend(BUSY_PLACES.into_iter().chain([end_of_disk]).filter(is_offered));
    }

    /// Returns the blocks, in order; the last one may be cut by the disk's end.
    pub(super) fn blocks(&self) -> Vec<Extent> {
        let mut places: Vec<u64> = self.drawn.iter().flatten().chain(&self.busy).copied().collect();
        places.sort_unstable();
        places.dedup();
        let block = |offset| Extent { offset, len: BLOCK.min(self.size - offset) };
        places.into_iter().map(block).collect()
    }

    /// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): any seed is a good one.
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = (64 << 20) + 512;

    fn sample(offered: &[(u64, u64)]) -> Vec<u64> {
        let mut sample = Sample::new(ByteCount(SIZE), 1);
        offered.iter().for_each(|&(offset, len)| sample.offer(Extent { offset, len }));
        sample.blocks().into_iter().map(|block| block.offset).collect()
    }

    #[test]
    fn only_what_is_clean_is_drawn() {
        assert!(sample(&[]).is_empty());
        assert!(sample(&[(BLOCK * 7, 512)]).is_empty(), "no whole block");
        let offered = [(1 << 20, 1 << 20), (32 << 20, 8 << 20)];
        let drawn = sample(&offered);
        let within = |at: &u64| offered.iter().any(|&(from, len)| (from..from + len).contains(at));
        assert!(drawn.iter().all(within), "{drawn:?}");
        let late = drawn.iter().filter(|at| **at >= 32 << 20).count();
        assert!((45..=64).contains(&late), "eight of nine blocks are there: {late}");
        assert!(drawn.contains(&(1 << 20)) && !drawn.contains(&0), "busy places are always drawn");
    }

    #[test]
    fn the_last_block_ends_with_the_disk() {
        let mut sample = Sample::new(ByteCount(SIZE), 1);
        sample.offer(Extent { offset: 64 << 20, len: 512 });
        assert_eq!(sample.blocks(), [Extent { offset: 64 << 20, len: 512 }]);
    }
}
