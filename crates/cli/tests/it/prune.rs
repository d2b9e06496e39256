//! Snapshots are deleted by rule, in one act, and never those that must stay.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::switched_off::{SwitchedOff, failed};
use crate::wrong_clock::WrongClock;

/// Returns the snapshots of a report that are kept, newest first, with the reasons.
fn kept(report: &Value) -> Vec<String> {
    let snapshots = report["vms"][0]["snapshots"].as_array().unwrap().iter();
    let kept = snapshots.filter(|snapshot| snapshot["keep"] == true);
    let words = |reasons: &Value| {
        let reasons = reasons.as_array().unwrap().iter();
        reasons.map(|reason| reason.as_str().unwrap().to_owned()).collect::<Vec<_>>().join(", ")
    };
    kept.map(|s| format!("{}: {}", s["name"].as_str().unwrap(), words(&s["reasons"]))).collect()
}

#[test]
fn the_dry_run_is_the_run_and_undo_takes_it_back() {
    let vm = SwitchedOff::start();
    for state in 1..=5 {
        vm.take(&format!("s{state}"), state);
    }
    vm.tintype.json(&["revert", "web", "s2", "--no-safety"]);
    let prune = ["prune", "web", "--keep-last", "2"];
    let would = vm.tintype.json(&[&prune[..], &["--dry-run"]].concat());
    assert_eq!(vm.snapshots().len(), 5, "nothing was done");
    let expected =
        ["s5: last snapshot, last good snapshot", "s4: last snapshot", "s2: where the VM is now"];
    assert_eq!(kept(&would), expected);
    let gone = &would["vms"][0]["snapshots"][4];
    assert_eq!((&gone["name"], &gone["reasons"]), (&json!("s1"), &json!(["not of the last 2"])));
    let together = vm.tintype.json(&["du", "web@s1", "web@s3"]);
    assert_eq!(would["freed_bytes"], together["exclusive_bytes"]);
    assert_eq!(gone["exclusive_bytes"], together["snapshots"][0]["exclusive_bytes"]);

    let mut did = vm.tintype.json(&prune);
    assert_eq!(did["dry_run"], false);
    did["dry_run"] = json!(true);
    assert_eq!(did, would);
    assert_eq!(vm.snapshots(), ["s2", "s4", "s5"]);
    assert_eq!(vm.tintype.json(&["undo"])["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(vm.snapshots().len(), 5);

    vm.tintype.json(&prune);
    let freed = vm.tintype.json(&["gc", "--now"]);
    assert!(freed["freed_bytes"].as_u64() >= would["freed_bytes"].as_u64(), "{freed}");
    let again = vm.tintype.run(&prune);
    let text = String::from_utf8(again.stdout).unwrap();
    assert!(text.contains("keep   s2"), "{text}");
    assert!(text.ends_with("nothing to delete\n"), "{text}");
}

#[test]
fn policies_are_kept_with_the_vm() {
    let vm = SwitchedOff::start();
    let none = vm.fail(2, &["prune", "web"]);
    assert!(none.contains("`web` has no policy"), "{none}");
    vm.fail(2, &["prune", "--all"]);
    vm.fail(2, &["prune"]);
    vm.fail(2, &["prune", "web", "--keep-last", "0"]);
    vm.fail(2, &["prune", "--all", "--keep-last", "1"]);
    let empty = vm.fail(2, &["prune", "web", "--keep-safety", "1d"]);
    assert!(empty.contains("the policy keeps nothing"), "{empty}");
    vm.fail(2, &["vm", "set", "web", "--keep-safety", "1d"]);
    vm.fail(2, &["vm", "set", "web", "--prune-after-take", "on"]);

    let policy = ["--keep-last", "1", "--keep-tag", "release"];
    vm.tintype.json(&[&["vm", "set", "web"], &policy[..]].concat());
    let shown = vm.tintype.json(&["vm", "show", "web"]);
    let expected = json!({"keep-last": 1, "keep-tag": [["release"]]});
    assert_eq!(shown["settings"]["policy"], expected);
    vm.write(1);
    vm.tintype.json(&["take", "web", "--name", "one", "--tag", "release=1"]);
    for state in 2..=3 {
        vm.take(&format!("s{state}"), state);
    }
    let all = vm.tintype.json(&["prune", "--all"]);
    assert_eq!(
        kept(&all),
        ["s3: last snapshot, where the VM is now, last good snapshot", "one: has tags [release]"]
    );
    assert_eq!(vm.snapshots(), ["one", "s3"]);

    vm.tintype.json(&["vm", "set", "web", "--prune-after-take", "on"]);
    vm.write(4);
    let output = vm.tintype.run(&["take", "web", "--name", "s4"]);
    let errors = failed(&output, 0);
    assert!(errors.contains("note: pruned 1 snapshots"), "{errors}");
    assert_eq!(vm.snapshots(), ["one", "s4"]);
    vm.fail(2, &["vm", "set", "web", "--no-policy"]);
    vm.tintype.json(&["vm", "set", "web", "--no-policy", "--prune-after-take", "off"]);
    vm.take("s5", 5);
    assert_eq!(vm.snapshots(), ["one", "s4", "s5"]);
}

#[test]
fn safety_snapshots_are_not_the_users() {
    let vm = SwitchedOff::start();
    vm.take("s1", 1);
    vm.take("s2", 2);
    vm.tintype.json(&["revert", "web", "s1"]);
    let report = vm.tintype.json(&["prune", "web", "--keep-last", "1", "--dry-run"]);
    let expected = [
        "safety1: safety within 7d",
        "s2: last snapshot, last good snapshot",
        "s1: where the VM is now",
    ];
    assert_eq!(kept(&report), expected);
}

/// Returns the segments of the repository.
fn segments(vm: &SwitchedOff) -> BTreeSet<PathBuf> {
    let folder = Path::new(&vm.path("home")).join("repository/seg");
    let below = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    below.flat_map(|f| fs::read_dir(f).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_last_good_one_stays_when_newer_ones_are_damaged() {
    let vm = SwitchedOff::start();
    vm.take("s1", 1);
    vm.take("s2", 2);
    let before = segments(&vm);
    vm.take("s3", 3);
    for segment in segments(&vm).difference(&before) {
        fs::remove_file(segment).unwrap();
    }
    let report = vm.tintype.json(&["prune", "web", "--keep-last", "1"]);
    let expected = ["s3: last snapshot, where the VM is now", "s2: last good snapshot"];
    assert_eq!(kept(&report), expected);
    assert_eq!(report["freed_bytes"], Value::Null);
    vm.tintype.json(&["revert", "web", "s2", "--no-safety"]);
    vm.must_be(2);
}

#[test]
fn a_clock_that_jumped_deletes_nothing() {
    let vm = SwitchedOff::start();
    let clock = WrongClock::build(Path::new(&vm.path("")));
    for (name, days) in [("s1", -2), ("s2", -1), ("s3", 0)] {
        vm.write(1);
        let mut take = vm.tintype.command();
        let took = clock.shift(&mut take, days).args(["take", "web", "--name", name]).output();
        failed(&took.unwrap(), 0);
    }
    let prune = ["prune", "web", "--keep-within", "1m"];
    vm.tintype.json(&prune);
    assert_eq!(vm.snapshots().len(), 3);

    // The clock is behind the snapshots.
    let prune_at = |days: i32, more: &[&str]| {
        let mut command = vm.tintype.command();
        clock.shift(&mut command, days).args(["prune", "web"]).args(more).output().unwrap()
    };
    let past = failed(&prune_at(-1, &["--keep-last", "1"]), 4);
    assert!(past.contains("the clock seems to have jumped"), "{past}");
    assert!(past.contains("state: nothing was deleted"), "{past}");

    // It is two years ahead, and so is the newest snapshot.
    let mut take = vm.tintype.command();
    failed(&clock.shift(&mut take, 730).args(["take", "web", "--name", "s4"]).output().unwrap(), 0);
    let leap = failed(&prune_at(730, &prune[2..]), 4);
    assert!(leap.contains("all that is older than this gap would go at once"), "{leap}");
    assert_eq!(vm.snapshots().len(), 4);
    // Set right again, it finds a snapshot of the future.
    let future = vm.fail(4, &["prune", "web", "--keep-last", "1"]);
    assert!(future.contains("web@s4 is of "), "{future}");
    let trusted = vm.tintype.json(&["prune", "web", "--keep-last", "1", "--trust-clock"]);
    let expected =
        ["s4: from the future, where the VM is now, last good snapshot", "s3: last snapshot"];
    assert_eq!(kept(&trusted), expected);
}
