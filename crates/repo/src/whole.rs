//! Whether a snapshot is known to be damaged, without reading its data.

use std::sync::Arc;

use tintype_types::SnapshotId;

use crate::Error;
use crate::supervisor::Supervisor;
use crate::vault::Vault;
use crate::verify::{self, VerifyLevel};
use crate::{listing, quarantine, reach};

/// Whether everything that a snapshot needs is there, and none of it is quarantined.
pub(crate) fn is_whole(
    vault: &Arc<Vault>,
    id: SnapshotId,
    supervisor: &dyn Supervisor,
) -> Result<bool, Error> {
    let check = || -> Result<bool, Error> {
        let record = listing::one(vault, id)?;
        let needed = reach::segments(vault, [&record])?;
        if quarantine::read(vault)?.iter().any(|segment| needed.contains(segment)) {
            return Ok(false);
        }
        let report = verify::verify(vault, &[id], VerifyLevel::Quick, supervisor)?;
        Ok(report.damaged.is_empty())
    };
    match check() {
        Err(Error::Damaged(_)) => Ok(false),
        result => result,
    }
}
