//! QEMU 7.2, the release of Debian 12, unpacked beside whatever the machine has, so
//! that tests can run on both. Nothing is installed.

use std::os::unix::fs::symlink;
use std::path::Path;

use super::cache::{Cache, Key};
use crate::failure::Failure;
use crate::setup::Apt;

/// The folder in the cache; `tintype-testkit` looks for it.
const FOLDER: &str = "qemu-7.2";

/// How the wanted versions start, as Debian numbers them.
const VERSIONS: &str = "1:7.2";

/// The packages that make up a QEMU which runs without being installed.
const PACKAGES: &[&str] =
    &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "qemu-utils"];

/// What the packages expect to find elsewhere, and where the machine has it.
const LINKS: &[(&str, &str)] =
    &[("usr/share/seabios", "/usr/share/seabios"), ("usr/lib/ipxe", "/usr/lib/ipxe")];

/// Unpacks QEMU 7.2 unless it is there, or says why it cannot be had.
pub(super) fn ensure(cache: &Cache, apt: &Apt) -> Result<(), Failure> {
    let Some(packages) = packages(apt)? else {
        eprintln!("QEMU 7.2 is in none of this machine's archives: tests that need it are skipped");
        return Ok(());
    };
    let key = Key::of(&[packages.join(" ").as_bytes(), include_bytes!("beside.rs")]);
    cache.ensure(FOLDER, &key, |target| {
        apt.unpack(&packages, target)?;
        LINKS.iter().try_for_each(|(name, there)| link(target, name, there))
    })?;
    Ok(())
}

/// Returns the packages with the newest 7.2 version of each, as apt wants them.
fn packages(apt: &Apt) -> Result<Option<Vec<String>>, Failure> {
    let mut found = Vec::new();
    for package in PACKAGES {
        let versions = apt.versions(package)?;
        let Some(newest) = versions.iter().find(|known| known.version.starts_with(VERSIONS)) else {
            return Ok(None);
        };
        found.push(format!("{package}={}", newest.version));
    }
    Ok(Some(found))
}

fn link(target: &Path, name: &str, there: &str) -> Result<(), Failure> {
    let path = target.join(name);
    let _ = std::fs::remove_file(&path);
    symlink(there, &path).map_err(Failure::file("make", &path))
}
