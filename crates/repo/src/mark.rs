//! Which segments are needed, and by whom.
//!
//! In this order: the deletions, the outcomes, the slots. A reader puts its slot
//! and then looks at the other two, so either the slot is seen here or the reader
//! sees what was deleted; what was moved before the epoch began it sees anyway.

use std::collections::HashSet;

use tintype_types::SnapshotId;

use crate::Error;
use crate::epoch::Segments;
use crate::gone::Deletions;
use crate::history::{History, Reading};
use crate::pointer::SegmentName;
use crate::reach;
use crate::record::SnapshotRecord;
use crate::slot;
use crate::vault::Vault;

/// The snapshots that need something, and what is needed no more.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    /// Those that are not deleted, in one sense or the other, or that someone reads.
    pub records: Vec<SnapshotRecord>,
    /// Those that someone reads, where they were before they were moved: where
    /// that is not all there any more, nobody reads it.
    pub superseded: Vec<SnapshotRecord>,
    /// Deleted snapshots, and moves that others have followed, to be forgotten.
    pub forgettable: bool,
    /// Those moves.
    pub needless_moves: Vec<SnapshotId>,
}

impl Needed {
    /// Reads what is needed now.
    pub(crate) fn read(
        vault: &Vault,
        is_deleted: impl Fn(&Deletions, SnapshotId) -> bool,
    ) -> Result<Self, Error> {
        let deletions = Deletions::read(vault)?;
        let history = History::read(vault, Reading::Fresh, |_| false)?;
        let read = read_by_others(vault)?;
        let is_gone = |id: SnapshotId| is_deleted(&deletions, id);
        let is_read = |id: SnapshotId| read.contains(&id);
        // What a damaged outcome needs is not known: nothing is removed.
        let mut damaged = history.damaged.iter();
        if let Some((_, damage)) = damaged.find(|(id, _)| !is_gone(**id) || is_read(**id)) {
            return Err(Error::Damaged(damage.clone()));
        }
        let mut needed = Self {
            forgettable: !vault.store.has_late_writes()
                && deletions.collected().any(|snapshot| !is_read(snapshot)),
            needless_moves: history.needless_moves(is_gone, is_read),
            ..Self::default()
        };
        needed.forgettable |= !needed.needless_moves.is_empty();
        needed.forgettable |= history.damaged.keys().any(|id| is_gone(*id));
        for id in history.snapshots() {
            if is_read(id) {
                needed.superseded.extend(history.superseded(id));
            }
            if is_gone(id) && !is_read(id) {
                needed.forgettable = true;
            } else {
                needed.records.extend(history.current(id)?);
            }
        }
        Ok(needed)
    }

    /// Returns the segments that must be there, and others that may be read.
    pub(crate) fn segments(&self, vault: &Vault) -> Result<(Segments, Segments), Error> {
        let mut read = Segments::new();
        for record in &self.superseded {
            match reach::segments_so_far(vault, record, &mut read) {
                Ok(()) | Err(Error::Damaged(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((reach::segments(vault, &self.records)?, read))
    }
}

/// Returns the segments that are there.
pub(crate) fn present(vault: &Vault) -> Result<Segments, Error> {
    let listed = vault.store.list("seg/")?;
    Ok(listed.iter().filter_map(|listed| SegmentName::from_key(&listed.key)).collect())
}

/// Returns the snapshots that readers have registered for.
pub(crate) fn read_by_others(vault: &Vault) -> Result<HashSet<SnapshotId>, Error> {
    let mut read = HashSet::new();
    for registered in slot::list(vault)? {
        match slot::read_snapshot(vault, &registered.key) {
            Ok(snapshot) => read.extend(snapshot),
            // Released since it was listed.
            Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}
