//! Agrees with restic on the cases of its own tests, to the reasons. A share of cases in
//! this file needs nothing else; the others are read from beside the checkout.

use std::collections::BTreeMap;
use std::fs;

use jiff::Timestamp;
use serde::Deserialize;
use tintype_retention::{Candidate, Kind, Policy, decide};

/// A snapshot as the cases have it; its tags have no values.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Listed {
    time: Timestamp,
    tags: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Case {
    policy: Policy,
    /// Newest first.
    keep: Vec<Listed>,
    reasons: Vec<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct Cases {
    snapshots: Vec<Listed>,
    cases: Vec<Case>,
}

/// Returns what is kept of snapshots in any order, newest first, with the reasons.
fn kept(policy: &Policy, snapshots: &[Listed]) -> Vec<(Listed, Vec<String>)> {
    let mut newest_first = snapshots.to_vec();
    newest_first.sort_by_key(|listed| std::cmp::Reverse(listed.time));
    let candidate = |listed: &Listed| Candidate {
        created: listed.time,
        tags: listed.tags.iter().map(|tag| (tag.clone(), String::new())).collect(),
        kind: Kind::Asked,
        guards: Vec::new(),
    };
    let oldest_first: Vec<Candidate> = newest_first.iter().rev().map(candidate).collect();
    let now = "2026-11-26T12:00:00Z".parse().unwrap();
    let decisions = decide(policy, &oldest_first, now);
    let pairs = newest_first.into_iter().zip(decisions.into_iter().rev());
    let words = |reasons: &[_]| reasons.iter().map(ToString::to_string).collect();
    let kept = pairs.filter(|(_, decision)| decision.keep);
    kept.map(|(listed, decision)| (listed, words(&decision.reasons))).collect()
}

#[test]
fn agrees_with_restic() {
    let Some(folder) = tintype_testkit::oracle_folder("restic-retention") else {
        eprintln!("skipped: the cases of restic's tests are not on this machine");
        return;
    };
    let text = fs::read_to_string(folder.join("cases.json")).unwrap();
    let Cases { snapshots, cases } = serde_json::from_str(&text).unwrap();
    assert!(cases.len() > 20, "{} cases", cases.len());
    for Case { policy, keep, reasons } in cases {
        let expected: Vec<_> = keep.into_iter().zip(reasons).collect();
        assert_eq!(kept(&policy, &snapshots), expected, "{policy}");
    }
}

/// Checks which of a few snapshots are kept, by the days or times of each.
fn check(policy: &str, expected: &[(&str, &str)]) {
    const TIMES: [&str; 12] = [
        "2024-12-30T08:00", // Monday of the week that ISO 8601 calls the first of 2025
        "2025-01-05T09:00", // Sunday of the same week
        "2025-01-06T00:00",
        "2025-03-31T23:59",
        "2025-04-01T00:00",
        "2025-04-01T00:30",
        "2025-04-01T01:00",
        "2026-02-27T12:00",
        "2026-02-28T12:00",
        "2026-03-30T12:00",
        "2026-03-31T12:00",
        "2026-03-31T18:00",
    ];
    let listed = |time: &&str| Listed {
        time: format!("{time}:00Z").parse().unwrap(),
        tags: time.ends_with("00:30").then(|| "release".to_owned()).into_iter().collect(),
    };
    let snapshots: Vec<Listed> = TIMES.iter().map(listed).collect();
    let policy: Policy = serde_json::from_str(policy).unwrap();
    let kept: BTreeMap<Timestamp, String> = kept(&policy, &snapshots)
        .into_iter()
        .map(|(listed, reasons)| (listed.time, reasons.join(", ")))
        .collect();
    let expected: BTreeMap<Timestamp, String> = expected
        .iter()
        .map(|(time, reasons)| (format!("{time}:00Z").parse().unwrap(), (*reasons).to_owned()))
        .collect();
    assert_eq!(kept, expected, "{policy}");
}

#[test]
fn counts_by_the_calendar() {
    let last = "last snapshot";
    check(r#"{"keep-last": 2}"#, &[("2026-03-31T12:00", last), ("2026-03-31T18:00", last)]);
    check(
        r#"{"keep-daily": 3}"#,
        &[
            ("2026-02-28T12:00", "daily snapshot"),
            ("2026-03-30T12:00", "daily snapshot"),
            ("2026-03-31T18:00", "daily snapshot"),
        ],
    );
    check(
        r#"{"keep-weekly": 9}"#,
        &[
            ("2024-12-30T08:00", "oldest weekly snapshot"),
            ("2025-01-05T09:00", "weekly snapshot"),
            ("2025-01-06T00:00", "weekly snapshot"),
            ("2025-04-01T01:00", "weekly snapshot"),
            ("2026-02-28T12:00", "weekly snapshot"),
            ("2026-03-31T18:00", "weekly snapshot"),
        ],
    );
    check(
        r#"{"keep-yearly": 2, "keep-monthly": 2}"#,
        &[
            ("2025-04-01T01:00", "yearly snapshot"),
            ("2026-02-28T12:00", "monthly snapshot"),
            ("2026-03-31T18:00", "monthly snapshot, yearly snapshot"),
        ],
    );
    check(r#"{"keep-tag": [["release"]]}"#, &[("2025-04-01T00:30", "has tags [release]")]);
}

#[test]
fn counts_periods_from_the_newest() {
    check(
        r#"{"keep-within": "6h1d"}"#,
        &[("2026-03-31T12:00", "within 1d6h"), ("2026-03-31T18:00", "within 1d6h")],
    );
    check(
        r#"{"keep-within-monthly": "1y1m"}"#,
        &[
            ("2025-03-31T23:59", "monthly within 1y1m"),
            ("2025-04-01T01:00", "monthly within 1y1m"),
            ("2026-02-28T12:00", "monthly within 1y1m"),
            ("2026-03-31T18:00", "monthly within 1y1m"),
        ],
    );
}

/// Where February has no 31st, restic's calendar counts on into March (Go's `AddDate`), and
/// so its month before the 31st of March begins on the 3rd. Here it begins on the 28th of
/// February, and keeps at most three days more.
#[test]
fn a_month_ends_with_its_last_day() {
    check(
        r#"{"keep-within": "1m1h"}"#,
        &[
            ("2026-03-30T12:00", "within 1m1h"),
            ("2026-03-31T12:00", "within 1m1h"),
            ("2026-03-31T18:00", "within 1m1h"),
        ],
    );
    check(
        r#"{"keep-within": "1m7h"}"#,
        &[
            ("2026-02-28T12:00", "within 1m7h"),
            ("2026-03-30T12:00", "within 1m7h"),
            ("2026-03-31T12:00", "within 1m7h"),
            ("2026-03-31T18:00", "within 1m7h"),
        ],
    );
}
