//! Images by `qemu-img`, and ways to spoil them.

use std::path::{Path, PathBuf};
use std::process::Command;

use tintype_inspect::{Error, ImageFormat, Report, inspect};

/// A directory to make images in.
pub(crate) struct Place(tempfile::TempDir);

/// Returns a directory; without `qemu-img` says why the test cannot run.
pub(crate) fn place() -> Option<Place> {
    for program in ["qemu-img", "qemu-io"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
    }
    Some(Place(tempfile::tempdir().unwrap()))
}

impl Place {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes an image with a little data in it, from a raw disk of 8 MiB.
    pub(crate) fn image(&self, name: &str, format: &str, options: &[&str]) -> PathBuf {
        let (raw, path) = (self.path("raw"), self.path(name));
        let mut disk = vec![0; 8 << 20];
        for (at, byte) in disk[3 << 20..][..300 << 10].iter_mut().enumerate() {
            *byte = u8::try_from(at * at % 251).unwrap();
        }
        std::fs::write(&raw, disk).unwrap();
        let mut arguments = vec!["convert", "-f", "raw", "-O", format];
        arguments.extend(options);
        arguments.extend([raw.to_str().unwrap(), path.to_str().unwrap()]);
        run("qemu-img", &arguments);
        path
    }
}

/// Runs a tool, which must succeed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

pub(crate) fn inspect_file(path: &Path, format: ImageFormat) -> Result<Report, Error> {
    inspect(&std::fs::File::open(path).unwrap(), format)
}

/// Overwrites bytes.
pub(crate) fn put(bytes: &mut [u8], at: u64, new: &[u8]) {
    let at = usize::try_from(at).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(*bytes[at..].first_chunk().unwrap())
}

/// Numbers that look random and are the same for the same seed.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
