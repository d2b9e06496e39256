//! Snapshots are copied to other repositories, and put back from there.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use serde_json::{Value, json};
use tintype_testkit::{Error, S3Server};

use crate::scene::Scene;
use crate::space::SmallFolder;
use crate::switched_off::{SIZE, SwitchedOff, content, failed};
use crate::words::files;

/// Copies, and returns a line for each snapshot.
fn copy(vm: &SwitchedOff, arguments: &[&str]) -> Vec<Value> {
    vm.tintype.lines(&[&["copy"], arguments].concat())
}

fn actions(lines: &[Value]) -> Vec<(&str, &str)> {
    let text = |line: &Value, field: &str| line[field].as_str().unwrap().to_owned().leak();
    lines.iter().map(|line| (&*text(line, "name"), &*text(line, "action"))).collect()
}

#[test]
fn what_the_other_side_lacks_is_copied_and_put_back_from_there() {
    let vm = SwitchedOff::start();
    let (other, key) = (vm.path("other"), vm.path("other.key"));
    vm.take("one", 1);
    let mut disk = content(1, SIZE);
    disk[..64 << 10].fill(3);
    fs::write(vm.disk(), &disk).unwrap();
    vm.tintype.json(&["take", "web", "--name", "two", "--tag", "keep=yes", "-m", "all well"]);
    vm.tintype.json(&["--repo", &other, "--key-file", &key, "init"]);

    vm.tintype.json(&["tag", "web@one", "said=later"]);
    vm.tintype.json(&["pin", "web@two"]);
    let to = ["--all", "--to", &other];
    let refused = vm.fail(1, &[&["copy"], &to[..]].concat());
    assert!(refused.contains("--to-key-file"), "{refused}");
    let to = [&to[..], &["--to-key-file", &key]].concat();
    let planned = copy(&vm, &[&to[..], &["--dry-run"]].concat());
    assert_eq!(actions(&planned), [("one", "would-copy"), ("two", "would-copy")]);
    assert_eq!(planned[1]["base"], planned[0]["snapshot"]);
    let there = ["--repo", &other, "--key-file", &key];
    assert!(vm.tintype.lines(&[&there[..], &["log"]].concat()).is_empty());

    let one = copy(&vm, &["web@one", "--to", &other, "--to-key-file", &key]);
    assert_eq!(actions(&one), [("one", "copied")]);
    assert!(one[0]["read_bytes"].as_u64().unwrap() >= SIZE as u64, "{}", one[0]);
    let both = copy(&vm, &to);
    assert_eq!(actions(&both), [("one", "skipped"), ("two", "copied")]);
    assert_eq!(both[1]["read_bytes"], 64 << 10, "only what differs");
    assert_eq!(actions(&copy(&vm, &to)), [("one", "skipped"), ("two", "skipped")]);

    let log = vm.tintype.lines(&[&there[..], &["log"]].concat());
    let fields = ["name", "message", "tags", "pinned", "created", "vm", "pause_ms"];
    for (copied, own) in log.iter().zip(vm.tintype.lines(&["log"])) {
        fields.iter().for_each(|field| assert_eq!(copied[field], own[field], "{field}"));
        assert_eq!(copied["origin"]["snapshot"], own["id"]);
        assert_ne!(copied["id"], own["id"]);
    }
    assert_eq!(log[0]["parent"], log[1]["id"]);
    let shown = vm.tintype.run(&[&there[..], &["show", "web@two"]].concat());
    assert!(String::from_utf8_lossy(&shown.stdout).contains("copy of"), "{shown:?}");
    vm.tintype.json(&[&there[..], &["revert", "web", "one"]].concat());
    vm.must_be(1);
    let verified = vm.tintype.json(&[&there[..], &["verify", "--read-data"]].concat());
    assert_eq!(verified["damaged"], json!([]));

    // A replica only grows, and what is lost here comes back from it.
    vm.tintype.json(&["rm", "web@one"]);
    assert!(copy(&vm, &to).iter().all(|line| line["action"] == "skipped"));
    let own = vm.path("home/repository");
    let back = [&there[..], &["copy", "--vm", "web", "--to", &own]].concat();
    let lines = vm.tintype.lines(&back);
    let expected = [("one", "copied"), ("two", "skipped"), ("safety1", "copied")];
    assert_eq!(actions(&lines), expected);
    assert_eq!(vm.snapshots(), ["one", "two", "safety1"]);
    vm.write(5);
    vm.tintype.json(&["revert", "web", "one", "--no-safety"]);
    vm.must_be(1);
}

#[test]
fn what_makes_no_sense_is_refused_and_filters_choose() {
    let vm = SwitchedOff::start();
    vm.take("one", 1);
    vm.tintype.json(&["take", "web", "--tag", "keep=yes", "--name", "two"]);
    let other = vm.path("other");
    vm.fail(2, &["copy", "--to", &other]);
    vm.fail(2, &["copy", "web@one", "--all", "--to", &other]);
    let missing = vm.fail(1, &["copy", "--all", "--to", &other]);
    assert!(missing.contains("init` makes one"), "{missing}");
    assert!(!std::path::Path::new(&other).exists());
    let own = vm.path("home/repository");
    let same = vm.fail(2, &["copy", "--all", "--to", &own]);
    assert!(same.contains("is the repository that is copied from"), "{same}");
    vm.tintype.json(&["--repo", &other, "init"]);
    vm.fail(2, &["copy", "web@three", "--to", &other]);
    vm.fail(2, &["copy", "--vm", "nobody", "--to", &other]);
    assert_eq!(actions(&copy(&vm, &["--tag", "keep=yes", "--to", &other])), [("two", "copied")]);
    let text = vm.tintype.run(&["copy", "--all", "--to", &other]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("copied web@one") && text.contains("; 1 was there"), "{text}");

    // Damage of one stops no other.
    vm.take("three", 3);
    vm.take("four", 4);
    for path in files(vm.path("home/repository/seg").as_ref()) {
        let id = vm.tintype.json(&["show", "web@three"])["snapshot"]["id"].clone();
        if path.file_name().unwrap().to_str().unwrap().starts_with(id.as_str().unwrap()) {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let output = vm.tintype.run(&["--json", "copy", "--vm", "web", "--to", &other]);
    failed(&output, 3);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected =
        [("one", "skipped"), ("two", "skipped"), ("three", "failed"), ("four", "copied")];
    assert_eq!(actions(&lines), expected);
    assert!(lines[2]["error"].as_str().unwrap().contains("is damaged"), "{}", lines[2]);
}

#[test]
fn a_copy_that_was_killed_or_found_no_space_goes_on() {
    let vm = SwitchedOff::start();
    vm.take("one", 1);
    let other = vm.path("other");
    let Some(small) = SmallFolder::mount(other.as_ref(), "size=24m") else { return };
    let init = ["--repo", &other, "init"];
    vm.tintype.json(&init);
    let arguments = ["copy", "--all", "--part-size", "1M", "--to", &other];
    let mut command = vm.tintype.command();
    let killed = command.args(arguments).env("TINTYPE_TEST_FAULT", "copy-part").output().unwrap();
    assert_eq!(killed.status.signal(), Some(9), "{killed:?}");
    assert!(vm.tintype.lines(&["--repo", &other, "log"]).is_empty());

    let resize = |size: &str| {
        let remount = ["-o", &format!("remount,size={size}")];
        assert!(Command::new("mount").args(remount).arg(&other).status().unwrap().success());
    };
    let used = files(other.as_ref()).iter().map(|path| path.metadata().unwrap().len()).sum::<u64>();
    resize(&format!("{}k", used / 1024 + 1024));
    let full = vm.fail(1, &arguments);
    assert!(full.contains("No space left on device"), "{full}");
    assert!(full.contains("the same command then goes on"), "{full}");
    resize("24m");
    let lines = copy(&vm, &arguments[1..]);
    assert_eq!(actions(&lines), [("one", "copied")]);
    assert_eq!(lines[0]["resumed"], true);
    let read = lines[0]["read_bytes"].as_u64().unwrap();
    assert!(read <= 3 << 20, "what had arrived is not read again: {read}");
    vm.write(2);
    vm.tintype.json(&["--repo", &other, "revert", "web", "one", "--no-safety"]);
    vm.must_be(1);
    vm.tintype.json(&["--repo", &other, "gc"]);
    let verified = vm.tintype.json(&["--repo", &other, "verify", "--read-data"]);
    assert_eq!(verified["damaged"], json!([]));
    drop(small);
}

#[test]
fn a_bucket_is_a_replica() {
    let server = match S3Server::start() {
        Err(missing @ Error::NoS3 { .. }) => return eprintln!("not run: {missing}"),
        server => server.unwrap(),
    };
    let bucket = format!("{}/replica", server.new_bucket().unwrap());
    let vm = SwitchedOff::start();
    vm.take("one", 1);
    let endpoint = server.endpoint();
    let run = |prefix: &str, arguments: &[&str]| {
        let mut command = vm.tintype.command();
        for (name, value) in
            [("ACCESS_KEY_ID", "test"), ("SECRET_ACCESS_KEY", "test"), ("ENDPOINT_URL", &endpoint)]
        {
            command.env(format!("{prefix}AWS_{name}"), value);
        }
        failed(&command.args(arguments).output().unwrap(), 0);
    };
    run("", &["--repo", &bucket, "init"]);
    run("TINTYPE_TO_", &["copy", "--all", "--to", &bucket]);
    vm.take("two", 2);
    run("", &["copy", "--all", "--to", &bucket, "--part-size", "1M"]);
    run("", &["--repo", &bucket, "verify", "--read-data"]);
    let third = vm.path("third");
    run("", &["--repo", &third, "init"]);
    run("", &["--repo", &bucket, "copy", "--all", "--to", &third]);
    vm.tintype.json(&["--repo", &third, "revert", "web", "one", "--no-safety"]);
    vm.must_be(1);
    vm.tintype.json(&["--repo", &third, "revert", "web", "two", "--no-safety"]);
    vm.must_be(2);
}

#[test]
fn a_guest_goes_on_from_copies_in_both_directions() {
    let mut scene = Scene::start();
    scene.write("later");
    scene.tintype.json(&["take", "web", "--name", "later"]);
    let own = scene.home().join("repository").display().to_string();
    let other = scene.home().join("other").display().to_string();
    scene.tintype.json(&["--repo", &other, "init"]);
    let copied = scene.tintype.lines(&["copy", "--all", "--to", &other]);
    let taken = scene.tintype.lines(&["log", "web"]);
    for (copied, taken) in copied.iter().zip(taken.iter().rev()) {
        eprintln!("{copied}\nas it was taken: {}", taken["stored_bytes"]);
        assert_eq!(copied["action"], "copied");
    }
    assert!(copied[1]["read_bytes"].as_u64() < copied[0]["read_bytes"].as_u64());

    assert_eq!(
        scene.tintype.json(&["--repo", &other, "revert", "web", "base"])["state"],
        "running"
    );
    assert_eq!(scene.state(), "base");
    let back = ["--repo", &other, "copy", "web@safety1", "--to", &own];
    assert_eq!(scene.tintype.json(&back)["action"], "copied");
    assert_eq!(scene.tintype.json(&["revert", "web", "safety1"])["state"], "running");
    assert_eq!(scene.state(), "later");
    let restored = scene.home().join("restored").display().to_string();
    scene.tintype.json(&["--repo", &other, "restore", "web@base", "--to", &restored]);
    for repository in [&own, &other] {
        let verified = scene.tintype.json(&["--repo", repository, "verify", "--read-data"]);
        assert_eq!(verified["damaged"], json!([]));
    }
    scene.must_be_traceless();
}
