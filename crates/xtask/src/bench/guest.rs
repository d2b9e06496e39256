//! A guest under measurement, and the release build of `tintype` that takes it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestBuilder, GuestKind, Qmp};

use crate::failure::Failure;
use crate::process::{capture, cargo, describe, run};

/// How long anything in the guest may take: filling gigabytes under emulation is slow.
const WITHIN: Duration = Duration::from_secs(600);

/// A guest under measurement.
pub(super) struct Subject {
    guest: Guest,
    tintype: PathBuf,
}

impl Subject {
    /// Boots the tiny guest with one qcow2 disk and registers it.
    pub(super) fn boot(memory_mib: u32) -> Result<Self, Failure> {
        Self::boot_with(memory_mib, &[])
    }

    /// Does so with more arguments for QEMU.
    pub(super) fn boot_with(memory_mib: u32, more: &[&str]) -> Result<Self, Failure> {
        let disks = [Disk::system(Format::Qcow2)];
        Self::register(Guest::of(GuestKind::Tiny).memory_mib(memory_mib).disks(disks), more)
    }

    /// Boots a guest with these disks and registers it.
    pub(super) fn of(
        kind: GuestKind,
        memory_mib: u32,
        disks: impl IntoIterator<Item = Disk>,
    ) -> Result<Self, Failure> {
        Self::register(Guest::of(kind).memory_mib(memory_mib).disks(disks), &[])
    }

    fn register(guest: GuestBuilder, more: &[&str]) -> Result<Self, Failure> {
        let tintype = release_build()?;
        let guest = guest.cpus(1).extra(more.iter().copied()).boot()?;
        let subject = Self { guest, tintype };
        let socket = subject.guest.qmp_path().display().to_string();
        subject.json(&["vm", "add", "bench", "--qmp", &socket])?;
        Ok(subject)
    }

    /// Runs a command in the guest.
    pub(super) fn in_guest(&mut self, command: &str) -> Result<String, Failure> {
        let answer = self.guest.serial().run(command, WITHIN)?;
        if answer.status != 0 {
            return Err(Failure::Other(format!(
                "`{command}` failed in the guest: {}",
                answer.output
            )));
        }
        Ok(answer.output)
    }

    /// Starts a program in the guest that dirties memory at full speed.
    pub(super) fn dirty(&mut self, bytes: u64) -> Result<(), Failure> {
        let arguments = format!("dirty --bytes {bytes}");
        Ok(self.guest.serial().start_witness("dirty", &arguments, WITHIN)?)
    }

    /// Takes a snapshot and returns what `tintype` says of it.
    pub(super) fn take(&self, more: &[&str]) -> Result<Value, Failure> {
        self.json(&[&["take", "bench"], more].concat())
    }

    /// Puts the guest back to a snapshot, without keeping what it was.
    pub(super) fn revert(&mut self, snapshot: &str) -> Result<Value, Failure> {
        self.guest.serial().disconnect();
        let report = self.json(&["revert", "bench", snapshot, "--no-safety"])?;
        self.guest.serial().wait_answer(WITHIN)?;
        Ok(report)
    }

    /// Runs a command of `tintype` for people.
    pub(super) fn tintype(&self, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(&self.tintype);
        capture(command.env("TINTYPE_HOME", self.home()).args(arguments))
    }

    /// Returns the id of its QEMU, as long as nothing has put another in its place.
    pub(super) fn process_id(&self) -> u32 {
        self.guest.process_id()
    }

    /// Returns its folder, with tintype's home in it.
    pub(super) fn folder(&self) -> &Path {
        self.guest.files().folder()
    }

    /// Returns the images of its disks.
    pub(super) fn disks(&self) -> &[PathBuf] {
        self.guest.files().disks()
    }

    /// Connects to its monitor.
    pub(super) fn qmp(&self) -> Result<Qmp, Failure> {
        Ok(self.guest.qmp()?)
    }

    /// Whether its QEMU has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        self.guest.wait_end(Duration::from_secs(10))
    }

    /// Ends it; its files stay.
    pub(super) fn end(&mut self) {
        self.guest.kill();
    }

    /// Lets QEMU save the guest into its disk image, and returns how long the guest
    /// stood still, in milliseconds by QEMU's own clock.
    pub(super) fn snapshot_save(&self, tag: &str) -> Result<f64, Failure> {
        let mut qmp = self.guest.qmp()?;
        let job = json!({"job-id": tag, "tag": tag, "vmstate": "vda", "devices": ["vda"]});
        qmp.execute("snapshot-save", job)?;
        let concluded = loop {
            let jobs = qmp.execute("query-jobs", json!({}))?;
            let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == tag));
            match job {
                Some(job) if job["status"] == "concluded" => break job.clone(),
                Some(_) => std::thread::sleep(Duration::from_millis(5)),
                None => return Err(Failure::Other("the job of QEMU is gone".to_owned())),
            }
        };
        qmp.execute("job-dismiss", json!({"id": tag}))?;
        if let Some(error) = concluded["error"].as_str() {
            return Err(Failure::Other(format!("QEMU's snapshot-save failed: {error}")));
        }
        stood_still(&qmp)
    }

    /// Returns the home of the `tintype` that the guest is registered with.
    pub(super) fn home(&self) -> PathBuf {
        self.guest.files().folder().join("home")
    }

    /// Starts another QEMU of the guest past `tintype`, with these arguments, too.
    pub(super) fn restart(&mut self, more: &[&str]) -> Result<(), Failure> {
        Ok(self.guest.replace_qemu(more)?)
    }

    /// Starts QEMU with nothing to run, and returns how long it takes until its monitor
    /// answers, in milliseconds.
    pub(super) fn bare_start(&mut self) -> Result<f64, Failure> {
        self.guest.kill();
        let began = Instant::now();
        self.restart(&["-S"])?;
        while self.guest.qmp().is_err() {
            if began.elapsed() > WITHIN {
                return Err(Failure::Other("QEMU does not start".to_owned()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(began.elapsed().as_secs_f64() * 1e3)
    }

    /// Starts a command and does not wait for it.
    pub(super) fn start(&self, arguments: &[&str]) -> Result<Child, Failure> {
        let mut command = self.command(arguments);
        let shown = describe(&command);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| Failure::Start { command: shown, source })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tintype);
        command.env("TINTYPE_HOME", self.home()).arg("--json").args(arguments);
        command
    }

    /// Runs a command that answers with one object.
    pub(super) fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let text = capture(&mut self.command(arguments))?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::Other(format!("`tintype` said no JSON: {error}")))
    }
}

/// Returns the time from the last `STOP` to the `RESUME` after it.
fn stood_still(qmp: &Qmp) -> Result<f64, Failure> {
    let time = |name: &str| {
        let event = qmp.events().iter().rev().find(|event| event["event"] == name)?;
        let stamp = &event["timestamp"];
        Some(stamp["seconds"].as_f64()? * 1e3 + stamp["microseconds"].as_f64()? / 1e3)
    };
    match (time("STOP"), time("RESUME")) {
        (Some(stop), Some(resume)) => Ok(resume - stop),
        _ => Err(Failure::Other("QEMU told of no pause".to_owned())),
    }
}

/// Builds `tintype` as users have it, which takes minutes the first time.
pub(super) fn release_build() -> Result<PathBuf, Failure> {
    eprintln!("cargo build --release --package tintype");
    run(cargo().args(["build", "--locked", "--release", "--package", "tintype"]))?;
    let metadata = capture(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    let metadata: Value = serde_json::from_str(&metadata)
        .map_err(|error| Failure::Other(format!("cargo said no JSON: {error}")))?;
    let target = metadata["target_directory"].as_str().unwrap_or("target");
    Ok(PathBuf::from(target).join("release/tintype"))
}
