//! Checks that snapshots are there and good.

use serde::Serialize;
use tintype_repo::{Deleted, Loss, Repository, SnapshotRecord, VerifyLevel};
use tintype_types::{ByteCount, Extent, SnapshotId};

use crate::Engine;
use crate::error::{Error, Result};

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VerifySummary {
    /// Snapshots that were checked.
    pub checked_snapshots: u64,
    /// Those of them that are in the trash.
    pub checked_deleted: usize,
    /// Frames of data that were checked.
    pub checked_chunks: u64,
    /// Bytes that were read.
    pub read_bytes: ByteCount,
    /// Everything that is wrong, a line each.
    pub damaged: Vec<String>,
    /// What cannot be read because of that.
    pub lost: Vec<LostPart>,
}

/// What cannot be read of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LostPart {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// It as people name it: `VM@NAME`.
    pub name: String,
    /// Whether it is deleted, and can be put back.
    pub deleted: bool,
    /// `disk/…`, `memory/…`, `file/…` or `device-state`.
    pub part: String,
    /// The ranges of it in bytes; empty if it is lost as a whole.
    pub ranges: Vec<Extent>,
}

impl Engine {
    /// Checks some snapshots, or all if none are named, also those in the trash: that
    /// everything is there, and with `read_data` that every byte is right.
    pub fn verify(&self, names: &[String], read_data: bool) -> Result<VerifySummary> {
        let repository = self.repository()?;
        let ids = names
            .iter()
            .map(|name| Ok(self.find_snapshot(&repository, name, None)?.record.id))
            .collect::<Result<Vec<_>>>()?;
        let level = if read_data { VerifyLevel::ReadData } else { VerifyLevel::Quick };
        let report = repository
            .verify(&ids, level, &self.supervisor("verifying"))
            .map_err(Error::step("cannot verify the repository"))?;
        let lost = report.losses.into_iter().map(|loss| lost_part(&repository, loss)).collect();
        Ok(VerifySummary {
            checked_snapshots: report.snapshots,
            checked_deleted: report.deleted.len(),
            checked_chunks: report.frames,
            read_bytes: report.read_bytes,
            damaged: report.damaged.iter().map(ToString::to_string).collect(),
            lost,
        })
    }
}

/// Names a loss as people do.
pub(crate) fn lost_part(repository: &Repository, loss: Loss) -> LostPart {
    let Loss { snapshot, part, ranges } = loss;
    let (name, deleted) = (snapshot_name(repository, snapshot), is_deleted(repository, snapshot));
    LostPart { snapshot, name, deleted, part, ranges }
}

/// Returns `VM@NAME` of a snapshot, deleted or not, or a part of its id if that cannot
/// be read.
pub(crate) fn snapshot_name(repository: &Repository, snapshot: SnapshotId) -> String {
    let label = repository.labels_of(snapshot).ok().and_then(|mut of| of.of.remove(&snapshot));
    let renamed = label.and_then(|label| label.name);
    let named =
        |record: SnapshotRecord| format!("{}@{}", record.vm_name, renamed.unwrap_or(record.name));
    let there = repository.snapshot(snapshot).ok();
    let record = there.or_else(|| in_trash(repository, snapshot)?.record);
    record.map_or_else(|| snapshot.short(), named)
}

fn is_deleted(repository: &Repository, snapshot: SnapshotId) -> bool {
    in_trash(repository, snapshot).is_some()
}

fn in_trash(repository: &Repository, snapshot: SnapshotId) -> Option<Deleted> {
    repository.deleted().ok()?.into_iter().find(|deleted| deleted.id == snapshot)
}
