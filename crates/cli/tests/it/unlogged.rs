//! What is done and not in the log of operations: its command was killed in between, or
//! found no room for the entry, or another command did the same at once.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::json;

use crate::scene::Held;
use crate::space::SmallFolder;
use crate::switched_off::SwitchedOff;

/// A VM with snapshots s1 to s3.
fn with_three() -> SwitchedOff {
    let vm = SwitchedOff::start();
    for state in 1..=3 {
        vm.take(&format!("s{state}"), state);
    }
    vm
}

fn held(vm: &SwitchedOff, step: &str, arguments: &[&str]) -> Held {
    Held::start(vm.tintype.command().args(arguments), Path::new(&vm.path("")), step)
}

/// Kills a command at a step.
fn kill(vm: &SwitchedOff, step: &str, arguments: &[&str]) {
    let output =
        vm.tintype.command().args(arguments).env("TINTYPE_TEST_FAULT", step).output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn what_a_killed_deletion_did_is_taken_back() {
    let vm = with_three();
    let logged = vm.tintype.lines(&["op", "log"]);
    let deletions: [&[&str]; 2] =
        [&["rm", "web@s1", "web@s2"], &["prune", "web", "--keep-last", "1"]];
    for deletion in deletions {
        kill(&vm, "deleted", deletion);
        assert_eq!(vm.snapshots(), ["s3"], "{deletion:?}");
        // A collection leaves it in the trash, like any deletion.
        assert_eq!(vm.tintype.json(&["gc"])["trash"]["snapshots"], 2);
        kill(&vm, "undo-done", &["undo"]);
        assert_eq!(vm.snapshots(), ["s1", "s2", "s3"], "{deletion:?}");
        assert_eq!(vm.tintype.lines(&["op", "log"]), logged, "{deletion:?}");
    }
    // A deletion that is undone, and unlogged both times, is nothing to take back.
    let undone = vm.tintype.json(&["undo"]);
    assert_eq!((&undone["undone"], &undone["did"]), (&json!("take"), &json!("deleted web@s3")));
    for state in 1..=2 {
        vm.tintype.json(&["revert", "web", &format!("s{state}"), "--no-safety"]);
        vm.must_be(state);
    }
}

#[test]
fn a_deletion_that_found_no_room_for_the_log_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let Some(_small) = SmallFolder::mount(&home, "size=32m") else { return };
    let vm = SwitchedOff::start_in(folder);
    for state in 1..=3 {
        vm.take(&format!("s{state}"), state);
    }
    let deletions: [&[&str]; 2] =
        [&["rm", "web@s1", "web@s2"], &["prune", "web", "--keep-last", "1"]];
    for deletion in deletions {
        let held = held(&vm, "deleted", deletion);
        let mut filler = File::create(home.join("filler")).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        let ended = held.let_go();
        assert!(ended.status.success(), "{}", ended.errors);
        assert_eq!(vm.snapshots(), ["s3"], "{deletion:?}");
        assert_eq!(vm.tintype.json(&["undo"])["snapshots"].as_array().unwrap().len(), 2);
        assert_eq!(vm.snapshots(), ["s1", "s2", "s3"], "{deletion:?}");
        std::fs::remove_file(home.join("filler")).unwrap();
    }
}

#[test]
fn of_two_that_undo_at_once_one_is_told() {
    let vm = with_three();
    vm.tintype.json(&["rm", "web@s1", "web@s2"]);
    let slow = held(&vm, "undo-chosen", &["undo"]);
    let fast = vm.tintype.run(&["undo"]);
    assert!(fast.status.success() && fast.stderr.is_empty(), "{fast:?}");
    let slow = slow.let_go();
    assert!(slow.status.success(), "{}", slow.errors);
    assert!(slow.errors.contains("was taken back at the same time by"), "{}", slow.errors);
    assert_eq!(vm.snapshots(), ["s1", "s2", "s3"]);
    // The next one goes on with what was done before.
    assert_eq!(vm.tintype.json(&["undo"])["did"], "deleted web@s3");
    // Of what one has collected meanwhile the other brings nothing back, and says so.
    vm.tintype.json(&["rm", "web@s1"]);
    let late = held(&vm, "undo-chosen", &["undo"]);
    vm.tintype.json(&["gc", "--now"]);
    let late = late.let_go();
    assert_eq!(late.status.code(), Some(2), "{}", late.errors);
    assert!(late.errors.contains("cannot be taken back any more"), "{}", late.errors);
    assert_eq!(vm.snapshots(), ["s2"]);
    let verified = vm.tintype.json(&["verify", "--read-data"]);
    assert_eq!(verified["damaged"], json!([]));
}
