//! Follows an image to the files below it: each is inspected before its name is
//! followed, and none is opened outside of the folders that are allowed.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::OFlags;
use tintype_inspect::{Backing, ImageFormat, Report, inspect};

use crate::error::{Error, Result};

/// The longest chain.
const MAX_LAYERS: usize = 256;

/// One file of a chain.
#[derive(Debug)]
pub(super) struct Layer {
    /// Where it is, without links.
    pub(super) path: PathBuf,
    /// What it says about itself.
    pub(super) report: Report,
    /// When it was last written.
    pub(super) modified: Timestamp,
    /// What is exchanged for each internal snapshot, in their order.
    pub(super) heads: Vec<Vec<u8>>,
}

/// Where backing files may be.
#[derive(Debug)]
pub(super) enum Allowed {
    /// Beside the image, in this folder itself. That is where those lie that belong
    /// together, and no header leads further.
    Beside(PathBuf),
    /// Anywhere below these folders, which somebody has named.
    Below(Vec<PathBuf>),
}

impl Allowed {
    pub(super) fn of(image: &Path, folders: &[PathBuf]) -> Result<Self> {
        if folders.is_empty() {
            let image = fs::canonicalize(image).map_err(Error::io("find", image))?;
            return Ok(Self::Beside(image.parent().unwrap_or(&image).to_owned()));
        }
        Self::below(folders)
    }

    pub(super) fn below(folders: &[PathBuf]) -> Result<Self> {
        let real = |folder: &PathBuf| fs::canonicalize(folder).map_err(Error::io("find", folder));
        folders.iter().map(real).collect::<Result<_>>().map(Self::Below)
    }

    fn allows(&self, file: &Path) -> bool {
        match self {
            Self::Beside(folder) => file.parent() == Some(folder),
            Self::Below(folders) => folders.iter().any(|folder| file.starts_with(folder)),
        }
    }

    /// Tells whether a file that is not there would be allowed.
    fn allows_beside(&self, file: &Path) -> bool {
        let folder = file.parent().and_then(|folder| fs::canonicalize(folder).ok());
        folder.is_some_and(|folder| self.allows(&folder.join("file")))
    }
}

/// Inspects an image and all files below it. The lowest comes first.
pub(super) fn resolve(
    image: &Path,
    format: Option<ImageFormat>,
    allowed: &Allowed,
) -> Result<Vec<Layer>> {
    let format = match format.or_else(|| by_name(image)) {
        Some(format) => format,
        None => return Err(unknown_format(image)),
    };
    let path = fs::canonicalize(image).map_err(Error::io("find", image))?;
    let mut next = Some((path, format));
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen = Vec::new();
    while let Some((path, format)) = next {
        let (layer, identity) = look(&path, format)?;
        if seen.contains(&identity) || layers.len() >= MAX_LAYERS {
            return Err(refused(image, "its chain of backing files is a circle, or too long"));
        }
        seen.push(identity);
        next = match &layer.report.backing {
            Some(backing) => Some(follow(&path, backing, allowed)?),
            None => None,
        };
        layers.push(layer);
    }
    layers.reverse();
    Ok(layers)
}

/// Returns the format that the end of a name tells. What is in the file does not
/// decide: the guest of a raw disk can write there what it likes.
fn by_name(image: &Path) -> Option<ImageFormat> {
    match image.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "qcow2" => Some(ImageFormat::Qcow2),
        "vmdk" => Some(ImageFormat::Vmdk),
        "vhd" | "vpc" => Some(ImageFormat::Vhd),
        "vhdx" => Some(ImageFormat::Vhdx),
        "raw" => Some(ImageFormat::Raw),
        _ => None,
    }
}

fn unknown_format(image: &Path) -> Error {
    Error::invalid(format!("the name {} does not tell a format", image.display()))
        .because("what is in an image does not decide: a guest can write there what it likes")
        .hint("--format raw, qcow2, vmdk, vhd or vhdx says what you know it to be")
}

/// Opens a file for reading, and inspects it. Returns which file it is, too.
fn look(path: &Path, format: ImageFormat) -> Result<(Layer, (u64, u64))> {
    // A pipe does not hold us, and what became a link is not followed.
    const FLAGS: i32 = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).bits().cast_signed();
    let open = File::options().read(true).custom_flags(FLAGS).open(path);
    let file = open.map_err(Error::io("open", path))?;
    let metadata = file.metadata().map_err(Error::io("look at", path))?;
    if !metadata.is_file() {
        return Err(refused(path, "it is no regular file"));
    }
    let inspected = inspect(&file, format).and_then(|report| {
        let head = |snapshot: &tintype_inspect::InternalSnapshot| snapshot.header(&file);
        let heads = report.snapshots.iter().map(head).collect::<Result<_, _>>()?;
        Ok((report, heads))
    });
    let (report, heads) = inspected.map_err(|error| {
        let hint = error.hint();
        let refused = Error::refused(format!("{} is not imported as {format}", path.display()))
            .because(error);
        match hint {
            Some(hint) => refused.hint(hint),
            None => refused,
        }
    })?;
    let modified = metadata.modified().map_err(Error::io("look at", path))?;
    let modified = Timestamp::try_from(modified).unwrap_or(Timestamp::UNIX_EPOCH);
    let layer = Layer { path: path.to_owned(), report, modified, heads };
    Ok((layer, (metadata.dev(), metadata.ino())))
}

/// Returns the file that a header names, if it may be opened.
fn follow(layer: &Path, backing: &Backing, allowed: &Allowed) -> Result<(PathBuf, ImageFormat)> {
    let shown: String = backing.name.chars().take(256).flat_map(char::escape_default).collect();
    let bad = |why: &str| refused(layer, &format!("its backing file `{shown}` {why}"));
    // QEMU takes what is before a colon for a protocol, unless a slash comes first.
    let is_protocol = backing.name.split('/').next().is_some_and(|start| start.contains(':'));
    if is_protocol {
        return Err(bad("is not a file of this machine"));
    }
    let format = backing.format.as_deref().ok_or_else(|| {
        bad("has no format in the header, and formats are never guessed").hint(format!(
            "`qemu-img rebase -u -f qcow2 -F FORMAT -b NAME {}` writes it there",
            layer.display()
        ))
    })?;
    let format = format.parse().map_err(|_| bad("is of a format that is not imported"))?;
    let path = layer.parent().unwrap_or(layer).join(&backing.name);
    match permitted(&path, allowed) {
        Ok(path) => Ok((path, format)),
        Err(Unopened::Missing) => Err(bad("cannot be found")),
        Err(Unopened::Elsewhere) => Err(bad("is not beside it, or below a folder that is allowed")
            .hint("--allow-backing DIR allows a folder that you trust it with")),
    }
}

/// Why a file that a stranger names is not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unopened {
    /// It is not there, where it might be.
    Missing,
    /// It is not where it might be. Whether it is there nobody learns.
    Elsewhere,
}

/// Returns the file that a stranger names, without links, if it may be opened.
pub(super) fn permitted(path: &Path, allowed: &Allowed) -> Result<PathBuf, Unopened> {
    match fs::canonicalize(path) {
        Ok(path) if allowed.allows(&path) => Ok(path),
        Err(_) if allowed.allows_beside(path) => Err(Unopened::Missing),
        _ => Err(Unopened::Elsewhere),
    }
}

fn refused(image: &Path, why: &str) -> Error {
    Error::refused(format!("{} is not imported", image.display())).because(why.to_owned())
}
