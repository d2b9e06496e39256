//! Repairs the repository.

use std::path::PathBuf;

use serde::Serialize;
use tintype_repo::{Encryption, Mismatch, Repository, S3Access};
use tintype_types::{ByteCount, SnapshotId};

use crate::error::{Error, Result};
use crate::verify::{LostPart, lost_part, snapshot_name};
use crate::{Engine, MENDED_FROM};

/// Where a repair takes what is damaged here.
#[derive(Debug, Clone, Default)]
pub struct RepairParams {
    /// A copy of the repository, byte for byte, or another one with copies of its
    /// snapshots.
    pub from: Option<PathBuf>,
    /// What opens it, besides what opens this one.
    pub keys: Vec<Encryption>,
    /// How to reach its S3 server; as that of this one if `None`.
    pub s3: Option<S3Access>,
}

/// A snapshot that was moved out of damaged segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MendedSnapshot {
    /// Its id.
    pub snapshot: SnapshotId,
    /// Its name, `VM@NAME`.
    pub name: String,
    /// The id of the same snapshot in the other repository, if it is there.
    pub from: Option<SnapshotId>,
    /// Bytes that are as the other repository says, and that nothing here proves.
    pub unproved_bytes: ByteCount,
}

/// Where the other repository has something else than this one had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OtherContent {
    /// The snapshot here.
    pub snapshot: SnapshotId,
    /// Its name, `VM@NAME`.
    pub name: String,
    /// The disk, memory block, file or other part.
    pub part: String,
    /// The first byte, of a disk or memory.
    pub offset: Option<u64>,
}

/// What a repair has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RepairSummary {
    /// Everything that was wrong, a line each.
    pub found: Vec<String>,
    /// Objects that are whole again.
    pub repaired: Vec<String>,
    /// Segments that no new snapshot refers to from now on.
    pub quarantined: Vec<String>,
    /// Segments to which this no longer applies.
    pub released: Vec<String>,
    /// Snapshots that were put together anew from what is good here and what the other
    /// repository has.
    pub mended: Vec<MendedSnapshot>,
    /// Damaged segments that nothing needs any more because of that.
    pub emptied: Vec<String>,
    /// How many bytes of content came from the other repository.
    pub fetched_bytes: ByteCount,
    /// Where the other repository has something else; nothing of that was taken.
    pub mismatches: Vec<OtherContent>,
    /// Everything that is still wrong, a line each.
    pub damaged: Vec<String>,
    /// What cannot be read because of that.
    pub lost: Vec<LostPart>,
}

impl Engine {
    /// Repairs what is damaged, from a copy of the repository or from another one if
    /// one is named.
    pub fn repair(&self, params: &RepairParams) -> Result<RepairSummary> {
        let repository = self.repository()?;
        let open = |place: &PathBuf| {
            self.open_other_repository(place, &params.keys, params.s3.as_ref(), &MENDED_FROM)
        };
        let other = params.from.as_ref().map(open).transpose()?;
        let report = repository
            .repair(other.as_ref(), &self.supervisor("verifying"))
            .map_err(Error::step("cannot repair the repository"))?;
        let lines = |damaged: &[tintype_repo::Damage]| {
            damaged.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let mended = report.mended.into_iter().map(|mended| MendedSnapshot {
            snapshot: mended.snapshot,
            name: snapshot_name(&repository, mended.snapshot),
            from: mended.same,
            unproved_bytes: mended.unproved_bytes,
        });
        let mismatches = report.mismatches.into_iter();
        Ok(RepairSummary {
            found: lines(&report.found),
            repaired: report.repaired,
            quarantined: report.quarantined,
            released: report.released,
            mended: mended.collect(),
            emptied: report.emptied,
            fetched_bytes: report.fetched_bytes,
            mismatches: mismatches.map(|found| other_content(&repository, found)).collect(),
            damaged: lines(&report.damaged),
            lost: report.losses.into_iter().map(|loss| lost_part(&repository, loss)).collect(),
        })
    }
}

fn other_content(repository: &Repository, found: Mismatch) -> OtherContent {
    let Mismatch { snapshot, part, offset } = found;
    OtherContent { snapshot, name: snapshot_name(repository, snapshot), part, offset }
}
