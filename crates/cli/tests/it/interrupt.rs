//! Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z while the command stands at a step: it stops
//! before its commit point with the guest running and nothing left, or it finishes.

use rustix::process::Signal;

use crate::scene::{REVERT, Scene, TAKE, WITHIN};
use crate::soak::is_soak;
use crate::subject::modes;

const SIGNALS: [Signal; 3] = [Signal::INT, Signal::TERM, Signal::HUP];

#[test]
fn of_a_take() {
    let mut scene = Scene::start();
    let modes = modes(scene.guest.files().qemu());
    for (number, step) in TAKE.iter().enumerate() {
        let mode = modes[number % modes.len()];
        eprintln!("{mode}: interrupted at {step}");
        scene.write(step);
        let held = scene.held_at(step, &["take", "web", "--name", step, "--mode", mode]);
        held.signal(SIGNALS[number % SIGNALS.len()]);
        let ended = held.let_go();
        let committed = ["take-committed", "take-forgotten"].contains(step);
        if committed {
            assert!(ended.status.success(), "{ended:?}");
        } else {
            ended.must_have_failed(130, &["state: no"]);
        }
        assert_eq!(scene.snapshots().contains(&(*step).to_owned()), committed, "{step}");
        assert_eq!(scene.state(), *step);
        scene.must_be_traceless();
        assert!(!scene.home().join("vms/web/intent.json").exists());
    }
    scene.must_work();
}

#[test]
fn of_a_revert() {
    let mut scene = Scene::start();
    let of_safety = ["take-instant", "take-stored"];
    let share = ["revert-verified", "revert-safety", "revert-intent", "revert-started"];
    let steps = if is_soak() { &REVERT[..] } else { &share };
    for (number, step) in steps.iter().chain(&of_safety).enumerate() {
        eprintln!("revert: interrupted at {step}");
        scene.write("newer");
        let held = scene.held_at(step, &["revert", "web", "base"]);
        held.signal(SIGNALS[number % SIGNALS.len()]);
        let ended = held.let_go();
        let overwritten = REVERT.iter().position(|s| s == step) >= Some(3);
        if overwritten {
            assert!(ended.status.success(), "{ended:?}");
            assert!(ended.errors.contains("the revert was finished"), "{ended:?}");
        } else {
            ended.must_have_failed(130, &["state:"]);
        }
        assert_eq!(scene.state(), if overwritten { "base" } else { "newer" });
        scene.must_be_traceless();
    }
    scene.must_work();
}

#[test]
fn by_ctrl_z() {
    let mut scene = Scene::start();
    for step in ["take-resumed", "take-intent"] {
        let held = scene.held_at(step, &["take", "web", "--name", step]);
        held.signal(Signal::STOP);
        let serial = scene.guest.serial();
        let write = "time dd if=/dev/zero of=/disk/zeros bs=64k count=64 oflag=direct conv=fsync";
        eprintln!("{}", serial.must_run(write, WITHIN));
        serial.must_be_whole(WITHIN);
        held.signal(Signal::CONT);
        let ended = held.let_go();
        eprintln!("{:?} {}", ended.status, ended.errors);
        if !ended.status.success() {
            ended.must_have_failed(1, &["state: no snapshot was taken; the guest runs as before"]);
        }
        assert_eq!(scene.state(), "base");
        scene.must_be_traceless();
    }
    scene.must_work();
}
