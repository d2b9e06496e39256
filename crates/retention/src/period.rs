//! Periods as people write them: `1y5m7d2h`.

use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};

/// The most years of a period, which is as far as calendars reach.
const MAX_YEARS: u16 = 9999;

/// Text is no period.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no period: write it as 1y5m7d2h, in years, months, days and hours")]
pub struct PeriodError {
    text: String,
}

/// A span of years, months, days and hours, not all of them zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Period {
    years: u16,
    months: u16,
    days: u16,
    hours: u16,
}

impl Period {
    /// Returns a period of whole days, of one at least.
    pub const fn of_days(days: u16) -> Self {
        Self { years: 0, months: 0, days: if days == 0 { 1 } else { days }, hours: 0 }
    }

    /// Returns the time that lies a period before another, or the first that can be
    /// written. A day that a month does not have becomes its last one.
    pub fn before(self, at: Timestamp) -> Timestamp {
        let span = Span::new()
            .years(i32::from(self.years))
            .months(i32::from(self.months))
            .days(i32::from(self.days))
            .hours(i32::from(self.hours));
        let before = at.to_zoned(TimeZone::UTC).checked_sub(span);
        before.map_or(Timestamp::MIN, |before| before.timestamp())
    }
}

impl FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        let wrong = || PeriodError { text: text.to_owned() };
        let mut period = Self { years: 0, months: 0, days: 0, hours: 0 };
        let mut rest = text;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let number: u16 = rest[..digits].parse().map_err(|_| wrong())?;
            let mut behind = rest[digits..].chars();
            let place = match behind.next() {
                Some('y') => &mut period.years,
                Some('m') => &mut period.months,
                Some('d') => &mut period.days,
                Some('h') => &mut period.hours,
                _ => return Err(wrong()),
            };
            if number == 0 || *place != 0 {
                return Err(wrong());
            }
            *place = number;
            rest = behind.as_str();
        }
        if text.is_empty() || period.years > MAX_YEARS { Err(wrong()) } else { Ok(period) }
    }
}

impl TryFrom<String> for Period {
    type Error = PeriodError;

    fn try_from(text: String) -> Result<Self, PeriodError> {
        text.parse()
    }
}

impl From<Period> for String {
    fn from(period: Period) -> Self {
        period.to_string()
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [(self.years, 'y'), (self.months, 'm'), (self.days, 'd'), (self.hours, 'h')];
        parts.iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_read() {
        let check = |text: &str, expected: Option<&str>| {
            let read: Result<Period, _> = text.parse();
            assert_eq!(read.ok().map(|period| period.to_string()).as_deref(), expected, "{text}");
        };
        check("7d", Some("7d"));
        check("1y1d1m", Some("1y1m1d"));
        check("9999y", Some("9999y"));
        for wrong in ["", "7", "d", "0d", "1d1d", "-1d", "1w", "1d ", "10000y", "99999d", "1dé"] {
            check(wrong, None);
        }
    }

    #[test]
    fn periods_are_counted_back() {
        let check = |at: &str, period: &str, expected: &str| {
            let before = period.parse::<Period>().unwrap().before(at.parse().unwrap());
            assert_eq!(before, expected.parse().unwrap(), "{period} before {at}");
        };
        check("2016-01-18T12:02:03Z", "1m14d", "2015-12-04T12:02:03Z");
        check("2016-03-31T12:00:00Z", "1m", "2016-02-29T12:00:00Z");
        check("2016-01-18T01:00:00Z", "2h", "2016-01-17T23:00:00Z");
        check("2016-02-29T00:00:00Z", "1y", "2015-02-28T00:00:00Z");
        let longest: Period = "9999y65535m65535d65535h".parse().unwrap();
        assert_eq!(longest.before(Timestamp::UNIX_EPOCH), Timestamp::MIN);
    }
}
