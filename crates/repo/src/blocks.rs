//! The ids of blocks: faster than any cryptographic hash, and as safe against
//! whoever does not have the key.
//!
//! A block is first shortened to 32 bytes by NH (Black, Halevi, Krawczyk,
//! Krovetz and Rogaway, UMAC, CRYPTO 1999), with words of 64 bits and twice,
//! the second time with the key moved on by a pair of words: two different
//! blocks have the same sums with a probability of 2^-128 for a secret key.
//! The sums would betray the key, so what is kept is their keyed BLAKE3, which
//! betrays only which blocks are equal.

use tintype_types::BLOCK_SIZE;
use zeroize::Zeroize;

/// Pairs of words of a block.
const PAIRS: usize = BLOCK_SIZE / 16;
/// Pairs of words that one BLAKE3 gives.
const PAIRS_EACH: usize = 2;

/// What makes block ids.
pub(crate) struct BlockHash {
    pairs: Vec<[u64; 2]>,
    key: [u8; 32],
}

impl BlockHash {
    /// Makes the hash: `sums` is the key that NH's own key is made with, `key`
    /// that of the BLAKE3 of the sums.
    pub(crate) fn new(sums: &[u8; 32], key: [u8; 32]) -> Self {
        // The second time one pair more is needed than a block has.
        let count = (PAIRS + 1).div_ceil(PAIRS_EACH);
        let pairs = (0_u32..)
            .take(count)
            .flat_map(|number| {
                let bytes = *blake3::keyed_hash(sums, &number.to_le_bytes()).as_bytes();
                let (pairs, _) = bytes.as_chunks();
                [words(&pairs[0]), words(&pairs[1])]
            })
            .collect();
        Self { pairs, key }
    }

    /// Returns the hash of a block.
    pub(crate) fn of(&self, block: &[u8; BLOCK_SIZE]) -> [u8; 32] {
        let mut sums = [0; 32];
        let (first, second) = self.sums(block);
        sums[..16].copy_from_slice(&first.to_le_bytes());
        sums[16..].copy_from_slice(&second.to_le_bytes());
        *blake3::keyed_hash(&self.key, &sums).as_bytes()
    }

    fn sums(&self, block: &[u8; BLOCK_SIZE]) -> (u128, u128) {
        let (pairs, _) = block.as_chunks();
        let (mut first, mut second) = (0_u128, 0_u128);
        for (pair, keys) in pairs.iter().zip(self.pairs.windows(2)) {
            let pair = words(pair);
            first = first.wrapping_add(product(pair, keys[0]));
            second = second.wrapping_add(product(pair, keys[1]));
        }
        (first, second)
    }
}

impl Drop for BlockHash {
    fn drop(&mut self) {
        self.pairs.as_flattened_mut().zeroize();
        self.key.zeroize();
    }
}

fn words(bytes: &[u8; 16]) -> [u64; 2] {
    let (words, _) = bytes.as_chunks();
    [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])]
}

fn product(pair: [u64; 2], key: [u64; 2]) -> u128 {
    u128::from(pair[0].wrapping_add(key[0])) * u128::from(pair[1].wrapping_add(key[1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u8) -> [u8; BLOCK_SIZE] {
        let mut bytes = [0; BLOCK_SIZE];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn sums_are_those_of_the_definition() {
        let hash = BlockHash::new(&[1; 32], [2; 32]);
        let block = noise(3);
        let word = |at: usize| u64::from_le_bytes(block[8 * at..][..8].try_into().unwrap());
        let key = |at: usize| {
            let number = u32::try_from(at / 4).unwrap();
            let bytes = blake3::keyed_hash(&[1; 32], &number.to_le_bytes());
            u64::from_le_bytes(bytes.as_bytes()[at % 4 * 8..][..8].try_into().unwrap())
        };
        let sum = |moved: usize| {
            (0..512).step_by(2).fold(0_u128, |sum, at| {
                let left = word(at).wrapping_add(key(at + moved));
                let right = word(at + 1).wrapping_add(key(at + 1 + moved));
                sum.wrapping_add(u128::from(left) * u128::from(right))
            })
        };
        assert_eq!(hash.sums(&block), (sum(0), sum(2)));
    }

    #[test]
    fn every_bit_and_both_keys_count() {
        let block = noise(1);
        let id = BlockHash::new(&[1; 32], [2; 32]).of(&block);
        assert_ne!(BlockHash::new(&[3; 32], [2; 32]).of(&block), id);
        assert_ne!(BlockHash::new(&[1; 32], [3; 32]).of(&block), id);
        let hash = BlockHash::new(&[1; 32], [2; 32]);
        for bit in 0..8 * BLOCK_SIZE {
            let mut other = block;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(hash.of(&other), id, "bit {bit}");
        }
    }
}
