//! A counter in memory and on disks that are never further apart than one step.
//!
//! One round takes the counter from n to n + 1: first on every disk in order, each
//! write flushed, then in every copy in memory in order. Two blocks on each disk
//! take turns, so that a round leaves the block of n as it was, to be compared
//! with memory after the block of n + 1 was written:
//!
//! ```text
//!           compare → write n+1 → flush → compare → … next disk … → store n+1 in each copy
//! disk          n        n+1                 n+1                        n+1
//! memory        n         n                   n                         n … n+1
//! ```
//!
//! Whatever a revert puts together, the round goes on where memory stood, and the
//! next compare sees a disk from another moment. There is one exception that no
//! program could see: memory from right before a write is handed to the disk, and
//! the disk from right after the same write, for the write then happens again. To
//! leave it no room, use several workers and compare after every step.

use crate::block::{Block, Page};
use crate::report::Trouble;
use crate::store::Store;

/// How many copies of a counter memory has, each in a page of its own.
const COPIES: usize = 8;

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Compare everything, when the first `ahead` disks have been written.
    Compare { ahead: usize },
    /// Write the next count to a disk.
    Write { disk: usize },
    /// Flush that disk.
    Flush { disk: usize },
    /// Store the next count in a copy in memory.
    Store { copy: usize },
}

/// The counter of one worker.
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Pair<S> {
    /// Which pair of blocks on the disks it owns.
    slot: u64,
    /// Where it stands.
    count: u64,
    step: Step,
    copies: Vec<Page>,
    disks: Vec<S>,
    buffer: Box<Block>,
}

impl<S: Store> Pair<S> {
    /// Starts a counter at 1, whatever was on the disks.
    pub(crate) fn start(slot: u64, disks: Vec<S>) -> Result<Self, Trouble> {
        let copies = (0..COPIES).map(|_| Page::new(slot, 1)).collect();
        let step = Step::Compare { ahead: 0 };
        let mut pair = Self { slot, count: 1, step, copies, disks, buffer: Block::zeroed() };
        if pair.disks.is_empty() {
            return Err(Trouble::Failed("a pair needs a disk".to_owned()));
        }
        for disk in 0..pair.disks.len() {
            pair.write(disk, 0)?;
            pair.write(disk, 1)?;
            pair.flush(disk)?;
        }
        Ok(pair)
    }

    /// Returns where the counter stands.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Goes through all the steps to the next count.
    pub(crate) fn round(&mut self) -> Result<(), Trouble> {
        let count = self.count;
        while self.count == count {
            self.advance()?;
        }
        Ok(())
    }

    /// Does one step.
    fn advance(&mut self) -> Result<(), Trouble> {
        self.step = match self.step {
            Step::Compare { ahead } => {
                self.compare(ahead)?;
                if ahead < self.disks.len() {
                    Step::Write { disk: ahead }
                } else {
                    Step::Store { copy: 0 }
                }
            }
            Step::Write { disk } => {
                self.write(disk, self.count + 1)?;
                Step::Flush { disk }
            }
            Step::Flush { disk } => {
                self.flush(disk)?;
                Step::Compare { ahead: disk + 1 }
            }
            Step::Store { copy } => {
                self.compare_copy(copy)?;
                self.copies[copy].set(self.slot, self.count + 1);
                if copy + 1 < self.copies.len() {
                    Step::Store { copy: copy + 1 }
                } else {
                    self.count += 1;
                    Step::Compare { ahead: 0 }
                }
            }
        };
        Ok(())
    }

    /// Looks at every copy in memory and both blocks on every disk.
    fn compare(&mut self, ahead: usize) -> Result<(), Trouble> {
        (0..self.copies.len()).try_for_each(|copy| self.compare_copy(copy))?;
        for disk in 0..self.disks.len() {
            let newest = if disk < ahead { self.count + 1 } else { self.count };
            for expected in [newest - 1, newest] {
                self.disks[disk].read(self.place(expected), &mut self.buffer).map_err(|error| {
                    Trouble::Failed(format!("cannot read disk {disk}: {error}"))
                })?;
                let found = self.buffer.count(self.slot);
                if found != Some(expected) {
                    return Err(self.torn(&format!("disk {disk}"), found, expected));
                }
            }
        }
        Ok(())
    }

    fn compare_copy(&self, copy: usize) -> Result<(), Trouble> {
        let found = self.copies[copy].count(self.slot);
        if found == Some(self.count) {
            return Ok(());
        }
        Err(self.torn(&format!("copy {copy} in memory"), found, self.count))
    }

    fn write(&mut self, disk: usize, count: u64) -> Result<(), Trouble> {
        self.buffer.set(self.slot, count);
        let place = self.place(count);
        self.disks[disk]
            .write(place, &self.buffer)
            .map_err(|error| Trouble::Failed(format!("cannot write disk {disk}: {error}")))
    }

    fn flush(&mut self, disk: usize) -> Result<(), Trouble> {
        self.disks[disk]
            .flush()
            .map_err(|error| Trouble::Failed(format!("cannot flush disk {disk}: {error}")))
    }

    /// Returns the number of the block that holds a count.
    fn place(&self, count: u64) -> u64 {
        self.slot.saturating_mul(2).saturating_add(count % 2)
    }

    fn torn(&self, place: &str, found: Option<u64>, expected: u64) -> Trouble {
        let found = found.map_or_else(|| "no count".to_owned(), |count| count.to_string());
        Trouble::Torn(format!(
            "memory={} {place}: found {found}, expected {expected}, at step {:?}",
            self.count, self.step
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT: u64 = 3;
    type Memory = Pair<Vec<Block>>;

    /// Returns what memory and disks are at every step of some rounds.
    fn history(disks: usize) -> Vec<Memory> {
        let blocks = vec![*Block::zeroed(); 8];
        let mut pair = Pair::start(SLOT, vec![blocks; disks]).unwrap();
        (0..4)
            .flat_map(|_| 0..(1 + 3 * disks + COPIES))
            .map(|_| {
                let now = pair.clone();
                pair.advance().unwrap();
                now
            })
            .collect()
    }

    /// Says whether a counter that goes on from here finds something wrong.
    fn notices(mut pair: Memory) -> bool {
        (0..2).any(|_| matches!(pair.round(), Err(Trouble::Torn(_))))
    }

    fn same(one: &[Block], other: &[Block]) -> bool {
        one.iter().zip(other).all(|(one, other)| one.0 == other.0)
    }

    #[test]
    fn no_step_of_an_undisturbed_counter_is_torn() {
        for pair in history(2) {
            assert!(!notices(pair));
        }
    }

    #[test]
    fn a_disk_from_another_moment_is_noticed() {
        let history = history(2);
        let mut tears = 0;
        for (at, now) in history.iter().enumerate() {
            for other in &history {
                for disk in 0..2 {
                    let mut mixed = now.clone();
                    mixed.disks[disk].clone_from(&other.disks[disk]);
                    let whole = same(&mixed.disks[disk], &now.disks[disk]);
                    // The exception: the write that comes next has happened already.
                    let again = now.step == Step::Write { disk }
                        && history
                            .get(at + 1)
                            .is_some_and(|next| same(&mixed.disks[disk], &next.disks[disk]));
                    tears += u32::from(!whole && !again);
                    assert_eq!(notices(mixed), !whole && !again, "disk {disk} at {:?}", now.step);
                }
            }
        }
        assert!(tears > 1000, "only {tears} tears were tried");
    }

    #[test]
    fn a_page_from_another_moment_is_noticed() {
        let history = history(1);
        for now in &history {
            for other in &history {
                for copy in 0..COPIES {
                    let mut mixed = now.clone();
                    mixed.copies[copy] = other.copies[copy].clone();
                    let count = |pair: &Memory| pair.copies[copy].count(SLOT);
                    let whole = count(now) == count(other);
                    assert_eq!(notices(mixed), !whole, "copy {copy} at {:?}", now.step);
                }
            }
        }
    }

    #[test]
    fn a_lost_write_is_noticed() {
        for now in history(1) {
            let mut pair = now.clone();
            pair.advance().unwrap();
            if matches!(now.step, Step::Write { .. }) {
                pair.disks = now.disks;
                assert!(notices(pair));
            }
        }
    }
}
