//! Python programs that the tests compare with, each in a folder of its own under
//! `target`.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::process;

use super::Apt;

/// The version of `oslo.utils` that the tests were written for.
const OSLO_UTILS: &str = "10.2.0";

/// Installs the inspector of images that is not there.
pub(crate) fn ensure_inspector() -> Result<(), Failure> {
    let package = format!("oslo.utils=={OSLO_UTILS}");
    // It uses that one too, and does not say so.
    let packages = [&package, "cryptography"];
    ensure(&tintype_testkit::image_inspector_folder(), OSLO_UTILS, &packages)
}

/// Makes a folder with a Python that has these packages, the first in this version.
pub(crate) fn ensure(folder: &Path, version: &str, packages: &[&str]) -> Result<(), Failure> {
    let stamp = folder.join("version");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == version) {
        return Ok(());
    }
    eprintln!("installing {}", packages.join(", "));
    // Debian has the module in a package of its own.
    if make(folder).is_err() {
        Apt::of_this_machine()?.install(&["python3-venv"])?;
        make(folder)?;
    }
    let mut install = Command::new(folder.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check"]);
    process::run(install.args(packages))?;
    std::fs::write(&stamp, version).map_err(Failure::file("write", &stamp))
}

fn make(folder: &Path) -> Result<(), Failure> {
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
}
