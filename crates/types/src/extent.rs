//! Ranges of bytes within an image.

use serde::{Deserialize, Serialize};

/// The size of an image in bytes; the last block may be short.
pub type ImageSize = crate::ByteCount;

/// A range of bytes within an image: never empty, never past 2^63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Where it starts, in bytes from the start of the image.
    pub offset: u64,
    /// How many bytes it has.
    pub len: u64,
}

impl Extent {
    /// Returns the offset of the first byte after the extent.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Splits the extent into pieces of at most `max` bytes, in order.
    pub fn pieces(self, max: u64) -> impl Iterator<Item = Extent> {
        let end = self.end();
        (self.offset..end)
            .step_by(usize::try_from(max.max(1)).unwrap_or(usize::MAX))
            .map(move |offset| Extent { offset, len: max.min(end - offset) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_extent_in_order() {
        let pieces: Vec<_> = Extent { offset: 3, len: 10 }.pieces(4).collect();
        assert_eq!(
            pieces,
            [
                Extent { offset: 3, len: 4 },
                Extent { offset: 7, len: 4 },
                Extent { offset: 11, len: 2 }
            ]
        );
    }
}
