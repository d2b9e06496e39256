//! When what was deleted goes for good: policy, by clocks that may be wrong.
//!
//! A deletion is due when its grace is over by the clock of the collector. But that
//! clock may have jumped, and so may that of who deleted. So a time in the future is
//! never over, and time has to be seen passing: between two times that the repository
//! knows (of snapshots, deletions and operations), at most half of the grace counts,
//! and what lies before a leap does not count at all. A collector that is not believed
//! leaves the time in the log of operations, and a later one counts from there.
//!
//! A deletion that is dated ahead of the clock would be kept until then, which may be for
//! ever. So the first collection that meets it notes in the log that it is there, and its
//! grace counts from that entry on, by the times of the entries after it, in their order:
//! whatever the clocks say, it was deleted before that.

use jiff::{SignedDuration, Timestamp};
use tintype_retention::Period;

/// How long deleted snapshots are kept unless another time is wanted.
pub const DEFAULT_GRACE: Period = Period::of_days(7);
/// So long without anything that happened may be a clock that has leapt.
const LEAP: SignedDuration = SignedDuration::from_hours(90 * 24);

/// So far ahead of the clock a deletion is dated, and it is not waited for that time.
const AHEAD: SignedDuration = SignedDuration::from_hours(24);

/// What a deletion waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Nothing: a collection ends it.
    Over,
    /// Its time.
    Until(Timestamp),
    /// That more time is seen passing; if all goes well, until then.
    Doubted(Timestamp),
    /// The same, since it is dated ahead of the clock.
    Ahead(Timestamp),
    /// Nobody knows when it was made: it stays until somebody wants otherwise.
    Unknown,
}

impl Wait {
    /// Until when it waits, as far as that is known.
    pub(crate) fn until(self) -> Option<Timestamp> {
        match self {
            Self::Until(at) | Self::Doubted(at) | Self::Ahead(at) => Some(at),
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

    /// Whether a deletion is dated so far ahead that its time says nothing.
    pub(crate) fn is_ahead(&self, deleted: Timestamp) -> bool {
        deleted.duration_since(self.now) > AHEAD
    }

    /// Says what a deletion waits for, given when it was made; and if it is dated ahead,
    /// the times in the log since it was noted there, in their order.
    pub(crate) fn wait(&self, deleted: Option<Timestamp>, since_noted: &[Timestamp]) -> Wait {
        let Some(deleted) = deleted else { return Wait::Unknown };
        if self.is_ahead(deleted) {
            return match self.grace - self.seen_in_order(since_noted) {
                rest if rest.is_positive() => {
                    Wait::Ahead(self.now.checked_add(rest).unwrap_or(Timestamp::MAX))
                }
                _ => Wait::Over,
            };
        }
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

    /// Returns how much time was seen passing from one time to the next. What lies
    /// behind the latest so far adds nothing, and a leap begins anew, ahead or back.
    fn seen_in_order(&self, times: &[Timestamp]) -> SignedDuration {
        let (mut last, mut seen) = (None, SignedDuration::ZERO);
        for time in times.iter().chain([&self.now]) {
            let step = last.map_or(SignedDuration::ZERO, |last| time.duration_since(last));
            if step.abs() >= LEAP {
                (last, seen) = (Some(*time), SignedDuration::ZERO);
            } else if last.is_none() || step.is_positive() {
                (last, seen) = (Some(*time), seen + step.min(self.grace / 2));
            }
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
        Calendar::new(hour(now), DEFAULT_GRACE, times).wait(Some(hour(deleted)), &[])
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
        check(0, &daily, DAY, Wait::Until(hour(8 * DAY)));
        check(0, &daily, 20 * DAY, Wait::Ahead(hour(7 * DAY)));
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
        assert_eq!(Calendar::new(hour(0), DEFAULT_GRACE, []).wait(None, &[]), Wait::Unknown);
    }

    #[test]
    fn one_that_is_dated_ahead_waits_from_when_it_was_noted() {
        const DAY: i64 = 24;
        const YEARS: i64 = 87_600;
        let check = |now: i64, noted: &[i64], expected: Wait| {
            let noted: Vec<_> = noted.iter().map(|hours| hour(*hours)).collect();
            let wait = Calendar::new(hour(now), DEFAULT_GRACE, []).wait(Some(hour(YEARS)), &noted);
            assert_eq!(wait, expected, "{noted:?} {now}");
        };
        check(0, &[], Wait::Ahead(hour(7 * DAY)));
        check(DAY, &[0], Wait::Ahead(hour(7 * DAY)));
        check(4 * DAY, &[0], Wait::Ahead(hour(7 * DAY + DAY / 2)));
        check(8 * DAY, &[0, 4 * DAY], Wait::Over);
        // A clock that was ahead for a while, by years or by days, makes nothing older.
        check(4 * DAY, &[0, YEARS - 1, YEARS, 3 * DAY], Wait::Ahead(hour(10 * DAY)));
        let alternating = [0, 3 * DAY, 1, 3 * DAY, 2, 3 * DAY + 1, 3];
        check(4, &alternating, Wait::Ahead(hour(4 + 4 * DAY - 1)));
        // And one that goes back to before all of that.
        check(-YEARS, &[0, DAY, 2 * DAY, 3 * DAY], Wait::Ahead(hour(7 * DAY - YEARS)));
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
