//! What to open, and with what.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

/// How to run a QEMU that opens images.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The program, such as `/usr/bin/qemu-system-x86_64`: that of the VM, so that
    /// both agree on what an image means.
    pub qemu: PathBuf,
    /// A directory of ours, in which a private one is made for the socket.
    pub runtime_directory: PathBuf,
    /// How long one command, one read or one write may take.
    pub timeout: Duration,
}

impl HostConfig {
    /// Uses a program and a directory, with a timeout of 30 seconds.
    pub fn new(qemu: &Path, runtime_directory: &Path) -> Self {
        Self {
            qemu: qemu.to_owned(),
            runtime_directory: runtime_directory.to_owned(),
            timeout: Duration::from_secs(30),
        }
    }
}

/// An image to open.
#[derive(Debug, Clone)]
pub struct ImageSpec {
    /// A regular file or a block device.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What is to be done with it.
    pub access: Access,
    /// Whether the host's page cache is used.
    pub cache: Cache,
    /// The files of its chain, the highest first, if somebody has inspected them:
    /// they are opened, and what their headers name is not.
    pub given: Option<Vec<LayerSpec>>,
}

/// One file of a chain that was inspected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// A regular file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// A file over it that exchanges its first bytes, see
    /// [`ImageHost::exchange_head`](crate::ImageHost::exchange_head).
    pub head: Option<PathBuf>,
}

impl ImageSpec {
    /// Opens an image for reading, through the page cache.
    pub fn read_only(path: &Path, format: Format) -> Self {
        let (access, cache) = (Access::ReadOnly, Cache::Buffered);
        Self { path: path.to_owned(), format, access, cache, given: None }
    }

    /// Opens the files of a chain that was inspected for reading, the highest first.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn chain(layers: Vec<LayerSpec>) -> Self {
        let top = layers.first().expect("a chain has a file");
        Self { given: Some(layers.clone()), ..Self::read_only(&top.path, top.format.clone()) }
    }

    /// Opens an image for reading and writing, through the page cache.
    pub fn writable(path: &Path, format: Format) -> Self {
        Self { access: Access::ReadWrite, ..Self::read_only(path, format) }
    }
}

/// What is to be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading. No one else may write to the image meanwhile.
    ReadOnly,
    /// Reading and writing. No one else may use the image meanwhile.
    ReadWrite,
}

/// Whether the host's page cache is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// It is: good for reads that come again.
    Buffered,
    /// It is not (`O_DIRECT`): leaves the cache to the guests.
    Direct,
}

/// An image format, by the name of QEMU's block driver for it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Format(String);

/// Text is not a format that is opened here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not an image format that can be opened ({})", KNOWN.join(", "))]
pub struct UnknownFormat {
    name: String,
}

/// The drivers that are formats of a single file. Others of QEMU's drivers reach
/// elsewhere, to the network or to other files, and stay out.
const KNOWN: [&str; 9] = ["raw", "qcow2", "qcow", "qed", "vdi", "vmdk", "vpc", "vhdx", "luks"];

impl Format {
    /// Returns the format `raw`.
    pub fn raw() -> Self {
        Self("raw".to_owned())
    }

    /// Returns the format `qcow2`.
    pub fn qcow2() -> Self {
        Self("qcow2".to_owned())
    }

    /// Returns the name of the driver.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether an image of the format can have a backing file.
    pub(crate) fn has_backing(&self) -> bool {
        matches!(self.as_str(), "qcow2" | "qcow" | "qed" | "vmdk")
    }

    /// Returns whether the file is the disk, byte by byte.
    pub(crate) fn is_raw(&self) -> bool {
        self.as_str() == "raw"
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        if KNOWN.contains(&name) {
            Ok(Self(name.to_owned()))
        } else {
            Err(UnknownFormat { name: name.chars().take(64).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_formats_of_files_are_formats() {
        for name in KNOWN {
            assert_eq!(name.parse::<Format>().unwrap().as_str(), name);
        }
        for name in ["", "file", "nbd", "QCOW2", "qcow2 ", "json:{}", "blkdebug"] {
            assert!(name.parse::<Format>().is_err(), "{name}");
        }
    }
}
