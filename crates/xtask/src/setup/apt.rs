//! Debian's package tools, driven with the machine's own configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::failure::Failure;
use crate::process;

/// The package tools of this machine.
pub(crate) struct Apt {
    codename: String,
}

impl Apt {
    /// Checks that this is Debian 12 or 13, which is what set-up knows.
    pub(crate) fn of_this_machine() -> Result<Self, Failure> {
        let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .map_or_else(String::new, |value| value.trim_matches('"').to_owned())
        };
        match (value("ID").as_str(), value("VERSION_CODENAME")) {
            ("debian", codename) if ["bookworm", "trixie"].contains(&codename.as_str()) => {
                Ok(Self { codename })
            }
            _ => Err(Failure::Other(format!(
                "set-up knows Debian 12 and 13, and this machine has {}",
                value("PRETTY_NAME")
            ))),
        }
    }

    /// Returns the release's name: `bookworm` or `trixie`.
    pub(crate) fn codename(&self) -> &str {
        &self.codename
    }

    /// Installs packages, fetching the package lists first if they lack one.
    pub(crate) fn install(&self, packages: &[&str]) -> Result<(), Failure> {
        eprintln!("installing {}", packages.join(" "));
        if !packages.iter().all(|package| self.candidate(package).is_ok()) {
            self.update()?;
        }
        self.get(&["install", "--yes", "--no-install-recommends"], packages)
    }

    /// Installs packages from one suite, for instance `bookworm-backports`.
    pub(crate) fn install_from(&self, suite: &str, packages: &[&str]) -> Result<(), Failure> {
        eprintln!("installing {} from {suite}", packages.join(" "));
        let arguments = ["install", "--yes", "--no-install-recommends", "--target-release", suite];
        self.get(&arguments, packages)
    }

    /// Fetches the package lists.
    pub(crate) fn update(&self) -> Result<(), Failure> {
        self.get(&["update"], &[])
    }

    /// Returns the version of a package that would be installed.
    pub(crate) fn candidate(&self, package: &str) -> Result<String, Failure> {
        let text = process::capture(apt_cache().args(["policy", package]))?;
        text.lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .map(str::to_owned)
            .ok_or_else(|| Failure::Other(format!("no archive of this machine has `{package}`")))
    }

    /// Returns every version of a package that an archive has, with where: `madison` lines.
    pub(crate) fn versions(&self, package: &str) -> Result<Vec<ArchiveVersion>, Failure> {
        let text = process::capture(apt_cache().args(["madison", package]))?;
        Ok(text.lines().filter_map(ArchiveVersion::parse).collect())
    }

    /// Returns the first package that a metapackage depends on and whose name starts so.
    pub(crate) fn dependency(&self, package: &str, prefix: &str) -> Result<String, Failure> {
        let text = process::capture(apt_cache().args(["depends", "--important", package]))?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix))
            .map(str::to_owned)
            .ok_or_else(|| Failure::Other(format!("`{package}` depends on no `{prefix}*`")))
    }

    /// Returns the addresses of Debian's own archives for `suite` in apt's configuration.
    pub(crate) fn sites(&self, suite: &str) -> Result<Vec<String>, Failure> {
        let mut command = Command::new("apt-get");
        command.args(["indextargets", "--format", "$(SITE)|$(RELEASE)|$(CODENAME)"]);
        let text = process::capture(command.arg("Created-By: Packages"))?;
        let mut sites: Vec<String> = text
            .lines()
            .filter_map(|line| {
                let (site, suites) = line.split_once('|')?;
                suites.split('|').any(|name| name == suite).then(|| site.to_owned())
            })
            .collect();
        sites.dedup();
        Ok(sites)
    }

    /// Returns the proxies in apt's configuration, as lines of that configuration.
    pub(crate) fn proxies(&self) -> Result<Vec<String>, Failure> {
        let text = process::capture(Command::new("apt-config").args(["dump", "Acquire"]))?;
        let is_proxy = |line: &&str| line.split(' ').next().is_some_and(|k| k.ends_with("::Proxy"));
        Ok(text.lines().filter(is_proxy).map(str::to_owned).collect())
    }

    /// Fetches packages (`name` or `name=version`) into a folder and unpacks them all
    /// into `target`, without installing anything.
    pub(crate) fn unpack(&self, packages: &[String], target: &Path) -> Result<(), Failure> {
        let folder = tempfile::tempdir().map_err(Failure::file("make", Path::new("/tmp")))?;
        let mut fetch = Command::new("apt-get");
        fetch.args(["-o", "APT::Sandbox::User=root", "download"]).args(packages);
        process::run(fetch.current_dir(folder.path()))?;
        let entries = folder.path().read_dir().map_err(Failure::file("read", folder.path()))?;
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.sort();
        files
            .iter()
            .try_for_each(|file| process::run(Command::new("dpkg").arg("-x").arg(file).arg(target)))
    }

    fn get(&self, arguments: &[&str], packages: &[&str]) -> Result<(), Failure> {
        let mut command = if rustix::process::geteuid().is_root() {
            Command::new("apt-get")
        } else {
            let mut sudo = Command::new("sudo");
            sudo.arg("apt-get");
            sudo
        };
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["-o", "DPkg::Lock::Timeout=600", "-q"]);
        process::run(command.args(arguments).args(packages))
    }
}

/// A version of a package in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ArchiveVersion {
    /// The version in full: `1:7.2+dfsg-7+deb12u18`.
    pub(crate) version: String,
    /// The suite that has it: `bookworm-backports/main`.
    pub(crate) suite: String,
}

impl ArchiveVersion {
    fn parse(line: &str) -> Option<Self> {
        let mut columns = line.split('|').map(str::trim);
        let (_, version, origin) = (columns.next()?, columns.next()?, columns.next()?);
        let mut words = origin.split(' ');
        let (_, suite, _, kind) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let found = Self { version: version.to_owned(), suite: suite.to_owned() };
        (kind == "Packages").then_some(found)
    }
}

fn apt_cache() -> Command {
    let mut command = Command::new("apt-cache");
    command.env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn madison_lines_are_read() {
        let check = |line, expected: Option<(&str, &str)>| {
            let expected = expected.map(|(version, suite)| ArchiveVersion {
                version: version.to_owned(),
                suite: suite.to_owned(),
            });
            assert_eq!(ArchiveVersion::parse(line), expected, "{line}");
        };
        check(
            "qemu-utils | 1:10.0.2+ds-2 | http://a.example/debian trixie-backports/main amd64 Packages",
            Some(("1:10.0.2+ds-2", "trixie-backports/main")),
        );
        check("qemu | 1:10.0.2+ds-2 | http://a.example/debian trixie/main Sources", None);
        check("", None);
    }
}
