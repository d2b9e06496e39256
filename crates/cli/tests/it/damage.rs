//! Damage is told in the words of those who took the snapshot: which bytes of
//! which disk cannot be read.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::switched_off::{SIZE, SwitchedOff, content};
use crate::words::files;

/// What is lost with one frame.
const FRAME: usize = 128 << 10;

/// Returns the largest segment of a repository: the first state's content.
fn largest_segment(vm: &SwitchedOff) -> PathBuf {
    let segments = files(vm.path("home/repository/seg").as_ref());
    segments.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn verify(vm: &SwitchedOff, code: i32, options: &[&str]) -> Value {
    let output = vm.tintype.run(&[&["--json", "verify"], options].concat());
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the lost ranges of the disk, by the snapshots' names.
fn lost(report: &Value) -> Vec<(String, u64, u64)> {
    let mut found = Vec::new();
    for part in report["lost"].as_array().unwrap() {
        assert!(part["part"].as_str().unwrap().starts_with("disk/"), "{part}");
        for range in part["ranges"].as_array().unwrap() {
            let number = |field: &str| range[field].as_u64().unwrap();
            let name = part["name"].as_str().unwrap().to_owned();
            found.push((name, number("offset"), number("len")));
        }
    }
    found
}

#[test]
fn is_repaired_from_a_copy_and_else_avoided() {
    let vm = SwitchedOff::start();
    vm.tintype.json(&["init", "--encryption", "keyfile"]);
    vm.take("one", 1);
    let repository = vm.path("home/repository");
    let copy = vm.path("copy");
    let copied = std::process::Command::new("cp").args(["-r", &repository, &copy]).status();
    assert!(copied.unwrap().success());
    assert_eq!(vm.tintype.json(&["repair", "--from", &copy])["found"], serde_json::json!([]));

    let segment = largest_segment(&vm);
    let good = fs::read(&segment).unwrap();
    let mut bad = good.clone();
    bad[5000] ^= 1;
    fs::write(&segment, &bad).unwrap();
    verify(&vm, 3, &["--read-data"]);
    let text = vm.tintype.run(&["repair", "--from", &copy]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("is whole again") && text.ends_with("all good\n"), "{text}");
    assert!(fs::read(&segment).unwrap() == good);
    vm.tintype.json(&["revert", "web", "one", "--no-safety"]);

    // Without a copy: what is still on the disk is stored again.
    fs::write(&segment, &bad).unwrap();
    let output = vm.tintype.run(&["--json", "repair"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["quarantined"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(lost(&report).len(), 1);
    vm.tintype.json(&["take", "web", "--name", "two"]);
    assert_eq!(lost(&verify(&vm, 0, &["web@two", "--read-data"])), []);
    vm.tintype.json(&["revert", "web", "two", "--no-safety"]);
    vm.tintype.json(&["rm", "web@one"]);
    vm.tintype.json(&["gc", "--now"]);
    assert_eq!(vm.tintype.json(&["repair"])["released"].as_array().unwrap().len(), 1);

    // What has nothing to do with it is refused, and what is not there is not made.
    vm.tintype.json(&["--repo", &vm.path("other"), "init"]);
    vm.fail(1, &["repair", "--from", &vm.path("other")]);
    vm.fail(1, &["repair", "--from", &vm.path("nowhere")]);
    assert!(!std::path::Path::new(&vm.path("nowhere")).exists());
}

#[test]
fn is_mended_from_a_repository_with_other_keys() {
    let vm = SwitchedOff::start();
    let (other, key) = (vm.path("other"), vm.path("other.key"));
    vm.tintype.json(&["init", "--encryption", "keyfile"]);
    vm.take("one", 1);
    vm.tintype.json(&["--repo", &other, "--key-file", &key, "init"]);
    let to = ["copy", "--all", "--to", &other, "--to-key-file", &key];
    let copied = vm.tintype.lines(&to).remove(0);
    let alone = vm.take("two", 2);

    // Content, map and record of the one that was copied; content of the other.
    let of = |snapshot: &Value| {
        let id = snapshot.as_str().unwrap();
        let all = files(vm.path("home/repository/seg").as_ref()).into_iter();
        let mut own: Vec<_> = all.filter(|path| path.to_str().unwrap().contains(id)).collect();
        own.sort_by_key(|path| fs::metadata(path).unwrap().len());
        own
    };
    let record = vm.path("home/repository/outcome/") + copied["snapshot"].as_str().unwrap();
    let lost = of(&alone["id"]).pop().unwrap();
    let good = fs::read(&lost).unwrap();
    let damaged = [of(&copied["snapshot"]), vec![PathBuf::from(&record), lost.clone()]].concat();
    for path in &damaged {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(vm.snapshots(), ["two"]);

    let refused = vm.fail(1, &["repair", "--from", &other]);
    assert!(refused.contains("--from-key-file"), "{refused}");
    let from = ["repair", "--from", &other, "--from-key-file", &key];
    let output = vm.tintype.run(&[&["--json"], &from[..]].concat());
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["mended"][0]["name"], "web@one", "{report}");
    assert_eq!(report["mended"][0]["from"], copied["copy"]);
    assert!(report["mended"][0]["unproved_bytes"].as_u64().unwrap() >= SIZE as u64);
    assert_eq!(report["quarantined"].as_array().unwrap().len(), 1, "what was not copied: {report}");
    fs::write(&lost, good).unwrap();
    let text = vm.tintype.run(&from);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("can be relied on again"), "{text}");
    assert_eq!(vm.snapshots(), ["one", "two"]);
    assert_eq!(lost_in(&vm), []);
    vm.tintype.json(&["gc"]);
    vm.tintype.json(&["revert", "web", "one", "--no-safety"]);
    vm.must_be(1);

    // With a good map each block has to prove itself.
    assert_eq!(vm.tintype.lines(&to)[1]["action"], "copied");
    let content = files(vm.path("home/repository/seg").as_ref()).into_iter();
    let content = content.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&content).unwrap();
    bytes[5000] ^= 1;
    fs::write(&content, bytes).unwrap();
    let text = String::from_utf8(vm.tintype.run(&from).stdout).unwrap();
    assert!(text.contains("needed no more") && text.ends_with("all good\n"), "{text}");
    assert!(text.contains("mended web@") && !text.contains("nothing here proves"), "{text}");
    for (name, state) in [("one", 1), ("two", 2)] {
        vm.tintype.json(&["revert", "web", name, "--no-safety"]);
        vm.must_be(state);
    }
}

/// Returns the lost ranges of the disk in all snapshots.
fn lost_in(vm: &SwitchedOff) -> Vec<(String, u64, u64)> {
    lost(&verify(vm, 0, &["--read-data"]))
}

#[test]
fn is_told_by_snapshot_disk_and_offset() {
    let vm = SwitchedOff::start();
    vm.tintype.json(&["init", "--encryption", "none"]);
    vm.take("one", 1);
    // The second shares all with the first but for its first frame.
    let mut bytes = fs::read(vm.disk()).unwrap();
    bytes[..FRAME].fill(0x5a);
    fs::write(vm.disk(), &bytes).unwrap();
    vm.tintype.json(&["take", "web", "--name", "two"]);
    assert_eq!(lost(&verify(&vm, 0, &["--read-data"])), []);

    let segment = largest_segment(&vm);
    let good = fs::read(&segment).unwrap();
    let disk = content(1, SIZE);
    for (byte, names) in [(FRAME / 2, &["web@one"][..]), (SIZE / 2, &["web@one", "web@two"])] {
        // What does not compress is stored as it came, so it can be found there.
        let sought = &disk[byte..byte + 32];
        let at = good.windows(32).position(|window| window == sought).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&segment, &bad).unwrap();
        let offset = (byte - byte % FRAME) as u64;
        let expected: Vec<_> =
            names.iter().map(|name| ((*name).to_owned(), offset, FRAME as u64)).collect();
        assert_eq!(lost(&verify(&vm, 3, &["--read-data"])), expected);
        vm.fail(4, &["revert", "web", "one", "--no-safety"]);
    }
    let text = vm.tintype.run(&["verify", "--read-data"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("web@two has lost 128 KiB of disk/"), "{text}");

    // What is in the trash can be put back, so it counts too.
    vm.tintype.json(&["rm", "web@one"]);
    let report = verify(&vm, 3, &["--read-data"]);
    assert_eq!(report["checked_snapshots"], 2);
    assert_eq!(report["checked_deleted"], 1);
    let deleted: Vec<_> = report["lost"].as_array().unwrap().iter().collect();
    let deleted: Vec<_> = deleted.iter().map(|part| (&part["name"], &part["deleted"])).collect();
    let (one, two) = (Value::from("web@one"), Value::from("web@two"));
    assert_eq!(deleted, [(&one, &Value::from(true)), (&two, &Value::from(false))]);
    let text = vm.tintype.run(&["verify", "--read-data"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("web@one, which is deleted, has lost 128 KiB of disk/"), "{text}");
    assert!(text.contains("checked 2 snapshots, 1 of them in the trash"), "{text}");
    vm.tintype.json(&["undo"]);

    fs::remove_file(&segment).unwrap();
    let (size, frame) = (SIZE as u64, FRAME as u64);
    let expected = [("web@one".to_owned(), 0, size), ("web@two".to_owned(), frame, size - frame)];
    assert_eq!(lost(&verify(&vm, 3, &[])), expected, "all of it");
    fs::write(&segment, &good).unwrap();
    assert_eq!(lost(&verify(&vm, 0, &["--read-data"])), []);
}
