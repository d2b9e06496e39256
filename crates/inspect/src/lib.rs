//! Looks at disk images that somebody else has made, before anything else opens them.
//!
//! An image names other files, claims sizes and points into itself. This room reads
//! what it claims, with bounded memory and time, and refuses what QEMU must not be
//! shown: features that reach outside the file, tables outside of it, and images
//! that are of two formats at once. It opens nothing: whoever calls it has opened
//! the file, says its format, and decides about a backing file by what is reported.
//!
//! What it accepts can still be read wrong, by an image that is damaged or lies about
//! its content. It cannot make the reader open another file, or read without end.

mod claims;
mod error;
mod libvirt;
mod polyglot;
mod qcow2;
mod source;
mod vhd;
mod vhdx;
mod vmdk;

use std::fmt;
use std::str::FromStr;

use tintype_types::ByteCount;

pub use error::Error;
pub use libvirt::{DiskPlace, LibvirtDisk, LibvirtSnapshot, MAX_XML};
pub use qcow2::InternalSnapshot;
pub use source::ReadAt;

/// The largest disk, by what it claims: VHDX has at most this, VMDK less.
pub const MAX_SIZE: ByteCount = ByteCount(64 << 40);

/// The most bytes of tables that are read of one image.
const MAX_TABLES: u64 = 1 << 30;

/// A disk may have so many times the bytes of its file, if they are compressed:
/// deflate has at most 1,032 times.
const MAX_RATIO: u64 = 1_100;

/// The format of an image. It is said by whoever brings the image, never guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    /// The file is the disk.
    Raw,
    /// QEMU's, version 2 or 3.
    Qcow2,
    /// VMware's, in a single sparse file.
    Vmdk,
    /// Virtual PC's.
    Vhd,
    /// Hyper-V's.
    Vhdx,
}

impl ImageFormat {
    /// All formats.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx];

    /// Returns its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// Returns the name of QEMU's driver for it.
    pub fn driver(self) -> &'static str {
        match self {
            Self::Vhd => "vpc",
            other => other.name(),
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Text is not a format that is inspected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is none of raw, qcow2, vmdk, vhd (vpc) and vhdx")]
pub struct UnknownFormat;

impl FromStr for ImageFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let by_name = |format: &Self| format.name() == name || format.driver() == name;
        Self::ALL.into_iter().find(by_name).ok_or(UnknownFormat)
    }
}

/// What an image says about itself, and is safe to be believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The format that it was inspected as.
    pub format: ImageFormat,
    /// The size of the disk, as the header has it. QEMU may round it.
    pub size: ByteCount,
    /// The file below it, which nobody has looked at.
    pub backing: Option<Backing>,
    /// Its internal snapshots, in the order of its table.
    pub snapshots: Vec<InternalSnapshot>,
}

/// The file that an image names as the one below it. Untrusted text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backing {
    /// The name, as it is written in the header.
    pub name: String,
    /// Its format, as it is written in the header.
    pub format: Option<String>,
}

/// Inspects an image as of a format. Reads at most the tables of the image, and
/// refuses it if they are large beyond reason.
pub fn inspect(source: &dyn ReadAt, format: ImageFormat) -> Result<Report, Error> {
    let reader = source::Reader::new(source)?;
    if format != ImageFormat::Raw {
        polyglot::refuse(&reader, format)?;
    }
    let report = match format {
        ImageFormat::Raw => Report::plain(format, ByteCount(reader.len())),
        ImageFormat::Qcow2 => qcow2::inspect(&reader)?,
        ImageFormat::Vmdk => vmdk::inspect(&reader)?,
        ImageFormat::Vhd => vhd::inspect(&reader)?,
        ImageFormat::Vhdx => vhdx::inspect(&reader)?,
    };
    error::limit("the disk has bytes", report.size.get(), MAX_SIZE.get())?;
    Ok(report)
}

impl Report {
    fn plain(format: ImageFormat, size: ByteCount) -> Self {
        Self { format, size, backing: None, snapshots: Vec::new() }
    }
}
