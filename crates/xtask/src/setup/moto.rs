//! The S3 server of the tests, moto, in a folder of its own under `target`.

use std::path::Path;
use std::process::Command;

use crate::failure::Failure;
use crate::process;

use super::Apt;

/// The version that the tests were written for.
const VERSION: &str = "5.2.5";

/// Installs the server if it is not there in this version.
pub(crate) fn ensure() -> Result<(), Failure> {
    let folder = tintype_testkit::s3_server_folder();
    let stamp = folder.join("version");
    if std::fs::read_to_string(&stamp).is_ok_and(|version| version == VERSION) {
        return Ok(());
    }
    eprintln!("installing moto {VERSION}");
    // Debian has the module in a package of its own.
    if make(&folder).is_err() {
        Apt::of_this_machine()?.install(&["python3-venv"])?;
        make(&folder)?;
    }
    let mut install = Command::new(folder.join("bin/pip"));
    install.args(["install", "--quiet", "--disable-pip-version-check"]);
    process::run(install.arg(format!("moto[server]=={VERSION}")))?;
    std::fs::write(&stamp, VERSION).map_err(Failure::file("write", &stamp))
}

fn make(folder: &Path) -> Result<(), Failure> {
    process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder))
}
