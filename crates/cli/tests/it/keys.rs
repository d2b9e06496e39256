//! What opens a repository, and what does not.

use std::fs;

use serde_json::Value;

use crate::command::Tintype;
use crate::switched_off::{SwitchedOff, failed};

#[test]
fn the_default_repository_is_encrypted_with_the_key_in_the_home() {
    let vm = SwitchedOff::start();
    let (key, away) = (vm.path("home/key"), vm.path("away"));
    vm.write(1);
    let output = vm.tintype.run(&["take", "web", "--name", "one"]);
    let said = failed(&output, 0);
    assert!(said.contains(&format!("keep a copy of its key {key} elsewhere")), "{said}");
    assert_eq!(vm.tintype.lines(&["key", "list"])[0]["kind"], "keyfile");

    fs::rename(&key, &away).unwrap();
    let slot = vm.fail(1, &["log"]);
    assert!(slot.contains("none of the keys at hand opens the repository"), "{slot}");
    assert!(slot.contains("(keyfile)") && slot.contains("hint: --key-file"), "{slot}");
    assert!(!fs::exists(&key).unwrap(), "no key is made for a repository that has another");
    let log = vm.tintype.lines(&["--key-file", &away, "log"]);
    assert_eq!(log[0]["name"], "one");
    vm.write(2);
    vm.tintype.json(&["--key-file", &away, "revert", "web", "one"]);
    vm.must_be(1);
    let nowhere = vm.fail(2, &["--key-file", "/nowhere", "log"]);
    assert!(nowhere.contains("there is no key file /nowhere"), "{nowhere}");
}

#[test]
fn of_every_kind() {
    let vm = SwitchedOff::start();
    let (repo, words) = (vm.path("repo"), vm.path("words"));
    let init = |kind: &str| vm.tintype.json(&["--repo", &repo, "init", "--encryption", kind]);
    let made = init("none");
    assert_eq!(made["encryption"], "none");
    assert_eq!(vm.tintype.lines(&["--repo", &repo, "key", "list"])[0]["kind"], "none");
    let refused = vm.fail(1, &["--repo", &repo, "key", "add", "--new-key-file", &vm.path("k")]);
    assert!(refused.contains("whether a repository is encrypted cannot change"), "{refused}");
    fs::remove_dir_all(&repo).unwrap();

    let made = init("key-file");
    assert_eq!(made["encryption"], "keyfile");
    assert_eq!(made["key_file"], Value::from(vm.path("home/key")));
    fs::remove_dir_all(&repo).unwrap();

    let without = vm.fail(2, &["--repo", &repo, "init", "--encryption", "passphrase"]);
    assert!(without.contains("TINTYPE_PASSPHRASE"), "{without}");
    fs::write(&words, "correct horse\n").unwrap();
    let given = ["--repo", &repo, "--passphrase-file", &words];
    vm.tintype.json(&[&given[..], &["init", "--encryption", "passphrase"]].concat());
    fs::remove_file(vm.path("home/key")).unwrap();
    vm.fail(1, &["--repo", &repo, "log"]);
    let log = |passphrase: &str| {
        let mut command = vm.tintype.command();
        command.args(["--repo", &repo, "log"]).env("TINTYPE_PASSPHRASE", passphrase);
        command.output().unwrap()
    };
    failed(&log("correct horse"), 0);
    failed(&log("wrong horse"), 1);
    fs::write(&words, "").unwrap();
    let empty = vm.fail(2, &[&given[..], &["log"]].concat());
    assert!(empty.contains("the first line of"), "{empty}");
}

#[test]
fn come_and_go() {
    let vm = SwitchedOff::start();
    vm.take("one", 1);
    let (words, second) = (vm.path("words"), vm.path("second"));
    fs::write(&words, "correct horse\n").unwrap();
    let keys = |tintype: &Tintype| tintype.lines(&["key", "list"]).len();
    let first = vm.tintype.lines(&["key", "list"])[0]["id"].as_str().unwrap().to_owned();
    let last = vm.fail(4, &["key", "remove", &first]);
    assert!(last.contains("the last key of a repository cannot be removed"), "{last}");
    vm.tintype.json(&["key", "add", "--new-passphrase-file", &words]);
    let added = vm.tintype.json(&["key", "add", "--new-key-file", &second]);
    assert_eq!(added["kind"], "keyfile");
    assert_eq!(keys(&vm.tintype), 3);
    let unknown = vm.fail(2, &["key", "remove", "nothing"]);
    assert!(unknown.contains(&first), "{unknown}");
    vm.tintype.json(&["key", "remove", &first[..8]]);
    vm.fail(1, &["log"]);
    for key in [["--passphrase-file", &words], ["--key-file", &second]] {
        let log = vm.tintype.lines(&[&key[..], &["log"]].concat());
        assert_eq!(log[0]["name"], "one");
    }
}
