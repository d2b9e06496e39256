//! The QEMU builds that tests can run: the system's, and those that
//! `cargo xtask guests` unpacked beside it.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::Error;
use crate::image::guests_folder;

/// A QEMU release, as in `7.2` or `10.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Release {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Release {
    /// Reads it from what `qemu-system-x86_64 --version` prints.
    fn in_version_text(text: &str) -> Option<Self> {
        let mut numbers = text.split("version ").nth(1)?.split(['.', ' ', '\n']);
        let mut next = || numbers.next()?.parse().ok();
        Some(Self { major: next()?, minor: next()? })
    }
}

/// One QEMU build on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    release: Release,
    /// The folder it was unpacked into, or none for the system's.
    beside: Option<PathBuf>,
}

impl Qemu {
    /// Returns the system's QEMU.
    pub fn system() -> Result<Self, Error> {
        Self::probe(None).ok_or_else(|| Error::NoQemu { wanted: "of the system".to_owned() })
    }

    /// Returns the QEMU 7.2 that is unpacked beside the system's.
    ///
    /// A test that needs it and gets an error says so on stderr.
    pub fn seven_two() -> Result<Self, Error> {
        let folder = guests_folder().join("qemu-7.2");
        Self::probe(Some(folder)).ok_or_else(|| Error::NoQemu { wanted: "7.2".to_owned() })
    }

    /// Returns every QEMU build there is, the system's first.
    pub fn all() -> Vec<Self> {
        let mut found: Vec<Self> = Vec::new();
        for qemu in [Self::system(), Self::seven_two()].into_iter().flatten() {
            if !found.iter().any(|known| known.release == qemu.release) {
                found.push(qemu);
            }
        }
        found
    }

    /// Returns which release it is.
    pub const fn release(&self) -> Release {
        self.release
    }

    /// Returns the program's path, or its name for the system's. QEMU finds its
    /// modules and firmware next to itself (`get_relocated_path` in util/cutils.c).
    pub fn binary(&self) -> PathBuf {
        self.program("qemu-system-x86_64")
    }

    /// Returns its `qemu-img`.
    pub(crate) fn image_tool(&self) -> Tool {
        Tool { command: Command::new(self.program("qemu-img")) }
    }

    fn probe(beside: Option<PathBuf>) -> Option<Self> {
        let unknown = Self { release: Release { major: 0, minor: 0 }, beside };
        let mut command = Command::new(unknown.binary());
        let output = command.arg("--version").stdin(Stdio::null()).output().ok()?;
        let release = Release::in_version_text(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { release, ..unknown })
    }

    fn program(&self, name: &str) -> PathBuf {
        match &self.beside {
            Some(folder) => folder.join("usr/bin").join(name),
            None => PathBuf::from(name),
        }
    }
}

/// A program that runs to its end.
pub(crate) struct Tool {
    command: Command,
}

impl Tool {
    pub(crate) fn named(program: &str) -> Self {
        Self { command: Command::new(program) }
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    pub(crate) fn run(mut self) -> Result<(), Error> {
        let program = PathBuf::from(self.command.get_program());
        let output =
            self.command.stdin(Stdio::null()).output().map_err(Error::file("start", &program))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Ended {
            command: format!("{:?}", self.command),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        let check = |text, expected: Option<(u32, u32)>| {
            let expected = expected.map(|(major, minor)| Release { major, minor });
            assert_eq!(Release::in_version_text(text), expected, "{text}");
        };
        check("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", Some((10, 0)));
        check("QEMU emulator version 7.2.22 (Debian)", Some((7, 2)));
        check("QEMU emulator version 11.0\n", Some((11, 0)));
        check("no such thing", None);
    }
}
