//! Internal snapshots of a real guest, as `savevm` makes them, become snapshots that
//! the guest goes on from, memory and all.

use std::path::Path;

use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu, Serial};

use crate::command::Tintype;
use crate::subject::{WITHIN, is_built};
use crate::switched_off::failed;

/// Saves the guest as QEMU's users do.
fn savevm(guest: &Guest, name: &str) {
    let mut qmp = guest.qmp().unwrap();
    let line = json!({"command-line": format!("savevm {name}")});
    let said = qmp.execute("human-monitor-command", line).unwrap();
    assert_eq!(said, "", "savevm {name}");
}

/// Starts a guest with witnesses, and saves it twice within its images.
fn saved_guest(qemu: Qemu) -> Guest {
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Qcow2, 64)];
    let builder = Guest::of(GuestKind::Tiny).qemu(qemu).memory_mib(96).disks(disks);
    let mut guest = builder.start().unwrap();
    guest.serial().start_witness("w", "pair --disk /dev/vdb --workers 2", WITHIN).unwrap();
    for name in ["one", "two"] {
        let write = format!("echo {name} >/tmp/me; echo {name} >/disk/me; sync");
        guest.serial().must_run(&write, WITHIN);
        savevm(&guest, name);
    }
    guest.serial().must_run("echo later >/tmp/me; echo later >/disk/me; sync", WITHIN);
    guest.serial().disconnect();
    guest.kill();
    guest
}

fn import<'a>(images: &[&'a str], more: &[&'a str], line: &'a [String]) -> Vec<&'a str> {
    let line = line.iter().map(String::as_str);
    let head = ["import"].into_iter().chain(images.iter().copied()).chain(more.iter().copied());
    head.chain(["--qemu", "--"]).chain(line).collect()
}

/// Asserts that a guest goes on in a state, and is of one instant.
fn must_go_on(serial: &mut Serial, state: &str) {
    serial.wait_answer(WITHIN).unwrap();
    let found = serial.must_run("cat /tmp/me /disk/me", WITHIN);
    assert_eq!(found, format!("{state}\n{state}\n"));
    serial.must_be_whole(WITHIN);
}

fn goes_on_from_what_savevm_kept(qemu: Qemu) {
    let mut guest = saved_guest(qemu);
    let tintype = Tintype::within(guest.files().folder());
    let disks: Vec<String> =
        guest.files().disks().iter().map(|disk| disk.to_str().unwrap().to_owned()).collect();
    let images = [disks[0].as_str(), disks[1].as_str()];
    let line = guest.files().argv();

    // What does not fit is said before anything is made.
    let run = |arguments: &[&str]| tintype.run(arguments);
    let one = failed(&run(&import(&images[..1], &["--vm", "web"], &line)), 4);
    assert!(one.contains("the disk `vdb-device` is not among them"), "{one}");
    let line_of_one: Vec<String> =
        line.iter().map(|word| word.replace(images[1], images[0])).collect();
    failed(&run(&import(&images, &["--vm", "web"], &line_of_one)), 4);
    let other: Vec<String> = line.iter().map(|word| word.replace("q35", "pc")).collect();
    let machine = failed(&run(&import(&images, &["--vm", "web"], &other)), 1);
    assert!(machine.contains("`-machine pc-q35-"), "{machine}");
    assert_eq!(tintype.lines(&["vm", "list"]), Vec::<Value>::new());

    let report = tintype.json(&import(&images, &["--vm", "web"], &line));
    let snapshots = report["snapshots"].as_array().unwrap();
    let found: Vec<_> = snapshots
        .iter()
        .map(|one| (one["name"].as_str().unwrap(), one["has_memory"].as_bool().unwrap()))
        .collect();
    assert_eq!(found, [("one", true), ("two", true), ("vda", false)]);
    let shown = tintype.json(&["show", "web@one"]);
    assert!(shown["snapshot"]["memory_bytes"].as_u64().unwrap() >= 96 << 20, "{shown}");
    assert_eq!(tintype.json(&["verify", "--read-data"])["damaged"], json!([]));

    // A clone goes on from one, and the VM itself from the other, and from its disks.
    let clone = tintype.json(&["clone", "web@one", "twin"])["vms"][0].clone();
    let own = guest.files().serial_path();
    let moved = clone["moved"].as_array().unwrap().iter();
    let place = moved.filter(|pair| pair[0] == own.to_str().unwrap()).map(|pair| &pair[1]).next();
    must_go_on(&mut Serial::at(Path::new(place.unwrap().as_str().unwrap())), "one");
    let reverted = tintype.json(&["revert", "web", "two"]);
    assert_eq!(reverted["state"], "running");
    must_go_on(guest.serial(), "two");
    guest.serial().disconnect();
    tintype.json(&["take", "web", "--name", "after"]);
    let reverted = tintype.json(&["revert", "web", "one", "--no-safety"]);
    assert_eq!(reverted["state"], "running");
    must_go_on(guest.serial(), "one");
}

#[test]
fn goes_on_on_the_system_s_qemu() {
    if is_built(GuestKind::Tiny) {
        goes_on_from_what_savevm_kept(Qemu::system().unwrap());
    }
}

#[test]
fn goes_on_on_the_older_qemu() {
    match Qemu::seven_two() {
        Ok(qemu) if is_built(GuestKind::Tiny) => goes_on_from_what_savevm_kept(qemu),
        _ => eprintln!("skipped: there is no QEMU 7.2, or no guest"),
    }
}
