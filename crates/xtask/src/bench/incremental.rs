//! A take of a disk of which little has changed, beside what a full copy and QEMU's
//! own incremental backup of the same disk cost. QEMU has no guest in it; the device
//! of the disk is written to as a guest would.
//!
//! virtnbdbackup, which is usual, drives its VMs through libvirt alone. What it has
//! QEMU do is measured instead: `blockdev-backup` with a bitmap.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tintype_testkit::{Qemu, Qmp, workspace_folder};

use super::guest::release_build;
use crate::failure::Failure;
use crate::process::{capture, run as run_program};

/// The size of the disk in GiB, all of it data that does not compress.
const SIZE_GIB: u64 = 10;

/// How large the pieces are that change, and one of how many does.
const PIECE: u64 = 64 << 10;
const ONE_OF: u64 = 100;

/// A QEMU with one raw disk.
struct Bench {
    folder: TempDir,
    tintype: PathBuf,
    size: u64,
}

/// Measures a disk of so many GiB.
pub(super) fn run(arguments: &[String]) -> Result<(), Failure> {
    let size = match arguments.first() {
        None => SIZE_GIB,
        Some(size) => {
            size.parse().map_err(|_| Failure::Other(format!("`{size}` is no size in GiB")))?
        }
    };
    let bench = Bench::start(size << 30)?;
    println!("a raw disk of {size} GiB of data; seconds, MiB read, MiB stored");
    let first = bench.take()?;
    show("first take, which reads all", &first, seconds(&first));
    bench.begin_peer()?;
    bench.change()?;
    let second = bench.take()?;
    show("take with 1 % changed", &second, seconds(&second));
    let (took, bytes) = bench.convert()?;
    row("qemu-img convert", took, bytes, bytes);
    let (took, bytes) = bench.backup()?;
    row("blockdev-backup, sync=bitmap", took, bytes, bytes);
    bench.tintype(&["vm", "stop", "bench", "--force"]).map(drop)
}

impl Bench {
    fn start(size: u64) -> Result<Self, Failure> {
        let place = workspace_folder().join("target");
        let folder =
            tempfile::tempdir_in(&place).map_err(Failure::file("make a folder in", &place))?;
        let bench = Self { folder, tintype: release_build()?, size };
        bench.fill()?;
        bench.tintype(&["init", "--encryption", "none"])?;
        let image = format!("file.filename={}", bench.path("disk").display());
        let monitor = format!("unix:{},server=on,wait=off", bench.path("second").display());
        let qemu = Qemu::system()?.binary();
        let qemu = qemu.to_str().unwrap_or("qemu-system-x86_64");
        let node = format!("raw,node-name=disk,file.driver=file,{image}");
        bench.tintype(&[
            "vm",
            "run",
            "bench",
            "--",
            qemu,
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-qmp",
            &monitor,
            "-blockdev",
            &node,
            "-device",
            "virtio-blk-pci,id=vda,drive=disk",
        ])?;
        Ok(bench)
    }

    /// Writes the image: noise, so that nothing is stored for nothing.
    fn fill(&self) -> Result<(), Failure> {
        let path = self.path("disk");
        let failed = |error| Failure::file("write", &path)(error);
        let mut file = File::create(&path).map_err(failed)?;
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..self.size >> 20 {
            for bytes in piece.chunks_exact_mut(8) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            file.write_all(&piece).map_err(failed)?;
        }
        file.sync_all().map_err(failed)
    }

    /// Writes to pieces all over the disk, with content that was not there before.
    fn change(&self) -> Result<(), Failure> {
        let noise = self.path("noise");
        let pieces = self.size / PIECE / ONE_OF;
        let whole =
            File::open("/dev/urandom").map_err(Failure::file("open", Path::new("/dev/urandom")))?;
        let mut whole = std::io::Read::take(whole, pieces * PIECE);
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut whole, &mut bytes)
            .map_err(Failure::file("read", &noise))?;
        let mut qmp = self.qmp()?;
        let device = "/machine/peripheral/vda/virtio-backend";
        let len = usize::try_from(PIECE).expect("a piece is small");
        for (number, piece) in (0..).zip(bytes.chunks(len)) {
            fs::write(&noise, piece).map_err(Failure::file("write", &noise))?;
            let offset = number * ONE_OF * PIECE;
            let write = format!("write -q -s {} {offset} {PIECE}", noise.display());
            let line = format!("qemu-io -d {device} \"{write}\"");
            let said = qmp.execute("human-monitor-command", json!({"command-line": line}))?;
            if said != "" {
                return Err(Failure::Other(format!("qemu-io: {said}")));
            }
        }
        Ok(())
    }

    fn take(&self) -> Result<Value, Failure> {
        let text = self.tintype(&["take", "bench", "--no-memory"])?;
        serde_json::from_str(&text)
            .map_err(|error| Failure::Other(format!("`tintype` said no JSON: {error}")))
    }

    /// A full copy of the same disk, as most backups begin.
    fn convert(&self) -> Result<(Duration, u64), Failure> {
        let began = Instant::now();
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-U", "-f", "raw", "-O", "raw"]);
        run_program(command.arg(self.path("disk")).arg(self.path("copy")))?;
        let copy = self.path("copy");
        let synced = File::open(&copy).and_then(|copy| copy.sync_all());
        let took = began.elapsed();
        synced.and_then(|()| fs::remove_file(&copy)).map_err(Failure::file("sync", &copy))?;
        Ok((took, self.size))
    }

    /// Has QEMU note what changes, for its own backup.
    fn begin_peer(&self) -> Result<(), Failure> {
        let bitmap = json!({"node": "disk", "name": "peer"});
        self.qmp()?.execute("block-dirty-bitmap-add", bitmap)?;
        Ok(())
    }

    /// QEMU's own backup of what has changed, to a file.
    fn backup(&self) -> Result<(Duration, u64), Failure> {
        let target = self.path("backup");
        let mut qmp = self.qmp()?;
        let file = File::create(&target).map_err(Failure::file("make", &target))?;
        file.set_len(self.size).map_err(Failure::file("make", &target))?;
        let began = Instant::now();
        let file_node = json!({"driver": "file", "filename": target});
        let node = json!({"driver": "raw", "node-name": "target", "file": file_node});
        qmp.execute("blockdev-add", node)?;
        qmp.execute(
            "blockdev-backup",
            json!({
                "job-id": "backup", "device": "disk", "target": "target", "auto-dismiss": false,
                "sync": "bitmap", "bitmap": "peer", "bitmap-mode": "on-success",
            }),
        )?;
        let job = loop {
            let jobs = qmp.execute("query-jobs", json!({}))?;
            match &jobs[0] {
                job if job["status"] == "concluded" => break job.clone(),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        if let Some(error) = job["error"].as_str() {
            return Err(Failure::Other(format!("QEMU's backup failed: {error}")));
        }
        file.sync_all().map_err(Failure::file("sync", &target))?;
        let took = began.elapsed();
        Ok((took, job["current-progress"].as_u64().unwrap_or_default()))
    }

    fn qmp(&self) -> Result<Qmp, Failure> {
        Ok(Qmp::connect(&self.path("second"))?)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tintype(&self, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = Command::new(&self.tintype);
        capture(command.env("TINTYPE_HOME", self.path("home")).arg("--json").args(arguments))
    }
}

fn seconds(taken: &Value) -> Duration {
    Duration::from_millis(taken["duration_ms"].as_u64().unwrap_or_default())
}

fn show(what: &str, taken: &Value, took: Duration) {
    let read = taken["disks"][0]["read_bytes"].as_u64().unwrap_or_default();
    row(what, took, read, taken["stored_bytes"].as_u64().unwrap_or_default());
}

fn row(what: &str, took: Duration, read: u64, stored: u64) {
    let (read, stored) = (read >> 20, stored >> 20);
    println!("{what:<30} {:>8.2} {read:>8} {stored:>8}", took.as_secs_f64());
}
