//! A directory with images, and QEMU's tools as judges.

use std::path::{Path, PathBuf};
use std::process::Command;

use tintype_image::{Format, HostConfig, ImageHost, ImageSpec};

pub(crate) const QEMU: &str = "qemu-system-x86_64";

/// Returns a directory to work in; without QEMU says why the test cannot run.
pub(crate) fn place() -> Option<Place> {
    for program in [QEMU, "qemu-img", "qemu-io"] {
        if Command::new(program).arg("--version").output().is_err() {
            eprintln!("skipped: {program} is not installed");
            return None;
        }
    }
    Some(Place { directory: tempfile::tempdir().unwrap() })
}

pub(crate) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn config(&self) -> HostConfig {
        HostConfig::new(Path::new(QEMU), self.directory.path())
    }

    /// Makes an image with `qemu-img create`.
    pub(crate) fn create(&self, name: &str, format: &str, more: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut arguments = vec!["create", "-q", "-f", format, path.to_str().unwrap()];
        arguments.extend(more);
        run("qemu-img", &arguments);
        path
    }

    pub(crate) fn open(&self, spec: ImageSpec) -> Result<ImageHost, tintype_image::Error> {
        ImageHost::open(&self.config(), &[spec])
    }

    /// Checks that hosts have left nothing behind.
    #[track_caller]
    pub(crate) fn assert_tidy(&self) {
        let left: Vec<_> = std::fs::read_dir(self.directory())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_str().unwrap().starts_with("image-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

pub(crate) fn format(name: &str) -> Format {
    name.parse().unwrap()
}

/// Runs a tool, which must succeed, and returns what it wrote to stdout.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {stdout}{stderr}");
    stdout
}

/// Returns the processes that have a file open.
pub(crate) fn users(path: &Path) -> Vec<u32> {
    let path = path.canonicalize().unwrap();
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(files) = std::fs::read_dir(entry.path().join("fd")) else { continue };
        if files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|to| to == path)) {
            users.push(pid);
        }
    }
    users
}

/// Numbers that look random and are the same in each run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}

pub(crate) fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}
