//! The tiny guest: a kernel, an initramfs that is the whole system, and a disk
//! with an ext4 file system and no partitions.

use std::fs;
use std::path::Path;

use super::Parts;
use super::cache::Cache;
use super::disk::{FileSystem, mebibytes};
use super::initramfs::Initramfs;
use crate::failure::Failure;

/// The first program of both guests.
pub(super) const INIT: &[u8] = include_bytes!("init.sh");

/// The program of both guests that does what the host asks for over the serial line.
pub(super) const AGENT: &[u8] = include_bytes!("agent.sh");

/// What the kernel is told. The last message level that reaches the console is 1,
/// so that messages do not get between the lines of an answer.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1";

/// Builds the guest unless it is up to date.
pub(super) fn ensure(cache: &Cache, parts: &Parts<'_>) -> Result<(), Failure> {
    cache.ensure("tiny", &parts.key(), |target| build(target, parts)).map(drop)
}

/// Returns the archive that starts both guests.
pub(super) fn initramfs(parts: &Parts<'_>) -> Vec<u8> {
    let Parts { kernel, programs, .. } = parts;
    let mut archive = Initramfs::new();
    archive.program("init", INIT);
    archive.program("bin/agent", AGENT);
    archive.program("bin/busybox", &programs.busybox);
    archive.program("bin/witness", &programs.witness);
    archive.data("mod/order", kernel.order().as_bytes());
    for (name, module) in &kernel.modules {
        archive.data(&format!("mod/{name}"), module);
    }
    archive.finish()
}

/// Writes the guest's files into a folder.
pub(super) fn build(target: &Path, parts: &Parts<'_>) -> Result<(), Failure> {
    let write = |name: &str, content: &[u8]| {
        let path = target.join(name);
        fs::write(&path, content).map_err(Failure::file("write", &path))
    };
    write("vmlinuz", &parts.kernel.image)?;
    write("initrd", &initramfs(parts))?;
    write("command-line", COMMAND_LINE.as_bytes())?;
    let tree = tempfile::tempdir_in(target).map_err(Failure::file("make a folder in", target))?;
    fill(tree.path())?;
    let raw = tree.path().with_extension("raw");
    FileSystem { label: "tiny", uuid: "7d9c1b52-0b6c-4c53-9f0e-3f6c1a6f0001", size: mebibytes(64) }
        .make(tree.path(), &raw)?;
    super::disk::to_qcow2(&raw, &target.join("disk.qcow2"))?;
    fs::remove_file(&raw).map_err(Failure::file("remove", &raw))
}

/// Puts some files on the disk, so that there is something to compare and to lose.
fn fill(tree: &Path) -> Result<(), Failure> {
    let write = |name: &str, content: String| {
        let path = tree.join(name);
        fs::write(&path, content).map_err(Failure::file("write", &path))
    };
    write("hello", "a file that was there from the beginning\n".to_owned())?;
    write("numbers", (0..20_000).map(|n| format!("{n}\n")).collect())
}
