//! A VM that is switched off: its snapshots are of a disk that the test writes,
//! so it needs no guest.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;
use tintype_testkit::Qemu;

use crate::command::Tintype;

/// Bytes of its disk.
pub(crate) const SIZE: usize = 4 << 20;

/// A VM named `web` that does not run.
pub(crate) struct SwitchedOff {
    pub(crate) tintype: Tintype,
    folder: TempDir,
}

impl SwitchedOff {
    /// Starts a QEMU with an empty disk, registers it and ends it.
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    /// The same, in a folder whose `home` is to be the home.
    pub(crate) fn start_in(folder: TempDir) -> Self {
        let vm = Self { tintype: Tintype::within(folder.path()), folder };
        vm.write(0);
        let qemu = Qemu::system().unwrap().binary();
        let drive = format!("file={},format=raw,if=virtio", vm.disk().display());
        let line = [qemu.to_str().unwrap(), "-m", "16", "-nodefaults", "-display", "none"];
        let run = ["vm", "run", "web", "--"];
        vm.tintype.json(&[&run[..], &line, &["-accel", "tcg", "-drive", &drive]].concat());
        vm.tintype.json(&["vm", "stop", "web", "--force"]);
        vm
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Fills the disk with what a number stands for.
    pub(crate) fn write(&self, state: u64) {
        fs::write(self.disk(), content(state, SIZE)).unwrap();
    }

    /// Asserts what the disk is filled with.
    pub(crate) fn must_be(&self, state: u64) {
        assert!(fs::read(self.disk()).unwrap() == content(state, SIZE), "the disk is of {state}");
    }

    /// Fills the disk, and takes a snapshot.
    pub(crate) fn take(&self, name: &str, state: u64) -> Value {
        self.write(state);
        self.tintype.json(&["take", "web", "--name", name])
    }

    /// Runs a command that has to fail, and returns what it said.
    pub(crate) fn fail(&self, code: i32, arguments: &[&str]) -> String {
        failed(&self.tintype.run(arguments), code)
    }

    /// Returns the names of all snapshots, oldest first.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let log = self.tintype.lines(&["log"]);
        log.iter().rev().map(|line| line["name"].as_str().unwrap().to_owned()).collect()
    }
}

/// Asserts how a command ended, and returns what it said.
pub(crate) fn failed(output: &Output, code: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{errors}");
    errors
}

/// Bytes that do not compress, and of which every block is another; none for 0.
pub(crate) fn content(state: u64, len: usize) -> Vec<u8> {
    let mut word = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}
