//! Makes a Debian machine ready for the chores: installs the packages that are
//! missing, and nothing if none is. It never writes down an archive's address,
//! and never adds a suite to the machine without its owner's yes.

mod apt;
mod backports;
mod python;
mod s3;

use std::io::IsTerminal;
use std::path::Path;

use crate::failure::Failure;
use crate::process;

pub(crate) use apt::Apt;

/// One line for the list of chores.
pub(crate) const ABOUT: &str =
    "installs what the other chores need (Debian 12 and 13); --yes agrees to backports";

/// Whether the machine's owner agrees that a package suite is added to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consent {
    /// They said so in advance.
    Yes,
    /// They can be asked: somebody sits at the terminal.
    Ask,
    /// Nobody is there.
    No,
}

impl Consent {
    /// Reads it from a chore's arguments (`--yes`), from `CI=true`, or from who is there.
    pub(crate) fn of(arguments: &[String]) -> Self {
        let in_ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        if in_ci || arguments.iter().any(|argument| argument == "--yes") {
            Self::Yes
        } else if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
            Self::Ask
        } else {
            Self::No
        }
    }
}

/// How to see that a package is installed, without asking a package manager.
enum Probe {
    Program(&'static str),
    File(&'static str),
}

/// The packages that the chores need, apart from QEMU.
const PACKAGES: &[(&str, Probe)] = &[
    ("qemu-utils", Probe::Program("qemu-img")),
    ("ovmf", Probe::File("/usr/share/OVMF/OVMF_CODE_4M.fd")),
    ("mmdebstrap", Probe::Program("mmdebstrap")),
    ("e2fsprogs", Probe::Program("mke2fs")),
    ("fdisk", Probe::Program("sfdisk")),
    ("dosfstools", Probe::Program("mkfs.fat")),
    ("mtools", Probe::Program("mcopy")),
    ("swtpm", Probe::Program("swtpm")),
    ("kmod", Probe::Program("depmod")),
    ("zstd", Probe::Program("zstd")),
    ("age", Probe::Program("age-keygen")),
    ("cpio", Probe::Program("cpio")),
    ("xz-utils", Probe::Program("xz")),
    ("openssh-client", Probe::Program("ssh-keygen")),
    ("python3-cryptography", Probe::File("/usr/lib/python3/dist-packages/cryptography")),
    ("python3-argon2", Probe::File("/usr/lib/python3/dist-packages/argon2")),
    ("libc6-dev", Probe::File("/usr/lib/x86_64-linux-gnu/libc.a")),
];

/// What the tests need beside that: file systems that lose their power, and a judge
/// of pages for `man`.
const TESTS: &[(&str, Probe)] = &[
    ("xfsprogs", Probe::Program("mkfs.xfs")),
    ("btrfs-progs", Probe::Program("mkfs.btrfs")),
    ("groff-base", Probe::Program("groff")),
];

/// What the fuzzer, which is C++, is compiled with.
const FUZZER: &[(&str, Probe)] = &[("g++", Probe::Program("g++"))];

/// What the benchmark of the repository compares with.
const PEERS: &[(&str, Probe)] =
    &[("restic", Probe::Program("restic")), ("borgbackup", Probe::Program("borg"))];

impl Probe {
    fn finds_it(&self) -> bool {
        match self {
            Self::Program(name) => process::is_installed(name),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    ensure(Consent::of(arguments))?;
    ensure_for_tests()?;
    println!("the machine is set up");
    Ok(())
}

/// Installs what is missing. Does next to nothing on a machine that has it all.
pub(crate) fn ensure(consent: Consent) -> Result<(), Failure> {
    backports::ensure_qemu(consent)?;
    install_missing(PACKAGES)
}

/// Installs what only the tests need.
pub(crate) fn ensure_for_tests() -> Result<(), Failure> {
    install_missing(TESTS)?;
    python::ensure_inspector()?;
    s3::ensure()
}

/// Installs what the fuzzer is compiled with; no other chore needs it.
pub(crate) fn ensure_fuzzer() -> Result<(), Failure> {
    install_missing(FUZZER)
}

/// Installs the programs that `bench repo` compares with; no other chore needs them.
pub(crate) fn ensure_peers() -> Result<(), Failure> {
    install_missing(PEERS)
}

fn install_missing(packages: &[(&'static str, Probe)]) -> Result<(), Failure> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|(_, probe)| !probe.finds_it())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() { Ok(()) } else { Apt::of_this_machine()?.install(&missing) }
}
