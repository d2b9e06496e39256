//! Makes file systems and disk images of folders, without mounting anything, so
//! that the same folder gives the same bytes.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::failure::Failure;
use crate::process;

/// The time of a guest's file systems, and the latest one of its files, in seconds:
/// 2025-01-01 00:00 UTC.
pub(super) const BUILD_TIME: i64 = 1_735_689_600;

/// The seed for the hashes of folder entries; any fixed one will do.
const HASH_SEED: &str = "5b1d8c5a-6b6c-4f5e-8f61-6e1f0c1d0001";

/// Returns the number of bytes in so many mebibytes.
pub(super) const fn mebibytes(count: u64) -> u64 {
    count << 20
}

/// An ext4 file system to be made.
pub(super) struct FileSystem {
    pub(super) label: &'static str,
    pub(super) uuid: &'static str,
    /// In bytes.
    pub(super) size: u64,
}

impl FileSystem {
    /// Makes the file system, with everything that is in `tree`, in a new sparse file.
    pub(super) fn make(&self, tree: &Path, image: &Path) -> Result<(), Failure> {
        clamp_times(tree)?;
        let file = File::create(image).map_err(Failure::file("make", image))?;
        file.set_len(self.size).map_err(Failure::file("size", image))?;
        let extended = format!("hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0");
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-b", "4096", "-m", "0"]);
        command.args(["-L", self.label, "-U", self.uuid, "-E", &extended, "-d"]);
        command.arg(tree).arg(image);
        process::run(command.env("E2FSPROGS_FAKE_TIME", BUILD_TIME.to_string()))?;
        set_inode_times(image)
    }
}

/// Makes no file in a tree newer than the build time.
fn clamp_times(path: &Path) -> Result<(), Failure> {
    let metadata = path.symlink_metadata().map_err(Failure::file("read", path))?;
    if metadata.is_dir() {
        for entry in path.read_dir().map_err(Failure::file("read", path))?.flatten() {
            clamp_times(&entry.path())?;
        }
    }
    let time = |seconds: i64| Timespec { tv_sec: seconds.min(BUILD_TIME), tv_nsec: 0 };
    let times =
        Timestamps { last_access: time(BUILD_TIME), last_modification: time(metadata.mtime()) };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| Failure::file("set the time of", path)(error.into()))
}

/// Sets the times of the inodes that `mke2fs` 1.47 took from the tree, where
/// nobody can set them: last access and last change.
fn set_inode_times(image: &Path) -> Result<(), Failure> {
    const FIRST_INODE: u32 = 11;
    let free =
        process::capture(Command::new("debugfs").args(["-R", "find_free_inode"]).arg(image))?;
    let free: u32 = free
        .split_whitespace()
        .find_map(|word| word.parse().ok())
        .ok_or_else(|| Failure::Other(format!("{} has no free inode", image.display())))?;
    let mut script = String::new();
    for inode in FIRST_INODE..free {
        for field in ["atime", "ctime"] {
            script.push_str(&format!("set_inode_field <{inode}> {field} @{BUILD_TIME}\n"));
        }
    }
    let path = image.with_extension("debugfs");
    fs::write(&path, script).map_err(Failure::file("write", &path))?;
    let mut command = Command::new("debugfs");
    command.args(["-w", "-f"]).arg(&path).arg(image);
    process::run(command.env("E2FSPROGS_FAKE_TIME", BUILD_TIME.to_string()))?;
    fs::remove_file(&path).map_err(Failure::file("remove", &path))
}

/// A disk with one partition, which a file system fills.
pub(super) struct PartitionedDisk {
    pub(super) uuid: &'static str,
    /// In bytes; the table at the end needs some of it.
    pub(super) size: u64,
    /// The partition's name.
    pub(super) partition: &'static str,
    pub(super) file_system: FileSystem,
}

impl PartitionedDisk {
    /// Makes a qcow2 image of the disk with everything that is in `tree`.
    pub(super) fn make(&self, tree: &Path, image: &Path) -> Result<(), Failure> {
        let (raw, part) = (image.with_extension("raw"), image.with_extension("part"));
        self.file_system.make(tree, &part)?;
        let file = File::create(&raw).map_err(Failure::file("make", &raw))?;
        file.set_len(self.size).map_err(Failure::file("size", &raw))?;
        let script = raw.with_extension("sfdisk");
        fs::write(&script, self.table()).map_err(Failure::file("write", &script))?;
        let script = File::open(&script).map_err(Failure::file("read", &script))?;
        process::run_with(Command::new("sfdisk").arg("--quiet").arg(&raw), script)?;
        let mut copy = Command::new("dd");
        copy.args(["bs=1M", "seek=1", "conv=sparse,notrunc", "status=none"]);
        copy.arg(format!("if={}", part.display())).arg(format!("of={}", raw.display()));
        process::run(&mut copy)?;
        to_qcow2(&raw, image)?;
        [&raw, &part, &raw.with_extension("sfdisk")]
            .iter()
            .try_for_each(|path| fs::remove_file(path).map_err(Failure::file("remove", path)))
    }

    /// Returns the partition table as `sfdisk` reads it. The partition starts at
    /// 1 MiB, and has the file system's UUID.
    fn table(&self) -> String {
        let Self { uuid, partition, file_system, .. } = self;
        let sectors = file_system.size / 512;
        let kind = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
        format!(
            "label: gpt\nlabel-id: {uuid}\n\
             start=2048, size={sectors}, type={kind}, uuid={}, name={partition}\n",
            file_system.uuid
        )
    }
}

/// Converts a raw image to qcow2.
pub(super) fn to_qcow2(raw: &Path, image: &Path) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    // One request at a time: clusters are allocated in the order of requests.
    command.args(["convert", "-m", "1", "-f", "raw", "-O", "qcow2"]);
    process::run(command.arg(raw).arg(image))
}
