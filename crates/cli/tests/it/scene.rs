//! A guest with witnesses under the command's care, on which things are made to
//! go wrong: at a named step the command is killed, or held until the test has
//! done to it, or to QEMU, what it wants.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind};

use crate::command::Tintype;

/// How long what has to happen may take on a busy machine.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// How long a guest may stand still after a kill, or a command live after its QEMU.
pub(crate) const SOON: Duration = Duration::from_secs(15);

/// The steps of a take, in order.
pub(crate) const TAKE: [&str; 10] = [
    "take-lease",
    "take-preflight",
    "take-intent",
    "take-instant",
    "take-resumed",
    "take-disks-read",
    "take-memory-read",
    "take-stored",
    "take-committed",
    "take-forgotten",
];

/// The steps of a revert, in order; those of its safety take are between the
/// second and the third.
pub(crate) const REVERT: [&str; 12] = [
    "revert-lease",
    "revert-verified",
    "revert-safety",
    "revert-intent",
    "revert-stopped",
    "revert-blocks",
    "revert-flushed",
    "revert-started",
    "revert-loaded",
    "revert-lineage",
    "revert-running",
    "revert-forgotten",
];

/// A guest named `web`, with a snapshot `base`.
pub(crate) struct Scene {
    pub(crate) guest: Guest,
    pub(crate) tintype: Tintype,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) errors: String,
    /// From the last thing that the test did to it.
    pub(crate) after: Duration,
}

impl Ended {
    /// Asserts that the command failed with that exit code, soon, and said this.
    pub(crate) fn must_have_failed(&self, code: i32, words: &[&str]) {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        for word in words {
            assert!(self.errors.contains(word), "`{word}` is not in {self:?}");
        }
        assert!(self.after < SOON, "that took too long: {self:?}");
    }
}

impl Scene {
    /// Starts a guest whose witness counts in memory and on a second disk, and
    /// takes the snapshot `base`.
    pub(crate) fn start() -> Self {
        let mut guest = Guest::of(GuestKind::Tiny)
            .memory_mib(128)
            .disks([Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 64)])
            .start()
            .unwrap();
        let tintype = Tintype::within(guest.files().folder());
        let qmp = guest.qmp_path();
        tintype.json(&["vm", "add", "web", "--qmp", qmp.to_str().unwrap()]);
        guest.serial().start_witness("w", "pair --disk /dev/vdb --workers 2", WITHIN).unwrap();
        let mut scene = Self { guest, tintype };
        scene.write("base");
        scene.tintype.json(&["take", "web", "--name", "base"]);
        scene
    }

    /// Changes the guest's memory and its disk.
    pub(crate) fn write(&mut self, state: &str) {
        let write = format!("echo {state} > /tmp/state; echo {state} > /disk/state; sync");
        self.guest.serial().must_run(&write, WITHIN);
    }

    /// Asserts that the guest runs and is of one instant, and returns the state
    /// that was written to it last.
    pub(crate) fn state(&mut self) -> String {
        let serial = self.guest.serial();
        serial.wait_answer(SOON).expect("the guest runs");
        let state = serial.must_run("cat /tmp/state; cat /disk/state", WITHIN);
        let (memory, disk) = state.trim_end().split_once('\n').unwrap();
        assert_eq!(memory, disk, "memory and disk are of one instant");
        serial.must_be_whole(WITHIN);
        memory.to_owned()
    }

    /// Returns the process of the guest's QEMU, as tintype has noted it.
    pub(crate) fn qemu(&self) -> Pid {
        let text = fs::read(self.home().join("vms/web/vm.json")).unwrap();
        let vm: Value = serde_json::from_slice(&text).unwrap();
        let pid = i32::try_from(vm["process"]["pid"].as_i64().unwrap()).unwrap();
        Pid::from_raw(pid).unwrap()
    }

    /// Returns the QEMU that has the guest's monitor socket now, if there is one.
    pub(crate) fn qemu_now(&self) -> Option<Pid> {
        let socket = self.guest.qmp_path();
        let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
        Some(rustix::net::sockopt::socket_peercred(&stream).unwrap().pid)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.guest.files().folder().join("home")
    }

    /// Runs a command that kills itself at a step.
    pub(crate) fn killed_at(&self, step: &str, arguments: &[&str]) {
        let mut command = self.tintype.command();
        let output = command.args(arguments).env("TINTYPE_TEST_FAULT", step).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(9), "{arguments:?} at {step}: {errors}");
    }

    /// Starts a command and waits until it stands at a step.
    pub(crate) fn held_at(&self, step: &str, arguments: &[&str]) -> Held {
        Held::start(self.tintype.command().args(arguments), self.guest.files().folder(), step)
    }

    /// Asserts that nothing of a take is left in QEMU, nor in the home.
    pub(crate) fn must_be_traceless(&self) {
        let mut qmp = self.guest.qmp().unwrap();
        let mut ask = |command: &str| qmp.execute(command, json!({})).unwrap();
        assert_eq!(ask("query-status")["status"], "running");
        let mut left = Vec::new();
        let names = |list: Value, key: &str| -> Vec<String> {
            let list = list.as_array().unwrap().iter();
            list.map(|entry| entry[key].as_str().unwrap_or_default().to_owned()).collect()
        };
        left.extend(names(ask("query-named-block-nodes"), "node-name"));
        left.extend(names(ask("query-block-exports"), "id"));
        left.extend(names(ask("query-block-jobs"), "device"));
        left.retain(|name| name.starts_with("tintype-"));
        assert_eq!(left, Vec::<String>::new(), "nodes, exports or jobs are left");
        for drive in ask("query-block").as_array().unwrap() {
            let node = drive["inserted"]["node-name"].as_str().unwrap();
            assert!(["vda", "vdb"].contains(&node), "the device uses {node}");
        }
        for node in ask("query-named-block-nodes").as_array().unwrap() {
            let bitmaps = node["dirty-bitmaps"].as_array().map_or(0, Vec::len);
            assert!(bitmaps <= 1, "of more than one snapshot: {node}");
        }
        for capability in ask("query-migrate-capabilities").as_array().unwrap() {
            assert_eq!(capability["state"], false, "{capability}");
        }
        let parameters = ask("query-migrate-parameters");
        assert_eq!(parameters["downtime-limit"], 300, "QEMU's own");
        assert_eq!(parameters["max-bandwidth"], 128 << 20, "QEMU's own");
        let stopped = qmp.execute("nbd-server-stop", json!({}));
        assert!(stopped.is_err(), "the NBD server was still there");
    }

    /// Returns the names of the snapshots, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let lines = self.tintype.lines(&["log", "web"]);
        lines.iter().rev().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Asserts that every snapshot is good to the last byte, and that the guest
    /// can be taken, reverted and is whole.
    pub(crate) fn must_work(&mut self) {
        let verified = self.tintype.json(&["verify", "--read-data"]);
        assert_eq!(verified["damaged"], json!([]));
        self.write("later");
        self.tintype.json(&["take", "web"]);
        let report = self.tintype.json(&["revert", "web", "base"]);
        assert_eq!(report["state"], "running");
        assert_eq!(self.state(), "base");
        self.must_be_traceless();
        assert_eq!(fs::read_dir(self.home().join("run")).unwrap().count(), 0, "of killed commands");
    }
}

/// A command that stands at a step.
pub(crate) struct Held {
    child: Child,
    file: PathBuf,
    errors: PathBuf,
}

impl Held {
    /// Starts a command and waits until it stands at a step; what it says goes to a folder.
    pub(crate) fn start(command: &mut Command, folder: &Path, step: &str) -> Self {
        let (file, errors) = (folder.join("held"), folder.join("errors"));
        let child = command
            .env("TINTYPE_TEST_FAULT", format!("{step}:{}", file.display()))
            .stdout(Stdio::null())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let mut held = Self { child, file, errors };
        let deadline = Instant::now() + WITHIN;
        while !held.file.exists() {
            let ended = held.child.try_wait().unwrap();
            assert!(ended.is_none(), "it did not come to {step}: {}", held.errors());
            assert!(Instant::now() < deadline, "it does not come to {step}");
            sleep(Duration::from_millis(2));
        }
        held
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Kills it together with the watchdog that it has started.
    pub(crate) fn kill_with_watchdog(mut self) {
        let pid = self.pid().as_raw_pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for child in children.split_whitespace() {
            let child = Pid::from_raw(child.parse().unwrap()).unwrap();
            kill_process(child, Signal::KILL).unwrap();
        }
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// Lets it go on, and waits for its end.
    pub(crate) fn let_go(mut self) -> Ended {
        fs::remove_file(&self.file).unwrap();
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended { status, errors: self.errors(), after: began.elapsed() };
            }
            assert!(began.elapsed() < 2 * WITHIN, "it does not end: {}", self.errors());
            sleep(Duration::from_millis(5));
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap_or_default()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.file);
    }
}
