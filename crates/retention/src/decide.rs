//! Decides, for each snapshot of a VM, whether it is kept, and why.
//!
//! The same walk as restic's: from the newest to the oldest, each rule keeps the first
//! snapshot of each hour, day, … until it has kept as many as it may; the very oldest is
//! kept by a rule that could keep more.

use jiff::Timestamp;

use crate::effective;
use crate::period::Period;
use crate::policy::{Count, Policy};
use crate::reason::{Reason, Rule};

/// A snapshot to decide on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its instant, by the clock of the host that took it.
    pub created: Timestamp,
    /// Its tags.
    pub tags: Vec<(String, String)>,
    /// Whose it is.
    pub kind: Kind,
    /// What keeps it whatever the policy says.
    pub guards: Vec<Guard>,
}

/// Whose a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Somebody asked for it.
    Asked,
    /// A revert has left it; it has a rule of its own, and no other counts it.
    Safety,
}

/// What keeps a snapshot whatever the policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Somebody has pinned it. It is not counted by rules either.
    Pinned,
    /// It is where the VM is now.
    Current,
    /// A revert that was interrupted has to put it back.
    Revert,
    /// The memory or the disks of a running guest are still being loaded from it.
    Loading,
    /// It is the newest that is known to be whole.
    LastGood,
}

impl Guard {
    fn reason(self) -> Reason {
        match self {
            Self::Pinned => Reason::Pinned,
            Self::Current => Reason::Current,
            Self::Revert => Reason::Revert,
            Self::Loading => Reason::Loading,
            Self::LastGood => Reason::LastGood,
        }
    }
}

/// What becomes of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is kept.
    pub keep: bool,
    /// All reasons to keep it, or why each rule does not; in the order of the rules.
    pub reasons: Vec<Reason>,
}

/// Decides on all snapshots of one VM, which are given oldest first in the order of the
/// repository; the answers are in the same order. A policy without a rule keeps all.
pub fn decide(policy: &Policy, candidates: &[Candidate], now: Timestamp) -> Vec<Decision> {
    let created: Vec<Timestamp> = candidates.iter().map(|candidate| candidate.created).collect();
    let times = effective::times(&created, now);
    let latest = times.iter().flatten().last().copied().unwrap_or(now);
    let is_counted = |index: &usize| {
        let candidate = &candidates[*index];
        candidate.kind == Kind::Asked
            && !candidate.guards.contains(&Guard::Pinned)
            && times[*index].is_some()
    };
    let oldest = (0..candidates.len()).find(is_counted);
    let mut rules: Vec<Walk> = policy.rules().iter().map(|rule| Walk::new(*rule, latest)).collect();
    let mut decisions: Vec<Decision> = (0..candidates.len())
        .rev()
        .map(|index| {
            let candidate = &candidates[index];
            let (mut keeps, mut lets_go) = (Vec::new(), Vec::new());
            match times[index] {
                None => keeps.push(Reason::Future),
                Some(at) if candidate.kind == Kind::Safety => {
                    let (kept, reason) = safety(policy.safety(), at, latest);
                    if kept { &mut keeps } else { &mut lets_go }.push(reason);
                }
                Some(at) if is_counted(&index) => {
                    tags(policy, candidate, &mut keeps, &mut lets_go);
                    for rule in &mut rules {
                        let (kept, reason) = rule.step(at, Some(index) == oldest);
                        if kept { &mut keeps } else { &mut lets_go }.push(reason);
                    }
                }
                Some(_) => {}
            }
            keeps.extend(candidate.guards.iter().map(|guard| guard.reason()));
            let keep = !keeps.is_empty() || policy.is_empty();
            Decision { keep, reasons: if keep { keeps } else { lets_go } }
        })
        .collect();
    decisions.reverse();
    decisions
}

fn tags(
    policy: &Policy,
    candidate: &Candidate,
    keeps: &mut Vec<Reason>,
    lets_go: &mut Vec<Reason>,
) {
    let has = policy.keep_tag.iter().filter(|set| set.is_in(&candidate.tags));
    let before = keeps.len();
    keeps.extend(has.map(|set| Reason::Tags(set.clone())));
    if keeps.len() == before && !policy.keep_tag.is_empty() {
        lets_go.push(Reason::Untagged);
    }
}

fn safety(period: Period, at: Timestamp, latest: Timestamp) -> (bool, Reason) {
    match at > period.before(latest) {
        true => (true, Reason::Safety(period)),
        false => (false, Reason::Older(period)),
    }
}

/// How far a rule has come on its way from the newest to the oldest.
struct Walk {
    rule: Rule,
    /// How many more it may keep; `None` for any number.
    left: Option<u32>,
    /// From when on it keeps.
    from: Timestamp,
    bucket: Option<i128>,
}

impl Walk {
    fn new(rule: Rule, latest: Timestamp) -> Self {
        let (left, from) = match rule {
            Rule::Newest(_, Count::All) => (None, Timestamp::MIN),
            Rule::Newest(_, Count::Last(number)) => (Some(number.get()), Timestamp::MIN),
            Rule::Within(_, period) => (None, period.before(latest)),
        };
        Self { rule, left, from, bucket: None }
    }

    /// Says whether the rule keeps the next snapshot, and why.
    fn step(&mut self, at: Timestamp, is_oldest: bool) -> (bool, Reason) {
        match self.rule {
            Rule::Within(_, period) if at <= self.from => return (false, Reason::Older(period)),
            Rule::Newest(scale, count) if self.left == Some(0) => {
                return (false, Reason::Beyond(scale, count));
            }
            _ => {}
        }
        let reason = match self.rule.scale() {
            None => Reason::Rule(self.rule),
            Some(scale) if self.bucket.replace(scale.bucket(at)) != Some(scale.bucket(at)) => {
                Reason::Rule(self.rule)
            }
            Some(_) if is_oldest => Reason::Oldest(self.rule),
            Some(scale) => return (false, Reason::Represented(scale)),
        };
        self.left = self.left.map(|left| left - 1);
        (true, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Times of snapshots, oldest first, each with letters for what else it is: `s` a
    /// safety snapshot, `p` pinned, `c` where the VM is, `g` the last good one.
    fn candidates(lines: &[&str]) -> Vec<Candidate> {
        let candidate = |line: &&str| {
            let (created, letters) = line.split_once(' ').unwrap_or((line, ""));
            let guard = |letter| match letter {
                'p' => Some(Guard::Pinned),
                'c' => Some(Guard::Current),
                'r' => Some(Guard::Revert),
                'g' => Some(Guard::LastGood),
                _ => None,
            };
            Candidate {
                created: format!("{created}:00Z").parse().unwrap(),
                tags: Vec::new(),
                kind: if letters.contains('s') { Kind::Safety } else { Kind::Asked },
                guards: letters.chars().filter_map(guard).collect(),
            }
        };
        lines.iter().map(candidate).collect()
    }

    /// Compares what becomes of each, written `keep` or `go` and the reasons.
    fn check(policy: &str, now: &str, snapshots: &[(&str, &str)]) {
        let policy: Policy = serde_json::from_str(policy).unwrap();
        let lines: Vec<&str> = snapshots.iter().map(|(line, _)| *line).collect();
        let now = format!("{now}:00Z").parse().unwrap();
        let decisions = decide(&policy, &candidates(&lines), now);
        for ((line, expected), decision) in snapshots.iter().zip(&decisions) {
            let reasons: Vec<String> = decision.reasons.iter().map(ToString::to_string).collect();
            let word = if decision.keep { "keep" } else { "go" };
            assert_eq!(format!("{word}: {}", reasons.join(", ")), *expected, "{line}");
        }
    }

    #[test]
    fn each_rule_says_why_not() {
        check(
            r#"{"keep-last": 1, "keep-daily": 2, "keep-within": "2h", "keep-tag": [["a"]]}"#,
            "2026-11-26T13:00",
            &[
                (
                    "2026-11-24T10:00",
                    "go: without the tags, not within 2h, not of the last 1, not of the last 2 daily",
                ),
                ("2026-11-25T10:00", "keep: daily snapshot"),
                (
                    "2026-11-26T10:00",
                    "go: without the tags, not within 2h, not of the last 1, a newer one of its day is kept",
                ),
                ("2026-11-26T11:00", "keep: within 2h"),
                ("2026-11-26T12:00", "keep: within 2h, last snapshot, daily snapshot"),
            ],
        );
    }

    #[test]
    fn the_oldest_is_kept_while_a_rule_could_keep_more() {
        let day = [
            ("2026-11-26T10:00", "keep: oldest daily snapshot"),
            ("2026-11-26T11:00", "go: a newer one of its day is kept"),
            ("2026-11-26T12:00", "keep: daily snapshot"),
        ];
        check(r#"{"keep-daily": 2}"#, "2026-11-26T13:00", &day);
        check(r#"{"keep-daily": -1}"#, "2026-11-26T13:00", &day);
    }

    #[test]
    fn guards_keep_what_no_rule_keeps() {
        check(
            r#"{"keep-last": 1}"#,
            "2026-11-26T13:00",
            &[
                ("2026-11-20T10:00 r", "keep: needed by a revert that was interrupted"),
                ("2026-11-21T10:00 pc", "keep: pinned, where the VM is now"),
                ("2026-11-22T10:00 g", "keep: last good snapshot"),
                ("2026-11-23T10:00", "go: not of the last 1"),
                ("2026-11-24T10:00", "keep: last snapshot"),
                // A pinned one is not counted.
                ("2026-11-25T10:00 p", "keep: pinned"),
            ],
        );
    }

    #[test]
    fn safety_snapshots_have_a_rule_of_their_own() {
        let snapshots = [
            ("2026-11-10T10:00 s", "go: not within 7d"),
            ("2026-11-10T11:00 sc", "keep: where the VM is now"),
            ("2026-11-20T10:00 s", "keep: safety within 7d"),
            ("2026-11-24T10:00", "keep: last snapshot"),
            ("2026-11-24T11:00 s", "keep: safety within 7d"),
        ];
        check(r#"{"keep-last": 1}"#, "2026-12-26T13:00", &snapshots);
        let one_day = [
            ("2026-11-20T10:00 s", "go: not within 1d"),
            ("2026-11-24T11:00 s", "keep: safety within 1d"),
        ];
        check(r#"{"keep-last": 1, "keep-safety": "1d"}"#, "2026-12-26T13:00", &one_day);
    }

    #[test]
    fn wrong_clocks_make_nothing_older() {
        // Taken while the clock was back at its beginning: as old as the one before.
        check(
            r#"{"keep-within": "2d"}"#,
            "2026-11-26T13:00",
            &[
                ("2026-11-24T10:00", "go: not within 2d"),
                ("2026-11-25T10:00", "keep: within 2d"),
                ("1970-01-01T00:00", "keep: within 2d"),
                ("2026-11-26T12:00", "keep: within 2d"),
            ],
        );
        // Of the future: kept, counted by no rule, and no measure for the others.
        check(
            r#"{"keep-last": 1, "keep-within": "2d"}"#,
            "2026-11-26T13:00",
            &[
                ("2026-11-24T10:00", "go: not within 2d, not of the last 1"),
                ("2026-11-26T12:00", "keep: within 2d, last snapshot"),
                ("2099-01-01T00:00", "keep: from the future"),
            ],
        );
    }

    #[test]
    fn an_empty_policy_keeps_all() {
        check("{}", "2026-11-26T13:00", &[("2026-11-24T10:00", "keep: ")]);
    }
}
