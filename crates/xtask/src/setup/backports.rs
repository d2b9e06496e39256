//! The choice of QEMU: 10 or newer where the machine's archives have it, or its
//! owner agrees to Debian's backports; else 7.2, and a line that says so.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use super::{Apt, Consent};
use crate::failure::Failure;
use crate::process;

/// The packages that are QEMU; they come from one suite.
const QEMU: &[&str] = &["qemu-system-x86", "qemu-utils"];

/// The first release that takes iterating captures with disks.
const WANTED: u32 = 10;

/// Where set-up notes the suite that it added.
const SOURCES: &str = "/etc/apt/sources.list.d/tintype-backports.sources";

/// Sees to it that there is a QEMU, and the better one if that is allowed.
pub(super) fn ensure_qemu(consent: Consent) -> Result<(), Failure> {
    let installed = release_of("qemu-system-x86_64");
    if installed.is_some_and(|release| release >= WANTED) {
        return Ok(());
    }
    let apt = Apt::of_this_machine()?;
    if apt.versions(QEMU[0])?.is_empty() {
        apt.update()?;
    }
    if let Some(suite) = suite_with_wanted(&apt)? {
        return apt.install_from(&suite, QEMU);
    }
    let suite = format!("{}-backports", apt.codename());
    if has_tools_from(&suite) || agrees(consent, &suite, installed)? {
        add_suite(&apt, &suite)?;
        return apt.install_from(&suite, QEMU);
    }
    eprintln!("using QEMU 7.2: `--yes` would add {suite} to this machine, which has {WANTED}");
    if installed.is_some() { Ok(()) } else { apt.install(QEMU) }
}

/// Whether QEMU's tools on this machine come from the suite already, by whatever way
/// they came. Its owner has then agreed to it, and the older QEMU cannot be installed
/// beside them.
fn has_tools_from(suite: &str) -> bool {
    let newer = release_of("qemu-img").is_some_and(|release| release >= WANTED);
    if newer {
        eprintln!(
            "qemu-utils on this machine is {suite}'s: adding that suite for the rest of QEMU"
        );
    }
    newer
}

/// Returns the major version of one of QEMU's programs in PATH.
fn release_of(program: &str) -> Option<u32> {
    release_in(&process::capture(Command::new(program).arg("--version")).ok()?)
}

fn release_in(version_text: &str) -> Option<u32> {
    version_text.split("version ").nth(1)?.split('.').next()?.parse().ok()
}

/// Returns the suite, among those that the machine has already, with a new enough QEMU.
fn suite_with_wanted(apt: &Apt) -> Result<Option<String>, Failure> {
    let versions = apt.versions(QEMU[0])?;
    let new_enough = versions.iter().find(|found| {
        let upstream = found.version.split_once(':').map_or(found.version.as_str(), |(_, v)| v);
        upstream.split('.').next().and_then(|n| n.parse().ok()).is_some_and(|n: u32| n >= WANTED)
    });
    Ok(new_enough.and_then(|found| Some(found.suite.split_once('/')?.0.to_owned())))
}

fn agrees(consent: Consent, suite: &str, installed: Option<u32>) -> Result<bool, Failure> {
    if consent != Consent::Ask {
        return Ok(consent == Consent::Yes);
    }
    let now = installed.map_or("no QEMU".to_owned(), |release| format!("QEMU {release}"));
    eprint!(
        "This machine has {now}. Add the package suite {suite} and install QEMU {WANTED}? [y/N] "
    );
    std::io::stderr().flush().map_err(Failure::file("write to", Path::new("the terminal")))?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(Failure::file("read from", Path::new("the terminal")))?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

fn add_suite(apt: &Apt, suite: &str) -> Result<(), Failure> {
    let sites = apt.sites(apt.codename())?;
    let site = sites.first().ok_or_else(|| {
        Failure::Other(format!("apt's configuration names no archive for {}", apt.codename()))
    })?;
    let text = stanza(site, suite);
    let write = if rustix::process::geteuid().is_root() {
        std::fs::write(SOURCES, text).map_err(Failure::file("write", Path::new(SOURCES)))
    } else {
        write_as_root(&text)
    };
    write.and_then(|()| apt.update())
}

fn write_as_root(text: &str) -> Result<(), Failure> {
    let mut file = tempfile::NamedTempFile::new()
        .map_err(Failure::file("make", Path::new("a temporary file")))?;
    file.write_all(text.as_bytes()).map_err(Failure::file("write", file.path()))?;
    let mut command = Command::new("sudo");
    command.args(["install", "--mode=644"]).arg(file.path()).arg(SOURCES);
    process::run(&mut command)
}

fn stanza(site: &str, suite: &str) -> String {
    format!(
        "Types: deb\nURIs: {site}\nSuites: {suite}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        let check = |text, expected| assert_eq!(release_in(text), expected, "{text}");
        check("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright", Some(10));
        check("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", Some(7));
        check("something else", None);
    }

    #[test]
    fn the_suite_comes_from_the_machines_archive() {
        let text = stanza("http://archive.example/debian", "bookworm-backports");
        assert!(text.contains("URIs: http://archive.example/debian\nSuites: bookworm-backports\n"));
    }
}
