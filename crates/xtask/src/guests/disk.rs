//! Makes file systems and disk images of folders, without mounting anything, so
//! that the same folder gives the same bytes.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::process;

/// The time that every file and file system of a guest bears: 2025-01-01 00:00 UTC.
pub(super) const BUILD_TIME: &str = "1735689600";

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
        let file = File::create(image).map_err(Failure::file("make", image))?;
        file.set_len(self.size).map_err(Failure::file("size", image))?;
        let extended = format!("hash_seed={HASH_SEED},lazy_itable_init=0,lazy_journal_init=0");
        let mut command = Command::new("mke2fs");
        command.args(["-q", "-t", "ext4", "-b", "4096", "-m", "0"]);
        command.args(["-L", self.label, "-U", self.uuid, "-E", &extended, "-d"]);
        command.arg(tree).arg(image);
        process::run(command.env("E2FSPROGS_FAKE_TIME", BUILD_TIME))
    }
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
    command.args(["convert", "-f", "raw", "-O", "qcow2"]);
    process::run(command.arg(raw).arg(image))
}
