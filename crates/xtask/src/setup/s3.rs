//! The S3 servers of the tests: a Ceph object gateway from Debian's packages, and
//! moto, in a folder of its own under `target`.

use crate::failure::Failure;

use super::{Probe, install_missing, python};

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
    let package = format!("moto[server]=={MOTO}");
    python::ensure(&tintype_testkit::s3_server_folder(), MOTO, &[&package])
}
