//! What was done is in the log, and is taken back: again and again, and again
//! forth.

use serde_json::{Value, json};

use crate::scene::Scene;
use crate::switched_off::SwitchedOff;

/// The entries of the log, the newest first: what was typed, without the options
/// that the test adds.
fn log(vm: &SwitchedOff) -> Vec<Value> {
    vm.tintype.lines(&["op", "log"])
}

fn number(vm: &SwitchedOff) -> String {
    log(vm)[0]["number"].to_string()
}

#[test]
fn of_labels_takes_and_deletions_are_taken_back_in_turn() {
    let vm = SwitchedOff::start();
    vm.take("a", 1);
    vm.take("b", 2);
    vm.tintype.json(&["rename", "web@a", "first"]);
    vm.tintype.json(&["tag", "web@first", "env=prod"]);
    vm.tintype.json(&["note", "web@first", "well"]);
    vm.tintype.json(&["pin", "web@first"]);
    vm.tintype.json(&["rm", "web@b"]);
    assert_eq!(vm.snapshots(), ["first"]);
    let newest = &log(&vm)[0];
    assert_eq!(newest["did"], "deleted web@b");
    assert_eq!(newest["command"], json!(["--json", "rm", "web@b"]));
    for field in ["host", "user"] {
        assert!(!newest[field].as_str().unwrap().is_empty(), "{newest}");
    }
    vm.tintype.json(&["pin", "web@first"]);
    assert_eq!(log(&vm)[0], *newest, "what changes nothing is no operation");

    let said = || vm.tintype.json(&["show", "web@first"])["snapshot"].clone();
    let undo = |word: &str| {
        let undone = vm.tintype.json(&["undo"]);
        assert_eq!(undone["undone"], word, "{undone}");
    };
    undo("rm");
    assert_eq!(vm.snapshots(), ["first", "b"]);
    undo("pin");
    assert_eq!(said()["pinned"], false);
    undo("note");
    assert_eq!(said()["message"], "");
    undo("tag");
    assert_eq!(said()["tags"], json!([]));
    undo("rename");
    assert_eq!(vm.snapshots(), ["a", "b"]);
    // An undo is an operation too, and so can be taken back.
    vm.tintype.json(&["undo", "--operation", &number(&vm)]);
    assert_eq!(vm.snapshots(), ["first", "b"]);
    vm.tintype.json(&["op", "undo", &number(&vm)]);
    assert_eq!(vm.snapshots(), ["a", "b"]);
    let twice = vm.fail(2, &["undo", "--operation", "3"]);
    assert!(twice.contains("was taken back"), "{twice}");
    vm.fail(2, &["undo", "--operation", "99"]);
    // What was taken goes where the deleted ones are.
    undo("take");
    assert_eq!(vm.snapshots(), ["a"]);
    undo("take");
    let nothing = vm.fail(2, &["undo"]);
    assert!(nothing.contains("there is nothing to undo"), "{nothing}");
    let deleted = vm.tintype.lines(&["log", "--deleted"]);
    assert_eq!(deleted.len(), 2);
    vm.tintype.json(&["op", "undo", &number(&vm)]);
    assert_eq!(vm.snapshots(), ["a"]);
}

#[test]
fn of_a_label_that_was_changed_since_is_not_taken_back() {
    let vm = SwitchedOff::start();
    vm.take("a", 1);
    vm.tintype.json(&["note", "web@a", "one"]);
    let of_the_first = number(&vm);
    vm.tintype.json(&["note", "web@a", "two"]);
    let refused = vm.fail(2, &["undo", "--operation", &of_the_first]);
    assert!(refused.contains("was changed again since"), "{refused}");
    vm.tintype.json(&["pin", "web@a"]);
    vm.tintype.json(&["undo"]);
    vm.tintype.json(&["undo"]);
    assert_eq!(vm.tintype.json(&["show", "web@a"])["snapshot"]["message"], "one");
    // A pinned one stays, also where it was taken last.
    vm.tintype.json(&["pin", "web@a"]);
    let take =
        log(&vm).iter().find(|one| one["did"] == "took web@a").unwrap()["number"].to_string();
    let pinned = vm.fail(4, &["undo", "--operation", &take]);
    assert!(pinned.contains("is pinned"), "{pinned}");
}

#[test]
fn deleted_ones_are_listed_until_they_are_collected() {
    let vm = SwitchedOff::start();
    vm.take("a", 1);
    vm.take("b", 2);
    vm.tintype.json(&["rm", "web@a"]);
    let deleted = vm.tintype.lines(&["log", "web", "--deleted"]);
    assert_eq!(deleted[0]["name"], "a");
    assert!(deleted[0]["deleted"].is_string(), "{}", deleted[0]);
    vm.tintype.json(&["undo"]);
    vm.tintype.json(&["rm", "web@a"]);
    let freed = vm.tintype.json(&["gc", "--now"]);
    assert!(freed["freed_bytes"].as_u64().unwrap() > 4 << 20, "{freed}");
    assert_eq!(vm.tintype.lines(&["log", "--deleted"]), Vec::<Value>::new());
    // What is gone cannot be taken back; what was done before it still can.
    let undone = vm.tintype.json(&["undo"]);
    assert_eq!((&undone["undone"], &undone["did"]), (&json!("take"), &json!("deleted web@b")));
    let nothing = vm.fail(2, &["undo"]);
    assert!(nothing.contains("there is nothing to undo"), "{nothing}");
}

#[test]
fn of_a_revert_is_taken_back() {
    let mut scene = Scene::start();
    scene.write("newer");
    scene.tintype.json(&["revert", "web", "base"]);
    assert_eq!(scene.state(), "base");
    scene.write("after the revert");
    let undone = scene.tintype.json(&["undo"]);
    assert_eq!((&undone["undone"], &undone["names"]), (&json!("revert"), &json!(["web@safety1"])));
    assert_eq!(scene.state(), "newer");
    // And forth again: to what it was when that was undone.
    let log = scene.tintype.lines(&["op", "log"]);
    scene.tintype.json(&["undo", "--operation", &log[0]["number"].to_string()]);
    assert_eq!(scene.state(), "after the revert");
    scene.must_be_traceless();
}

#[test]
fn of_a_copy_is_in_both_logs_and_is_taken_back_there() {
    let vm = SwitchedOff::start();
    vm.take("a", 1);
    vm.take("b", 2);
    let other = vm.path("other");
    vm.tintype.json(&["--repo", &other, "init"]);
    vm.tintype.lines(&["copy", "--all", "--to", &other]);
    let here = &log(&vm)[0];
    assert_eq!(here["did"], format!("copied web@a, web@b to {other}"));
    assert_eq!((&here["verb"], &here["can_be_undone"]), (&json!("copy"), &json!(false)));
    let of_there = vm.tintype.lines(&["--repo", &other, "op", "log"]);
    assert_eq!(of_there[0]["did"], "copied web@a, web@b to here");
    let command = format!("`tintype --repo {other} undo --operation {}`", of_there[0]["number"]);
    let refused = vm.fail(2, &["undo", "--operation", &number(&vm)]);
    assert!(refused.contains(&format!("{command} deletes them there")), "{refused}");

    // What is there already is no operation, nor is what was only planned.
    vm.tintype.lines(&["copy", "--all", "--to", &other]);
    assert_eq!(log(&vm)[0], *here);
    // Here, what was done before it is taken back, and it is said that copies stay.
    let undone = vm.tintype.run(&["undo"]);
    let said = String::from_utf8(undone.stderr).unwrap();
    assert!(undone.status.success() && said.contains(&command), "{said}");
    assert_eq!(vm.snapshots(), ["a"]);
    let names = || vm.tintype.lines(&["--repo", &other, "log"]).len();
    assert_eq!(names(), 2);
    let undone = vm.tintype.json(&["--repo", &other, "undo"]);
    assert_eq!((&undone["undone"], names()), (&json!("copy"), 0));
    let number = vm.tintype.lines(&["--repo", &other, "op", "log"])[0]["number"].to_string();
    vm.tintype.json(&["--repo", &other, "undo", "--operation", &number]);
    assert_eq!(names(), 2, "and that is taken back");
}

#[test]
fn of_an_import_deletes_what_it_made() {
    let vm = SwitchedOff::start();
    vm.write(7);
    let image = vm.path("image.raw");
    std::fs::copy(vm.disk(), &image).unwrap();
    let planned = ["import", &image, "--vm", "old", "--dry-run"];
    vm.tintype.json(&planned);
    assert_eq!(log(&vm), Vec::<Value>::new(), "nothing was done");
    vm.tintype.json(&planned[..4]);
    let newest = &log(&vm)[0];
    assert_eq!((&newest["verb"], &newest["did"]), (&json!("import"), &json!("imported old@image")));
    vm.tintype.json(&planned[..4]);
    assert_eq!(log(&vm).len(), 1, "what was there is not made again");
    assert_eq!(vm.tintype.json(&["undo"])["undone"], "import");
    assert_eq!(vm.snapshots(), Vec::<String>::new());
    vm.tintype.json(&["undo", "--operation", &number(&vm)]);
    assert_eq!(vm.snapshots(), ["image"]);
}

#[test]
fn are_drawn_with_their_branches() {
    let vm = SwitchedOff::start();
    for (name, state) in [("base", 1), ("left", 2)] {
        vm.take(name, state);
    }
    vm.tintype.json(&["revert", "web", "base", "--no-safety"]);
    vm.take("right", 3);
    vm.tintype.json(&["tag", "web@left", "env=prod"]);
    vm.tintype.json(&["pin", "web@base"]);
    vm.tintype.json(&["note", "web@base", "where they part\nand more"]);
    let drawn = |arguments: &[&str]| {
        let output = vm.tintype.run(arguments);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().map(|line| {
            let words = line.split_whitespace().take(2).collect::<Vec<_>>();
            match line.find("web@") {
                Some(at) => format!("{}{}", &line[..at], line[at..].split(' ').next().unwrap()),
                None if line.contains("where they part") => line.to_owned(),
                None => words
                    .iter()
                    .filter(|w| !w.is_ascii() || **w == "~")
                    .copied()
                    .collect::<Vec<_>>()
                    .join(" "),
            }
        });
        lines.collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        drawn(&["log", "web"]),
        "@  web@right\n│\n│ ○  web@left\n│ │\n├─╯\n○  web@base\n\n   where they part"
    );
    vm.tintype.json(&["rm", "web@right"]);
    assert_eq!(drawn(&["log", "--tag", "env=prod"]), "○  web@left\n│\n~");
    assert_eq!(vm.tintype.lines(&["log", "--tag", "env", "--limit", "3"]).len(), 1);
    let text = String::from_utf8(vm.tintype.run(&["log", "--color", "always"]).stdout).unwrap();
    assert!(text.contains("\u{1b}[31;1mpinned\u{1b}[0m"), "{text}");
}
