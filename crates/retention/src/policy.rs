//! A policy: the rules of `--keep-…`. What none of them keeps, goes.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::period::Period;
use crate::reason::Rule;
use crate::scale::Scale;

/// How long safety snapshots are kept unless the policy says otherwise.
const SAFETY_DAYS: u16 = 7;

/// The rules of one VM. A rule that this version does not know is an error: to ignore it
/// would delete what it keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
#[expect(missing_docs, reason = "each is the option of its name, and docs/cli.md has them all")]
pub struct Policy {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_last: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_hourly: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_daily: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_weekly: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_monthly: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_yearly: Option<Count>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within_hourly: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within_daily: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within_weekly: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within_monthly: Option<Period>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_within_yearly: Option<Period>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keep_tag: Vec<TagSet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_safety: Option<Period>,
}

impl Policy {
    /// Whether it keeps nothing that somebody asked for, and so must not be followed.
    pub fn is_empty(&self) -> bool {
        self.keep_tag.is_empty() && self.rules().is_empty()
    }

    /// Returns how long safety snapshots are kept.
    pub fn safety(&self) -> Period {
        self.keep_safety.unwrap_or(Period::of_days(SAFETY_DAYS))
    }

    /// Returns the rules but for tags, in the order in which reasons are given.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        let count = |scale, count: Option<Count>| count.map(|count| Rule::Newest(scale, count));
        let within = |scale, period: Option<Period>| period.map(|p| Rule::Within(scale, p));
        let rules = [
            within(None, self.keep_within),
            count(None, self.keep_last),
            count(Some(Scale::Hourly), self.keep_hourly),
            count(Some(Scale::Daily), self.keep_daily),
            count(Some(Scale::Weekly), self.keep_weekly),
            count(Some(Scale::Monthly), self.keep_monthly),
            count(Some(Scale::Yearly), self.keep_yearly),
            within(Some(Scale::Hourly), self.keep_within_hourly),
            within(Some(Scale::Daily), self.keep_within_daily),
            within(Some(Scale::Weekly), self.keep_within_weekly),
            within(Some(Scale::Monthly), self.keep_within_monthly),
            within(Some(Scale::Yearly), self.keep_within_yearly),
        ];
        rules.into_iter().flatten().collect()
    }
}

impl fmt::Display for Policy {
    /// Writes it as it is typed: `--keep-last 3 --keep-daily 7`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options: Vec<String> = self.rules().iter().map(Rule::option).collect();
        options.extend(self.keep_tag.iter().map(|tags| format!("--keep-tag {tags}")));
        options.extend(self.keep_safety.map(|period| format!("--keep-safety {period}")));
        f.write_str(&options.join(" "))
    }
}

/// Text is no number of snapshots to keep.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CountError {
    /// To keep none is never meant.
    #[error("0 keeps none: leave the option out")]
    Zero,
    /// It is no number.
    #[error("`{0}` is no number of snapshots; -1 means all")]
    Unknown(String),
}

/// How many snapshots a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub enum Count {
    /// So many.
    Last(NonZeroU32),
    /// As many as there are, written `-1`.
    All,
}

impl TryFrom<i64> for Count {
    type Error = CountError;

    fn try_from(number: i64) -> Result<Self, CountError> {
        match number {
            -1 => Ok(Self::All),
            0 => Err(CountError::Zero),
            number => u32::try_from(number)
                .ok()
                .and_then(NonZeroU32::new)
                .map(Self::Last)
                .ok_or_else(|| CountError::Unknown(number.to_string())),
        }
    }
}

impl From<Count> for i64 {
    fn from(count: Count) -> Self {
        match count {
            Count::Last(number) => Self::from(number.get()),
            Count::All => -1,
        }
    }
}

impl FromStr for Count {
    type Err = CountError;

    fn from_str(text: &str) -> Result<Self, CountError> {
        let number: i64 = text.parse().map_err(|_| CountError::Unknown(text.to_owned()))?;
        Self::try_from(number)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        i64::from(*self).fmt(f)
    }
}

/// Text names no tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tags are written KEY or KEY=VALUE, several with commas between them")]
pub struct TagError;

/// Tags that a snapshot must all have: `KEY=VALUE`, or `KEY` with whatever value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct TagSet(Vec<String>);

impl TagSet {
    /// Whether these tags have all of the set.
    pub(crate) fn is_in(&self, tags: &[(String, String)]) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => tags.iter().any(|(k, v)| k == key && v == value),
            None => tags.iter().any(|(k, _)| k == wanted),
        };
        self.0.iter().all(has)
    }

    /// Returns the tags, with commas between them.
    pub(crate) fn listed(&self) -> String {
        self.0.join(", ")
    }
}

impl TryFrom<Vec<String>> for TagSet {
    type Error = TagError;

    fn try_from(tags: Vec<String>) -> Result<Self, TagError> {
        let is_tag = |tag: &String| !tag.is_empty() && !tag.starts_with('=');
        if tags.is_empty() || !tags.iter().all(is_tag) { Err(TagError) } else { Ok(Self(tags)) }
    }
}

impl From<TagSet> for Vec<String> {
    fn from(set: TagSet) -> Self {
        set.0
    }
}

impl FromStr for TagSet {
    type Err = TagError;

    fn from_str(text: &str) -> Result<Self, TagError> {
        Self::try_from(text.split(',').map(str::to_owned).collect::<Vec<_>>())
    }
}

impl fmt::Display for TagSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let check = |text: &str, expected: Option<i64>| {
            assert_eq!(text.parse::<Count>().ok().map(i64::from), expected, "{text}");
        };
        check("7", Some(7));
        check("-1", Some(-1));
        check("4294967295", Some(4_294_967_295));
        for wrong in ["0", "-2", "", "x", "4294967296"] {
            check(wrong, None);
        }
    }

    #[test]
    fn tags_are_found() {
        let tags = [("app".to_owned(), "db".to_owned()), ("keep".to_owned(), String::new())];
        let check = |set: &str, found: bool| {
            assert_eq!(set.parse::<TagSet>().unwrap().is_in(&tags), found, "{set}");
        };
        check("app", true);
        check("app=db", true);
        check("app=db,keep", true);
        check("app=web", false);
        check("app,gone", false);
        for wrong in ["", "app,", "=db"] {
            assert!(wrong.parse::<TagSet>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_policy_is_kept_as_it_is_typed() {
        let text = r#"{"keep-last":3,"keep-daily":-1,"keep-within":"1m","keep-tag":[["a","b=c"]]}"#;
        let policy: Policy = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&policy).unwrap(), text);
        let typed = "--keep-within 1m --keep-last 3 --keep-daily -1 --keep-tag a,b=c";
        assert_eq!(policy.to_string(), typed);
        assert!(!policy.is_empty());
        assert!(Policy::default().is_empty());
        let only_safety = r#"{"keep-safety":"1d"}"#;
        assert!(serde_json::from_str::<Policy>(only_safety).unwrap().is_empty());
        for unknown in [r#"{"keep-odd":3}"#, r#"{"keep-last":0}"#, r#"{"keep-tag":[[]]}"#] {
            assert!(serde_json::from_str::<Policy>(unknown).is_err(), "{unknown}");
        }
    }
}
