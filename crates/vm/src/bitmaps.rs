//! Dirty bitmaps: what QEMU has written to a disk since a snapshot.
//!
//! A bitmap of ours is on the node under the device, below the filter of a take, so
//! that it marks every write, discard and write of zeros that comes through QEMU
//! (`bdrv_co_write_req_finish` in its block/io.c). It is in QEMU's memory alone and ends
//! with the process; for a clean stop it is stored in the image (`stored.rs`). Its name
//! says whose it is and since when it records, and bitmaps with other names are never
//! touched.
//!
//! ```text
//!              instant 1              instant 2
//!  bitmap 1       ├──── records ─────────┼──────────┤ removed: snapshot 2 is noted
//!  frozen copy    │                      ├──────────┤ what snapshot 2 has to read
//!  bitmap 2       │                      ├──── records ─────────
//! ```
//!
//! The old bitmap never stops before the new snapshot is noted, so a take that fails
//! or is killed loses nothing: the next one goes on from the old one.

use std::thread::sleep;
use std::time::Duration;

use serde_json::{Value, json};
use tintype_types::{SnapshotId, VmId};

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::inventory::{PREFIX, array};
use crate::qmp::Qmp;

/// How many bytes share a bit: what a filter copies at once, and QEMU's backups.
pub(crate) const GRANULARITY: u32 = 64 << 10;

/// How often a bitmap is tried that an export has not let go of yet.
const TRIES: usize = 500;

/// A bitmap of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bitmap {
    /// The block node that it is on.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Whether it can be relied on: it records, and QEMU does not call it inconsistent.
    pub is_good: bool,
    /// Whether it was in an image that a QEMU had open for writing and did not close.
    pub is_inconsistent: bool,
    /// Whether its node cannot be written to, nor what its image holds be changed.
    pub(crate) is_read_only: bool,
}

/// Returns the name of the bitmap that records what is written to the disks of a VM
/// since the instant of a snapshot.
pub fn bitmap_name(vm: VmId, snapshot: SnapshotId) -> String {
    format!("{}{snapshot}", names_of(vm))
}

fn names_of(vm: VmId) -> String {
    format!("{PREFIX}{vm}-")
}

impl Guest {
    /// Returns the bitmaps of a VM that are in QEMU's memory alone.
    pub fn bitmaps(&mut self, vm: VmId) -> Result<Vec<Bitmap>> {
        named(&mut self.qmp, &names_of(vm))
    }

    /// Removes the bitmaps of a VM that are in QEMU's memory alone, but for those of one
    /// snapshot.
    pub fn forget_bitmaps(&mut self, vm: VmId, keep: Option<SnapshotId>) -> Result<()> {
        let keep = keep.map(|snapshot| bitmap_name(vm, snapshot));
        let mut found = named(&mut self.qmp, &names_of(vm))?;
        found.retain(|bitmap| Some(&bitmap.name) != keep.as_ref());
        remove(&mut self.qmp, &found)
    }
}

/// Removes what takes have frozen. Their exports must be gone, or going.
pub(crate) fn remove_frozen(qmp: &mut Qmp) -> Result<()> {
    let found = named(qmp, &frozen_name(""))?;
    remove(qmp, &found)
}

/// Returns the name of a copy that stands still.
pub(crate) fn frozen_name(disk: &str) -> String {
    format!("{PREFIX}frozen-{disk}")
}

/// The part of a `transaction` that makes a bitmap record from now on.
pub(crate) fn begin(node: &str, name: &str) -> Value {
    json!({"type": "block-dirty-bitmap-add", "data": {
        "node": node, "name": name, "granularity": GRANULARITY,
    }})
}

/// The part of a `transaction` that adds to a bitmap what another one marks.
pub(crate) fn merge(node: &str, target: &str, source: &str) -> Value {
    json!({"type": "block-dirty-bitmap-merge", "data": {
        "node": node, "target": target, "bitmaps": [source],
    }})
}

/// The parts of a `transaction` that copy a bitmap as it is now.
pub(crate) fn freeze(node: &str, bitmap: &str, copy: &str) -> [Value; 2] {
    [
        json!({"type": "block-dirty-bitmap-add", "data": {
            "node": node, "name": copy, "granularity": GRANULARITY, "disabled": true,
        }}),
        merge(node, copy, bitmap),
    ]
}

/// Returns the bitmaps whose names start so.
pub(crate) fn named(qmp: &mut Qmp, start: &str) -> Result<Vec<Bitmap>> {
    let nodes = array(qmp.execute("query-named-block-nodes", json!({"flat": true}))?)?;
    let mut found = Vec::new();
    for node in &nodes {
        let bitmaps = node["dirty-bitmaps"].as_array().into_iter().flatten();
        for bitmap in bitmaps {
            let name = bitmap["name"].as_str().filter(|name| name.starts_with(start));
            if let (Some(on), Some(name)) = (node["node-name"].as_str(), name) {
                let flag = |key: &str| bitmap[key].as_bool().unwrap_or_default();
                let is_inconsistent = flag("inconsistent");
                found.push(Bitmap {
                    node: on.to_owned(),
                    name: name.to_owned(),
                    is_good: flag("recording") && !is_inconsistent,
                    is_inconsistent,
                    is_read_only: node["ro"].as_bool().unwrap_or_default(),
                });
            }
        }
    }
    Ok(found)
}

/// Removes bitmaps; from their images, too, where they are stored there.
pub(crate) fn remove(qmp: &mut Qmp, bitmaps: &[Bitmap]) -> Result<()> {
    for bitmap in bitmaps {
        let this = json!({"node": bitmap.node, "name": bitmap.name});
        for attempt in 1.. {
            match qmp.execute("block-dirty-bitmap-remove", this.clone()) {
                // An export that was deleted lets go of it a moment later.
                Err(Error::Refused { description, .. })
                    if description.contains("in use") && attempt < TRIES =>
                {
                    sleep(Duration::from_millis(10));
                }
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
    }
    Ok(())
}
