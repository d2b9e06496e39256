//! How fast a VM's snapshots fill a repository. Values only.

use jiff::Timestamp;
use serde::Serialize;
use tintype_types::ByteCount;

/// Older takes tell nothing of today.
const LOOK_BACK_S: i64 = 30 * DAY_S;
/// A day is the least that a rate for a day can be told from.
const LEAST_S: i64 = DAY_S;
const DAY_S: i64 = 24 * 60 * 60;
/// So few takes tell nothing; the first one only begins the period.
const LEAST_TAKES: usize = 3;
/// Of fewer takes none is called unusually large.
const LEAST_TO_CUT: usize = 5;

/// What a take has stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) at: Timestamp,
    pub(crate) bytes: ByteCount,
}

/// How fast something grows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Growth {
    /// What takes store in a day.
    pub bytes_per_day: f64,
    /// The days from the first to the last take that this was told from.
    pub period_days: f64,
    /// How many takes that were.
    pub takes: usize,
}

impl Growth {
    /// Returns what takes store in a day, to the byte below.
    pub fn daily_bytes(&self) -> ByteCount {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is never negative, and a cast from float stops at the largest"
        )]
        ByteCount(self.bytes_per_day as u64)
    }
}

/// Estimates growth from takes of the last 30 days, oldest first: what they have stored
/// over their time, where the largest tenth counts as the largest of the others, so that
/// one large take does not decide. `None` if there are too few, or of less than a day. A
/// take whose clock was slow counts as of the time of the one before.
pub(crate) fn growth(takes: &[Stored]) -> Option<Growth> {
    let newest = takes.iter().map(|take| take.at.as_second()).max()?;
    let mut points: Vec<(i64, u64)> = Vec::new();
    for take in takes.iter().filter(|take| take.at.as_second() >= newest - LOOK_BACK_S) {
        match points.last_mut() {
            Some(last) if take.at.as_second() <= last.0 => {
                last.1 = last.1.saturating_add(take.bytes.get());
            }
            _ => points.push((take.at.as_second(), take.bytes.get())),
        }
    }
    let period = points.last()?.0 - points.first()?.0;
    if points.len() < LEAST_TAKES || period < LEAST_S {
        return None;
    }
    let mut amounts: Vec<u64> = points[1..].iter().map(|(_, bytes)| *bytes).collect();
    amounts.sort_unstable();
    let large = if amounts.len() < LEAST_TO_CUT { 0 } else { amounts.len().div_ceil(10) };
    let largest = amounts[amounts.len() - 1 - large];
    let stored: f64 = amounts.iter().map(|bytes| number((*bytes).min(largest))).sum();
    Some(Growth {
        bytes_per_day: stored / days(period),
        period_days: days(period),
        takes: points.len(),
    })
}

/// Returns the days until so much room is filled; `None` for more than a century.
pub(crate) fn days_to_fill(room: ByteCount, bytes_per_day: f64) -> Option<f64> {
    const CENTURY: f64 = 36525.0;
    let days = number(room.get()) / bytes_per_day;
    (bytes_per_day > 0.0 && days < CENTURY).then_some(days)
}

/// Returns the middle of some amounts, of two the lower.
pub(crate) fn median(mut amounts: Vec<ByteCount>) -> Option<ByteCount> {
    amounts.sort();
    amounts.get(amounts.len().checked_sub(1)? / 2).copied()
}

fn days(seconds: i64) -> f64 {
    std::time::Duration::from_secs(seconds.unsigned_abs()).as_secs_f64() / 86400.0
}

/// A number of bytes for estimates.
#[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than 52 bits")]
pub(crate) fn number(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Takes as days and GiB; what is expected as GiB a day and days.
    fn check(takes: &[(f64, u64)], expected: Option<(f64, f64)>) {
        let stored = |(day, gib): &(f64, u64)| Stored {
            at: Timestamp::UNIX_EPOCH
                + jiff::SignedDuration::try_from_secs_f64(day * 86400.0).unwrap(),
            bytes: ByteCount(gib * GIB),
        };
        let takes: Vec<Stored> = takes.iter().map(stored).collect();
        match (growth(&takes), expected) {
            (None, None) => {}
            (Some(growth), Some((rate, period))) => {
                let found = growth.bytes_per_day / number(GIB);
                assert!((found - rate).abs() < 0.01, "{found} GiB a day of {takes:?}");
                assert!((growth.period_days - period).abs() < 0.01, "{growth:?}");
            }
            (found, expected) => panic!("{found:?} and not {expected:?} of {takes:?}"),
        }
    }

    #[test]
    fn growth_is_told_from_enough_takes_alone() {
        check(&[], None);
        check(&[(0.0, 90), (2.0, 1)], None);
        check(&[(0.0, 90), (0.3, 1), (0.9, 1)], None);
        // The first take has stored everything, and is no growth.
        check(&[(0.0, 90), (1.0, 2), (2.0, 2), (3.0, 2)], Some((2.0, 3.0)));
        check(&[(0.0, 90), (0.5, 1), (1.0, 1), (1.5, 1)], Some((2.0, 1.5)));
    }

    #[test]
    fn one_large_take_does_not_decide() {
        let mut takes: Vec<(f64, u64)> = (0..20).map(|day| (f64::from(day), 1)).collect();
        check(&takes, Some((1.0, 19.0)));
        for large in 1..20 {
            takes[large].1 = 500;
            check(&takes, Some((1.0, 19.0)));
            takes[large].1 = 1;
        }
        // Of a few takes, each counts.
        check(&[(0.0, 90), (1.0, 1), (2.0, 500), (3.0, 1)], Some((502.0 / 3.0, 3.0)));
    }

    #[test]
    fn old_takes_and_slow_clocks_do_not_count() {
        let old = [(0.0, 90), (1.0, 50), (100.0, 1), (101.0, 2), (102.0, 2)];
        check(&old, Some((2.0, 2.0)));
        let slow = [(10.0, 90), (11.0, 2), (1.0, 0), (12.0, 2), (13.0, 2)];
        check(&slow, Some((2.0, 3.0)));
    }

    #[test]
    fn room_is_filled_some_day() {
        let check = |room: u64, rate: f64, days: Option<f64>| {
            assert_eq!(days_to_fill(ByteCount(room), rate), days);
        };
        check(100, 10.0, Some(10.0));
        check(0, 10.0, Some(0.0));
        check(100, 0.0, None);
        // The sum of nothing.
        check(100, -0.0, None);
        check(0, 0.0, None);
        assert_eq!(median([3, 1, 2, 9].map(ByteCount).to_vec()), Some(ByteCount(2)));
        assert_eq!(median(Vec::new()), None);
    }
}
