//! The parts of the calendar that rules count by. The calendar is that of UTC, so that
//! every host decides alike; weeks begin on Monday, as in ISO 8601.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A part of the calendar, of which a rule keeps the newest snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Scale {
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
}

impl Scale {
    /// Returns a number that is the same for all times of one hour, day, week, month or
    /// year, and for no others.
    pub(crate) fn bucket(self, at: Timestamp) -> i128 {
        const HOUR_NS: i128 = 3_600_000_000_000;
        let days = at.as_nanosecond().div_euclid(24 * HOUR_NS);
        let date = || TimeZone::UTC.to_datetime(at).date();
        match self {
            Self::Hourly => at.as_nanosecond().div_euclid(HOUR_NS),
            Self::Daily => days,
            // The first of January 1970 was a Thursday.
            Self::Weekly => (days + 3).div_euclid(7),
            Self::Monthly => i128::from(date().year()) * 12 + i128::from(date().month()),
            Self::Yearly => i128::from(date().year()),
        }
    }

    /// Returns what it is a part of: `day` of `daily`.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Hourly => "hour",
            Self::Daily => "day",
            Self::Weekly => "week",
            Self::Monthly => "month",
            Self::Yearly => "year",
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_calendar() {
        let check = |scale: Scale, one: &str, other: &str, same: bool| {
            let bucket = |text: &str| scale.bucket(text.parse().unwrap());
            assert_eq!(bucket(one) == bucket(other), same, "{scale}: {one} and {other}");
        };
        check(Scale::Hourly, "2026-11-26T12:00:00Z", "2026-11-26T12:59:59.9Z", true);
        check(Scale::Hourly, "2026-11-26T12:59:59.9Z", "2026-11-26T13:00:00Z", false);
        check(Scale::Hourly, "2026-11-26T12:30:00Z", "2026-11-27T12:30:00Z", false);
        check(Scale::Daily, "2026-11-26T00:00:00Z", "2026-11-26T23:59:59Z", true);
        check(Scale::Daily, "2026-11-26T23:59:59Z", "2026-11-27T00:00:00Z", false);
        // The zone that a time is written in does not matter.
        check(Scale::Daily, "2026-11-26T23:30:00-05:00", "2026-11-27T01:00:00Z", true);
        // Monday to Sunday, across the turn of a year.
        check(Scale::Weekly, "2025-12-29T00:00:00Z", "2026-01-04T23:59:59Z", true);
        check(Scale::Weekly, "2026-01-04T23:59:59Z", "2026-01-05T00:00:00Z", false);
        check(Scale::Weekly, "1969-12-29T00:00:00Z", "1970-01-04T12:00:00Z", true);
        check(Scale::Weekly, "1969-12-28T23:00:00Z", "1969-12-29T00:00:00Z", false);
        check(Scale::Monthly, "2026-11-01T00:00:00Z", "2026-11-30T23:00:00Z", true);
        check(Scale::Monthly, "2025-11-01T00:00:00Z", "2026-11-01T00:00:00Z", false);
        check(Scale::Yearly, "2026-01-01T00:00:00Z", "2026-12-31T23:59:59Z", true);
        check(Scale::Yearly, "1969-12-31T23:59:59Z", "1970-01-01T00:00:00Z", false);
    }
}
