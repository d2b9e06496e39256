//! Why a snapshot is kept or let go, in the words of restic where it has some.

use std::fmt;

use crate::period::Period;
use crate::policy::{Count, TagSet};
use crate::scale::Scale;

/// A rule of a policy, for every snapshot or for the newest of each part of a calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The newest so many.
    Newest(Option<Scale>, Count),
    /// Those within a period before the newest.
    Within(Option<Scale>, Period),
}

impl Rule {
    pub(crate) fn scale(&self) -> Option<Scale> {
        match self {
            Self::Newest(scale, _) | Self::Within(scale, _) => *scale,
        }
    }

    /// Returns it as it is typed.
    pub(crate) fn option(&self) -> String {
        match self {
            Self::Newest(None, count) => format!("--keep-last {count}"),
            Self::Newest(Some(scale), count) => format!("--keep-{scale} {count}"),
            Self::Within(None, period) => format!("--keep-within {period}"),
            Self::Within(Some(scale), period) => format!("--keep-within-{scale} {period}"),
        }
    }
}

impl fmt::Display for Rule {
    /// Writes what a snapshot is that the rule keeps.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Newest(None, _) => f.write_str("last snapshot"),
            Self::Newest(Some(scale), _) => write!(f, "{scale} snapshot"),
            Self::Within(None, period) => write!(f, "within {period}"),
            Self::Within(Some(scale), period) => write!(f, "{scale} within {period}"),
        }
    }
}

/// Why a snapshot is kept or let go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// A rule keeps it.
    Rule(Rule),
    /// A rule keeps it as the oldest of all, since it could keep more than there are.
    Oldest(Rule),
    /// It has these tags.
    Tags(TagSet),
    /// Somebody has pinned it.
    Pinned,
    /// It is where the VM is now.
    Current,
    /// A revert that was interrupted has to put it back.
    Revert,
    /// The memory or the disks of a running guest are still being loaded from it.
    Loading,
    /// It is the newest that is known to be whole.
    LastGood,
    /// It is from the future, so its age is not known.
    Future,
    /// It is a safety snapshot, and this young.
    Safety(Period),
    /// Let go: a rule has kept as many as it may.
    Beyond(Option<Scale>, Count),
    /// Let go: a newer one stands for its part of the calendar.
    Represented(Scale),
    /// Let go: it is older than a rule keeps.
    Older(Period),
    /// Let go: it has none of the tags that would keep it.
    Untagged,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(rule) => rule.fmt(f),
            Self::Oldest(rule) => write!(f, "oldest {rule}"),
            Self::Tags(tags) => write!(f, "has tags [{}]", tags.listed()),
            Self::Pinned => f.write_str("pinned"),
            Self::Current => f.write_str("where the VM is now"),
            Self::Revert => f.write_str("needed by a revert that was interrupted"),
            Self::Loading => f.write_str("a guest is being loaded from it"),
            Self::LastGood => f.write_str("last good snapshot"),
            Self::Future => f.write_str("from the future"),
            Self::Safety(period) => write!(f, "safety within {period}"),
            Self::Beyond(None, count) => write!(f, "not of the last {count}"),
            Self::Beyond(Some(scale), count) => write!(f, "not of the last {count} {scale}"),
            Self::Represented(scale) => {
                write!(f, "a newer one of its {} is kept", scale.unit())
            }
            Self::Older(period) => write!(f, "not within {period}"),
            Self::Untagged => f.write_str("without the tags"),
        }
    }
}
