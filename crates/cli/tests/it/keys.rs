//! What opens a repository, and what does not.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

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

#[test]
fn an_age_identity_is_for_the_day_when_the_others_are_gone() {
    let vm = SwitchedOff::start();
    vm.take("one", 1);
    let (identity, key) = (vm.path("identity"), vm.path("home/key"));
    let made = Command::new("age-keygen").args(["-o", &identity]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let text = fs::read_to_string(&identity).unwrap();
    let recipient = text.lines().find_map(|line| line.strip_prefix("# public key: ")).unwrap();
    let added = vm.tintype.json(&["key", "add", "--new-age-recipient", recipient]);
    assert_eq!(added["kind"], "age");
    fs::remove_file(key).unwrap();
    let without = vm.fail(1, &["log"]);
    assert!(without.contains("(age)") && without.contains("--age-identity"), "{without}");
    vm.write(2);
    vm.tintype.json(&["--age-identity", &identity, "revert", "web", "one"]);
    vm.must_be(1);
    let wrong =
        vm.fail(1, &["--age-identity", &identity, "key", "add", "--new-age-recipient", "x"]);
    assert!(wrong.contains("`x` is no age recipient"), "{wrong}");
    let nowhere = vm.fail(2, &["--age-identity", "/nowhere", "log"]);
    assert!(nowhere.contains("there is no age identity /nowhere"), "{nowhere}");
}

/// Runs tintype on a terminal where somebody types; returns what was shown.
fn typed(vm: &SwitchedOff, arguments: &[&str], lines: &[&str]) -> String {
    let tintype = vm.tintype.command();
    let program = tintype.get_program().to_str().unwrap();
    let words: Vec<_> = [program].iter().chain(arguments).map(|word| format!("'{word}'")).collect();
    let mut terminal = Command::new("script");
    terminal.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    for (name, value) in tintype.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = terminal.spawn().unwrap();
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut shown = Vec::new();
    for line in lines {
        // A question ends in a colon; what is typed before it would be lost.
        while !shown.ends_with(b": ") {
            let mut byte = [0];
            screen.read_exact(&mut byte).unwrap();
            shown.push(byte[0]);
        }
        writeln!(keyboard, "{line}").unwrap();
        shown.push(b' ');
    }
    screen.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    format!("{} {shown}", child.wait().unwrap().code().unwrap())
}

#[test]
fn a_passphrase_is_asked_for() {
    let vm = SwitchedOff::start();
    let repo = vm.path("repo");
    let init = ["--repo", &repo, "init", "--encryption", "passphrase"];
    let differ = typed(&vm, &init, &["correct horse", "correct house"]);
    assert!(differ.starts_with('2') && differ.contains("the two passphrases differ"), "{differ}");
    let made = typed(&vm, &init, &["correct horse", "correct horse"]);
    assert!(made.starts_with('0') && made.contains("keep the passphrase"), "{made}");
    let take = ["--repo", &repo, "take", "web", "--name", "one"];
    let taken = typed(&vm, &take, &["correct horse"]);
    assert!(taken.starts_with('0') && taken.contains("Passphrase of"), "{taken}");
    let wrong = typed(&vm, &["--repo", &repo, "log"], &["wrong horse"]);
    assert!(wrong.starts_with('1') && wrong.contains("none of the keys at hand"), "{wrong}");
    let added = typed(
        &vm,
        &["--repo", &repo, "key", "add", "--new-passphrase"],
        &["correct horse", "second horse", "second horse"],
    );
    assert!(added.starts_with('0') && added.contains("added the key"), "{added}");
    let second = typed(&vm, &["--repo", &repo, "log"], &["second horse"]);
    assert!(second.starts_with('0') && second.contains("one"), "{second}");
}
