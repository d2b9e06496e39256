//! The S3 servers of the tests: a Ceph object gateway from Debian's packages, and
//! moto, in a folder of its own under `target`.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::process;

use super::{Apt, Probe, install_missing};

/// The version of moto that the tests were written for.
const MOTO: &str = "5.2.5";

/// Ceph's gateway, and the least of a cluster that it works on.
const CEPH: &[(&str, Probe)] = &[
    ("ceph-common", Probe::Program("ceph")),
    ("ceph-mon", Probe::Program("ceph-mon")),
    ("ceph-osd", Probe::Program("ceph-osd")),
    ("radosgw", Probe::Program("radosgw")),
];

/// Installs the servers that are not there.
pub(crate) fn ensure() -> Result<(), Failure> {
    install_missing(CEPH)?;
    ensure_moto()
}

fn ensure_moto() -> Result<(), Failure> {
    let folder = tintype_testkit::s3_server_folder();
    let stamp = folder.join("version");
    if std::fs::read_to_string(&stamp).is_ok_and(|version| version == MOTO) {
        return Ok(());
    }
    eprintln!("installing moto {MOTO}");
    // Debian has the module in a package of its own.
    if make(&folder).is_err() {
        Apt::of_this_machine()?.install(&["python3-venv"])?;
        make(&folder)?;
    }
    let mut install = Command::new(folder.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check"]);
    process::run(install.arg(format!("moto[server]=={MOTO}")))?;
    std::fs::write(&stamp, MOTO).map_err(Failure::file("write", &stamp))
}

fn make(folder: &Path) -> Result<(), Failure> {
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
}
