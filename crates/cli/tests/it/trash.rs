//! What is deleted waits in the trash for its grace, whatever the clocks say.

use serde_json::{Value, json};

use crate::switched_off::SwitchedOff;
use crate::wrong_clock::WrongClock;

/// A VM whose commands live at other times.
struct Times {
    vm: SwitchedOff,
    clock: WrongClock,
}

impl Times {
    /// With two snapshots that have little in common.
    fn start() -> Self {
        let vm = SwitchedOff::start();
        vm.take("a", 1);
        vm.take("b", 2);
        let clock = WrongClock::build(std::path::Path::new(&vm.path("")));
        Self { vm, clock }
    }

    /// Runs a command on a day, counted from today.
    fn on(&self, day: i32, arguments: &[&str]) -> Value {
        let mut command = self.vm.tintype.command();
        let output = self.clock.shift(command.arg("--json").args(arguments), day).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Collects on a day; returns how many deleted snapshots wait then, and of how
    /// many of them the clock is doubted.
    fn gc(&self, day: i32) -> (u64, u64) {
        let trash = &self.on(day, &["gc"])["trash"];
        (trash["snapshots"].as_u64().unwrap(), trash["doubted"].as_u64().unwrap())
    }

    fn trash(&self) -> Vec<Value> {
        self.vm.tintype.lines(&["log", "--deleted"])
    }
}

fn text(vm: &SwitchedOff, arguments: &[&str]) -> String {
    let output = vm.tintype.run(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn is_counted_apart_and_listed() {
    let vm = SwitchedOff::start();
    vm.take("a", 1);
    vm.take("b", 2);
    let before = vm.tintype.json(&["du"]);
    let none = json!({"snapshots": 0, "bytes": 0, "until": null, "doubted": 0});
    assert_eq!(before["trash"], none);
    let removed = text(&vm, &["rm", "web@a"]);
    assert!(removed.contains("`tintype undo` takes it back for 7d"), "{removed}");

    let space = vm.tintype.json(&["du"]);
    let alone = before["snapshots"][0]["exclusive_bytes"].as_u64().unwrap();
    assert_eq!(space["trash"]["bytes"], alone);
    assert!(space["repository_bytes"].as_u64() > before["repository_bytes"].as_u64());
    let both = before["referenced_bytes"].as_u64().unwrap();
    assert_eq!(space["referenced_bytes"], both - alone, "what is deleted is in no snapshot's");
    let listed = &vm.tintype.lines(&["log", "--deleted"])[0];
    assert_eq!(listed["exclusive_bytes"], alone);
    assert_eq!(listed["kept_until"], space["trash"]["until"]);

    let kept = vm.tintype.json(&["gc"]);
    assert_eq!((&kept["freed_bytes"], &kept["trash"]), (&json!(0), &space["trash"]));
    let kept = text(&vm, &["gc"]);
    assert!(kept.contains("1 deleted snapshot waits in the trash, 4.0 MiB"), "{kept}");
    assert!(kept.ends_with("`tintype gc --now` frees them at once\n"), "{kept}");
    let shown = text(&vm, &["log", "--deleted"]);
    assert!(shown.contains("web@a") && shown.contains(", goes in "), "{shown}");
    let would = vm.tintype.json(&["gc", "--now", "--dry-run"]);
    assert_eq!(would["trash"], none);
    let freed = vm.tintype.json(&["gc", "--now"]);
    assert_eq!(freed["trash"], none);
    assert!(freed["freed_bytes"].as_u64().unwrap() >= alone, "{freed}");
}

#[test]
fn gives_back_single_snapshots() {
    let vm = SwitchedOff::start();
    for (name, state) in [("a", 1), ("b", 2), ("c", 3)] {
        vm.take(name, state);
    }
    vm.tintype.json(&["rm", "web@a", "web@b"]);
    let again = vm.take("a", 4);
    vm.tintype.json(&["rm", again["id"].as_str().unwrap()]);
    vm.tintype.json(&["gc"]);
    let several = vm.fail(2, &["undo", "web@a"]);
    assert!(several.contains("may be one of several") && several.contains("log --deleted"));
    vm.fail(2, &["undo", "web@c"]);
    vm.fail(2, &["undo", "web@b", "--operation", "1"]);
    let undone = vm.tintype.json(&["undo", "web@b", again["id"].as_str().unwrap()]);
    assert_eq!(undone["names"], json!(["web@b", "web@a"]));
    assert_eq!(vm.snapshots(), ["b", "c", "a"]);
    vm.tintype.json(&["revert", "web", "a", "--no-safety"]);
    vm.must_be(4);
    // It is an operation: taken back, they are deleted again.
    let number = vm.tintype.lines(&["op", "log"])[1]["number"].to_string();
    vm.tintype.json(&["undo", "--operation", &number]);
    assert_eq!(vm.snapshots(), ["c"]);
    // The deletion of the other two is still there to take back.
    vm.tintype.json(&["undo", "web@b"]);
    vm.tintype.json(&["gc", "--now"]);
    assert_eq!(vm.snapshots(), ["b", "c"]);
    let gone = vm.fail(2, &["undo", again["id"].as_str().unwrap()]);
    assert!(gone.contains("cannot put back"), "{gone}");
}

#[test]
fn is_emptied_after_the_grace_and_by_no_clock_that_jumped() {
    let times = Times::start();
    times.vm.tintype.json(&["rm", "web@a"]);
    assert_eq!(times.gc(0), (1, 0));
    assert_eq!(times.gc(6), (1, 0));
    // Ten years ahead, and there again and again.
    for day in [3_650, 3_650, 3_651] {
        assert_eq!(times.gc(day), (1, 1));
    }
    let newest = &times.vm.tintype.lines(&["op", "log"])[0];
    assert!(newest["did"].as_str().unwrap().contains("the clock may have jumped"), "{newest}");
    // Nothing happened for eight days: half of them is believed, and then the rest.
    assert_eq!(times.gc(8), (1, 1));
    assert_eq!(times.gc(9), (1, 1));
    assert_eq!(times.on(11, &["undo"])["undone"], "rm");
    times.on(11, &["rm", "web@a"]);
    for day in [12, 15, 17] {
        assert_eq!(times.gc(day), (1, 0));
    }
    times.on(13, &["pin", "web@b"]);
    times.on(16, &["unpin", "web@b"]);
    let freed = times.on(18, &["gc"]);
    assert!(freed["freed_bytes"].as_u64().unwrap() > 2 << 20, "{freed}");
    assert_eq!(freed["trash"]["snapshots"], 0);
    assert_eq!(times.vm.snapshots(), ["b"]);
}

#[test]
fn knows_the_time_though_the_clock_of_who_deletes_is_wrong() {
    let times = Times::start();
    times.on(-3_650, &["rm", "web@a"]);
    assert_eq!(times.gc(1), (1, 0));
    times.on(3_650, &["rm", "web@b"]);
    assert_eq!(times.gc(1), (2, 0));
    assert_eq!(times.gc(-3_650), (2, 0));
    assert_eq!(times.trash().len(), 2);
    // Sooner only if that is wanted.
    let freed = times.on(6, &["gc", "--grace", "6d"]);
    assert_eq!(freed["trash"]["doubted"], 1, "{freed}");
    times.on(6, &["undo", "web@a"]);
    assert_eq!(times.vm.snapshots(), ["a"]);
    assert_eq!(times.on(0, &["gc", "--now"])["trash"]["snapshots"], 0);
    times.vm.tintype.json(&["revert", "web", "a", "--no-safety"]);
    times.vm.must_be(1);
}

#[test]
fn goes_in_time_though_a_snapshot_is_of_the_future() {
    let times = Times::start();
    // A clock that is ten years ahead takes one, and so every later deletion is dated
    // then: none is older than a snapshot that was there.
    times.on(3_650, &["take", "web", "--name", "ahead"]);
    times.on(0, &["rm", "web@a"]);
    let listed = times.on(0, &["log", "--deleted"]);
    let time = |field: &str| listed[field].as_str().unwrap().to_owned();
    assert!(time("deleted") > time("kept_until"), "it does not wait for that: {listed}");
    assert_eq!(times.gc(0), (1, 0));
    let met = times.vm.tintype.lines(&["op", "log"])[0]["did"].clone();
    assert_eq!(met, "met a deletion that is dated ahead of the clock");
    // The time has to be seen passing, in whatever order clocks say that it does.
    for day in [1, 3_651, 2, 2, 6, 8] {
        assert_eq!(times.gc(day), (1, 0), "on day {day}");
    }
    assert_eq!(times.gc(3_660), (1, 1), "nobody has seen these days");
    for day in [10, 13, 14, 17] {
        assert_eq!(times.gc(day), (1, 0), "on day {day}");
    }
    assert_eq!(times.gc(18), (0, 0));
    assert_eq!(times.vm.snapshots(), ["b", "ahead"]);
}
