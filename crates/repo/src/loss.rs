//! What damage costs: which bytes of which snapshots cannot be read.
//!
//! Segments are shared and compressed, so a damaged byte of one says nothing to
//! people. This walks the maps of the snapshots that need damaged segments and
//! tries every frame there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tintype_types::{BLOCK_SIZE, Extent, SnapshotId};

use crate::error::Damage;
use crate::map::ImageMap;
use crate::node::{Part, REGION_BLOCKS};
use crate::pointer::{FramePointer, SegmentName};
use crate::reader::{push_joined, region_extents};
use crate::record::SnapshotRecord;
use crate::tree::{self, ImageRoot, LEAF_SIZE};
use crate::vault::Vault;
use crate::{Error, blob};

/// Leaves whose pointers are in one inner node.
const BATCH: u64 = 256;
const REGION_SIZE: u64 = (BLOCK_SIZE * REGION_BLOCKS) as u64;

/// A part of a snapshot that cannot be read, or not all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The name of the image or blob.
    pub part: String,
    /// What cannot be read of an image, in order and joined; empty for a blob,
    /// which is lost as a whole.
    pub ranges: Vec<Extent>,
}

/// Says what cannot be read of the snapshots that the damage concerns.
pub(crate) fn losses(
    vault: &Arc<Vault>,
    records: &[SnapshotRecord],
    damaged: &[Damage],
) -> Result<Vec<Loss>, Error> {
    let affected: BTreeSet<_> = damaged.iter().flat_map(|damage| &damage.snapshots).collect();
    let segments = damaged.iter().filter_map(|d| SegmentName::from_key(&d.object)).collect();
    let mut search = Search { vault, segments, tried: HashMap::new() };
    let mut losses = Vec::new();
    for record in records.iter().filter(|record| affected.contains(&record.id)) {
        for image in &record.images {
            let ranges = search.image(&image.root)?;
            if !ranges.is_empty() {
                losses.push(Loss { snapshot: record.id, part: image.name.clone(), ranges });
            }
        }
        for (name, blob) in &record.blobs {
            if sound(blob::read(vault, blob))?.is_none() {
                let (part, ranges) = (name.clone(), Vec::new());
                losses.push(Loss { snapshot: record.id, part, ranges });
            }
        }
    }
    Ok(losses)
}

/// What was read; `None` if it is damaged.
pub(crate) fn sound<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(Error::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

struct Search<'a> {
    vault: &'a Arc<Vault>,
    /// Segments with damage in them.
    segments: HashSet<SegmentName>,
    /// Whether frames of these segments are good.
    tried: HashMap<FramePointer, bool>,
}

impl Search<'_> {
    fn image(&mut self, root: &ImageRoot) -> Result<Vec<Extent>, Error> {
        let map = ImageMap::new(Arc::clone(self.vault), root.clone());
        let leaves = tree::leaf_count(root.size);
        let mut lost = Vec::new();
        let mut from = 0;
        while from < leaves {
            let to = from.saturating_add(BATCH).min(leaves);
            match sound(map.indexes(from, to))? {
                None => push_joined(&mut lost, of_leaves(from, to)),
                Some(indexes) => {
                    for index in indexes {
                        self.leaf(&map, index, &mut lost)?;
                    }
                }
            }
            from = to;
        }
        // The last block may be longer than what the image has of it.
        if let Some(last) = lost.last_mut() {
            last.len = last.len.min(root.size.get().saturating_sub(last.offset));
        }
        Ok(lost)
    }

    fn leaf(&mut self, map: &ImageMap, index: u64, lost: &mut Vec<Extent>) -> Result<(), Error> {
        let leaf = match sound(map.leaf(index))? {
            None => {
                push_joined(lost, of_leaves(index, index + 1));
                return Ok(());
            }
            Some(None) => return Ok(()),
            Some(Some(leaf)) => leaf,
        };
        for (region, entry) in (0..).zip(&leaf.regions) {
            let mut mask = 0;
            for part in &entry.parts {
                mask |= if self.is_good(part)? { 0 } else { part.used };
            }
            region_extents(mask, index * LEAF_SIZE + region * REGION_SIZE, lost);
        }
        Ok(())
    }

    fn is_good(&mut self, part: &Part) -> Result<bool, Error> {
        if !self.segments.contains(&part.frame.place.segment) {
            return Ok(true);
        }
        if let Some(known) = self.tried.get(&part.frame) {
            return Ok(*known);
        }
        let good = sound(self.vault.read_frame(&part.frame))?.is_some();
        self.tried.insert(part.frame, good);
        Ok(good)
    }
}

fn of_leaves(from: u64, to: u64) -> Extent {
    Extent { offset: from * LEAF_SIZE, len: (to - from) * LEAF_SIZE }
}
