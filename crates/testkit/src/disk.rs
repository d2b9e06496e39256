//! The disks of a test's guest: copies that belong to the test alone, so that no
//! two tests share a file and none has a backing chain.

use std::path::{Path, PathBuf};

use crate::image::Image;
use crate::qemu::Tool;
use crate::{Error, Qemu};

/// How a disk's image is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// QEMU's own format.
    Qcow2,
    /// The disk's bytes and nothing else, with holes.
    Raw,
}

impl Format {
    /// Returns the name that QEMU gives the format.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What is on a disk at first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A copy of the guest's own disk.
    System,
    /// Nothing: so many bytes of zeros.
    Blank {
        /// The size in bytes, a multiple of 512.
        size: u64,
    },
    /// A copy of an image that is in the disk's format.
    Copy {
        /// The image.
        path: PathBuf,
    },
    /// An image that the test made and keeps, in the disk's format; not copied.
    Existing {
        /// The image.
        path: PathBuf,
    },
}

/// One disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// How the image is stored.
    pub format: Format,
    /// What is on it at first.
    pub content: Content,
}

impl Disk {
    /// The guest's own disk in that format.
    pub const fn system(format: Format) -> Self {
        Self { format, content: Content::System }
    }

    /// A disk of `mib` mebibytes of zeros.
    pub const fn blank(format: Format, mib: u32) -> Self {
        let size = (mib as u64) << 20;
        Self { format, content: Content::Blank { size } }
    }

    /// A copy of an image that is in that format.
    pub const fn copy_of(format: Format, path: PathBuf) -> Self {
        Self { format, content: Content::Copy { path } }
    }

    /// Puts the disk's image at `path` unless it exists already, and returns where it is.
    pub(crate) fn create(&self, path: &Path, image: &Image, qemu: &Qemu) -> Result<PathBuf, Error> {
        match &self.content {
            Content::Existing { path } => return Ok(path.clone()),
            Content::Copy { path: original } => {
                copy(original, path)?;
            }
            Content::System => self.copy_system(path, image, qemu)?,
            Content::Blank { size } => {
                let size = size.to_string();
                qemu.image_tool()
                    .args(["create", "-q", "-f", self.format.name()])
                    .arg(path)
                    .arg(size)
                    .run()?;
            }
        }
        Ok(path.to_owned())
    }

    fn copy_system(&self, path: &Path, image: &Image, qemu: &Qemu) -> Result<(), Error> {
        match self.format {
            Format::Qcow2 => copy(&image.disk, path),
            Format::Raw => qemu
                .image_tool()
                .args(["convert", "-f", "qcow2", "-O", "raw"])
                .arg(&image.disk)
                .arg(path)
                .run(),
        }
    }
}

/// Copies a file: a reflink where the file system has them, and with its holes.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    Tool::named("cp").args(["--reflink=auto", "--sparse=always", "--"]).arg(from).arg(to).run()
}
