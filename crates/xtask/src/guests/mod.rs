//! The chore `guests`: builds the guests of the tests, the demo and the benchmarks
//! out of Debian's packages, into a cache, and builds nothing twice.
//!
//! The cache is `target/guests` of the workspace: `tiny` and `debian` hold
//! `vmlinuz`, `initrd`, `disk.qcow2` and `command-line`.

mod cache;
mod debian;
mod disk;
mod initramfs;
mod kernel;
mod ssh;
mod tiny;

use std::fs;
use std::path::Path;
use std::process::Command;

use cache::{Cache, Key};
use kernel::Kernel;
use ssh::SshKeys;
use tiny::Programs;

use crate::failure::Failure;
use crate::process;
use crate::setup::{self, Apt, Consent};

/// One line for the list of chores.
pub(crate) const ABOUT: &str = "builds the guests that tests, demo and benchmarks run";

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    setup::ensure(Consent::of(arguments))?;
    ensure()
}

/// Builds whatever guest is missing or out of date.
pub(crate) fn ensure() -> Result<(), Failure> {
    let apt = Apt::of_this_machine()?;
    let cache = Cache::open(&tintype_testkit::guests_folder())?;
    let kernel = Kernel::ensure(&cache, &apt)?;
    let programs = Programs { busybox: busybox(&cache, &apt)?, witness: witness(&cache)? };
    let key = Key::of(&[
        kernel.key.as_bytes(),
        &programs.busybox,
        &programs.witness,
        tiny::INIT,
        tiny::AGENT,
        include_bytes!("tiny.rs"),
        include_bytes!("disk.rs"),
        include_bytes!("initramfs.rs"),
    ]);
    cache.ensure("tiny", &key, |target| tiny::build(target, &kernel, &programs))?;
    let keys = SshKeys::ensure(&cache)?;
    debian::Recipe { apt: &apt, kernel: &kernel, programs: &programs, keys: &keys }.ensure(&cache)
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

/// Compiles the program that runs inside the guests, linked statically.
fn witness(cache: &Cache) -> Result<Vec<u8>, Failure> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let folder = cache.folder("cargo");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--release", "--package", "witness", "--target", TARGET]);
    command.arg("--target-dir").arg(&folder);
    command.current_dir(tintype_testkit::workspace_folder());
    command.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    process::run(&mut command)?;
    let program = folder.join(TARGET).join("release").join("witness");
    read(&program)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(path).map_err(Failure::file("read", path))
}
