//! Take, break, revert: memory and disks are of one instant, in every way of capture.

use std::time::Duration;

use tintype_testkit::{Disk, Format, Guest, GuestKind};

use crate::command::Tintype;

const WITHIN: Duration = Duration::from_secs(60);

/// Takes a snapshot of a guest that counts in memory and on two disks, lets it
/// go on, reverts, and asks the guest whether all is of one instant.
fn check(mode: &str) {
    let mut guest = Guest::of(GuestKind::Tiny)
        .memory_mib(256)
        .disks([Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 64)])
        .start()
        .unwrap();
    let tintype = Tintype::within(guest.files().folder());
    let qmp = guest.qmp_path();
    tintype.json(&["vm", "add", "web", "--qmp", qmp.to_str().unwrap()]);
    let pairs = "pair --disk /dev/vdb --workers 3";
    guest.serial().start_witness("w", pairs, WITHIN).unwrap();
    guest.serial().must_run("echo before > /tmp/state; echo before > /disk/state; sync", WITHIN);
    let taken = tintype.json(&["take", "web", "--name", "before", "--mode", mode]);
    eprintln!("{mode}: {taken}");
    assert_eq!(taken["mode"], mode);
    guest.serial().must_run("echo after > /tmp/state; echo after > /disk/state; sync", WITHIN);
    guest.serial().must_be_whole(WITHIN);
    let report = tintype.json(&["revert", "web", "before"]);
    eprintln!("{mode}: {report}");
    assert_eq!(report["state"], "running");
    guest.serial().disconnect();
    guest.serial().wait_answer(WITHIN).unwrap();
    let state = guest.serial().must_run("cat /tmp/state /disk/state", WITHIN);
    assert_eq!(state, "before\nbefore\n");
    guest.serial().must_be_whole(WITHIN);
}

#[test]
fn iterating() {
    check("iterating");
}

#[test]
fn copy_on_write() {
    check("copy-on-write");
}

#[test]
fn stop() {
    check("stop");
}
