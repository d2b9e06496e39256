//! Who uses which part of a file: no two tables, and no data and a table, in one place.

use crate::error::{Error, limit, malformed};

/// The most parts that are kept track of: 16 MiB of bits.
const MAX_PARTS: u64 = 1 << 27;

/// One bit for each part of the file, a cluster or a block.
pub(crate) struct Claims {
    part: u64,
    used: Vec<u64>,
}

impl Claims {
    /// Parts a file of `len` bytes into parts of `part` bytes.
    pub(crate) fn new(len: u64, part: u64) -> Result<Self, Error> {
        let parts = len.div_ceil(part);
        limit("the file has clusters", parts, MAX_PARTS)?;
        let words = usize::try_from(parts.div_ceil(64)).expect("the limit is small");
        Ok(Self { part, used: vec![0; words] })
    }

    /// Tells whether the part with this byte is used.
    pub(crate) fn is_used(&self, offset: u64) -> bool {
        self.place(offset).is_some_and(|(word, bit)| self.used[word] & bit != 0)
    }

    /// Uses all parts that a range touches.
    pub(crate) fn claim(&mut self, what: &str, offset: u64, len: u64) -> Result<(), Error> {
        let end = offset.checked_add(len);
        let end = end.ok_or_else(|| malformed(format!("{what} is beyond any file")))?;
        let mut at = offset - offset % self.part;
        while at < end {
            let (word, bit) = self
                .place(at)
                .ok_or_else(|| malformed(format!("{what} is beyond the end of the file")))?;
            if self.used[word] & bit != 0 {
                return Err(malformed(format!("{what} overlaps something else at byte {at}")));
            }
            self.used[word] |= bit;
            at += self.part;
        }
        Ok(())
    }

    fn place(&self, offset: u64) -> Option<(usize, u64)> {
        let part = offset / self.part;
        let word = usize::try_from(part / 64).ok().filter(|word| *word < self.used.len())?;
        Some((word, 1 << (part % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_used_once() {
        let mut claims = Claims::new(10 * 512 + 1, 512).unwrap();
        claims.claim("a", 0, 513).unwrap();
        assert!(claims.is_used(1023) && !claims.is_used(1024));
        assert!(claims.claim("b", 1000, 100).is_err());
        claims.claim("c", 10 * 512, 512).unwrap();
        assert!(claims.claim("d", 1 << 40, 1).is_err(), "it is beyond the end");
        assert!(claims.claim("e", u64::MAX, 2).is_err());
        assert!(Claims::new(u64::MAX, 512).is_err());
    }
}
