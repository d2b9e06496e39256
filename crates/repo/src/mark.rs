//! Which segments are needed, and by whom.
//!
//! A snapshot that is deleted and can be put back may be damaged, so that its maps do
//! not tell all that it needs. It can only need what was stored before it; so what is
//! surely later is told apart, and all else is kept for it, until it is mended or its
//! deletion ended.
//!
//! In this order: the deletions, the outcomes, the slots. A reader puts its slot
//! and then looks at the other two, so either the slot is seen here or the reader
//! sees what was deleted; what was moved before the epoch began it sees anyway.

use std::collections::{HashMap, HashSet};

use tintype_types::SnapshotId;

use crate::Error;
use crate::epoch::Segments;
use crate::gone::Deletions;
use crate::history::{History, Reading};
use crate::loss::sound;
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
    /// Those of the records that are deleted and can be put back.
    trash: HashSet<SnapshotId>,
    /// The sessions whose order is sure, and their places in it.
    in_sequence: HashMap<SnapshotId, u64>,
}

/// The segments that are needed.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    /// Those that must be there.
    needed: Segments,
    /// Others that may be read, or put back.
    spared: Segments,
    /// How many snapshots in the trash do not tell all that they need, and the last of
    /// them in the sequence.
    pub damaged: u64,
    newest_damaged: Option<u64>,
    in_sequence: HashMap<SnapshotId, u64>,
}

impl Marked {
    /// Whether a segment has to stay.
    pub(crate) fn keeps(&self, segment: &SegmentName) -> bool {
        self.needed.contains(segment) || self.spared.contains(segment) || self.is_doubtful(segment)
    }

    /// Whether a damaged snapshot may need it.
    fn is_doubtful(&self, segment: &SegmentName) -> bool {
        self.newest_damaged.is_some_and(|newest| {
            self.in_sequence.get(&segment.session).is_none_or(|sequence| *sequence <= newest)
        })
    }

    /// Returns a segment that must be there and is not.
    pub(crate) fn missing(&self, present: &Segments) -> Option<SegmentName> {
        self.needed.difference(present).next().copied()
    }
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
            in_sequence: history.in_sequence(),
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
                needed.trash.extend(deletions.has(id).then_some(id));
            }
        }
        Ok(needed)
    }

    /// Returns the segments that are needed.
    pub(crate) fn segments(self, vault: &Vault) -> Result<Marked, Error> {
        let mut marked = Marked::default();
        for record in &self.superseded {
            sound(reach::segments_so_far(vault, record, &mut marked.spared))?;
        }
        let (trash, there): (Vec<_>, Vec<_>) =
            self.records.iter().partition(|record| self.trash.contains(&record.id));
        marked.needed = reach::segments(vault, there)?;
        match reach::segments(vault, trash.iter().copied()) {
            Ok(segments) => marked.spared.extend(segments),
            Err(Error::Damaged(_)) => {
                for record in trash {
                    self.add_damaged(vault, record, &mut marked)?;
                }
            }
            Err(error) => return Err(error),
        }
        marked.in_sequence = self.in_sequence;
        Ok(marked)
    }

    /// Adds what a snapshot in the trash needs, as far as it tells.
    fn add_damaged(
        &self,
        vault: &Vault,
        record: &SnapshotRecord,
        marked: &mut Marked,
    ) -> Result<(), Error> {
        let Err(error) = reach::segments_so_far(vault, record, &mut marked.spared) else {
            return Ok(());
        };
        let (Error::Damaged(_), Some(sequence)) = (&error, self.in_sequence.get(&record.id)) else {
            return Err(error);
        };
        tracing::warn!(%error, "a deleted snapshot does not tell all that it needs");
        marked.damaged += 1;
        marked.newest_damaged = marked.newest_damaged.max(Some(*sequence));
        Ok(())
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
