//! Memory that changes faster than it can be captured. Checks nothing.

use crate::block::{Page, WORDS};

/// An array whose pages are written at random.
pub(crate) struct Dirty {
    pages: Vec<Page>,
    /// The state of a random generator (xorshift64), never zero.
    random: u64,
    writes: u64,
}

impl Dirty {
    /// Fills an array of so many pages.
    pub(crate) fn start(pages: usize) -> Self {
        let pages = (0..pages).map(|_| Page::new(0, 1)).collect();
        Self { pages, random: 88_172_645_463_325_252, writes: 0 }
    }

    /// Writes a word to each of 1,024 pages, and returns how many it wrote since the start.
    pub(crate) fn advance(&mut self) -> u64 {
        for _ in 0..1024 {
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            let place = usize::try_from(self.random >> 16).unwrap_or(0);
            let page = (place / WORDS) % self.pages.len();
            self.pages[page].scribble(place, self.random);
        }
        self.writes = self.writes.wrapping_add(1024);
        self.writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_written_before_long() {
        let mut dirty = Dirty::start(16);
        assert_eq!(dirty.advance(), 1024);
        assert!(dirty.pages.iter().all(|page| page.count(0).is_none()));
    }
}
