//! Who needs how much: the stored bytes of each snapshot, and how many of them
//! are its alone. Exact to the frame.

use std::collections::{HashMap, HashSet};

use tintype_types::{ByteCount, SnapshotId, VmId};

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
    /// All snapshots of each VM, as one.
    pub vms: Vec<VmShare>,
}

/// The stored bytes that the snapshots of one VM need together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmShare {
    /// The VM.
    pub vm: VmId,
    /// All that they need.
    pub referenced_bytes: ByteCount,
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
    /// The VM for which it was counted last.
    vm: usize,
}

/// Returns the sizes of a snapshot's images together; a lie has no end.
fn logical_bytes(record: &SnapshotRecord) -> u64 {
    let sizes = record.images.iter().map(|image| image.root.size.get());
    sizes.fold(0, u64::saturating_add)
}

/// Returns a snapshot of which nothing is counted yet.
fn nothing(record: &SnapshotRecord) -> SnapshotShare {
    SnapshotShare {
        id: record.id,
        referenced_bytes: ByteCount(0),
        exclusive_bytes: ByteCount(0),
        logical_bytes: ByteCount(logical_bytes(record)),
    }
}

/// Counts for each snapshot, and for a set of them together.
pub(crate) fn shares(vault: &Vault, set: &[SnapshotId]) -> Result<Shares, Error> {
    let mut shares = Shares::default();
    let mut owners: HashMap<Place, Owner> = HashMap::new();
    let records = listing::list(vault)?.records;
    shares.snapshots = records.iter().map(nothing).collect();
    // VM by VM, so that it is enough to know which one has counted a frame last.
    let mut by_vm: Vec<usize> = (0..records.len()).collect();
    by_vm.sort_by_key(|index| records[*index].vm);
    for index in by_vm {
        let record = &records[index];
        if shares.vms.last().is_none_or(|share| share.vm != record.vm) {
            shares.vms.push(VmShare { vm: record.vm, referenced_bytes: ByteCount(0) });
        }
        let vm = shares.vms.len() - 1;
        let is_inside = set.contains(&record.id);
        let (mut referenced, mut of_vm) = (0, 0);
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
                vm: usize::MAX,
            });
            if std::mem::replace(&mut owner.vm, vm) != vm {
                of_vm += u64::from(place.len);
            }
            owner.several |= owner.first != index;
            owner.inside |= is_inside;
            owner.outside |= !is_inside;
        });
        reach.snapshot(record)?;
        shares.snapshots[index].referenced_bytes = ByteCount(referenced);
        shares.vms[vm].referenced_bytes.0 += of_vm;
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
