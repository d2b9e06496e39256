//! Clones run on from the snapshot's instant, each with disks, sockets, ports and
//! hardware addresses of its own, while the first VM runs on beside them.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qmp, Serial};

use crate::scene::Scene;
use crate::subject::{Subject, WITHIN, is_built};

/// Returns the place that a clone has for a socket of the first VM.
fn moved(clone: &Value, from: &Path) -> String {
    let moved = clone["moved"].as_array().unwrap();
    let own = moved.iter().find(|pair| pair[0] == from.to_str().unwrap());
    own.unwrap()[1].as_str().unwrap().to_owned()
}

/// Connects to the serial line of a clone.
pub(crate) fn serial(clone: &Value, first: &Guest) -> Serial {
    Serial::at(Path::new(&moved(clone, &first.files().serial_path())))
}

#[test]
fn ten_clones_run_on_and_are_whole() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Qcow2, 16)];
    let guest = Guest::of(GuestKind::Tiny).memory_mib(96).disks(disks).network();
    let mut subject = Subject::start(guest);
    let interval = "pair --interval-us 20000 --disk /dev/vdb";
    subject.guest.serial().start_witness("pair", interval, WITHIN).unwrap();
    subject.guest.serial().must_run("echo first >/tmp/me; echo first >/disk/me; sync", WITHIN);
    subject.take(&["--name", "base"]);
    subject.guest.serial().must_run("echo later >/tmp/me; echo later >/disk/me; sync", WITHIN);

    let report = subject.tintype.json(&["clone", "web@base", "twin", "--count", "10", "--lazy"]);
    let clones = report["vms"].as_array().unwrap().clone();
    assert_eq!(clones.len(), 10);
    assert!(report["running_ms"].as_f64().unwrap() > 0.0, "{report}");
    let mut own = Vec::new();
    for (number, clone) in clones.iter().enumerate() {
        assert_eq!(clone["vm"], format!("twin{}", number + 1));
        assert_eq!((&clone["state"], &clone["lazy"]), (&json!("running"), &json!(true)));
        assert_eq!(clone["filling"], true, "{clone}");
        assert_ne!(clone["ports"][0]["to"], subject.guest.files().ssh_port().unwrap());
        own.push(clone["ports"][0]["to"].to_string());
        own.push(clone["macs"][0].to_string());
        own.push(clone["folder"].to_string());
    }
    own.sort();
    own.dedup();
    assert_eq!(own.len(), 30, "each has a port, an address and a folder of its own");

    // Each writes what no other may see.
    for (number, clone) in clones.iter().enumerate() {
        let mut serial = serial(clone, &subject.guest);
        serial.wait_answer(WITHIN).unwrap();
        assert_eq!(serial.must_run("cat /tmp/me /disk/me", WITHIN), "first\nfirst\n");
        serial.must_run(&format!("echo {number} >/tmp/me; echo {number} >/disk/me; sync"), WITHIN);
    }
    for (number, clone) in clones.iter().enumerate() {
        let mut serial = serial(clone, &subject.guest);
        let expected = format!("{number}\n{number}\n");
        assert_eq!(serial.must_run("cat /tmp/me /disk/me", WITHIN), expected);
        serial.must_be_whole(WITHIN);
    }
    let said = subject.guest.serial().must_run("cat /tmp/me /disk/me", WITHIN);
    assert_eq!(said, "later\nlater\n", "the first VM ran on");
    subject.must_be_whole();
    let deadline = Instant::now() + WITHIN;
    let is_filled = |vm: &Value| vm["filling"].is_null();
    while !subject.tintype.lines(&["vm", "list"]).iter().all(is_filled) {
        assert!(Instant::now() < deadline, "their disks are not filled");
        sleep(Duration::from_millis(100));
    }
    for vm in subject.tintype.lines(&["vm", "list"]) {
        assert_eq!(vm["loading"], Value::Null, "its memory is there: {vm}");
    }
    must_get_its_address(&clones[0], subject.guest.files().folder());
}

/// Asserts that a clone's card has the first VM's address until it is reset, and
/// its own from then on.
fn must_get_its_address(clone: &Value, folder: &Path) {
    let mut qmp = Qmp::connect(&folder.join("home/run/twin1.qmp")).unwrap();
    let address = |qmp: &mut Qmp| {
        let filters = qmp.execute("query-rx-filter", json!({})).unwrap();
        filters[0]["main-mac"].as_str().unwrap().to_owned()
    };
    assert_eq!(address(&mut qmp), "52:54:00:12:34:56", "that which the guest's driver has read");
    qmp.execute("system_reset", json!({})).unwrap();
    let own = clone["macs"][0].as_str().unwrap();
    let deadline = Instant::now() + WITHIN;
    while address(&mut qmp) != own {
        assert!(Instant::now() < deadline, "its address is not {own}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_clone_can_be_taken_and_reverted_like_any_vm() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let scene = Scene::start();
    let images = scene.guest.files().disks().to_vec();
    let folder = scene.guest.files().folder().join("elsewhere");
    let to = folder.to_str().unwrap();
    let arguments = ["clone", "web@base", "twin", "--to", to];
    let report = scene.tintype.json(&arguments);
    let mut own = serial(&report["vms"][0], &scene.guest);
    own.wait_answer(WITHIN).unwrap();
    own.must_be_whole(WITHIN);
    own.must_run("echo mine >/tmp/state", WITHIN);
    scene.tintype.json(&["take", "twin", "--name", "mine"]);
    own.must_run("echo lost >/tmp/state", WITHIN);
    own.disconnect();
    scene.tintype.json(&["revert", "twin", "mine"]);
    own.wait_answer(WITHIN).unwrap();
    assert_eq!(own.must_run("cat /tmp/state", WITHIN), "mine\n");
    own.must_be_whole(WITHIN);

    // A clone that never ran has the very bytes of the snapshot.
    scene.guest.qmp().unwrap().execute("stop", json!({})).unwrap();
    scene.tintype.json(&["take", "web", "--name", "still"]);
    scene.tintype.json(&["clone", "web@still", "still", "--to", to]);
    scene.tintype.json(&["vm", "stop", "still", "--force"]);
    scene.tintype.json(&["vm", "stop", "web", "--force"]);
    for (image, name) in images.iter().zip(["vda", "vdb"]) {
        let format = image.extension().unwrap().to_str().unwrap();
        let copy = folder.join(format!("still/{name}-device.{format}"));
        let compare = ["compare", "-f", format, "-F", format];
        let output = Command::new("qemu-img").args(compare).args([image, &copy]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    let refused = scene.tintype.run(&["clone", "web@base", "twin"]);
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    scene.tintype.json(&["vm", "stop", "twin", "--force"]);
    scene.tintype.json(&["vm", "rm", "twin"]);
    assert!(folder.join("twin/vda-device.qcow2").exists(), "the disks of a forgotten VM stay");
    let refused = scene.tintype.run(&arguments);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
}

#[test]
fn a_clone_that_is_killed_leaves_nothing() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let mut scene = Scene::start();
    for step in ["clone-intent", "clone-filled", "clone-loaded", "clone-running"] {
        scene.killed_at(step, &["clone", "web@base", "twin"]);
        let names: Vec<Value> =
            scene.tintype.lines(&["vm", "list"]).iter().map(|vm| vm["name"].clone()).collect();
        assert_eq!(names, ["web"], "after a kill at {step}");
        assert_eq!(fs::read_dir(scene.home().join("clones")).unwrap().count(), 0, "{step}");
        // It makes way for the next one of that name by itself, too, with who loads its
        // memory and fills its disks.
        scene.killed_at(step, &["clone", "web@base", "twin", "--lazy"]);
        let report = scene.tintype.json(&["clone", "web@base", "twin"]);
        let mut own = serial(&report["vms"][0], &scene.guest);
        own.wait_answer(WITHIN).unwrap();
        own.must_be_whole(WITHIN);
        scene.tintype.json(&["vm", "stop", "twin", "--force"]);
        scene.tintype.json(&["vm", "rm", "twin"]);
        fs::remove_dir_all(scene.home().join("clones/twin")).unwrap();
    }
    assert_eq!(scene.state(), "base", "the first VM is as it was");
}

#[test]
fn what_two_vms_cannot_share_is_refused_by_name() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let log = ["-serial", "tcp:127.0.0.1:0,server=on,wait=off"];
    let mut subject = Subject::boot(Guest::of(GuestKind::Tiny).memory_mib(96).extra(log));
    subject.take(&["--name", "base"]);
    let output = subject.tintype.run(&["clone", "web@base", "twin"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("-serial tcp:127.0.0.1:0"), "{errors}");
    assert!(errors.contains("no VM was made"), "{errors}");
    assert_eq!(subject.tintype.lines(&["vm", "list"]).len(), 1);
}

#[test]
fn ten_clones_that_share_memory_cost_little_more_than_one() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 16)];
    let mut subject = Subject::start(Guest::of(GuestKind::Tiny).memory_mib(384).disks(disks));
    let check = "tail -c 1000000 /tmp/fill | md5sum";
    let fill = format!("yes tintype | head -c 150000000 >/tmp/fill; {check}");
    let sum = subject.guest.serial().must_run(&fill, WITHIN);
    let witness = "pair --interval-us 20000 --disk /dev/vdb";
    subject.guest.serial().start_witness("w", witness, WITHIN).unwrap();
    subject.take(&["--name", "base"]);
    subject.power_off();

    let alone = subject.tintype.json(&["clone", "web@base", "alone"]);
    let alone = memory_mib(&alone["vms"][0]);
    subject.tintype.json(&["vm", "stop", "alone", "--force"]);
    let arguments = ["clone", "web@base", "twin", "--count", "10", "--share-memory"];
    let report = subject.tintype.json(&arguments);
    let clones = report["vms"].as_array().unwrap().clone();
    let together: u64 = clones.iter().map(memory_mib).sum();
    eprintln!("one clone has {alone} MiB, ten that share have {together} MiB: {report}");
    assert!(together < 4 * alone, "{together} MiB of ten are not less than 4 × {alone} MiB");
    for clone in &clones {
        let mut serial = serial(clone, &subject.guest);
        serial.wait_answer(WITHIN).unwrap();
        serial.must_be_whole(WITHIN);
    }
    // One that writes changes nothing for another.
    let mut first = serial(&clones[0], &subject.guest);
    let zero = "dd if=/dev/zero of=/tmp/fill bs=1M count=143 conv=notrunc 2>/dev/null";
    first.must_run(zero, WITHIN);
    let mut second = serial(&clones[1], &subject.guest);
    assert_eq!(second.must_run(check, WITHIN), sum);
    let left = fs::read_dir(subject.guest.files().folder().join("home/run")).unwrap();
    let left = left.filter(|entry| entry.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(left, 0, "the file has no name any more");

    // Taken, and put back with memory of its own.
    second.disconnect();
    subject.tintype.json(&["take", "twin2", "--name", "again"]);
    subject.tintype.json(&["revert", "twin2", "again"]);
    second.wait_answer(WITHIN).unwrap();
    assert_eq!(second.must_run(check, WITHIN), sum);
    second.must_be_whole(WITHIN);
}

/// Returns the memory of a clone's QEMU, where what several share counts in parts.
fn memory_mib(clone: &Value) -> u64 {
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", clone["pid"])).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}
