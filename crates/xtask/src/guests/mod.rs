//! The chore `guests`: builds the guests of the tests, the demo and the benchmarks
//! out of Debian's packages, into a cache, and builds nothing twice.
//!
//! The cache is `target/guests` of the workspace: `tiny` and `debian` hold
//! `vmlinuz`, `initrd`, `disk.qcow2` and `command-line`.

mod beside;
mod cache;
mod debian;
mod disk;
mod initramfs;
mod kernel;
mod large;
mod ssh;
mod tiny;
mod twice;

use std::fs;
use std::path::{Path, PathBuf};

use cache::{Cache, Key};
use kernel::Kernel;
use ssh::SshKeys;

use crate::failure::Failure;
use crate::process;
use crate::setup::{self, Apt, Consent};

/// One line for the list of chores.
pub(crate) const ABOUT: &str =
    "builds the guests that tests and demo run; --large those of `bench repo`, --twice compares";

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    let consent = Consent::of(arguments);
    if arguments.iter().any(|argument| argument == "--twice") {
        return with_parts(consent, twice::check);
    }
    if arguments.iter().any(|argument| argument == "--large") {
        ensure_large(consent)?;
    } else {
        ensure(consent)?;
    }
    println!("the guests are in {}", tintype_testkit::guests_folder().display());
    Ok(())
}

/// Sets up the machine and builds whatever guest is missing or out of date; made
/// for every chore that runs guests.
pub(crate) fn ensure(consent: Consent) -> Result<(), Failure> {
    with_parts(consent, |cache, parts| {
        tiny::ensure(cache, parts)?;
        debian::ensure(cache, parts)
    })
}

/// Builds the guests and the states of the large one, and returns their folder.
pub(crate) fn ensure_large(consent: Consent) -> Result<PathBuf, Failure> {
    with_parts(consent, |cache, parts| {
        tiny::ensure(cache, parts)?;
        debian::ensure(cache, parts)?;
        large::ensure(cache, parts)
    })
}

fn with_parts<T>(
    consent: Consent,
    work: impl FnOnce(&Cache, &Parts<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    setup::ensure(consent)?;
    let apt = Apt::of_this_machine()?;
    let cache = Cache::open(&tintype_testkit::guests_folder())?;
    let parts = Parts::ensure(&cache, &apt)?;
    work(&cache, &parts)
}

/// What the guests are made of.
struct Parts<'a> {
    apt: &'a Apt,
    kernel: Kernel,
    programs: Programs,
    keys: SshKeys,
}

impl<'a> Parts<'a> {
    /// Finds the parts in the cache, or fetches and compiles them.
    fn ensure(cache: &Cache, apt: &'a Apt) -> Result<Self, Failure> {
        beside::ensure(cache, apt)?;
        let programs = Programs { busybox: busybox(cache, apt)?, witness: witness(cache)? };
        let kernel = Kernel::ensure(cache, apt)?;
        Ok(Self { apt, kernel, programs, keys: SshKeys::ensure(cache)? })
    }

    /// Returns the key of everything that both guests are made of.
    fn key(&self) -> Key {
        Key::of(&[
            self.kernel.key.as_bytes(),
            &self.programs.busybox,
            &self.programs.witness,
            tiny::INIT,
            tiny::AGENT,
            include_bytes!("tiny.rs"),
            include_bytes!("disk.rs"),
            include_bytes!("initramfs.rs"),
        ])
    }
}

/// Returns the statically linked busybox of Debian's package.
fn busybox(cache: &Cache, apt: &Apt) -> Result<Vec<u8>, Failure> {
    let version = apt.candidate("busybox-static")?;
    let key = Key::of(&[version.as_bytes()]);
    let folder = cache.ensure("busybox", &key, |target| {
        apt.unpack(&[format!("busybox-static={version}")], target)
    })?;
    // Debian 13 has moved it below /usr.
    let read = |path: &str| fs::read(folder.join(path));
    read("bin/busybox")
        .or_else(|_| read("usr/bin/busybox"))
        .map_err(Failure::file("read busybox in", &folder))
}

/// What runs in the guests besides Debian's programs.
struct Programs {
    /// A statically linked busybox.
    busybox: Vec<u8>,
    /// The statically linked witness, see `crates/witness`.
    witness: Vec<u8>,
}

/// Compiles the program that runs inside the guests, linked statically.
fn witness(cache: &Cache) -> Result<Vec<u8>, Failure> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = cache.folder("cargo");
    let mut command = process::cargo();
    command.args(["build", "--quiet", "--release", "--package", "witness", "--target", TARGET]);
    command.arg("--target-dir").arg(&folder);
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    process::run(&mut command)?;
    let program = folder.join(TARGET).join("release").join("witness");
    read(&program)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(Failure::file("read", path))
}
