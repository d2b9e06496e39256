//! Looks whether the clock can be believed before anything is let go because of its age.

use jiff::{SignedDuration, Timestamp};

use crate::decide::{Candidate, Decision, Kind};
use crate::effective;
use crate::policy::Policy;
use crate::reason::Rule;

/// Shorter gaps are no wonder: a VM may rest.
const WONDER: SignedDuration = SignedDuration::from_hours(90 * 24);

/// A gap is a wonder if it is so many times as long as the longest before it.
const TIMES: i32 = 3;

/// Why the clock is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// A snapshot is of a time that has not come yet: the clock was wrong then, or is now.
    Future {
        /// The index of the newest such snapshot.
        snapshot: usize,
    },
    /// All that was there before a long gap would go at once, because of its age alone:
    /// the clock may have jumped.
    Leap {
        /// The index of the last snapshot before the gap.
        before: usize,
        /// The index of the first one after it.
        after: usize,
    },
}

/// Says why the decisions should not be followed without asking, if there is a reason.
pub fn doubt(
    policy: &Policy,
    candidates: &[Candidate],
    decisions: &[Decision],
    now: Timestamp,
) -> Option<Doubt> {
    let is_future = |candidate: &Candidate| effective::is_future(candidate.created, now);
    if let Some(snapshot) = candidates.iter().rposition(is_future) {
        return Some(Doubt::Future { snapshot });
    }
    let created: Vec<Timestamp> = candidates.iter().map(|candidate| candidate.created).collect();
    let times: Vec<Timestamp> = effective::times(&created, now).into_iter().flatten().collect();
    let asked: Vec<usize> =
        (0..candidates.len()).filter(|index| candidates[*index].kind == Kind::Asked).collect();
    let gone = asked.iter().take_while(|index| !decisions[**index].keep).count();
    let by_age = policy.rules().iter().any(|rule| matches!(rule, Rule::Within(..)));
    if gone < 2 || gone == asked.len() || !by_age {
        return None;
    }
    let gap = |at: usize| times[asked[at]].duration_since(times[asked[at - 1]]);
    let longest = (1..gone).map(gap).max().unwrap_or_default();
    let is_leap = gap(gone) >= WONDER && gap(gone) > longest.saturating_mul(TIMES);
    is_leap.then(|| Doubt::Leap { before: asked[gone - 1], after: asked[gone] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::decide;

    /// Snapshots of these days, oldest first, on a day that is given too.
    fn check(policy: &str, days: &[&str], today: &str, expected: Option<Doubt>) {
        let at = |day: &str| format!("{day}T12:00:00Z").parse().unwrap();
        let candidate = |day: &&str| Candidate {
            created: at(day),
            tags: Vec::new(),
            kind: Kind::Asked,
            guards: Vec::new(),
        };
        let policy: Policy = serde_json::from_str(policy).unwrap();
        let candidates: Vec<Candidate> = days.iter().map(candidate).collect();
        let decisions = decide(&policy, &candidates, at(today));
        assert_eq!(doubt(&policy, &candidates, &decisions, at(today)), expected, "{days:?}");
    }

    #[test]
    fn clocks_that_jumped_are_noticed() {
        let month = r#"{"keep-within": "1m"}"#;
        let days = ["2026-01-01", "2026-01-02", "2026-01-03", "2028-01-04", "2028-01-05"];
        check(month, &days, "2028-01-05", Some(Doubt::Leap { before: 2, after: 3 }));
        // The clock is behind the newest snapshot.
        check(month, &days, "2026-01-04", Some(Doubt::Future { snapshot: 4 }));
        // Counted by number, age does not matter.
        check(r#"{"keep-last": 2}"#, &days, "2028-01-05", None);
        check(r#"{"keep-daily": 2}"#, &days, "2028-01-05", None);
        // Something of before stays.
        check(r#"{"keep-within": "1m", "keep-daily": 3}"#, &days, "2028-01-05", None);
        // A VM that rests for a while, and one that always did.
        check(month, &["2026-01-01", "2026-01-02", "2026-03-20"], "2026-03-20", None);
        let yearly = ["2024-01-01", "2025-01-01", "2026-01-01", "2027-01-01"];
        check(r#"{"keep-within": "9m"}"#, &yearly, "2027-01-01", None);
        check(month, &days[..3], "2028-01-05", None);
    }
}
