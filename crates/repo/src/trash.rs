//! The trash: what is deleted and can be put back, and how much of the repository
//! that alone needs. Exact to the frame, like the shares of snapshots.

use std::collections::{HashMap, HashSet};

use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::gone::{Deletions, Due};
use crate::history::{History, Reading};
use crate::pointer::Place;
use crate::reach::Reach;
use crate::record::SnapshotRecord;
use crate::vault::Vault;

/// The stored bytes that deleted snapshots keep.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrashShares {
    /// What no snapshot needs that is not deleted: ending all deletions frees this
    /// much in the end.
    pub bytes: ByteCount,
    /// Of each deleted snapshot, what nobody else needs, deleted or not.
    pub alone: HashMap<SnapshotId, ByteCount>,
}

/// Who needs a frame that no snapshot needs any more.
struct Owner {
    /// The deleted snapshot that was found first.
    first: SnapshotId,
    several: bool,
}

/// Counts what is kept for deleted snapshots alone, if what is due is gone.
pub(crate) fn shares(vault: &Vault, due: &Due) -> Result<TrashShares, Error> {
    let deletions = Deletions::read(vault)?;
    let history = History::read(vault, Reading::Known, |id| deletions.has_due(id, due))?;
    let (mut there, mut trash) = (Vec::new(), Vec::new());
    for id in history.snapshots() {
        let records = if deletions.has(id) { &mut trash } else { &mut there };
        records.extend(history.current(id)?);
    }
    let mut shares = TrashShares::default();
    if trash.is_empty() {
        return Ok(shares);
    }
    let mut needed = HashSet::new();
    let mut reach = Reach::new(vault, |place: &Place, _| _ = needed.insert(*place));
    there.iter().try_for_each(|record: &SnapshotRecord| reach.snapshot(record))?;
    let mut owners: HashMap<Place, Owner> = HashMap::new();
    for record in &trash {
        shares.alone.insert(record.id, ByteCount(0));
        let mut reach = Reach::new(vault, |place: &Place, _| {
            if !needed.contains(place) {
                let owner = owners.entry(*place);
                let owner = owner.or_insert(Owner { first: record.id, several: false });
                owner.several |= owner.first != record.id;
            }
        });
        reach.snapshot(record)?;
    }
    for (place, owner) in owners {
        let len = u64::from(place.len);
        shares.bytes.0 += len;
        if !owner.several {
            shares.alone.entry(owner.first).or_default().0 += len;
        }
    }
    Ok(shares)
}
