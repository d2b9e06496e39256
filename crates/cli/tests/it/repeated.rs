//! A guest that is taken again and again without a revert in between: what has not
//! changed costs next to nothing, and what has is of one instant.

use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu};

use crate::bare_vm::reading;
use crate::subject::{Subject, VM, WITHIN, is_built, modes};

#[test]
fn an_idle_guest_costs_nothing_and_a_busy_one_is_whole() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    for qemu in Qemu::all() {
        let modes = modes(&qemu);
        let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 64)];
        let builder = Guest::of(GuestKind::Tiny).qemu(qemu).memory_mib(160).disks(disks);
        let mut subject = Subject::start(builder);
        check_idle(&mut subject);
        check_busy(&mut subject, modes);
    }
}

/// The second take of a guest that does nothing stores less than 1 % of the memory
/// that it uses.
fn check_idle(subject: &mut Subject) {
    let ask = "awk '/^MemTotal/{a=$2} /^MemFree/{b=$2} END{print (a-b)*1024}' /proc/meminfo";
    let used: u64 = subject.guest.serial().must_run(ask, WITHIN).trim().parse().unwrap();
    subject.take(&["--name", "first"]);
    let second = subject.take(&["--name", "second"]);
    let stored = second["stored_bytes"].as_u64().unwrap();
    eprintln!("{stored} bytes stored of an idle guest that uses {used} bytes of memory");
    assert!(stored * 100 < used, "{stored} of {used}: {second}");
    for (at, disk) in second["disks"].as_array().unwrap().iter().enumerate() {
        assert_eq!(disk["reading"], "incremental", "{disk}");
        assert!(disk["read_bytes"].as_u64().unwrap() < 2 << 20, "disk {at}: {disk}");
    }
}

/// Memory and both disks of a guest that writes all the time are of one instant, in
/// every snapshot of several.
fn check_busy(subject: &mut Subject, modes: &[&str]) {
    let pair = "pair --workers 2 --disk /dev/vdb";
    subject.guest.serial().start_witness("pair", pair, WITHIN).unwrap();
    for (number, mode) in modes.iter().cycle().take(modes.len() + 1).enumerate() {
        let name = format!("busy{number}");
        let write = format!("echo {name} >/disk/{name}; sync");
        subject.guest.serial().must_run(&write, WITHIN);
        let taken = subject.take(&["--name", &name, "--mode", mode]);
        let disks = taken["disks"].as_array().unwrap();
        for disk in disks {
            assert_eq!(reading(&taken, disk["name"].as_str().unwrap()), "incremental");
        }
    }
    for number in (0..=modes.len()).rev() {
        let name = format!("busy{number}");
        subject.revert(&name, &["--no-safety"]);
        subject.must_be_whole();
        let list = "cd /disk && cat busy*";
        let expected: String = (0..=number).map(|number| format!("busy{number}\n")).collect();
        assert_eq!(subject.guest.serial().must_run(list, WITHIN), expected, "{VM}@{name}");
    }
    let next = subject.take(&["--name", "after-a-revert"]);
    let read = reading(&next, next["disks"][0]["name"].as_str().unwrap());
    assert_eq!(read, "full: QEMU was started anew since the snapshot before");
}
