//! Media that a guest can only read: a snapshot says what they were like and does not
//! copy them. Whether they are so still is looked at before anything goes on from it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tintype_types::ByteCount;
use tintype_vm::{Disk, Inventory, without_medium};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};

/// How much is read of each place of a sample.
const PIECE: u64 = 32 << 10;

/// Places of a sample: the first and the last piece, and others between.
const PLACES: u64 = 8;

/// A medium, as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Medium {
    /// What its drive is called.
    pub drive: String,
    /// Where it was.
    pub file: PathBuf,
    /// Its size.
    pub size: ByteCount,
    /// When it was last changed, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// A hash of eight pieces of 32 KiB (BLAKE3, in hexadecimal digits).
    pub sample: String,
}

impl Medium {
    /// Notes the media of a VM, but for firmware, which is kept whole.
    pub(crate) fn all_of(inventory: &Inventory) -> Vec<Self> {
        let is_medium =
            |disk: &&Disk| disk.read_only && !disk.device.starts_with("/machine/system.flash");
        inventory.disks.iter().filter(is_medium).filter_map(Self::of).collect()
    }

    /// A medium that cannot be read here is nothing that could be compared.
    fn of(disk: &Disk) -> Option<Self> {
        let file = disk.file.clone()?;
        let (size, modified_ns, sample) = look(&file).ok()?;
        Some(Self { drive: disk.name.clone(), file, size, modified_ns, sample })
    }

    /// Says what is different now, if anything is.
    fn differs(&self) -> Option<String> {
        let Self { drive, file, size, .. } = self;
        let place = file.display();
        match look(file) {
            Err(error) => Some(format!("the medium of the drive `{drive}`, {place}: {error}")),
            Ok((now, ..)) if now != *size => Some(format!(
                "the medium of the drive `{drive}`, {place}, had {size}, and has {now}"
            )),
            Ok((.., sample)) if sample != self.sample => {
                Some(format!("the medium of the drive `{drive}`, {place}, is another one now"))
            }
            Ok(_) => None,
        }
    }
}

/// Reads the size, the time of the last change and the sample of a file.
fn look(path: &PathBuf) -> io::Result<(ByteCount, i64, String)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let size = match metadata.is_file() {
        true => metadata.len(),
        false => rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0))?,
    };
    let mut hasher = blake3::Hasher::new();
    let last = size.saturating_sub(PIECE);
    for place in 0..PLACES {
        let offset = last / (PLACES - 1) * place;
        let offset = if place == PLACES - 1 { last } else { offset };
        let len = usize::try_from(PIECE.min(size)).map_err(io::Error::other)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, offset)?;
        hasher.update(&bytes);
    }
    let modified_ns =
        metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec());
    Ok((ByteCount(size), modified_ns, hasher.finalize().to_hex().to_string()))
}

impl Engine {
    /// Refuses to go on from a snapshot whose media are not there, or others now. If that
    /// does not matter, drives without their media are empty, and it is said.
    pub(crate) fn see_to_media(&self, target: &mut Snapshot, ignore: bool) -> Result<()> {
        let media = target.details.media.clone();
        for (medium, why) in media.iter().filter_map(|one| Some((one, one.differs()?))) {
            let refused = |hint: &str| {
                Error::refused(format!("cannot go on from `{}`", target.record.name))
                    .because(why.clone())
                    .state("nothing was changed")
                    .hint(hint)
            };
            if !ignore {
                return Err(refused("put it back, or go on without it with --ignore-media"));
            }
            self.config.observer.notice(&why);
            if medium.file.exists() {
                continue;
            }
            let line = &target.details.command_line;
            let Some(arguments) = without_medium(line, &medium.file) else {
                return Err(refused("put it back: its drive cannot be empty"));
            };
            target.details.command_line.arguments = arguments;
        }
        Ok(())
    }
}
