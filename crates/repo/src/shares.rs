//! Who needs how much: the stored bytes of each snapshot, and how many of them
//! are its alone. Exact to the frame.

use std::collections::{HashMap, HashSet};

use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::listing;
use crate::pointer::Place;
use crate::reach::Reach;
use crate::record::SnapshotRecord;
use crate::vault::Vault;

/// The stored bytes that snapshots need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// Each snapshot, oldest first.
    pub snapshots: Vec<SnapshotShare>,
    /// What all of them need together.
    pub referenced_bytes: ByteCount,
    /// The snapshots that were asked for, as one.
    pub together: SetShare,
}

/// The stored bytes that some snapshots need together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetShare {
    /// All that they need.
    pub referenced_bytes: ByteCount,
    /// What no other snapshot needs: deleting all of them frees this much in
    /// the end.
    pub exclusive_bytes: ByteCount,
}

/// The stored bytes that one snapshot needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotShare {
    /// The snapshot.
    pub id: SnapshotId,
    /// All that it needs.
    pub referenced_bytes: ByteCount,
    /// What no other snapshot needs: deleting it frees this much in the end.
    pub exclusive_bytes: ByteCount,
    /// The sizes of its images.
    pub logical_bytes: ByteCount,
}

/// Who needs a frame.
struct Owner {
    /// The snapshot that was found first.
    first: usize,
    /// Whether another one needs it too.
    several: bool,
    /// Whether one of the set does, and one that is not of it.
    inside: bool,
    outside: bool,
}

/// Returns the sizes of a snapshot's images together; a lie has no end.
fn logical_bytes(record: &SnapshotRecord) -> u64 {
    let sizes = record.images.iter().map(|image| image.root.size.get());
    sizes.fold(0, u64::saturating_add)
}

/// Counts for each snapshot, and for a set of them together.
pub(crate) fn shares(vault: &Vault, set: &[SnapshotId]) -> Result<Shares, Error> {
    let mut shares = Shares::default();
    let mut owners: HashMap<Place, Owner> = HashMap::new();
    for (index, record) in listing::list(vault)?.records.iter().enumerate() {
        let is_inside = set.contains(&record.id);
        let mut referenced = 0;
        let mut seen = HashSet::new();
        let mut reach = Reach::new(vault, |place: &Place, _| {
            if !seen.insert(*place) {
                return;
            }
            referenced += u64::from(place.len);
            let owner = owners.entry(*place).or_insert(Owner {
                first: index,
                several: false,
                inside: false,
                outside: false,
            });
            owner.several |= owner.first != index;
            owner.inside |= is_inside;
            owner.outside |= !is_inside;
        });
        reach.snapshot(record)?;
        shares.snapshots.push(SnapshotShare {
            id: record.id,
            referenced_bytes: ByteCount(referenced),
            exclusive_bytes: ByteCount(0),
            logical_bytes: ByteCount(logical_bytes(record)),
        });
    }
    for (place, owner) in owners {
        let len = u64::from(place.len);
        shares.referenced_bytes.0 += len;
        if !owner.several {
            shares.snapshots[owner.first].exclusive_bytes.0 += len;
        }
        if owner.inside {
            shares.together.referenced_bytes.0 += len;
            shares.together.exclusive_bytes.0 += if owner.outside { 0 } else { len };
        }
    }
    Ok(shares)
}
