//! What must hold for every policy and every clock.

use jiff::Timestamp;
use proptest::prelude::*;
use tintype_retention::{Candidate, Guard, Kind, Policy, decide, doubt};

/// Times within a few years, some of them on the same hours and days.
fn created() -> impl Strategy<Value = Timestamp> {
    (0_i64..40_000).prop_map(|hours| Timestamp::from_second(1_700_000_000 + hours * 3600).unwrap())
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let guard = prop_oneof![
        6 => Just(None),
        1 => Just(Some(Guard::Pinned)),
        1 => Just(Some(Guard::Current)),
        1 => Just(Some(Guard::LastGood)),
    ];
    let kind = prop_oneof![4 => Just(Kind::Asked), 1 => Just(Kind::Safety)];
    let tags = prop_oneof![3 => Just(vec![]), 1 => Just(vec![("a".into(), "1".into())])];
    (created(), tags, kind, guard).prop_map(|(created, tags, kind, guard)| Candidate {
        created,
        tags,
        kind,
        guards: guard.into_iter().collect(),
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let count = || proptest::option::weighted(0.4, prop_oneof![Just(-1_i64), 1_i64..6]);
    let within = || {
        let periods = ["1h", "7d", "1m", "1y3d"];
        proptest::option::weighted(0.3, proptest::sample::select(periods.to_vec()))
    };
    (count(), count(), count(), count(), within(), within(), any::<bool>()).prop_map(
        |(last, hourly, weekly, yearly, all, daily, tags)| {
            let number = |number: Option<i64>| number.map(|number| number.try_into().unwrap());
            let period = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            Policy {
                keep_last: number(last),
                keep_hourly: number(hourly),
                keep_weekly: number(weekly),
                keep_yearly: number(yearly),
                keep_within: period(all),
                keep_within_daily: period(daily),
                keep_tag: tags.then(|| "a=1".parse().unwrap()).into_iter().collect(),
                ..Policy::default()
            }
        },
    )
}

proptest! {
    #[test]
    fn what_is_guarded_stays_and_each_decision_has_a_reason(
        policy in policy(),
        candidates in proptest::collection::vec(candidate(), 0..40),
        now in created(),
    ) {
        let decisions = decide(&policy, &candidates, now);
        prop_assert_eq!(decisions.len(), candidates.len());
        for (candidate, decision) in candidates.iter().zip(&decisions) {
            prop_assert!(decision.keep || candidate.guards.is_empty(), "{:?}", candidate);
            prop_assert!(policy.is_empty() || !decision.reasons.is_empty());
        }
        // However wrong the clocks are, it answers.
        let _ = doubt(&policy, &candidates, &decisions, now);
    }

    /// To follow a policy a second time, later, removes nothing more.
    #[test]
    fn a_second_time_changes_nothing(
        policy in policy(),
        mut candidates in proptest::collection::vec(candidate(), 1..40),
        later in 0_i64..100_000,
    ) {
        candidates.sort_by_key(|candidate| candidate.created);
        let newest = candidates.last().unwrap().created;
        let decisions = decide(&policy, &candidates, newest);
        let mut kept = decisions.iter().map(|decision| decision.keep);
        candidates.retain(|_| kept.next().unwrap());
        let now = newest + jiff::SignedDuration::from_hours(later);
        for decision in decide(&policy, &candidates, now) {
            prop_assert!(decision.keep, "{:?}", decision);
        }
    }

    /// The number of snapshots that a plain `keep-last` leaves is the one that it names.
    #[test]
    fn keep_last_keeps_so_many(times in proptest::collection::vec(created(), 0..40), last in 1_usize..50) {
        let plain = |created: &Timestamp| Candidate {
            created: *created,
            tags: Vec::new(),
            kind: Kind::Asked,
            guards: Vec::new(),
        };
        let candidates: Vec<Candidate> = times.iter().map(plain).collect();
        let count = i64::try_from(last).unwrap().try_into().unwrap();
        let policy = Policy { keep_last: Some(count), ..Policy::default() };
        let now = "2100-01-01T00:00:00Z".parse().unwrap();
        let decisions = decide(&policy, &candidates, now);
        let kept: Vec<bool> = decisions.iter().map(|decision| decision.keep).collect();
        let expected: Vec<bool> =
            (0..times.len()).map(|index| index + last >= times.len()).collect();
        prop_assert_eq!(kept, expected);
    }
}
