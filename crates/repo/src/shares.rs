//! Who needs how much: the stored bytes of each snapshot, and how many of them
//! are its alone. Exact to the frame.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::listing;
use crate::pointer::Place;
use crate::reach::Reach;
use crate::vault::Vault;

/// The stored bytes that snapshots need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shares {
    /// Each snapshot, oldest first.
    pub snapshots: Vec<SnapshotShare>,
    /// What all of them need together.
    pub referenced_bytes: ByteCount,
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

/// Who needs a frame: the index of a snapshot, or several.
enum Owner {
    One(usize),
    Several,
}

pub(crate) fn shares(vault: &Vault) -> Result<Shares, Error> {
    let mut shares = Shares::default();
    let mut owners: HashMap<Place, Owner> = HashMap::new();
    for (index, record) in listing::list(vault)?.records.iter().enumerate() {
        let mut referenced = 0;
        let mut seen = HashSet::new();
        let mut reach = Reach::new(vault, |place: &Place| {
            if !seen.insert(*place) {
                return;
            }
            referenced += u64::from(place.len);
            match owners.entry(*place) {
                Entry::Occupied(mut owner) => _ = owner.insert(Owner::Several),
                Entry::Vacant(owner) => {
                    shares.referenced_bytes.0 += u64::from(place.len);
                    owner.insert(Owner::One(index));
                }
            }
        });
        reach.snapshot(record)?;
        shares.snapshots.push(SnapshotShare {
            id: record.id,
            referenced_bytes: ByteCount(referenced),
            exclusive_bytes: ByteCount(0),
            logical_bytes: ByteCount(record.images.iter().map(|i| i.root.size.get()).sum()),
        });
    }
    for (place, owner) in owners {
        if let Owner::One(index) = owner {
            shares.snapshots[index].exclusive_bytes.0 += u64::from(place.len);
        }
    }
    Ok(shares)
}
