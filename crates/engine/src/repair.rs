//! Repairs the repository.

use std::path::Path;

use serde::Serialize;

use crate::Engine;
use crate::error::{Error, Result};
use crate::verify::{LostPart, lost_part};

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
    /// Everything that is still wrong, a line each.
    pub damaged: Vec<String>,
    /// What cannot be read because of that.
    pub lost: Vec<LostPart>,
}

impl Engine {
    /// Repairs what is damaged, from a copy of the repository if one is named.
    pub fn repair(&self, from: Option<&Path>) -> Result<RepairSummary> {
        let repository = self.repository()?;
        let copy = from.map(|place| self.open_repository(place)).transpose()?;
        let report = repository
            .repair(copy.as_ref(), &self.supervisor("verifying"))
            .map_err(Error::step("cannot repair the repository"))?;
        let lines = |damaged: &[tintype_repo::Damage]| {
            damaged.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        Ok(RepairSummary {
            found: lines(&report.found),
            repaired: report.repaired,
            quarantined: report.quarantined,
            released: report.released,
            damaged: lines(&report.damaged),
            lost: report.losses.into_iter().map(|loss| lost_part(&repository, loss)).collect(),
        })
    }
}
