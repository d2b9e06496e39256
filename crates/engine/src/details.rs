//! What a snapshot says about itself beyond its bytes: kept as JSON in the
//! record, read back by every later version.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tintype_repo::{ImageRoot, Label, Origin, Repository, SnapshotRecord};
use tintype_types::{ByteCount, SnapshotId, SnapshotName, VmName};
use tintype_vm::{CommandLine, Disk, Inventory, Tpm, Way};
pub use tintype_vm::{DiskRead, Reading};

use crate::error::{Error, Result};
use crate::media::Medium;
use crate::quiesce::Quiesced;

/// The name of the blob that holds the state of the devices.
pub(crate) const DEVICE_STATE: &str = "device-state";

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Somebody asked for it.
    Asked,
    /// A revert was about to overwrite this state.
    Safety,
    /// It was made of images that there were.
    Imported,
}

/// What a snapshot says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Details {
    /// Why it was taken.
    pub purpose: Purpose,
    /// What its maker wrote about it.
    pub message: String,
    /// Its tags.
    pub tags: Vec<(String, String)>,
    /// The way of capture; `None` for the disks of a VM that did not run.
    pub way: Option<Way>,
    /// How long the guest stood still, in microseconds.
    pub pause_us: u64,
    /// How long the whole take took.
    pub duration_ms: u64,
    /// Whether the guest ran; if not, it is left standing still after a revert.
    pub was_running: bool,
    /// The memory, block by block; empty without memory.
    pub memory: Vec<MemoryBlock>,
    /// The disks.
    pub disks: Vec<SavedDisk>,
    /// How QEMU was started.
    pub command_line: CommandLine,
    /// What was in the VM.
    pub inventory: Inventory,
    /// Small files that the command line names, and those of its TPMs.
    pub files: Vec<SavedFile>,
    /// Media that the guest can only read, which are not in the snapshot.
    #[serde(default)]
    pub media: Vec<Medium>,
    /// The software TPMs beside QEMU.
    pub tpms: Vec<Tpm>,
    /// Whether the guest's file systems were frozen at the instant.
    #[serde(default)]
    pub quiesced: Quiesced,
}

/// One block of memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryBlock {
    /// QEMU's name for it.
    pub name: String,
    /// The name of its image in the record.
    pub image: String,
    /// Units of 128 KiB that the guest wrote last before the instant, if they are few: it
    /// is likely to need them first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written_last: Vec<u64>,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisk {
    /// The disk as it was.
    #[serde(flatten)]
    pub disk: Disk,
    /// The name of its image in the record.
    pub image: String,
    /// How it was read; earlier versions do not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read: Option<DiskRead>,
}

/// Returns the name of a disk's image in the record.
pub(crate) fn disk_image(disk: &Disk) -> String {
    format!("disk/{}", disk.name)
}

/// One small file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedFile {
    /// As the command line names it.
    pub name: String,
    /// Where it was.
    pub path: PathBuf,
    /// The name of its image in the record.
    pub image: String,
}

/// A snapshot: its record with its details read, and what was said of it since.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// What the repository keeps; the name is the one that it has now.
    pub record: SnapshotRecord,
    /// What it says about itself; message and tags are those that it has now.
    pub details: Details,
    /// Whether it is protected from deletion.
    pub pinned: bool,
    /// When a guest of it was last started to see whether it lives, and did.
    pub booted: Option<Timestamp>,
}

impl Snapshot {
    pub(crate) fn read(record: SnapshotRecord) -> Result<Self> {
        let details = record.details.read().map_err(Error::step(format!(
            "the snapshot {} was made by another version of tintype",
            record.id.short()
        )))?;
        Ok(Self { record, details, pinned: false, booted: None })
    }

    /// Adds what was said of it since it was taken.
    pub(crate) fn labelled(mut self, label: &Label) -> Self {
        let Label { name, message, tags, pinned, booted } = label.clone();
        self.record.name = name.unwrap_or(self.record.name);
        self.details.message = message.unwrap_or(self.details.message);
        self.details.tags = tags.unwrap_or(self.details.tags);
        self.pinned = pinned;
        self.booted = booted;
        self
    }

    /// Returns an image by its name in the record.
    pub(crate) fn image(&self, name: &str) -> Option<&ImageRoot> {
        self.record.images.iter().find(|image| image.name == name).map(|image| &image.root)
    }

    /// Returns an image that the details promise.
    pub(crate) fn promised_image(&self, name: &str) -> Result<&ImageRoot> {
        self.image(name).ok_or_else(|| {
            Error::failed(format!("the snapshot {} has no image `{name}`", self.record.id.short()))
                .state("nothing was changed")
                .hint("run `tintype verify` to list every damaged snapshot")
        })
    }

    /// Reads the state of the devices, which a snapshot with memory has.
    pub(crate) fn device_state(&self, repository: &Repository) -> Result<Vec<u8>> {
        let state = self.record.blobs.iter().find(|(name, _)| name == DEVICE_STATE);
        let (_, state) =
            state.ok_or_else(|| Error::failed("the snapshot has memory and no device state"))?;
        repository.read_blob(state).map_err(Error::step("cannot read the device state"))
    }

    /// Returns the bytes of all its images, holes included.
    fn bytes_of<'a>(&self, names: impl Iterator<Item = &'a String>) -> ByteCount {
        ByteCount(names.filter_map(|name| self.image(name)).map(|root| root.size().get()).sum())
    }

    /// Summarises the snapshot as the command line shows it.
    pub fn report(&self) -> SnapshotReport {
        let Self { record, details, pinned, booted } = self;
        SnapshotReport {
            id: record.id,
            vm: record.vm_name.clone(),
            name: record.name.clone(),
            parent: record.parent,
            created: record.created,
            mode: match (details.purpose, details.way) {
                (Purpose::Imported, _) => "imported",
                (_, way) => way.map_or("powered-off", Way::name),
            },
            consistency: details.quiesced.consistency(),
            consistency_reason: details.quiesced.why.clone(),
            purpose: details.purpose,
            pause_ms: micros_as_ms(details.pause_us),
            duration_ms: details.duration_ms,
            memory_bytes: self.bytes_of(details.memory.iter().map(|block| &block.image)),
            disk_bytes: self.bytes_of(details.disks.iter().map(|disk| &disk.image)),
            disks: details.disks.iter().map(DiskReport::of).collect(),
            read_bytes: record.stats.read_bytes,
            stored_bytes: record.stats.stored_bytes,
            message: details.message.clone(),
            tags: details.tags.clone(),
            pinned: *pinned,
            booted_at: *booted,
            origin: record.origin,
        }
    }
}

/// A snapshot as the command line shows it; the names are a contract.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SnapshotReport {
    /// Its id.
    pub id: SnapshotId,
    /// The VM's name when it was taken.
    pub vm: VmName,
    /// Its name.
    pub name: SnapshotName,
    /// The snapshot that the VM's state came from.
    pub parent: Option<SnapshotId>,
    /// Its instant.
    pub created: Timestamp,
    /// The way of capture.
    pub mode: &'static str,
    /// What the disks are like by themselves: `filesystem`, or `crash` as after a
    /// power cut.
    pub consistency: &'static str,
    /// By whom the file systems were frozen, or why not.
    pub consistency_reason: String,
    /// Why it was taken.
    pub purpose: Purpose,
    /// How long the guest stood still, STOP to RESUME by QEMU's clock.
    pub pause_ms: f64,
    /// How long the take took.
    pub duration_ms: u64,
    /// Bytes of memory, zeros included.
    pub memory_bytes: ByteCount,
    /// Bytes of disks, zeros included.
    pub disk_bytes: ByteCount,
    /// How each disk was read.
    pub disks: Vec<DiskReport>,
    /// Bytes that were read for it.
    pub read_bytes: ByteCount,
    /// Bytes that the repository grew by.
    pub stored_bytes: ByteCount,
    /// What its maker wrote.
    pub message: String,
    /// Its tags.
    pub tags: Vec<(String, String)>,
    /// Whether it is protected from deletion.
    pub pinned: bool,
    /// When a guest of it was last seen alive by `verify --boot`.
    pub booted_at: Option<Timestamp>,
    /// What it is a copy of, if it is one.
    pub origin: Option<Origin>,
}

/// How one disk of a snapshot was read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskReport {
    /// The disk.
    pub name: String,
    /// How; nothing of snapshots that earlier versions have taken.
    #[serde(flatten)]
    pub read: Option<DiskRead>,
}

impl DiskReport {
    fn of(saved: &SavedDisk) -> Self {
        Self { name: saved.disk.name.clone(), read: saved.read.clone() }
    }
}

/// Microseconds as milliseconds with a fraction. Times are far below 2^52.
pub(crate) fn micros_as_ms(us: u64) -> f64 {
    std::time::Duration::from_micros(us).as_secs_f64() * 1000.0
}
