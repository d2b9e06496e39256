//! What has changed of a disk is known after a clean stop and a start, by a bitmap in its
//! image; and it is not believed when something came in between that the image cannot tell.
//!
//! There is no guest: when a power button was pressed, the test ends QEMU as a guest would.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tintype_testkit::{Error, Format, Qemu};

use crate::bare_vm::{BareVm, image_io, image_tool, reading};
use crate::same_as_full::wait_until;

const SIZE: u64 = 8 << 20;

/// Why a disk was read whole.
const ANEW: &str = "full: QEMU was started anew since the snapshot before";
const NOT_STORED: &str =
    "full: its image has no bitmap of what was written since the snapshot before";
const NOT_CLOSED: &str = "full: its bitmap is inconsistent: its image was not closed well";
const OTHER_BASE: &str =
    "full: a file that its image is based on has changed since the VM was stopped";

/// Where the bit of a qcow2 header is that says that its bitmaps are true.
const AUTOCLEAR: u64 = 88 + 7;

#[test]
fn what_has_changed_is_known_after_a_stop_on_the_systems_qemu() {
    check_stops(Qemu::system());
}

#[test]
fn what_has_changed_is_known_after_a_stop_on_qemu_7_2() {
    check_stops(Qemu::seven_two());
}

fn check_stops(qemu: Result<Qemu, Error>) {
    let qemu = match qemu {
        Ok(qemu) => qemu,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let mut vm = Stopping::new(&qemu);
    vm.bare.io("da", "write -P 2 1M 64k");
    vm.bare.stop_by_power_button();
    assert_eq!(vm.in_image("da").len(), 1);
    vm.start();
    vm.bare.io("da", "write -P 3 2M 64k");
    let taken = vm.take_and_check("incremental");
    assert_eq!(reading(&taken, "db"), ANEW, "its format stores none");
    // Both that were written, and a sample of what was not.
    let read = taken["disks"][0]["read_bytes"].as_u64().unwrap();
    assert!(((128 << 10)..SIZE / 4).contains(&read), "{taken}");
    assert_eq!(vm.bare.bitmaps("da").len(), 1, "none is left in the image");

    // Written by others while it is off, and started and stopped without a take.
    vm.stop_at_once();
    image_io(&vm.bare.image("da"), Format::Qcow2, "write -P 4 3M 64k");
    vm.start();
    vm.bare.io("da", "discard 4M 64k");
    vm.quit();
    vm.start();
    vm.take_and_check("incremental");

    vm.stop_at_once();
    vm.start();
    vm.bare.io("da", "write -P 5 5M 64k");
    vm.bare.io("da", "flush");
    vm.kill();
    vm.start();
    vm.take_and_check(NOT_CLOSED);
    vm.stop_at_once();
    vm.start();
    vm.take_and_check("incremental");
}

#[test]
fn an_image_says_itself_what_is_known_of_it() {
    let mut vm = Stopping::new(&Qemu::system().unwrap());
    let (image, copy) = (vm.bare.image("da"), vm.bare.path("older"));
    // An older copy has a bitmap of its own, of the same snapshot or of an older one.
    vm.stop_at_once();
    fs::copy(&image, &copy).unwrap();
    vm.start();
    vm.bare.io("da", "write -P 2 1M 64k");
    vm.stop_at_once();
    fs::copy(&copy, &image).unwrap();
    vm.start();
    vm.take_and_check("incremental");
    vm.bare.io("da", "write -P 3 2M 64k");
    vm.stop_at_once();
    fs::copy(&copy, &image).unwrap();
    vm.start();
    vm.take_and_check(NOT_STORED);
    assert_eq!(vm.bare.bitmaps("da").len(), 1, "that of the older snapshot is removed");

    // Software that does not know bitmaps clears a bit.
    vm.stop_at_once();
    let header = fs::File::options().write(true).open(&image).unwrap();
    header.write_all_at(&[0], AUTOCLEAR).unwrap();
    vm.start();
    vm.take_and_check(NOT_STORED);

    // Cut and grown it has the same size, and zeros that no bitmap marks.
    vm.stop_at_once();
    resize(&image, "4M");
    resize(&image, "8M");
    vm.start();
    vm.take_and_check("incremental");
    vm.stop_at_once();
    resize(&image, "12M");
    vm.start();
    vm.take_and_check("full: its size was 8.0 MiB in the snapshot before");

    // Who writes past all of it is found by the sample: half of the disk is other bytes.
    vm.bare.io("da", "write -P 1 0 12M");
    vm.take_and_check("incremental");
    vm.stop_at_once();
    overwrite_data(&image, 6 << 20);
    vm.start();
    vm.take_and_check("full: a write to its image was not recorded");

    // QEMU does not let an internal snapshot be applied while there is a bitmap.
    let snapshot = ["snapshot", "-c", "before"];
    vm.stop_at_once();
    image_tool(&snapshot, &[&image], &[]);
    image_io(&image, Format::Qcow2, "write -P 6 1M 64k");
    let apply = ["snapshot", "-a", "before"];
    assert!(!Command::new("qemu-img").args(apply).arg(&image).status().unwrap().success());
    let [stored] = <[String; 1]>::try_from(vm.in_image("da")).unwrap();
    image_tool(&["bitmap", "--remove", "-f", "qcow2"], &[&image], &[&stored]);
    image_tool(&apply, &[&image], &[]);
    vm.start();
    vm.take_and_check(NOT_STORED);
}

#[test]
fn what_an_image_is_based_on_has_to_be_the_same() {
    let mut vm = Stopping::new(&Qemu::system().unwrap());
    let base = vm.bare.path("base");
    let reading_of_overlay = |vm: &Stopping| {
        let taken = vm.bare.tintype.json(&["take", "web", "--no-memory"]);
        reading(&taken, "over")
    };
    vm.stop_at_once();
    vm.start();
    assert_eq!(reading_of_overlay(&vm), "incremental");
    vm.stop_at_once();
    fs::write(&base, vec![8; 1 << 20]).unwrap();
    vm.start();
    assert_eq!(reading_of_overlay(&vm), OTHER_BASE);
    vm.stop_at_once();
    fs::copy(&base, vm.bare.path("copied")).unwrap();
    fs::rename(vm.bare.path("copied"), &base).unwrap();
    vm.start();
    assert_eq!(reading_of_overlay(&vm), OTHER_BASE);
    assert_eq!(reading_of_overlay(&vm), "incremental");
    // A revert leaves none, nor does a full take, nor what forgets the VM.
    vm.stop_at_once();
    assert_eq!(vm.in_image("da").len(), 1);
    let taken = vm.take_and_check("full: QEMU did not run");
    let name = taken["name"].as_str().unwrap();
    assert_eq!(vm.in_image("da").len(), 1, "it is true still");
    vm.bare.tintype.json(&["revert", "web", name, "--no-safety"]);
    assert_eq!(vm.in_image("da"), Vec::<String>::new());
    vm.start();
    vm.take_and_check(ANEW);
    vm.stop_at_once();
    vm.bare.tintype.json(&["take", "web", "--full"]);
    assert_eq!(vm.in_image("da"), Vec::<String>::new());
    vm.start();
    vm.take_and_check("full: nothing has recorded its changes yet");
    vm.stop_at_once();
    assert_eq!(vm.in_image("da").len(), 1);
    vm.bare.tintype.json(&["vm", "rm", "web"]);
    assert_eq!(vm.in_image("da"), Vec::<String>::new());
}

#[test]
fn a_stop_that_is_killed_or_interrupted_leaves_nothing() {
    let mut vm = Stopping::new(&Qemu::system().unwrap());
    for step in ["stop-intent", "stop-stored", "stop-pressed"] {
        vm.bare.io("da", "write -P 9 1M 64k");
        vm.killed_at(step, &["vm", "stop", "web"]);
        let shown = vm.bare.tintype.json(&["vm", "show", "web"]);
        assert_eq!(shown["state"], "running", "{step}");
        assert_eq!(vm.bare.bitmaps("da").len(), 1, "{step}: that in the image is removed");
        vm.take_and_check("incremental");
    }
    let held = vm.bare.held_stop("stop-pressed");
    held.signal(Signal::INT);
    held.let_go().must_have_failed(130, &["it still runs"]);
    assert_eq!(vm.bare.bitmaps("da").len(), 1);

    // Killed when all is done, or when QEMU ends after it: that was a clean stop.
    for step in ["stop-ended", "stop-stored"] {
        vm.bare.io("da", "write -P 8 2M 64k");
        let mut command = vm.bare.tintype.command();
        command.args(["vm", "stop", "web"]).env("TINTYPE_TEST_FAULT", step);
        let mut stop = command.stderr(Stdio::null()).spawn().unwrap();
        wait_until(|| vm.bare.bitmaps("da").len() == 2);
        if step == "stop-stored" {
            assert_eq!(stop.wait().unwrap().signal(), Some(9));
        }
        vm.quit();
        assert_eq!(stop.wait().unwrap().signal(), Some(9));
        vm.start();
        vm.take_and_check("incremental");
    }

    // The take that takes them over is killed.
    for step in ["take-merged", "take-taken-over"] {
        vm.stop_at_once();
        vm.start();
        vm.killed_at(step, &["take", "web", "--no-memory"]);
        vm.bare.tintype.wait_repaired();
        vm.bare.io("da", "write -P 7 3M 64k");
        vm.take_and_check("incremental");
        assert_eq!(vm.bare.bitmaps("da").len(), 1, "{step}");
    }
}

/// A VM that is stopped and started again.
struct Stopping {
    bare: BareVm,
    takes: u64,
}

impl Stopping {
    /// Starts it with full disks, and takes a snapshot. A third disk is `over` a base.
    fn new(qemu: &Qemu) -> Self {
        let bare = BareVm::start_with(qemu, SIZE, |folder| {
            let (base, over) = (folder.join("base"), folder.join("over"));
            fs::write(&base, vec![7; 1 << 20]).unwrap();
            let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
            image_tool(&create, &[&base, &over], &[]);
            let drive = format!(
                "qcow2,node-name=node-over,file.driver=file,file.filename={}",
                over.display()
            );
            ["-blockdev", &drive, "-device", "virtio-blk-pci,id=over,drive=node-over"]
                .map(str::to_owned)
                .to_vec()
        });
        let mut vm = Self { bare, takes: 0 };
        vm.bare.io("da", "write -P 1 0 8M");
        vm.take_and_check("full: nothing has recorded its changes yet");
        vm
    }

    /// Takes a snapshot, whose disks have to be those of now, and of which one was read so.
    fn take_and_check(&mut self, expected: &str) -> Value {
        self.takes += 1;
        let name = format!("t{}", self.takes);
        if self.is_running() {
            self.bare.copy_all(&name);
        } else {
            self.bare.copy("da", Format::Qcow2, &name);
            self.bare.copy("db", Format::Raw, &name);
        }
        let taken = self.bare.tintype.json(&["take", "web", "--no-memory", "--name", &name]);
        assert_eq!(reading(&taken, "da"), expected, "{name}");
        self.bare.must_restore(&name, &name);
        taken
    }

    fn is_running(&self) -> bool {
        self.bare.tintype.json(&["vm", "show", "web"])["state"] == "running"
    }

    /// Runs a command that kills itself at a step.
    fn killed_at(&self, step: &str, arguments: &[&str]) {
        let mut command = self.bare.tintype.command();
        let output = command.args(arguments).env("TINTYPE_TEST_FAULT", step).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{arguments:?} at {step}: {errors}");
    }

    fn stop_at_once(&self) {
        self.bare.tintype.json(&["vm", "stop", "web", "--force"]);
    }

    fn start(&self) {
        self.bare.tintype.json(&["vm", "start", "web"]);
    }

    /// Ends QEMU as its owner would.
    fn quit(&self) {
        self.bare.qmp("quit", json!({}));
        // No command of tintype comes in between: it would take back a stop that was killed.
        wait_until(|| UnixStream::connect(self.bare.path("second")).is_err());
        wait_until(|| !self.is_running());
    }

    fn kill(&self) {
        let shown = self.bare.tintype.json(&["vm", "show", "web"]);
        let pid = i32::try_from(shown["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        wait_until(|| !self.is_running());
    }

    /// Returns the names of the bitmaps in the image of a disk that nobody has open.
    fn in_image(&self, disk: &str) -> Vec<String> {
        let info = tool_output(&["info", "-U", "--output", "json"], &self.bare.image(disk));
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
        let names = bitmaps.unwrap_or_default().into_iter();
        names.map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
    }
}

fn tool_output(arguments: &[&str], image: &Path) -> Value {
    let output = Command::new("qemu-img").args(arguments).arg(image).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn resize(image: &Path, size: &str) {
    image_tool(&["resize", "-q", "--shrink", "-f", "qcow2"], &[image], &[size]);
}

/// Changes the first so many bytes of what a disk holds, in the file where they are.
fn overwrite_data(image: &Path, len: u64) {
    let map = tool_output(&["map", "-f", "qcow2", "--output", "json"], image);
    let file = fs::File::options().write(true).open(image).unwrap();
    for part in map.as_array().unwrap() {
        let (start, offset) = (part["start"].as_u64().unwrap(), part["offset"].as_u64());
        let end = (start + part["length"].as_u64().unwrap()).min(len);
        if let Some(offset) = offset.filter(|_| start < end) {
            let bytes = vec![9; usize::try_from(end - start).unwrap()];
            file.write_all_at(&bytes, offset).unwrap();
        }
    }
}
