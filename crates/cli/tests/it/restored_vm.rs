//! A snapshot runs from the folder that it is restored to, before its memory and its
//! disks are there, whatever the format of its disks was; in the end the folder needs
//! nothing of tintype. Who fills the disks is held where that is to be seen.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu, Serial};

use crate::bare_vm::{BareVm, image_tool};
use crate::clones::serial;
use crate::command::Tintype;
use crate::lazy_disks::{kill_servers, servers};
use crate::restore::Started;
use crate::scene::Scene;
use crate::subject::{Subject, WITHIN, is_built};
use crate::switched_off::{SIZE, SwitchedOff, content};

/// The disks of a restored guest.
const DISKS: [&str; 2] = ["vda-device", "vdb-device"];

/// Reads a file past the guest's own memory, and says whether it is as it was.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; md5sum </disk/fill | cmp - /tmp/sum";

/// Starts a guest with witnesses and something on its disks, of which one is raw, and
/// takes the snapshots `base` of it, and `still` while it stands still.
fn origin(qemu: &Qemu) -> Subject {
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 64)];
    let builder = Guest::of(GuestKind::Tiny).qemu(qemu.clone()).memory_mib(128).disks(disks);
    let mut subject = Subject::start(builder);
    let witness = "pair --interval-us 20000 --disk /dev/vdb";
    subject.guest.serial().start_witness("pair", witness, WITHIN).unwrap();
    let fill = "dd if=/dev/urandom of=/disk/fill bs=1M count=16 2>/dev/null; sync";
    subject.guest.serial().must_run(&format!("{fill}; md5sum </disk/fill >/tmp/sum"), WITHIN);
    subject.take(&["--name", "base"]);
    subject.owner("stop");
    subject.take(&["--name", "still"]);
    subject
}

/// Runs a command that makes a VM, and holds who fills the disks of that before anything
/// is filled. Returns what the command reported and said, and the file that holds.
fn held(tintype: &Tintype, folder: &Path, arguments: &[&str]) -> (Value, String, PathBuf) {
    let file = folder.join("held");
    let mut command = tintype.command();
    command.arg("--json").args(arguments);
    command.env("TINTYPE_TEST_FAULT", format!("fill-begun:{}", file.display()));
    let output = command.output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    wait("nobody begins to fill", || file.exists());
    (serde_json::from_slice(&output.stdout).unwrap(), errors, file)
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20));
    }
}

fn wait_filled(tintype: &Tintype, vm: &str) {
    let show = || tintype.json(&["vm", "show", vm]);
    wait("its disks are not filled", || show()["filling"] == Value::Null);
}

fn must_be_whole(serial: &mut Serial) {
    serial.wait_answer(WITHIN).unwrap();
    assert_eq!(serial.must_run(READ, WITHIN), "");
    serial.must_be_whole(WITHIN);
}

/// Runs a script that has to refuse, and say this.
fn must_refuse(script: &Path, arguments: &[&str], words: &str) {
    let output = Command::new(script).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(words), "`{words}` is not in {errors}");
}

#[test]
fn a_guest_runs_from_its_folder_before_that_is_whole() {
    let qemus = if is_built(GuestKind::Tiny) { Qemu::all() } else { Vec::new() };
    for (number, qemu) in qemus.iter().enumerate() {
        let subject = origin(qemu);
        let folder = subject.guest.files().folder().to_owned();
        let (tintype, there) = (&subject.tintype, folder.join("there"));
        let to = there.to_str().unwrap();
        let restore = ["restore", "web@base", "--to", to, "--run", "there", "--lazy"];
        let (report, said, hold) = held(tintype, &folder, &restore);
        let running = &report["running"];
        assert_eq!((&running["vm"], &running["state"]), (&json!("there"), &json!("running")));
        assert_eq!((&running["lazy"], &running["filling"]), (&json!(true), &json!(true)));
        assert!(!said.contains("written before"), "also the raw disk is filled behind it: {said}");
        let start = there.join("start");
        assert_eq!(report["start"], start.to_str().unwrap());
        let mut serial = Serial::at(&there.join("serial"));
        must_be_whole(&mut serial);
        for arguments in [&[][..], &["--cold"]] {
            must_refuse(&start, arguments, "vda-device.qcow2 is not whole yet: `tintype vm show");
        }
        let refused = tintype.run(&["rm", "web@base"]);
        assert_eq!(refused.status.code(), Some(4), "it is filled from that: {refused:?}");

        kill_servers(&servers(&folder.join("home/vms/there/filling-progress.json")));
        fs::remove_file(&hold).unwrap();
        tintype.json(&["vm", "show", "there"]);
        must_be_whole(&mut serial);
        wait_filled(tintype, "there");
        must_be_whole(&mut serial);
        serial.disconnect();
        tintype.json(&["vm", "stop", "there", "--force"]);
        tintype.json(&["vm", "rm", "there"]);

        must_be_the_same_as_at_rest(tintype, &folder);
        if number == 0 {
            a_raw_disk_becomes_one_that_is_filled(&subject, &folder);
        }
        // It is taken elsewhere, and needs nothing of where it was.
        let elsewhere = folder.join("elsewhere");
        fs::rename(&there, &elsewhere).unwrap();
        fs::rename(folder.join("home"), folder.join("away")).unwrap();
        must_refuse(&elsewhere.join("start"), &[], "--cold` boots it from its disks");
        if number == 0 {
            let started = Started::by_script(&elsewhere.join("start"), &["--cold"]);
            let mut serial = Serial::at(&elsewhere.join("serial"));
            serial.wait_ready(WITHIN).unwrap();
            assert_eq!(serial.must_run("test -s /disk/fill; echo $?", WITHIN), "0\n");
            drop(started);
        }
        fs::rename(folder.join("away"), folder.join("home")).unwrap();
    }
}

/// Restores the snapshot that was taken while the guest stood still both ways: what is
/// filled behind a guest that never runs has the very bytes.
fn must_be_the_same_as_at_rest(tintype: &Tintype, folder: &Path) {
    let (lazy, eager) = (folder.join("lazy"), folder.join("eager"));
    let (lazy_to, eager_to) = (lazy.to_str().unwrap(), eager.to_str().unwrap());
    tintype.json(&["restore", "web@still", "--to", lazy_to, "--run", "still", "--lazy"]);
    wait_filled(tintype, "still");
    tintype.json(&["vm", "stop", "still", "--force"]);
    tintype.json(&["vm", "rm", "still"]);
    tintype.json(&["restore", "web@still", "--to", eager_to, "--format", "raw"]);
    for disk in DISKS {
        let (one, other) = (format!("{disk}.qcow2"), format!("{disk}.raw"));
        let images = [lazy.join(one), eager.join(other)];
        let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
        image_tool(&["compare", "-q", "-f", "qcow2", "-F", "raw"], &images, &[]);
    }
}

fn a_raw_disk_becomes_one_that_is_filled(subject: &Subject, folder: &Path) {
    let tintype = &subject.tintype;
    let clone = ["clone", "web@base", "plain", "--lazy"];
    let (report, said, hold) = held(tintype, folder, &clone);
    fs::remove_file(hold).unwrap();
    assert_eq!(report["vms"][0]["filling"], true, "the other one is");
    assert!(said.contains("`vdb-device` is written before the guest runs"), "{said}");
    assert!(said.contains("--format qcow2"), "{said}");
    tintype.json(&["vm", "stop", "plain", "--force"]);

    let clone = ["clone", "web@base", "twin", "--lazy", "--format", "qcow2"];
    let (report, said, hold) = held(tintype, folder, &clone);
    assert!(!said.contains("written before"), "{said}");
    let twin = &report["vms"][0];
    let mut serial = serial(twin, &subject.guest);
    must_be_whole(&mut serial);
    fs::remove_file(hold).unwrap();
    wait_filled(tintype, "twin");
    must_be_whole(&mut serial);
    serial.disconnect();
    tintype.json(&["vm", "stop", "twin", "--force"]);
}

#[test]
fn one_that_is_killed_leaves_nothing() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let scene = Scene::start();
    let there = scene.guest.files().folder().join("there");
    let to = there.to_str().unwrap();
    let restore = ["restore", "web@base", "--to", to, "--run", "there", "--lazy"];
    for step in ["clone-intent", "clone-filled", "clone-loaded", "clone-running"] {
        scene.killed_at(step, &restore);
        let vms = scene.tintype.lines(&["vm", "list"]);
        assert_eq!((vms.len(), there.exists()), (1, false), "after a kill at {step}: {vms:?}");
    }
    // A folder that a killed one had begun makes way for another one of whatever kind, and
    // is not removed with what that has put there.
    scene.killed_at("clone-filled", &restore);
    scene.tintype.json(&restore[..4]);
    assert_eq!(scene.tintype.lines(&["vm", "list"]).len(), 1);
    assert!(there.join("start").exists() && there.join("memory.stream").exists());
    let refused = scene.tintype.run(&restore);
    assert_eq!(refused.status.code(), Some(4), "it is not empty: {refused:?}");
}

#[test]
fn a_vm_that_never_ran_has_disks_of_its_own() {
    let vm = SwitchedOff::start();
    vm.take("base", 1);
    vm.tintype.json(&["clone", "web@base", "twin", "--format", "qcow2"]);
    let to = vm.path("there");
    let restore = ["restore", "web@base", "--to", &to, "--run", "there", "--lazy"];
    let report = vm.tintype.json(&restore);
    assert_eq!(report["running"]["state"], "stopped", "it did not run at its instant");
    vm.write(2);
    for name in ["twin", "there"] {
        vm.tintype.json(&["take", name, "--name", "own"]);
        let to = vm.path(&format!("of-{name}"));
        let own = format!("{name}@own");
        let report = vm.tintype.json(&["restore", &own, "--to", &to, "--format", "raw"]);
        let image = report["disks"][0].as_str().unwrap();
        assert!(fs::read(image).unwrap() == content(1, SIZE), "{name} is taken, not the first");
        vm.tintype.json(&["revert", name, "own", "--no-safety"]);
    }
    vm.must_be(2);
}

/// How QEMU opens an image: `-drive` and `-blockdev`, JSON and not, above others and alone.
const WAYS: [(&str, &str); 4] = [
    (
        "dc",
        r#"-drive file=json:{"driver":"raw",,"file":{"driver":"file",,"filename":"IMAGE"}},format=raw,if=none,id=NODE"#,
    ),
    (
        "dd",
        r#"-blockdev {"driver":"raw","node-name":"NODE","file":{"driver":"file","filename":"IMAGE"}}"#,
    ),
    ("de", "-blockdev driver=file,node-name=NODE,filename=IMAGE"),
    (
        "df",
        "-blockdev driver=raw,node-name=base,read-only=on,file.driver=file,file.filename=BASE -blockdev driver=qcow2,node-name=NODE,backing=base,file.driver=file,file.filename=IMAGE",
    ),
];

#[test]
fn a_disk_gets_another_format_however_it_was_opened() {
    for qemu in Qemu::all() {
        let vm = BareVm::start_with(&qemu, SIZE as u64, |folder| {
            let base = folder.join("base");
            fs::write(&base, vec![1; SIZE]).unwrap();
            let mut line = Vec::new();
            for (name, way) in WAYS {
                let image = folder.join(format!("{name}.image"));
                let format = if name == "df" { "qcow2" } else { "raw" };
                image_tool(&["create", "-q", "-f", format], &[&image], &[&SIZE.to_string()]);
                let way = way.replace("IMAGE", image.to_str().unwrap());
                let way = way.replace("BASE", base.to_str().unwrap()).replace("NODE", name);
                line.extend(way.split(' ').map(str::to_owned));
                let device = format!("virtio-blk-pci,id={name},drive={name}");
                line.extend(["-device".to_owned(), device]);
            }
            line
        });
        let disks = ["da", "db", "dc", "dd", "de", "df"];
        for (byte, disk) in (2_u8..).zip(disks) {
            vm.io(disk, &format!("write -P {byte} 1M 64k"));
            vm.io(disk, "write -z 2M 64k");
            vm.io(disk, "flush");
        }
        vm.tintype.json(&["take", "web", "--name", "base"]);
        vm.tintype.json(&["clone", "web@base", "twin", "--lazy", "--format", "qcow2"]);
        wait_filled(&vm.tintype, "twin");
        vm.tintype.json(&["vm", "stop", "twin", "--force"]);
        vm.tintype.json(&["clone", "web@base", "flat", "--format", "raw"]);
        vm.tintype.json(&["vm", "stop", "flat", "--force"]);
        for (byte, disk) in (2_u8..).zip(disks) {
            let mut expected = vec![u8::from(disk == "df"); SIZE];
            expected[1 << 20..(1 << 20) + (64 << 10)].fill(byte);
            expected[2 << 20..(2 << 20) + (64 << 10)].fill(0);
            let flat = fs::read(vm.path(&format!("home/clones/flat/{disk}.raw"))).unwrap();
            assert!(flat == expected, "{disk} of {:?}", qemu.release());
            let copy = vm.path("expected");
            fs::write(&copy, expected).unwrap();
            let filled = vm.path(&format!("home/clones/twin/{disk}.qcow2"));
            let compare = ["compare", "-q", "-f", "qcow2", "-F", "raw"];
            image_tool(&compare, &[&filled, &copy], &[]);
        }
    }
}
