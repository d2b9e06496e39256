//! When what was deleted goes for good: policy, by clocks that may be wrong.
//!
//! A deletion is due when its grace is over by the clock of the collector. But that
//! clock may have jumped, and so may that of who deleted. So a time in the future is
//! never over, and time has to be seen passing: between two times that the repository
//! knows (of snapshots, deletions and operations), at most half of the grace counts,
//! and what lies before a leap does not count at all. A collector that is not believed
//! leaves the time in the log of operations, and a later one counts from there.

use jiff::{SignedDuration, Timestamp};
use tintype_retention::Period;

/// How long deleted snapshots are kept unless another time is wanted.
pub const DEFAULT_GRACE: Period = Period::of_days(7);
/// So long without anything that happened may be a clock that has leapt.
const LEAP: SignedDuration = SignedDuration::from_hours(90 * 24);

/// What a deletion waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing: a collection ends it.
    Over,
    /// Its time.
    Until(Timestamp),
    /// That more time is seen passing; if all goes well, until then.
    Doubted(Timestamp),
    /// Nobody knows when it was made: it stays until somebody wants otherwise.
    Unknown,
}

impl Wait {
    /// Until when it waits, as far as that is known.
    pub(crate) fn until(self) -> Option<Timestamp> {
        match self {
            Self::Until(at) | Self::Doubted(at) => Some(at),
            Self::Over | Self::Unknown => None,
        }
    }
}

/// The time now, the grace, and the times of what has happened.
#[derive(Debug)]
pub(crate) struct Calendar {
    now: Timestamp,
    grace: SignedDuration,
    /// In order, none of them in the future.
    times: Vec<Timestamp>,
}

impl Calendar {
    pub(crate) fn new(
        now: Timestamp,
        grace: Period,
        times: impl IntoIterator<Item = Timestamp>,
    ) -> Self {
        let mut times: Vec<_> = times.into_iter().filter(|time| *time <= now).collect();
        times.sort_unstable();
        Self { now, grace: now.duration_since(grace.before(now)), times }
    }

    /// Returns until when a deletion can be undone at least, by its own time.
    pub(crate) fn end(&self, deleted: Timestamp) -> Timestamp {
        deleted.checked_add(self.grace).unwrap_or(Timestamp::MAX)
    }

    /// Says what a deletion waits for, given when it was made.
    pub(crate) fn wait(&self, deleted: Option<Timestamp>) -> Wait {
        let Some(deleted) = deleted else { return Wait::Unknown };
        let end = self.end(deleted);
        if end > self.now {
            return Wait::Until(end);
        }
        match self.grace - self.seen(deleted) {
            rest if rest.is_positive() => {
                Wait::Doubted(self.now.checked_add(rest).unwrap_or(Timestamp::MAX))
            }
            _ => Wait::Over,
        }
    }

    /// Returns how much time was seen passing since an instant.
    fn seen(&self, since: Timestamp) -> SignedDuration {
        let from = self.times.partition_point(|time| *time <= since);
        let (mut last, mut seen) = (since, SignedDuration::ZERO);
        for time in self.times[from..].iter().chain([&self.now]) {
            let step = time.duration_since(last);
            seen =
                if step >= LEAP { SignedDuration::ZERO } else { seen + step.min(self.grace / 2) };
            last = *time;
        }
        seen
    }

    /// Whether the time now is worth being left: it counts more for what comes than
    /// the last time that is known.
    pub(crate) fn is_news(&self) -> bool {
        self.times.last().is_none_or(|last| self.now.duration_since(*last) > self.grace / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hours after some instant.
    fn hour(hours: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + hours * 3_600).unwrap()
    }

    fn wait(now: i64, times: &[i64], deleted: i64) -> Wait {
        let times = times.iter().map(|hours| hour(*hours));
        Calendar::new(hour(now), DEFAULT_GRACE, times).wait(Some(hour(deleted)))
    }

    #[test]
    fn a_deletion_waits_for_its_grace() {
        const DAY: i64 = 24;
        let check = |now: i64, times: &[i64], deleted: i64, expected: Wait| {
            assert_eq!(wait(now, times, deleted), expected, "{deleted} {times:?} {now}");
        };
        let daily: Vec<i64> = (0..30).map(|day| day * DAY).collect();
        check(10 * DAY, &daily, 4 * DAY, Wait::Until(hour(11 * DAY)));
        check(11 * DAY, &daily, 4 * DAY, Wait::Over);
        // Of the future, it is not old, whatever else happened.
        check(0, &daily, 20 * DAY, Wait::Until(hour(27 * DAY)));
        // A jump of ten years right after it, then days that pass.
        let jump = 87_600;
        let jumped: Vec<i64> = (0..8).map(|day| jump + day * DAY).collect();
        check(jump, &[0], 0, Wait::Doubted(hour(jump + 7 * DAY)));
        check(jump + 6 * DAY, &jumped, 0, Wait::Doubted(hour(jump + 7 * DAY)));
        check(jump + 7 * DAY, &jumped, 0, Wait::Over);
        // A host ten years ahead adds nothing to the days of the others.
        let both: Vec<i64> = [&daily[..4], &jumped[..4]].concat();
        check(jump + 3 * DAY, &both, 0, Wait::Doubted(hour(jump + 7 * DAY)));
        // Nothing happened for ten days: half of the grace is believed.
        check(10 * DAY, &[], 0, Wait::Doubted(hour(13 * DAY + 12)));
        check(10 * DAY, &[5 * DAY], 0, Wait::Over);
        // Who looks once a week frees it the second time.
        check(7 * DAY, &[], 0, Wait::Doubted(hour(10 * DAY + 12)));
        check(14 * DAY, &[7 * DAY], 0, Wait::Over);
        assert_eq!(Calendar::new(hour(0), DEFAULT_GRACE, []).wait(None), Wait::Unknown);
    }

    #[test]
    fn times_are_left_where_they_count() {
        let news = |now, times: &[i64]| {
            Calendar::new(hour(now), DEFAULT_GRACE, times.iter().map(|h| hour(*h))).is_news()
        };
        assert!(news(0, &[]));
        assert!(news(85, &[0]));
        assert!(!news(84, &[0]));
    }
}
