//! Snapshots are started to see whether a guest lives in them, and nobody else
//! notices: not the VM, not its network, not who lists the VMs.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu};

use crate::command::Tintype;
use crate::scene::Scene;
use crate::subject::{Subject, WITHIN, is_built};
use crate::switched_off::{SwitchedOff, failed};

/// Starts snapshots, and returns what became of each.
fn boot(tintype: &Tintype, code: i32, arguments: &[&str]) -> Vec<Value> {
    let output = tintype.run(&[&["--json", "verify", "--boot"], arguments].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    summary["boots"].as_array().unwrap().clone()
}

/// Asserts that nothing of a clone is left, and that none is registered.
fn must_be_gone(tintype: &Tintype, home: &Path) {
    let names: Vec<_> =
        tintype.lines(&["vm", "list"]).iter().map(|vm| vm["name"].clone()).collect();
    assert_eq!(names, ["web"]);
    let clones = fs::read_dir(home.join("clones")).map_or(0, Iterator::count);
    assert_eq!(clones, 0, "a folder is left");
    let text = format!("{}/", home.join("clones").display());
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(&text), "a QEMU is left");
    }
}

fn guest(qemu: Qemu) -> Guest {
    let builder = Guest::of(GuestKind::Tiny).qemu(qemu).memory_mib(96).network();
    builder.disks([Disk::system(Format::Qcow2)]).start().unwrap()
}

fn booted_at(subject: &Subject, snapshot: &str) -> Value {
    subject.tintype.json(&["show", snapshot])["snapshot"]["booted_at"].clone()
}

#[test]
fn of_guests_with_memory_from_disks_and_from_garbage() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let mut subject = Subject::of(guest(Qemu::system().unwrap()));
    let home = subject.guest.files().folder().join("home");
    subject.guest.serial().must_run("echo mine >/tmp/me; echo mine >/disk/me; sync", WITHIN);
    subject.take(&["--name", "base"]);
    subject.take(&["--name", "disks", "--no-memory"]);
    assert_eq!(booted_at(&subject, "web@base"), json!(null));

    let boots = boot(&subject.tintype, 0, &["web@base", "web@disks"]);
    for (report, (name, words)) in boots.iter().zip([
        ("web@base", "its processors went on for"),
        ("web@disks", "while its processors went on, after it had booted"),
    ]) {
        assert_eq!((&report["name"], &report["outcome"]), (&json!(name), &json!("booted")));
        let proof = report["proof"].as_str().unwrap();
        assert!(proof.contains(words), "{report}");
        assert!(booted_at(&subject, name).is_string());
    }
    let log = subject.tintype.run(&["log", "web"]).stdout;
    assert!(String::from_utf8(log).unwrap().contains(", booted "), "the tree says so");

    // Where its file system was: nothing to write to, so nothing has booted.
    let garbage = "dd if=/dev/urandom of=/dev/vda bs=1M count=4 conv=fsync 2>/dev/null";
    subject.guest.serial().must_run(garbage, WITHIN);
    subject.take(&["--name", "garbage", "--no-memory"]);
    let boots = boot(&subject.tintype, 3, &["web@garbage", "--boot-timeout", "6"]);
    assert_eq!(boots[0]["outcome"], "failed", "{boots:?}");
    assert!(boots[0]["error"].as_str().unwrap().contains(" after 6 s"));
    assert_eq!(booted_at(&subject, "web@garbage"), json!(null));

    // The VM itself has not noticed.
    must_be_gone(&subject.tintype, &home);
    let same = subject.guest.serial().must_run("cat /tmp/me", WITHIN);
    assert_eq!(same, "mine\n");
}

#[test]
fn of_a_guest_on_the_older_qemu() {
    let Ok(qemu) = Qemu::seven_two() else {
        eprintln!("skipped: there is no QEMU 7.2");
        return;
    };
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let mut subject = Subject::of(guest(qemu));
    subject.take(&["--name", "base"]);
    let boots = boot(&subject.tintype, 0, &[]);
    assert_eq!(boots[0]["outcome"], "booted", "{boots:?}");
}

#[test]
fn and_one_that_was_killed_or_interrupted_is_removed() {
    let mut scene = Scene::start();
    let verify = ["verify", "web@base", "--boot"];
    for step in ["clone-filled", "clone-running"] {
        scene.killed_at(step, &verify);
        must_be_gone(&scene.tintype, &scene.home());
    }
    let held = scene.held_at("clone-running", &verify);
    held.signal(Signal::INT);
    held.let_go().must_have_failed(130, &["interrupted"]);
    must_be_gone(&scene.tintype, &scene.home());
    assert_eq!(scene.state(), "base");
}

#[test]
fn but_not_of_what_cannot_be_isolated() {
    let vm = SwitchedOff::start();
    vm.tintype.json(&["vm", "rm", "web"]);
    let qemu = Qemu::system().unwrap().binary();
    let drive = format!("file={},format=raw,if=virtio", vm.disk().display());
    let line = [qemu.to_str().unwrap(), "-m", "16", "-nodefaults", "-display", "none"];
    let leads = "user,id=n,guestfwd=tcp:10.0.2.100:80-cmd:true";
    let more = ["-accel", "tcg", "-drive", &drive, "-netdev", leads];
    vm.tintype.json(&[&["vm", "run", "web", "--"], &line[..], &more].concat());
    vm.tintype.json(&["vm", "stop", "web", "--force"]);
    vm.take("base", 1);
    let boots = boot(&vm.tintype, 4, &["web@base"]);
    assert_eq!(boots[0]["outcome"], "refused");
    let error = boots[0]["error"].as_str().unwrap();
    assert!(error.contains(&format!("`-netdev {leads}` cannot be isolated")), "{error}");
    must_be_gone(&vm.tintype, Path::new(&vm.path("home")));
    let usage = vm.tintype.run(&["verify", "--boot-timeout", "5"]);
    assert!(failed(&usage, 2).contains("--boot"), "it means nothing without");
}

/// A login prompt for the Debian guest, in the place of the tests' own line to it.
const LOGIN: [&str; 6] = [
    "cd /etc/systemd/system",
    r"printf '[Service]\nExecStart=/sbin/agetty 115200 ttyS0 dumb\nStandardInput=tty\nTTYPath=/dev/ttyS0\n' >login.service",
    "ln -s ../login.service multi-user.target.wants/",
    "rm multi-user.target.wants/host-agent.service",
    "ln -sf /dev/null qemu-guest-agent.service",
    "sync",
];

#[test]
fn of_a_debian_guest_by_its_agent_and_by_its_login_prompt() {
    if !is_built(GuestKind::Debian) {
        return;
    }
    let mut subject = Subject::start(Guest::of(GuestKind::Debian));
    let home = subject.guest.files().folder().join("home");
    subject.take(&["--name", "agent"]);
    subject.guest.serial().must_run(&LOGIN.join(" && "), WITHIN);
    subject.take(&["--name", "login", "--no-memory"]);
    let boots = boot(&subject.tintype, 0, &["web@agent", "web@login"]);
    assert_eq!(boots[0]["proof"], "its guest agent answers", "{boots:?}");
    assert_eq!(boots[1]["proof"], "its serial line asks for a login", "{boots:?}");
    must_be_gone(&subject.tintype, &home);
}
