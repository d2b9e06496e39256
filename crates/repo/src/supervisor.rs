//! Who watches long work on a repository: hears how far it is, and may end it.

use std::time::Duration;

use tintype_types::ByteCount;

use crate::Error;

/// How long a cancelled wait goes on at most.
const SLICE: Duration = Duration::from_millis(100);

/// Hears how far long work has come, and may end it. Called from any thread;
/// returns at once.
pub trait Supervisor: Sync {
    /// `done` of `total` bytes are done; both may grow.
    fn advance(&self, _done: ByteCount, _total: ByteCount) {}

    /// Of so many sessions it is not known yet whether their process lives; it
    /// is waited for a sign of life of each, so long at most.
    fn waits(&self, _sessions: usize, _at_most: Duration) {}

    /// What was copied so far stays, whatever happens to the rest.
    fn keeps_part(&self) {}

    /// Whether the work should end, with an error of
    /// [`Kind::Interrupted`](crate::Kind::Interrupted).
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Hears nothing and ends nothing.
impl Supervisor for () {}

impl dyn Supervisor + '_ {
    /// Fails if the work should end.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Waits by a clock; fails soon after the work should end.
    pub(crate) fn pause(&self, time: Duration, wait: impl Fn(Duration)) -> Result<(), Error> {
        let mut left = time;
        while !left.is_zero() {
            self.check()?;
            let slice = left.min(SLICE);
            wait(slice);
            left -= slice;
        }
        self.check()
    }
}
