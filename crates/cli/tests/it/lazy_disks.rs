//! A clone whose disks are filled behind it is whole from the start, whatever becomes of
//! those who fill them, and in the end has disks of its own. Who fills them is held
//! where that is to be seen: what the guest reads then comes from the repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu, Qmp, Serial};

use crate::clones::serial;
use crate::subject::{Subject, VM, WITHIN, is_built};
use crate::words::files;

/// Waits for a sum that is made behind.
const AGAIN: &str = "while [ ! -s /tmp/again ]; do sleep 0.1; done; cat /tmp/again";

/// Reads a file past the guest's own memory, and says whether it is as it was.
const READ: &str = "echo 3 >/proc/sys/vm/drop_caches; md5sum </disk/fill | cmp - /tmp/sum";

/// A guest with witnesses and something on its disk, and the snapshot `base`.
pub(crate) struct Origin {
    pub(crate) subject: Subject,
    /// The sum of what is on its disk.
    pub(crate) sum: String,
}

/// A clone whose disks are being filled.
pub(crate) struct Twin {
    pub(crate) folder: PathBuf,
    home: PathBuf,
    pub(crate) serial: Serial,
    /// While it is there, whoever fills the disks stands still.
    pub(crate) held: PathBuf,
}

impl Origin {
    fn start(qemu: &Qemu) -> Self {
        let mut origin = Self::boot(qemu, None);
        origin.subject.take(&["--name", "base"]);
        origin
    }

    /// Starts the guest, with one more disk if there is one, and takes nothing yet.
    pub(crate) fn boot(qemu: &Qemu, more: Option<Disk>) -> Self {
        let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Qcow2, 64)];
        let disks = disks.into_iter().chain(more);
        let builder = Guest::of(GuestKind::Tiny).qemu(qemu.clone()).memory_mib(96).disks(disks);
        let mut subject = Subject::start(builder);
        let witness = "pair --interval-us 20000 --disk /dev/vdb";
        subject.guest.serial().start_witness("pair", witness, WITHIN).unwrap();
        let fill = "dd if=/dev/urandom of=/disk/fill bs=1M count=24 2>/dev/null; sync";
        let sum = "md5sum </disk/fill | tee /tmp/sum";
        let sum = subject.guest.serial().must_run(&format!("{fill}; {sum}"), WITHIN);
        Self { subject, sum }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.subject.guest.files().folder()
    }

    /// Makes a clone, and holds who fills its disks before anything is filled.
    fn clone(&self, snapshot: &str, name: &str) -> Twin {
        let twin = self.clone_with(snapshot, name, |held| Some(format!("fill-begun:{held}")));
        twin.wait_held();
        twin
    }

    /// Makes a clone whose disk servers, and who stands by for them, have a fault; it may
    /// name the file by which they are held.
    pub(crate) fn clone_with(
        &self,
        snapshot: &str,
        name: &str,
        fault: impl FnOnce(std::path::Display<'_>) -> Option<String>,
    ) -> Twin {
        let held = self.folder().join(format!("held-{name}"));
        let mut command = self.subject.tintype.command();
        command.args(["--json", "clone", snapshot, name, "--lazy"]);
        command.envs(fault(held.display()).map(|fault| ("TINTYPE_TEST_FAULT", fault)));
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let clone = &report["vms"][0];
        assert_eq!(clone["filling"], true, "{report}");
        let folder = PathBuf::from(clone["folder"].as_str().unwrap());
        let serial = serial(clone, &self.subject.guest);
        Twin { folder, home: self.folder().join("home"), serial, held }
    }

    pub(crate) fn show(&self, name: &str) -> Value {
        self.subject.tintype.json(&["vm", "show", name])
    }

    /// Asserts that a command is refused, and says this.
    fn refused(&self, arguments: &[&str], words: &str) {
        let output = self.subject.tintype.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "`{words}` is not in {errors}");
    }

    /// Waits until a clone's disks are filled, and asserts that they need nobody.
    pub(crate) fn must_be_filled(&self, twin: &Twin, name: &str) {
        twin.wait("it is not filled", || !twin.file(name, "filling.json").exists());
        assert_eq!(self.show(name)["filling"], Value::Null);
        let mut qmp = twin.qmp(name);
        assert_eq!(qmp.execute("query-jobs", json!({})).unwrap(), json!([]));
        let left = files(&twin.home.join("run"));
        assert!(left.iter().all(|file| file.extension().unwrap() == "qmp"), "{left:?}");
        for disk in twin.disks() {
            let info = img(&["info", "-U", "--output=json"], &[&disk]);
            let info: Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["backing-filename"], Value::Null, "{info}");
        }
    }
}

impl Twin {
    pub(crate) fn disks(&self) -> Vec<PathBuf> {
        let mut disks = files(&self.folder);
        disks.retain(|file| file.extension().is_some_and(|end| end == "qcow2"));
        assert!(disks.len() >= 2, "{disks:?}");
        disks
    }

    pub(crate) fn file(&self, name: &str, file: &str) -> PathBuf {
        self.home.join("vms").join(name).join(file)
    }

    fn qmp(&self, name: &str) -> Qmp {
        Qmp::connect(&self.home.join(format!("run/{name}.qmp"))).unwrap()
    }

    pub(crate) fn wait(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + WITHIN;
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn wait_held(&self) {
        self.wait("nobody begins to fill", || self.held.exists());
    }

    pub(crate) fn let_go(&self) {
        fs::remove_file(&self.held).unwrap();
    }

    pub(crate) fn must_be_whole(&mut self) {
        self.serial.wait_answer(WITHIN).unwrap();
        assert_eq!(self.serial.must_run(READ, WITHIN), "");
        self.serial.must_be_whole(WITHIN);
    }

    /// Returns who fills the disks, and who stands by, as far as they are known.
    pub(crate) fn servers(&self, name: &str) -> Vec<Pid> {
        servers(&self.file(name, "filling-progress.json"))
    }

    /// Kills who fills the disks, and, if it is wanted, who stands by.
    fn kill(&self, name: &str, with_stand_by: bool) {
        let servers = &self.servers(name)[..if with_stand_by { 2 } else { 1 }];
        // Nobody must see that it is let go, and whoever takes over is held anew.
        for server in servers {
            kill_process(*server, Signal::STOP).unwrap();
        }
        let _ = fs::remove_file(&self.held);
        kill_servers(servers);
    }
}

/// Returns who fills disks, and who stands by, as far as they are known.
pub(crate) fn servers(progress: &Path) -> Vec<Pid> {
    let Ok(progress) = fs::read(progress) else { return Vec::new() };
    let progress: Value = serde_json::from_slice(&progress).unwrap();
    let pid = i32::try_from(progress["server"].as_u64().unwrap()).unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let children = children.unwrap_or_default();
    let stands_by = children.split_whitespace().map(|pid| pid.parse().unwrap());
    std::iter::once(pid).chain(stands_by).filter_map(Pid::from_raw).collect()
}

/// Kills those that have not ended yet, the last one first: who stands by would take the
/// other's place. Returns when they have ended, and the next command can tell.
pub(crate) fn kill_servers(servers: &[Pid]) {
    let processes = servers.iter().rev();
    let processes: Vec<_> =
        processes.filter_map(|pid| pidfd_open(*pid, PidfdFlags::empty()).ok()).collect();
    for process in &processes {
        let _ = pidfd_send_signal(process, Signal::KILL);
    }
    for process in &processes {
        poll(&mut [PollFd::new(process, PollFlags::IN)], None).unwrap();
    }
}

/// Runs `qemu-img`, and returns what it says.
pub(crate) fn img(arguments: &[&str], files: &[&Path]) -> String {
    let output = Command::new("qemu-img").args(arguments).args(files).output().unwrap();
    assert!(output.status.success(), "{arguments:?} {files:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_guest_runs_before_its_disks_are_filled() {
    let qemus = if is_built(GuestKind::Tiny) { Qemu::all() } else { Vec::new() };
    for qemu in qemus {
        let origin = Origin::start(&qemu);
        let mut twin = origin.clone("web@base", "twin");
        twin.must_be_whole();
        let shown = origin.show("twin");
        assert_eq!(shown["state"], "running");
        assert_eq!(
            (&shown["filling"]["done"], &shown["filling"]["error"]),
            (&json!(0), &json!(null))
        );
        origin.refused(&["rm", "web@base"], "are still being filled from the snapshot");
        origin.refused(&["vm", "rm", "twin"], "are still being filled (0 %)");
        for disk in twin.disks() {
            let info = img(&["info", "-U"], &[&disk]);
            assert!(
                info.contains("backing file format: raw"),
                "it says that it lacks something: {info}"
            );
        }

        // Another one takes the place of one that is killed.
        twin.kill("twin", false);
        twin.wait_held();
        twin.must_be_whole();
        // If both are, the guest stops at what it cannot read, until the next command.
        let later = "echo 3 >/proc/sys/vm/drop_caches; md5sum </disk/fill >/tmp/again";
        twin.serial.must_run(&format!("(sleep 1; {later}) >/dev/null 2>&1 &"), WITHIN);
        twin.kill("twin", true);
        let mut qmp = twin.qmp("twin");
        let mut state = || qmp.execute("query-status", json!({})).unwrap()["status"].take();
        twin.wait("the guest does not stop", || state() == "io-error");
        drop(qmp);
        origin.show("twin");
        twin.wait("the guest does not go on", || origin.show("twin")["state"] == "running");
        twin.must_be_whole();
        let again = twin.serial.must_run(AGAIN, WITHIN);
        assert_eq!(again, origin.sum, "{}", twin.serial.must_run("dmesg | tail", WITHIN));
        twin.serial.disconnect();
        origin.must_be_filled(&twin, "twin");

        // It depends on nothing of ours any more.
        let repository = origin.folder().join("home/repository");
        fs::rename(&repository, repository.with_extension("away")).unwrap();
        twin.must_be_whole();
        fs::rename(repository.with_extension("away"), &repository).unwrap();
        origin.subject.tintype.json(&["take", "twin", "--name", "mine"]);
    }
}

#[test]
fn a_clone_is_stopped_and_started_before_its_disks_are_filled() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let origin = Origin::start(&Qemu::system().unwrap());
    let tintype = &origin.subject.tintype;
    let mut twin = origin.clone("web@base", "twin");
    twin.serial.must_run("echo mine >/disk/me; sync", WITHIN);
    let mut take = tintype.command();
    let mut take = take.args(["take", "twin"]).spawn().unwrap();
    sleep(Duration::from_millis(500));
    assert!(take.try_wait().unwrap().is_none(), "it waits");
    kill_process(Pid::from_child(&take), Signal::INT).unwrap();
    assert_eq!(take.wait().unwrap().code(), Some(130));

    twin.serial.disconnect();
    tintype.json(&["vm", "stop", "twin", "--force"]);
    twin.let_go();
    let shown = origin.show("twin");
    assert_eq!((&shown["state"], &shown["filling"]["server"]), (&json!("stopped"), &json!(0)));
    origin.refused(&["take", "twin"], "`tintype vm start twin` goes on with them");
    origin.refused(&["vm", "rm", "twin"], "are not whole");
    origin.refused(&["rm", "web@base"], "are still being filled from the snapshot");
    for disk in twin.disks() {
        let output =
            Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&disk).output().unwrap();
        assert!(!output.status.success(), "who opens it gets an error, and no zeros: {output:?}");
    }
    tintype.json(&["vm", "start", "twin"]);
    twin.serial.wait_ready(WITHIN).unwrap();
    origin.must_be_filled(&twin, "twin");
    let said = twin.serial.must_run("cat /disk/me; md5sum </disk/fill", WITHIN);
    assert_eq!(said, format!("mine\n{}", origin.sum));
    twin.serial.disconnect();
    tintype.json(&["vm", "stop", "twin", "--force"]);

    // One that never ran has the very bytes of the snapshot.
    origin.subject.owner("stop");
    tintype.json(&["take", VM, "--name", "still"]);
    let still = origin.clone("web@still", "still");
    still.let_go();
    origin.must_be_filled(&still, "still");
    tintype.json(&["vm", "stop", "still", "--force"]);
    let eager = origin.folder().join("eager");
    tintype.json(&["restore", "web@still", "--to", eager.to_str().unwrap()]);
    for disk in still.disks() {
        let other = eager.join(disk.file_name().unwrap());
        img(&["compare", "-f", "qcow2", "-F", "qcow2"], &[&disk, &other]);
    }
    // What is given up is deleted first.
    let lost = origin.clone("web@still", "lost");
    tintype.json(&["vm", "stop", "lost", "--force"]);
    fs::remove_dir_all(&lost.folder).unwrap();
    tintype.json(&["vm", "rm", "lost"]);
    tintype.json(&["rm", "web@still"]);
}

#[test]
fn what_cannot_be_read_of_a_disk_stops_the_guest_until_it_is_mended() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    // Without memory, which has the same blocks: the guest boots from what is there.
    let mut origin = Origin::start(&Qemu::system().unwrap());
    origin.subject.take(&["--name", "disks", "--no-memory"]);
    let (segment, good) = damaged_disk(&origin, "web@disks");
    origin.refused(&["clone", "web@disks", "twin", "--eager"], "is damaged");
    let mut twin = origin.clone("web@disks", "twin");
    twin.serial.wait_ready(WITHIN).unwrap();
    twin.serial.must_run("md5sum </disk/fill >/tmp/again 2>&1 &", WITHIN);
    twin.serial.disconnect();
    twin.wait("the guest does not stop", || origin.show("twin")["state"] == "io-error");
    twin.let_go();
    let error = || origin.show("twin")["filling"]["error"].take();
    twin.wait("nobody says why", || error() != Value::Null);
    assert!(error().as_str().unwrap().contains("cannot be read"), "{}", error());
    let taken = origin.subject.tintype.run(&["take", "twin"]);
    let errors = String::from_utf8_lossy(&taken.stderr);
    assert_eq!(taken.status.code(), Some(1), "{errors}");
    assert!(errors.contains("nothing of it is lost"), "{errors}");

    fs::write(&segment, &good).unwrap();
    twin.wait("the guest does not go on", || origin.show("twin")["state"] == "running");
    twin.serial.wait_answer(WITHIN).unwrap();
    assert_eq!(twin.serial.must_run(AGAIN, WITHIN), origin.sum);
    twin.serial.disconnect();
    origin.must_be_filled(&twin, "twin");
    let read = "echo 3 >/proc/sys/vm/drop_caches; md5sum </disk/fill";
    assert_eq!(twin.serial.must_run(read, WITHIN), origin.sum);
}

/// Damages a disk of the snapshot and nothing else of it, beyond what a guest reads at
/// once. Returns the segment, and what was in it.
fn damaged_disk(origin: &Origin, snapshot: &str) -> (PathBuf, Vec<u8>) {
    for segment in files(&origin.folder().join("home/repository/seg")) {
        let good = fs::read(&segment).unwrap();
        for at in (0..good.len()).step_by(2 << 20).skip(1) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&segment, &bad).unwrap();
            let output = origin.subject.tintype.run(&["--json", "verify", snapshot, "--read-data"]);
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let lost = report["lost"].as_array().unwrap();
            let is_disk = |part: &Value| part["part"] == "disk/vda-device";
            let is_data = |part: &Value| part["ranges"][0]["offset"].as_u64() > Some(8 << 20);
            if !lost.is_empty() && lost.iter().all(|part| is_disk(part) && is_data(part)) {
                return (segment, good);
            }
            fs::write(&segment, &good).unwrap();
        }
    }
    panic!("no place is of a disk alone");
}
