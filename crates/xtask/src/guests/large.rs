//! The large guest's states: memory and disk of the Debian guest with 2 GiB of
//! memory and an 8 GiB disk full of programs, at two moments of one run. They are
//! files for the benchmark of the repository; nothing boots from them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tintype_testkit::{Disk, Format, Guest, GuestKind};

use super::Parts;
use super::cache::{Cache, Key};
use super::disk::{FileSystem, mebibytes};
use crate::accelerator;
use crate::failure::Failure;
use crate::process;

/// The folder in the cache: `memory-1`, `disk-1`, `memory-2` and `disk-2`.
const FOLDER: &str = "large";

const MEMORY_MIB: u32 = 2048;
const DISK_MIB: u64 = 8192;

/// What fills the disk. Every release has them.
const PACKAGES: [&str; 13] = [
    "chromium",
    "emacs-common",
    "firefox-esr",
    "fonts-noto-cjk",
    "ghc",
    "gimp-data",
    "git",
    "inkscape",
    "libreoffice-common",
    "libreoffice-core",
    "octave",
    "python3-scipy",
    "thunderbird",
];

/// What the guest does before it is looked at first: it reads most of its files
/// into the page cache, fills a file in memory and builds a database.
const BEFORE: &[&str] = &[
    "mkdir -p /srv && mount /dev/vdb /srv",
    "find /srv -type f -size -8192k | sort | head -n 12000 | xargs cat | wc -c",
    "tar -C /usr -c bin lib | head -c 300000000 > /dev/shm/archive",
    "sqlite3 /srv/data.db \"PRAGMA journal_mode=WAL; CREATE TABLE t(k INTEGER PRIMARY KEY, a TEXT); \
     WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 200000) \
     INSERT INTO t SELECT i, hex(randomblob(60)) FROM n\" > /dev/null",
    "sync",
];

/// What it does before it is looked at again.
const BETWEEN: &[&str] = &[
    "sqlite3 /srv/data.db \"UPDATE t SET a = hex(randomblob(60)) WHERE k % 50 = 0\"",
    "cp -r /srv/usr/share/emacs /srv/copy",
    "head -c 20000000 /dev/urandom > /dev/shm/noise",
    "sync",
];

/// How long a command may take in an emulated guest.
const WITHIN: Duration = Duration::from_secs(1800);

/// Runs the guest unless its states are there, and returns their folder.
pub(super) fn ensure(cache: &Cache, parts: &Parts<'_>) -> Result<PathBuf, Failure> {
    let mut versions = String::new();
    for package in PACKAGES {
        versions.push_str(&format!("{package} {} ", parts.apt.candidate(package)?));
    }
    let key = Key::of(&[parts.key().as_bytes(), versions.as_bytes(), include_bytes!("large.rs")]);
    cache.ensure(FOLDER, &key, |target| build(target, parts))
}

fn build(target: &Path, parts: &Parts<'_>) -> Result<(), Failure> {
    let disk = target.join("disk");
    fill(target, &disk, parts)?;
    let disks = [Disk::system(Format::Qcow2), Disk::copy_of(Format::Raw, disk.clone())];
    let mut guest = Guest::of(GuestKind::Debian)
        .memory_mib(MEMORY_MIB)
        .accelerator(accelerator::choose()?)
        .disks(disks)
        .boot()?;
    std::fs::remove_file(&disk).map_err(Failure::file("remove", &disk))?;
    for (moment, commands) in [(1, BEFORE), (2, BETWEEN)] {
        for command in commands {
            let answer = guest.serial().run(command, WITHIN)?;
            if answer.status != 0 {
                let output = answer.output;
                return Err(Failure::Other(format!("`{command}` failed in the guest: {output}")));
            }
        }
        save(&guest, target, moment)?;
    }
    Ok(())
}

/// Makes the disk that the guest finds at `/dev/vdb`.
fn fill(target: &Path, disk: &Path, parts: &Parts<'_>) -> Result<(), Failure> {
    let tree = tempfile::tempdir_in(target).map_err(Failure::file("make a folder in", target))?;
    parts.apt.unpack(&PACKAGES.map(str::to_owned), tree.path())?;
    FileSystem {
        label: "large",
        uuid: "7d9c1b52-0b6c-4c53-9f0e-3f6c1a6f0004",
        size: mebibytes(DISK_MIB),
    }
    .make(tree.path(), disk)
}

/// Writes the guest's memory and its second disk to files, while it stands still.
fn save(guest: &Guest, target: &Path, moment: u32) -> Result<(), Failure> {
    let mut qmp = guest.qmp()?;
    qmp.execute("stop", json!({}))?;
    let memory = target.join(format!("memory-{moment}"));
    // All of it lies at address 0: the gap below 4 GiB begins at 2 GiB.
    let size = mebibytes(MEMORY_MIB.into());
    qmp.execute("pmemsave", json!({"val": 0, "size": size, "filename": memory}))?;
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", "--"]).arg(&guest.files().disks()[1]);
    process::run(copy.arg(target.join(format!("disk-{moment}"))))?;
    qmp.execute("cont", json!({}))?;
    Ok(())
}
