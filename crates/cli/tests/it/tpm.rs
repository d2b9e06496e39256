//! A VM with a software TPM: its state is in the snapshot, and it is started
//! again when it has ended with its QEMU.

use std::process::Command;
use std::time::{Duration, Instant};

use tintype_testkit::{Disk, Format, Guest, GuestKind};

use crate::command::Tintype;

const WITHIN: Duration = Duration::from_secs(60);

fn check(more: &[&str]) {
    if Command::new("swtpm").arg("--version").output().is_err() {
        eprintln!("skipped: swtpm is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name).display().to_string();
    std::fs::create_dir(place("state")).unwrap();
    let mut tpm = Command::new("swtpm")
        .args(["socket", "--tpm2", "--tpmstate", &format!("dir={}", place("state"))])
        .args(["--ctrl", &format!("type=unixio,path={}", place("tpm"))])
        .args(more)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + WITHIN;
    while !folder.path().join("tpm").exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut guest = Guest::of(GuestKind::Tiny)
        .memory_mib(128)
        .disks([Disk::system(Format::Qcow2)])
        .extra(["-chardev", &format!("socket,id=tpm,path={}", place("tpm"))])
        .extra(["-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-tis,tpmdev=tpm0"])
        .boot()
        .unwrap();
    let tintype = Tintype::within(guest.files().folder());
    let qmp = guest.qmp_path();
    tintype.json(&["vm", "add", "web", "--qmp", qmp.to_str().unwrap()]);
    tintype.json(&["take", "web", "--name", "before"]);
    let shown = tintype.json(&["show", "web@before"]);
    let images = shown["images"].to_string();
    assert!(images.contains("tpm2-00.permall"), "{images}");
    guest.serial().must_run("echo after > /tmp/state", WITHIN);
    tintype.json(&["revert", "web", "before"]);
    guest.serial().disconnect();
    guest.serial().wait_answer(WITHIN).unwrap();
    assert_eq!(guest.serial().run("test -e /tmp/state", WITHIN).unwrap().status, 1);
    // It has ended with its first QEMU, or goes on and is ended here.
    let _ = tpm.kill();
    let _ = tpm.wait();
    let _ = Command::new("pkill").args(["-f", &place("tpm")]).status();
}

#[test]
fn a_tpm_that_goes_on() {
    check(&[]);
}

#[test]
fn a_tpm_that_ends_with_its_qemu() {
    check(&["--terminate"]);
}
