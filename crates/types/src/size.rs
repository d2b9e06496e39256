//! Sizes and indexes. A bare integer in a signature could be any of them, so
//! each has a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The unit of addressing and of difference, in bytes: one page of x86 memory.
pub const BLOCK_SIZE: usize = 4096;

/// An amount of bytes.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ByteCount(pub u64);

impl ByteCount {
    /// Returns the amount of bytes as a plain number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns how many blocks hold this many bytes, rounded up.
    pub const fn blocks_rounded_up(self) -> u64 {
        self.0.div_ceil(BLOCK_SIZE as u64)
    }
}

impl fmt::Display for ByteCount {
    /// Writes the amount as people read it, in binary units: `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let exponent = (self.0.ilog2() / 10).min(6);
        let unit = 1_u128 << (10 * exponent);
        let tenths = (u128::from(self.0) * 10 + unit / 2) / unit;
        let name = UNITS[exponent as usize - 1];
        if tenths < 1000 {
            write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
        } else {
            write!(f, "{} {name}", tenths / 10)
        }
    }
}

/// The place of one 4 KiB block in an image: a page of memory or a block of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// Returns the block that holds the byte at `offset`, rounded down.
    pub const fn containing(offset: u64) -> Self {
        Self(offset / BLOCK_SIZE as u64)
    }

    /// Returns the offset of the block's first byte.
    pub const fn offset(self) -> u64 {
        self.0 * BLOCK_SIZE as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        let check = |bytes, text| assert_eq!(ByteCount(bytes).to_string(), text);
        check(0, "0 B");
        check(1023, "1023 B");
        check(1024, "1.0 KiB");
        check(1536, "1.5 KiB");
        check(100 << 20, "100 MiB");
        check(12 << 30, "12.0 GiB");
        check(u64::MAX, "16.0 EiB");
    }

    #[test]
    fn division_says_how_it_rounds() {
        assert_eq!(ByteCount(4097).blocks_rounded_up(), 2);
        assert_eq!(BlockIndex::containing(8191), BlockIndex(1));
        assert_eq!(BlockIndex(3).offset(), 12288);
    }
}
