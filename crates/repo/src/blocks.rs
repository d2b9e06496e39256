//! Hashing many blocks side by side.
//!
//! A block of 4 KiB has only four of the 1 KiB chunks that BLAKE3 hashes in
//! parallel, and a processor has room for up to sixteen. So the chunks of
//! different blocks are hashed together: the same hashes, in half the time.

use blake3::platform::{Platform, words_from_le_bytes_32};
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};
use tintype_types::BLOCK_SIZE;

/// Blocks that are hashed together.
const TOGETHER: usize = 16;
/// Chunks of a block.
const CHUNKS: usize = BLOCK_SIZE / CHUNK_LEN;

// The domain flags of the BLAKE3 paper, section 2.1.
const CHUNK_START: u8 = 1;
const CHUNK_END: u8 = 2;
const PARENT: u8 = 4;
const ROOT: u8 = 8;
const KEYED_HASH: u8 = 16;

/// Returns the keyed BLAKE3 of each block, in order.
pub(crate) fn keyed_hashes(key: &[u8; 32], blocks: &[&[u8; BLOCK_SIZE]]) -> Vec<[u8; OUT_LEN]> {
    let mut hashes = vec![[0; OUT_LEN]; blocks.len()];
    let tree = Tree { platform: Platform::detect(), key: words_from_le_bytes_32(key) };
    for (blocks, hashes) in blocks.chunks(TOGETHER).zip(hashes.chunks_mut(TOGETHER)) {
        tree.hash(blocks, hashes);
    }
    hashes
}

/// The hash tree of a block: four chunks, two parents, one root.
struct Tree {
    platform: Platform,
    key: [u32; 8],
}

impl Tree {
    fn hash(&self, blocks: &[&[u8; BLOCK_SIZE]], hashes: &mut [[u8; OUT_LEN]]) {
        let count = blocks.len();
        let mut leaves = [[[0; OUT_LEN]; CHUNKS]; TOGETHER];
        let mut level = [[0; OUT_LEN]; TOGETHER];
        for (chunk, counter) in (0..CHUNKS).zip(0..) {
            let inputs: Vec<&[u8; CHUNK_LEN]> =
                blocks.iter().map(|block| &block.as_chunks().0[chunk]).collect();
            let out = level[..count].as_flattened_mut();
            self.many(&inputs, counter, 0, (CHUNK_START, CHUNK_END), out);
            leaves.iter_mut().zip(&level[..count]).for_each(|(leaf, hash)| leaf[chunk] = *hash);
        }
        let mut parents = [[[0; OUT_LEN]; 2]; TOGETHER];
        let out = parents[..count].as_flattened_mut().as_flattened_mut();
        self.many(&pairs(leaves[..count].as_flattened().as_flattened()), 0, PARENT, (0, 0), out);
        let out = hashes.as_flattened_mut();
        let inputs = pairs(parents[..count].as_flattened().as_flattened());
        self.many(&inputs, 0, PARENT | ROOT, (0, 0), out);
    }

    fn many<const N: usize>(
        &self,
        inputs: &[&[u8; N]],
        counter: u64,
        flags: u8,
        (start, end): (u8, u8),
        out: &mut [u8],
    ) {
        let (key, flags) = (&self.key, KEYED_HASH | flags);
        self.platform.hash_many(inputs, key, counter, IncrementCounter::No, flags, start, end, out);
    }
}

/// Returns the inputs of parents: the hashes of two children, one after the other.
fn pairs(hashes: &[u8]) -> Vec<&[u8; BLOCK_LEN]> {
    hashes.as_chunks().0.iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_blake3() {
        let mut bytes = vec![0; 37 * BLOCK_SIZE];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let blocks: Vec<&[u8; BLOCK_SIZE]> = bytes.as_chunks().0.iter().collect();
        for count in 0..=blocks.len() {
            let key = [u8::try_from(count).unwrap(); 32];
            let expected: Vec<_> = blocks[..count]
                .iter()
                .map(|block| *blake3::keyed_hash(&key, &block[..]).as_bytes())
                .collect();
            assert_eq!(keyed_hashes(&key, &blocks[..count]), expected);
        }
    }
}
