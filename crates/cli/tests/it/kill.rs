//! `kill -9` of the command at every named step: the guest runs within seconds,
//! no half snapshot is listed, nothing is left in QEMU, and the next command works.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::scene::{REVERT, Scene, TAKE, WITHIN};
use crate::soak::{is_soak, seed_of_now, wanted};
use crate::subject::has_every_mode;

/// Kills takes at steps, with nobody but the watchdog to repair.
fn check_take(mode: &str, steps: &[&str]) {
    let mut scene = Scene::start();
    for step in steps {
        eprintln!("{mode}: killed at {step}");
        let state = format!("before-{step}");
        scene.write(&state);
        scene.killed_at(step, &["take", "web", "--name", step, "--mode", mode]);
        assert_eq!(scene.state(), state, "the guest runs without any further command");
        scene.tintype.wait_repaired();
        scene.must_be_traceless();
        let committed = ["take-committed", "take-forgotten"].contains(step);
        assert_eq!(scene.snapshots().contains(&(*step).to_owned()), committed);
        let taken = scene.tintype.json(&["take", "web", "--mode", mode]);
        assert_eq!(taken["mode"], mode);
    }
    scene.must_work();
}

#[test]
fn of_an_iterating_take() {
    if !has_every_mode() {
        return;
    }
    check_take("iterating", &TAKE);
}

#[test]
fn of_a_copy_on_write_take() {
    check_take("copy-on-write", some(&TAKE, &TAKE[3..7]));
}

#[test]
fn of_a_take_that_stops() {
    check_take("stop", some(&TAKE, &TAKE[3..6]));
}

/// Everything in a soak, a share of it in CI.
fn some<'s>(all: &'s [&'s str], share: &'s [&'s str]) -> &'s [&'s str] {
    if is_soak() { all } else { share }
}

#[test]
fn of_a_take_and_its_watchdog() {
    if !has_every_mode() {
        return;
    }
    let mut scene = Scene::start();
    for (mode, step) in [
        ("iterating", "take-instant"),
        ("iterating", "take-resumed"),
        ("copy-on-write", "take-instant"),
        ("stop", "take-instant"),
        ("iterating", "take-committed"),
    ] {
        eprintln!("{mode}: killed with its watchdog at {step}");
        scene.write(step);
        scene.held_at(step, &["take", "web", "--mode", mode]).kill_with_watchdog();
        // The repair itself is killed several times, at moments of chance.
        for wait in [3, 8, 15, 30] {
            let mut show = scene.tintype.command().args(["vm", "show", "web"]).spawn().unwrap();
            sleep(Duration::from_millis(wait));
            show.kill().unwrap();
            show.wait().unwrap();
        }
        let shown = scene.tintype.json(&["vm", "show", "web"]);
        assert_eq!(shown["state"], "running");
        assert_eq!(scene.state(), step);
        scene.must_be_traceless();
    }
    scene.must_work();
}

#[test]
fn of_a_revert() {
    let mut scene = Scene::start();
    let of_safety = ["take-instant", "take-committed"];
    for step in REVERT.iter().chain(&of_safety) {
        eprintln!("revert: killed at {step}");
        scene.write("newer");
        scene.killed_at(step, &["revert", "web", "base"]);
        let overwritten = REVERT.iter().position(|s| s == step) >= Some(3);
        if !overwritten {
            assert_eq!(scene.state(), "newer", "it runs without any further command");
        }
        let mut expected = if overwritten { "base" } else { "newer" };
        if ["revert-running", "revert-forgotten"].contains(step) {
            assert_eq!(scene.state(), "base", "it runs already");
            scene.write("after");
            expected = "after";
        }
        let shown = scene.tintype.json(&["vm", "show", "web"]);
        assert_eq!(shown["state"], "running");
        assert_eq!(scene.state(), expected);
        scene.must_be_traceless();
    }
    scene.must_work();
}

#[test]
fn of_a_revert_of_disks_alone() {
    let mut scene = Scene::start();
    scene.guest.serial().must_run("killall witness", WITHIN);
    scene.tintype.json(&["take", "web", "--name", "disks", "--no-memory"]);
    for step in ["revert-flushed", "revert-lineage", "revert-running"] {
        eprintln!("revert to disks: killed at {step}");
        scene.write("newer");
        scene.killed_at(step, &["revert", "web", "disks"]);
        let shown = scene.tintype.json(&["vm", "show", "web"]);
        assert_eq!(shown["state"], "running");
        scene.guest.serial().disconnect();
        scene.guest.serial().wait_answer(3 * WITHIN).unwrap();
        assert_eq!(scene.guest.serial().must_run("cat /disk/state", WITHIN), "base\n");
    }
}

#[test]
fn of_a_revert_that_cannot_be_finished_yet() {
    let mut scene = Scene::start();
    scene.write("newer");
    scene.killed_at("revert-blocks", &["revert", "web", "base"]);
    let disk = scene.guest.files().disks()[1].clone();
    let away = disk.with_extension("away");
    std::fs::rename(&disk, &away).unwrap();
    for _ in 0..2 {
        let output = scene.tintype.run(&["take", "web"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("state: the VM is stopped, and"), "{errors}");
        assert!(errors.contains("hint: `tintype vm show web` tries again"), "{errors}");
    }
    std::fs::rename(&away, &disk).unwrap();
    scene.tintype.json(&["take", "web"]);
    let state = scene.state();
    assert!(["base", "newer"].contains(&state.as_str()), "{state}");
    scene.must_work();
}

#[test]
fn of_a_revert_and_of_the_command_that_finishes_it() {
    let mut scene = Scene::start();
    for steps in [["revert-blocks", "revert-stopped"], ["revert-loaded", "revert-started"]] {
        scene.write("newer");
        scene.killed_at(steps[0], &["revert", "web", "base"]);
        scene.killed_at(steps[1], &["vm", "show", "web"]);
        scene.killed_at("revert-running", &["take", "web"]);
        let taken = scene.tintype.json(&["take", "web"]);
        assert_eq!(taken["vm"], "web");
        assert_eq!(scene.state(), "base");
    }
    scene.must_work();
}

#[test]
fn of_tintype_and_qemu_at_once() {
    let mut scene = Scene::start();
    for step in ["take-instant", "take-resumed", "revert-safety", "revert-loaded"] {
        eprintln!("both killed at {step}");
        scene.write("newer");
        let of_revert = step.starts_with("revert");
        let arguments: &[&str] =
            if of_revert { &["revert", "web", "base"] } else { &["take", "web"] };
        let held = scene.held_at(step, arguments);
        kill_process(scene.qemu_now().unwrap(), Signal::KILL).unwrap();
        held.kill_with_watchdog();
        let shown = scene.tintype.json(&["vm", "show", "web"]);
        if step == "revert-loaded" {
            assert_eq!(shown["state"], "running");
        } else {
            assert_eq!(shown["state"], "stopped");
            scene.tintype.json(&["revert", "web", "base"]);
        }
        assert_eq!(scene.state(), "base");
    }
    scene.must_work();
}

#[test]
fn at_moments_of_chance() {
    let mut scene = Scene::start();
    let seed = wanted("TINTYPE_SOAK_SEED").unwrap_or_else(seed_of_now);
    let kills = wanted("TINTYPE_SOAK_COUNT").unwrap_or(8);
    eprintln!("{kills} kills, TINTYPE_SOAK_SEED={seed}");
    let mut chance = seed;
    for round in 0..kills {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let wait = Duration::from_millis((chance >> 33) % 2500);
        let arguments: &[&str] =
            if round % 2 == 0 { &["take", "web"] } else { &["revert", "web", "base"] };
        eprintln!("{arguments:?} killed after {wait:?}");
        scene.write("newer");
        let mut child = scene.tintype.command();
        let mut child = child.args(arguments).stdout(Stdio::null()).spawn().unwrap();
        sleep(wait);
        child.kill().unwrap();
        child.wait().unwrap();
        let mut shown = scene.tintype.json(&["vm", "show", "web"]);
        while shown["state"] == "in use" {
            // By the watchdog.
            shown = scene.tintype.json(&["vm", "show", "web"]);
        }
        assert_eq!(shown["state"], "running");
        let state = scene.state();
        assert!(["newer", "base"].contains(&state.as_str()), "{state}");
        scene.must_be_traceless();
    }
    scene.must_work();
    eprintln!("soak: {kills} kills at moments of chance, every guest as before or as it should be");
}
