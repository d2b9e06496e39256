//! A restored folder runs by itself: the guest goes on from the instant, once, and
//! boots from its disks at any time.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tintype_testkit::{Disk, Format, Guest, GuestKind, Serial};

use crate::subject::{Subject, WITHIN, is_built};

/// A restored VM that was started by its script, and that ends with this.
pub(crate) struct Started(Child);

impl Started {
    pub(crate) fn by_script(start: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(start);
        command.args(arguments).stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_restored_guest_goes_on_and_its_disks_are_the_snapshot() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 64)];
    let mut subject = Subject::start(Guest::of(GuestKind::Tiny).memory_mib(128).disks(disks));
    let images = subject.guest.files().disks().to_vec();
    let folder = subject.guest.files().folder().to_owned();
    let serial = subject.guest.serial();
    serial.start_witness("pair", "pair --workers 2 --disk /dev/vdb", WITHIN).unwrap();
    serial.must_run("echo here >/tmp/me; echo here >/disk/me; sync", WITHIN);
    // Taken while it stands still, so that its own disks are what to compare with.
    subject.owner("stop");
    subject.take(&["--name", "still"]);
    subject.owner("cont");
    subject.take(&["--name", "base", "--mode", "stop"]);
    for (format, snapshot) in [("qcow2", "web@base"), ("raw", "web@base")] {
        let to = folder.join(format!("restored-{format}"));
        let arguments = ["restore", snapshot, "--format", format, "--to", to.to_str().unwrap()];
        let report = subject.tintype.json(&arguments);
        let start = to.join("start");
        assert_eq!(report["start"], start.to_str().unwrap());
        assert!(!to.join("UNFINISHED").exists());
        let again = subject.tintype.run(&arguments);
        assert_eq!(again.status.code(), Some(4), "the folder is not empty: {again:?}");

        // It is taken elsewhere, and needs nothing of where it was.
        let elsewhere = folder.join(format!("elsewhere-{format}"));
        fs::rename(&to, &elsewhere).unwrap();
        let start = elsewhere.join("start");
        let script = fs::read_to_string(&start).unwrap();
        assert!(!script.contains(folder.to_str().unwrap()), "{script}");
        let started = Started::by_script(&start, &[]);
        let mut serial = Serial::at(&elsewhere.join("serial"));
        serial.wait_answer(WITHIN).unwrap();
        assert_eq!(serial.must_run("cat /tmp/me /disk/me", WITHIN), "here\nhere\n");
        serial.must_be_whole(WITHIN);
        serial.disconnect();
        drop(started);

        let again = Command::new(&start).output().unwrap();
        let errors = String::from_utf8_lossy(&again.stderr);
        assert_eq!(again.status.code(), Some(1), "{errors}");
        assert!(errors.contains("--cold"), "{errors}");
        let started = Started::by_script(&start, &["--cold"]);
        serial.wait_ready(WITHIN).unwrap();
        assert_eq!(serial.must_run("cat /disk/me", WITHIN), "here\n");
        drop(started);
    }
    subject.revert("still", &["--no-safety"]);
    subject.power_off();
    let to = folder.join("compared");
    let report = subject.tintype.json(&["restore", "web@still", "--to", to.to_str().unwrap()]);
    for (number, (image, format)) in images.iter().zip(["qcow2", "raw"]).enumerate() {
        let restored = report["disks"][number].as_str().unwrap();
        let compare = ["compare", "-f", format, "-F", "qcow2"];
        let tool = Command::new("qemu-img").args(compare).arg(image).arg(restored).output();
        let tool = tool.unwrap();
        assert!(tool.status.success(), "{tool:?}");
    }
}

#[test]
fn what_would_not_run_here_is_said_before_anything_is_restored() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let mut subject = Subject::start(Guest::of(GuestKind::Tiny).memory_mib(96).network());
    subject.take(&["--name", "base"]);
    let to = subject.guest.files().folder().join("restored");
    let arguments = ["restore", "web@base", "--to", to.to_str().unwrap()];
    let output = subject.tintype.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("Could not set up host forwarding"), "the port is taken: {errors}");
    assert!(!to.exists(), "nothing was restored");
    // The same words if the guest was to run from there.
    let output = subject.tintype.run(&[&arguments[..], &["--run", "there", "--lazy"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("the VM would not run here"), "{errors}");
    assert!(errors.contains("Could not set up host forwarding"), "{errors}");
    assert_eq!((subject.tintype.lines(&["vm", "list"]).len(), to.exists()), (1, false));
    let output = subject.tintype.run(&[&arguments[..], &["--lazy"]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("--run <NAME>"), "{errors}");

    subject.power_off();
    fs::create_dir(&to).unwrap();
    fs::write(to.join("UNFINISHED"), "").unwrap();
    let output = subject.tintype.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("is of a restore that was interrupted"), "{errors}");
    fs::remove_dir_all(&to).unwrap();
    subject.tintype.json(&arguments);
}
