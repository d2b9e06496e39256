//! `kill -9` of QEMU, or a QEMU that hangs, while the command stands at a step: it
//! ends soon with a clear error, no half snapshot is listed, older ones are good,
//! and the next command works.

use rustix::process::{Signal, kill_process};
use tintype_testkit::Qmp;

use crate::scene::{REVERT, Scene, TAKE, WITHIN};
use crate::soak::is_soak;
use crate::subject::has_every_mode;

/// Kills QEMU during takes, and brings the guest back by a revert.
fn check_take(mode: &str, steps: &[&str]) {
    let mut scene = Scene::start();
    for step in steps {
        eprintln!("{mode}: QEMU killed at {step}");
        let held = scene.held_at(step, &["take", "web", "--name", step, "--mode", mode]);
        kill_process(scene.qemu(), Signal::KILL).unwrap();
        let ended = held.let_go();
        eprintln!("{}", ended.errors);
        if TAKE[7..].contains(step) {
            assert!(ended.status.success(), "all of QEMU was there already: {ended:?}");
            assert!(scene.snapshots().contains(&(*step).to_owned()));
        } else if ended.status.success() {
            // Seen to be gone before anything of it was needed: the disks are taken.
            assert_eq!(*step, "take-lease");
        } else {
            ended.must_have_failed(1, &["caused by: QEMU is gone", "state: no"]);
            assert!(!scene.snapshots().contains(&(*step).to_owned()));
        }
        assert_eq!(scene.tintype.json(&["vm", "show", "web"])["state"], "stopped");
        scene.tintype.json(&["revert", "web", "base", "--no-safety"]);
        assert_eq!(scene.state(), "base");
    }
    scene.must_work();
}

#[test]
fn in_an_iterating_take() {
    if !has_every_mode() {
        return;
    }
    check_take("iterating", &TAKE);
}

#[test]
fn in_a_take_that_stops_or_copies_on_write() {
    check_take("stop", if is_soak() { &TAKE } else { &TAKE[3..4] });
    check_take("copy-on-write", if is_soak() { &TAKE } else { &TAKE[4..6] });
}

#[test]
fn in_a_revert() {
    let mut scene = Scene::start();
    let share = ["revert-safety", "revert-stopped", "revert-started", "revert-lineage"];
    for step in if is_soak() { &REVERT[..] } else { &share } {
        eprintln!("revert: QEMU killed at {step}");
        scene.write("newer");
        let held = scene.held_at(step, &["revert", "web", "base"]);
        let qemu = scene.qemu_now();
        if let Some(qemu) = qemu {
            kill_process(qemu, Signal::KILL).unwrap();
        }
        let ended = held.let_go();
        eprintln!("{:?} {}", ended.status, ended.errors);
        let shown = scene.tintype.json(&["vm", "show", "web"]);
        if shown["state"] == "stopped" {
            scene.tintype.json(&["revert", "web", "base", "--no-safety"]);
        }
        let state = scene.state();
        assert!(["base", "newer"].contains(&state.as_str()), "{state}");
    }
    scene.must_work();
}

#[test]
fn a_stopped_vm_starts_again() {
    let mut scene = Scene::start();
    scene.write("newer");
    let held = scene.held_at("take-resumed", &["take", "web"]);
    kill_process(scene.qemu(), Signal::KILL).unwrap();
    held.let_go().must_have_failed(1, &["state: no snapshot was taken"]);
    scene.tintype.json(&["vm", "start", "web"]);
    scene.guest.serial().disconnect();
    scene.guest.serial().wait_answer(3 * WITHIN).unwrap();
    assert_eq!(scene.guest.serial().must_run("cat /disk/state", WITHIN), "newer\n");
    scene.guest.serial().must_run("echo 1 > /tmp/state", WITHIN);
    scene.tintype.json(&["take", "web"]);
}

#[test]
fn that_hangs_before_a_take() {
    let mut scene = Scene::start();
    kill_process(scene.qemu(), Signal::STOP).unwrap();
    let output = scene.tintype.run(&["take", "web"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    kill_process(scene.qemu(), Signal::CONT).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("does not greet"), "{errors}");
    assert!(errors.contains("state: nothing was changed"), "{errors}");
    assert_eq!(scene.state(), "base");
    scene.must_work();
}

#[test]
fn that_hangs_in_the_middle_of_a_take() {
    let mut scene = Scene::start();
    let steps = ["take-instant", "take-resumed"];
    for step in if is_soak() { &steps[..] } else { &steps[..1] } {
        let held = scene.held_at(step, &["take", "web", "--name", step]);
        kill_process(scene.qemu(), Signal::STOP).unwrap();
        let ended = held.let_go();
        eprintln!("{} after {:?}", ended.errors, ended.after);
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.after < WITHIN, "{ended:?}");
        assert!(ended.errors.contains("QEMU is not as it was yet"), "{ended:?}");
        kill_process(scene.qemu(), Signal::CONT).unwrap();
        assert_eq!(scene.state(), "base", "the watchdog lets it run");
        assert_eq!(scene.tintype.json(&["vm", "show", "web"])["state"], "running");
        scene.must_be_traceless();
        assert!(!scene.snapshots().contains(&(*step).to_owned()));
    }
    scene.must_work();
}

#[test]
fn that_hangs_for_ever() {
    let mut scene = Scene::start();
    let held = scene.held_at("take-instant", &["take", "web"]);
    kill_process(scene.qemu(), Signal::STOP).unwrap();
    held.kill_with_watchdog();
    let output = scene.tintype.run(&["vm", "show", "web"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("`tintype vm stop web --force` ends it"), "{errors}");
    assert_eq!(scene.tintype.json(&["vm", "stop", "web", "--force"])["state"], "stopped");
    scene.tintype.json(&["revert", "web", "base"]);
    assert_eq!(scene.state(), "base");
    scene.must_work();
}

#[test]
fn whose_monitor_is_held_by_another() {
    let mut scene = Scene::start();
    let other = Qmp::connect(&scene.guest.qmp_path()).unwrap();
    let output = scene.tintype.run(&["take", "web"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("another client holds this monitor"), "{errors}");
    assert!(errors.contains("hint: close the program that holds the monitor"), "{errors}");
    assert_eq!(scene.state(), "base");
    drop(other);
    scene.must_work();
}
