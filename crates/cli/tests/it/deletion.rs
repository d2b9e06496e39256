//! Snapshots are deleted in any order, it is undone, and space is freed.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::scene::WITHIN;
use crate::space::SmallFolder;
use crate::switched_off::{SwitchedOff, content};

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no {field} in {value}"))
}

#[test]
fn is_undone_by_acts_until_the_space_is_freed() {
    let vm = SwitchedOff::start();
    for state in 1..=4 {
        vm.take(&format!("s{state}"), state);
    }
    vm.tintype.json(&["rm", "web@s2"]);
    vm.tintype.json(&["rm", "web@s1", "web@s3"]);
    assert_eq!(vm.snapshots(), ["s4"]);
    vm.fail(2, &["show", "web@s1"]);
    let nothing = vm.fail(2, &["rm", "web@s4", "web@s1"]);
    assert!(nothing.contains("there is no snapshot `web@s1`"), "{nothing}");
    let undone = vm.tintype.json(&["undo"]);
    assert_eq!(undone["snapshots"].as_array().unwrap().len(), 2, "{undone}");
    assert_eq!(vm.snapshots(), ["s1", "s3", "s4"]);
    vm.tintype.json(&["undo"]);
    assert_eq!(vm.snapshots(), ["s1", "s2", "s3", "s4"]);

    vm.tintype.json(&["rm", "web@s1", "web@s3"]);
    let would = vm.tintype.json(&["gc", "--now", "--dry-run"]);
    let freed = vm.tintype.json(&["gc", "--now"]);
    assert!(number(&would, "freed_bytes") > 8 << 20, "{would}");
    for field in ["segments", "compacted_segments", "not_compacted", "waiting_for"] {
        assert_eq!(would[field], freed[field], "{field}");
    }
    let off = number(&would, "freed_bytes").abs_diff(number(&freed, "freed_bytes"));
    assert!(off < 64 << 10, "{would} {freed}");
    for (name, state) in [("s2", 2), ("s4", 4)] {
        vm.tintype.json(&["revert", "web", name, "--no-safety"]);
        vm.must_be(state);
    }
    let verified = vm.tintype.json(&["verify", "--read-data"]);
    assert_eq!(verified["damaged"], json!([]));
    assert_eq!(verified["checked_snapshots"], 2);
}

/// Text in which each word is one of four that may follow the one before: the harder
/// it is tried, the shorter it gets.
fn text(len: usize) -> Vec<u8> {
    let letters: Vec<u8> = content(1, 16 << 10).iter().map(|byte| b'a' + byte % 26).collect();
    let dice = content(2, 2 * len);
    let mut word = 0;
    let words = dice.chunks(8).map(|dice| {
        word = (word * 31 + usize::from(dice[0] % 4) + 7) % 1_600;
        [&letters[word * 8..word * 8 + 2 + word % 7], b" "].concat()
    });
    words.flatten().take(len).collect()
}

#[test]
fn what_was_compressed_fast_is_compressed_again_once() {
    let vm = SwitchedOff::start();
    let disk = text(24 << 20);
    fs::write(vm.disk(), &disk).unwrap();
    vm.tintype.json(&["take", "web", "--name", "text"]);
    let would = vm.tintype.json(&["gc", "--recompress", "--dry-run"]);
    let has = |vm: &SwitchedOff| number(&vm.tintype.json(&["du"]), "repository_bytes");
    let before = has(&vm);
    let said = vm.tintype.run(&["gc", "--recompress"]);
    let said = String::from_utf8(said.stdout).unwrap();
    let again = number(&would, "recompressed_segments");
    assert!(again > 0 && said.contains(&format!(", {again} of them compressed again")), "{said}");
    let freed = before - has(&vm);
    assert!(freed > 1 << 20, "{freed} of {before}");
    assert!(number(&would, "freed_bytes").abs_diff(freed) < freed / 4, "{would} {freed}");
    let nothing = vm.tintype.json(&["gc", "--recompress"]);
    assert_eq!((number(&nothing, "segments"), number(&nothing, "freed_bytes")), (0, 0));
    assert_eq!(nothing["recompressed_segments"], 0);
    let verified = vm.tintype.json(&["verify", "--read-data"]);
    assert_eq!(verified["damaged"], json!([]));
    fs::write(vm.disk(), vec![0; disk.len()]).unwrap();
    vm.tintype.json(&["revert", "web", "text", "--no-safety"]);
    assert!(fs::read(vm.disk()).unwrap() == disk);
}

#[test]
fn a_name_that_was_given_again_is_told_apart_by_id() {
    let vm = SwitchedOff::start();
    let first = vm.take("a", 1);
    vm.tintype.json(&["rm", "web@a"]);
    let removal = vm.tintype.lines(&["op", "log"])[0]["number"].to_string();
    vm.take("a", 2);
    vm.tintype.json(&["undo", "--operation", &removal]);
    let several = vm.fail(2, &["rm", "web@a"]);
    assert!(several.contains("may be one of several snapshots"), "{several}");
    vm.tintype.json(&["rm", first["id"].as_str().unwrap()]);
    vm.tintype.json(&["revert", "web", "a", "--no-safety"]);
    vm.must_be(2);
}

#[test]
fn space_is_counted_to_the_byte() {
    let vm = SwitchedOff::start();
    for name in ["one", "same"] {
        vm.take(name, 1);
    }
    vm.take("other", 2);
    let all = vm.tintype.json(&["du"]);
    let pair = vm.tintype.json(&["du", "web@one", "web@same"]);
    assert_eq!(pair["snapshots"].as_array().unwrap().len(), 2, "{pair}");
    let alone = |name: &str| number(&vm.tintype.json(&["du", name]), "exclusive_bytes");
    assert!(alone("web@one") < 64 << 10, "what the other has too is not its own");
    let exclusive = number(&pair, "exclusive_bytes");
    assert!(exclusive > 4 << 20, "together they are alone with it: {pair}");
    assert_eq!(exclusive + number(&pair, "shared_bytes"), number(&pair, "referenced_bytes"));
    let of_vm = vm.tintype.json(&["du", "web"]);
    for field in ["snapshots", "referenced_bytes", "exclusive_bytes", "vms", "ratio"] {
        assert_eq!(of_vm[field], all[field], "{field}");
    }
    for entry in vm.tintype.lines(&["log"]) {
        let name = format!("web@{}", entry["name"].as_str().unwrap());
        assert_eq!(number(&entry, "exclusive_bytes"), alone(&name), "{entry}");
    }
    vm.tintype.json(&["rm", "web@one", "web@same"]);
    let without = number(&vm.tintype.json(&["du"]), "referenced_bytes");
    assert_eq!(number(&all, "referenced_bytes") - without, exclusive);
}

#[test]
fn collection_waits_for_what_is_being_taken() {
    let vm = SwitchedOff::start();
    vm.take("gone", 1);
    vm.write(2);
    let held = vm.path("held");
    let mut take = vm
        .tintype
        .command()
        .args(["take", "web", "--name", "new"])
        .env("TINTYPE_TEST_FAULT", format!("take-stored:{held}"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + WITHIN;
    while !Path::new(&held).exists() {
        assert!(Instant::now() < deadline && take.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(5));
    }
    vm.tintype.json(&["rm", "web@gone"]);
    assert_eq!(number(&vm.tintype.json(&["gc", "--now", "--dry-run"]), "waiting_for"), 1);
    let waits = vm.tintype.json(&["gc", "--now"]);
    assert_eq!((number(&waits, "waiting_for"), number(&waits, "freed_bytes")), (1, 0));
    fs::remove_file(&held).unwrap();
    assert!(take.wait().unwrap().success());
    assert!(number(&vm.tintype.json(&["gc", "--now"]), "freed_bytes") > 4 << 20);
    assert_eq!(vm.snapshots(), ["new"]);
    vm.tintype.json(&["revert", "web", "new", "--no-safety"]);
    vm.must_be(2);
}

#[test]
fn a_full_file_system_is_freed() {
    let vm = SwitchedOff::start();
    let place = vm.path("small");
    let Some(_small) = SmallFolder::mount(Path::new(&place), "size=24m") else { return };
    let repo = format!("{place}/repository");
    let run = |arguments: &[&str]| vm.tintype.json(&[&["--repo", &repo], arguments].concat());
    run(&["init"]);
    for state in 1..=3 {
        vm.write(state);
        run(&["take", "web", "--name", &format!("s{state}")]);
    }
    let mut filler = File::create(format!("{place}/filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    vm.write(4);
    let refused = vm.fail(4, &["--repo", &repo, "take", "web"]);
    assert!(refused.contains("there is no room for a snapshot of `web`"), "{refused}");
    let full = vm.fail(1, &["--repo", &repo, "take", "web", "--ignore-space"]);
    assert!(full.contains("No space left on device"), "{full}");
    run(&["rm", "web@s1"]);
    let refused = vm.fail(4, &["--repo", &repo, "take", "web"]);
    assert!(refused.contains("`tintype gc --now` frees 4.0 MiB"), "{refused}");
    run(&["rm", "web@s2"]);
    run(&["undo"]);
    run(&["undo"]);
    let pruned = run(&["prune", "web", "--keep-last", "1"]);
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 2, "{pruned}");
    run(&["undo"]);
    run(&["prune", "web", "--keep-last", "1"]);
    let full = vm.fail(1, &["--repo", &repo, "take", "web"]);
    assert!(full.contains("`tintype gc --now` does for what is deleted"), "{full}");
    assert!(number(&run(&["gc", "--now"]), "freed_bytes") > 8 << 20);
    run(&["take", "web", "--name", "s4"]);
    let verified = run(&["verify", "--read-data"]);
    assert_eq!(verified["damaged"], json!([]));
    assert_eq!(verified["checked_snapshots"], 2);
}

#[test]
fn what_is_said_of_a_snapshot_can_change() {
    let vm = SwitchedOff::start();
    vm.write(1);
    vm.tintype.json(&["take", "web", "--name", "a", "-m", "first", "--tag", "env=test"]);
    vm.take("b", 2);
    let renamed = vm.tintype.json(&["rename", "web@a", "before"]);
    assert_eq!((&renamed["name"], &renamed["message"]), (&json!("before"), &json!("first")));
    assert_eq!(vm.snapshots(), ["before", "b"]);
    vm.fail(2, &["show", "web@a"]);
    let taken = vm.fail(2, &["rename", "web@b", "before"]);
    assert!(taken.contains("has a snapshot `before` already"), "{taken}");
    vm.fail(2, &["take", "web", "--name", "before"]);
    vm.fail(2, &["take", "web", "--tag", "a b=c"]);
    vm.fail(2, &["rename", "web@b", "latest"]);

    vm.tintype.json(&["tag", "web@before", "env=prod", "by=me"]);
    let tagged = vm.tintype.json(&["tag", "web@before", "--remove", "by", "x=1"]);
    assert_eq!(tagged["tags"], json!([["env", "prod"], ["x", "1"]]));
    vm.fail(2, &["tag", "web@before", "--remove", "by"]);
    vm.fail(2, &["tag", "web@before"]);
    let noted = vm.tintype.json(&["note", "web@before", "second"]);
    assert_eq!(vm.tintype.json(&["show", "web@before"])["snapshot"], noted);
    assert_eq!(noted["message"], "second");

    vm.tintype.json(&["pin", "web@before"]);
    let pinned = vm.fail(4, &["rm", "web@b", "web@before"]);
    assert!(pinned.contains("`web@before` is pinned"), "{pinned}");
    assert!(pinned.contains("`tintype unpin web@before`"), "{pinned}");
    assert_eq!(vm.snapshots(), ["before", "b"], "nothing was deleted");
    let unpinned = vm.tintype.json(&["unpin", "web@before"]);
    assert_eq!(unpinned["pinned"], false);
    vm.tintype.json(&["rm", "web@before"]);
    vm.tintype.json(&["take", "web", "--name", "before"]);
    vm.tintype.json(&["revert", "web", "b", "--no-safety"]);
    vm.must_be(2);
}

#[test]
fn a_full_home_with_its_repository_is_freed() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    let Some(_small) = SmallFolder::mount(&home, "size=24m") else { return };
    let vm = SwitchedOff::start_in(folder);
    for state in 1..=3 {
        vm.take(&format!("s{state}"), state);
    }
    let mut filler = File::create(home.join("filler")).unwrap();
    while filler.write_all(&[1; 4096]).is_ok() {}
    let removed = vm.tintype.json(&["rm", "web@s1", "--dry-run"]);
    assert!(number(&removed, "freed_bytes") > 2 << 20, "{removed}");
    vm.tintype.json(&["rm", "web@s1"]);
    vm.tintype.json(&["undo"]);
    vm.tintype.json(&["prune", "web", "--keep-last", "1"]);
    assert_eq!(vm.snapshots(), ["s3"]);
    assert!(number(&vm.tintype.json(&["gc", "--now"]), "freed_bytes") > 8 << 20);
    vm.take("s4", 4);
}
