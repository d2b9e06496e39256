//! Generations that go through a large array of memory, page after page.
//!
//! The page at the front is about to get generation g: every page before it has g,
//! and every page from it on has g - 1. Each page is looked at in full before it is
//! overwritten, and the one before it as well, so within one sweep a page from any
//! other moment is found: an older one has a generation too little when its turn
//! comes, a newer one has its generation already.
//!
//! A page can be made to keep its writer for a while: it is overwritten many times
//! before it gets its generation, and then left alone for a whole turn. Whoever
//! follows the writes and misses the last of them has a page of no generation.

use crate::block::Page;
use crate::report::Trouble;

/// The array and where the front is.
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Sweep {
    pages: Vec<Page>,
    /// The generation that is being written.
    generation: u64,
    /// The index of the page that gets it next.
    front: usize,
    /// How often a page is overwritten before that.
    rewrites: u64,
}

impl Sweep {
    /// Fills an array of so many pages with generation 1.
    pub(crate) fn start(pages: usize, rewrites: u64) -> Self {
        let pages = (0..pages).map(|index| Page::new(owner(index), 1)).collect();
        Self { pages, generation: 2, front: 0, rewrites }
    }

    /// Returns the number of pages.
    pub(crate) fn page_count(&self) -> u64 {
        owner(self.pages.len())
    }

    /// Returns the generation that is being written.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Checks the page at the front and the one before it, and moves the front by one.
    pub(crate) fn advance(&mut self) -> Result<(), Trouble> {
        let (before, behind) = match self.front.checked_sub(1) {
            Some(index) => (index, self.generation),
            None => (self.pages.len() - 1, self.generation - 1),
        };
        self.compare(before, behind)?;
        self.compare(self.front, self.generation - 1)?;
        for value in 0..self.rewrites {
            self.pages[self.front].scribble(self.front, value);
        }
        self.pages[self.front].set(owner(self.front), self.generation);
        self.front += 1;
        if self.front == self.pages.len() {
            self.front = 0;
            self.generation += 1;
        }
        Ok(())
    }

    fn compare(&self, index: usize, expected: u64) -> Result<(), Trouble> {
        let found = self.pages[index].count(owner(index));
        if found == Some(expected) {
            return Ok(());
        }
        let found = found.map_or_else(|| "no generation".to_owned(), |count| count.to_string());
        let (front, pages) = (self.front, self.pages.len());
        Err(Trouble::Torn(format!(
            "page {index} of {pages}: found {found}, expected {expected}, front at page {front}"
        )))
    }
}

/// Returns the number that marks a page as the one with this index.
fn owner(index: usize) -> u64 {
    u64::try_from(index).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGES: usize = 5;

    /// Says whether a sweep that goes on from here finds something wrong in one turn.
    fn notices(mut sweep: Sweep) -> bool {
        (0..=PAGES).any(|_| matches!(sweep.advance(), Err(Trouble::Torn(_))))
    }

    fn history() -> Vec<Sweep> {
        let mut sweep = Sweep::start(PAGES, 3);
        (0..4 * PAGES)
            .map(|_| {
                let now = sweep.clone();
                sweep.advance().unwrap();
                now
            })
            .collect()
    }

    #[test]
    fn a_page_from_another_moment_is_noticed() {
        let history = history();
        for now in &history {
            for other in &history {
                for page in 0..PAGES {
                    let mut mixed = now.clone();
                    mixed.pages[page] = other.pages[page].clone();
                    let generation = |sweep: &Sweep| sweep.pages[page].count(owner(page));
                    let whole = generation(now) == generation(other);
                    assert_eq!(notices(mixed), !whole, "page {page}, front {}", now.front);
                }
            }
        }
    }

    #[test]
    fn pages_that_changed_places_or_have_two_halves_are_noticed() {
        for now in history() {
            let mut swapped = now.clone();
            swapped.pages.swap(1, 3);
            assert!(notices(swapped));
            let halves = now.clone();
            halves.pages[2].scribble(300, 7);
            assert!(notices(halves));
        }
    }
}
