//! What differs between two images, by their maps alone: no content is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use tintype_types::Extent;

use crate::Error;
use crate::node::{Entry, FAN_OUT, REGION_BLOCKS};
use crate::pointer::NodePointer;
use crate::reader::{ImageReader, push_joined, region_extents};
use crate::tree::{ImageRoot, LEAF_SIZE};
use crate::vault::Vault;

const REGION_SIZE: u64 = 64 << 10;

/// Returns the ranges in which the content of two images may differ, in order
/// and joined, in whole blocks. Where one image is shorter, what the other has
/// beyond its end counts as different if it is not zero.
pub(crate) fn diff(vault: &Arc<Vault>, a: &ImageRoot, b: &ImageRoot) -> Result<Vec<Extent>, Error> {
    let mut extents = Vec::new();
    let mut leaves: BTreeMap<u64, [Option<NodePointer>; 2]> = BTreeMap::new();
    for (side, root) in [a, b].into_iter().enumerate() {
        for (index, pointer) in vault.leaves(root, 0, u64::MAX)? {
            leaves.entry(index).or_default()[side] = Some(pointer);
        }
    }
    let readers = [a, b].map(|root| ImageReader::new(Arc::clone(vault), root.clone()));
    for (index, [old, new]) in leaves {
        if old.map(|pointer| pointer.id) == new.map(|pointer| pointer.id) {
            continue;
        }
        let entries = |side: usize, pointer: Option<NodePointer>| match pointer {
            Some(pointer) => readers[side].entries(&pointer),
            None => Ok(vec![Entry::default(); FAN_OUT]),
        };
        let (old, new) = (entries(0, old)?, entries(1, new)?);
        for (region, (old, new)) in (0..).zip(old.iter().zip(&new)) {
            if old != new {
                let mask = differing(vault, old, new)?;
                let start = index * LEAF_SIZE + region * REGION_SIZE;
                let mut found = Vec::new();
                region_extents(mask, start, &mut found);
                found.into_iter().for_each(|extent| push_joined(&mut extents, extent));
            }
        }
    }
    Ok(extents)
}

/// Returns which blocks of a region differ: other ids, or zero in one only.
fn differing(vault: &Vault, old: &Entry, new: &Entry) -> Result<u16, Error> {
    let mut mask = 0;
    for block in 0..REGION_BLOCKS {
        let same = match (old.part(block), new.part(block)) {
            (None, None) => true,
            (Some(a), Some(b)) if a.frame == b.frame => a.slot(block) == b.slot(block),
            (Some(a), Some(b)) => {
                let (a_ids, b_ids) = (vault.block_ids(&a.frame)?, vault.block_ids(&b.frame)?);
                a_ids[a.slot(block)] == b_ids[b.slot(block)]
            }
            _ => false,
        };
        mask |= u16::from(!same) << block;
    }
    Ok(mask)
}
