//! What differs between two images, by their maps alone: no content is read.

use std::collections::BTreeSet;
use std::sync::Arc;

use tintype_types::Extent;

use crate::Error;
use crate::map::ImageMap;
use crate::node::{Entry, REGION_BLOCKS};
use crate::reader::{push_joined, region_extents};
use crate::tree::{ImageRoot, LEAF_SIZE, leaf_count};
use crate::vault::Vault;

const REGION_SIZE: u64 = 64 << 10;
/// How many leaves are compared in one go: 1 TiB.
const BATCH: usize = 1 << 16;
const BATCH_LEAVES: u64 = 1 << 16;

/// Returns the ranges in which the content of two images may differ, in order
/// and joined, in whole blocks. Where one image is shorter, what the other has
/// beyond its end counts as different if it is not zero.
pub(crate) fn diff(vault: &Arc<Vault>, a: &ImageRoot, b: &ImageRoot) -> Result<Vec<Extent>, Error> {
    let maps = [a, b].map(|root| ImageMap::new(Arc::clone(vault), root.clone()));
    // Over the same base only what the runs speak of can differ.
    let same_base =
        a.base.map(|base| base.id) == b.base.map(|base| base.id) && a.height == b.height;
    let end = leaf_count(a.size.max(b.size));
    let mut extents = Vec::new();
    // Some at a time: a map may say of more leaves than memory can hold that
    // they are there.
    for from in (0..end).step_by(BATCH) {
        let to = end.min(from.saturating_add(BATCH_LEAVES));
        let mut indexes = BTreeSet::new();
        for map in &maps {
            indexes.extend(if same_base { map.changed(from, to) } else { map.indexes(from, to) }?);
        }
        diff_leaves(vault, &maps, indexes, &mut extents)?;
    }
    Ok(extents)
}

/// Adds the ranges in which some leaves differ.
fn diff_leaves(
    vault: &Vault,
    maps: &[ImageMap; 2],
    indexes: BTreeSet<u64>,
    extents: &mut Vec<Extent>,
) -> Result<(), Error> {
    for index in indexes {
        let (old, new) = (maps[0].pointer(index)?, maps[1].pointer(index)?);
        if old.is_some() && old.map(|pointer| pointer.id) == new.map(|pointer| pointer.id) {
            continue;
        }
        let leaf = |map: &ImageMap| Ok::<_, Error>(map.leaf(index)?.unwrap_or_default());
        let (old, new) = (leaf(&maps[0])?, leaf(&maps[1])?);
        for (region, (old, new)) in (0..).zip(old.regions.iter().zip(&new.regions)) {
            if old != new {
                let mask = differing(vault, old, new)?;
                let start = index * LEAF_SIZE + region * REGION_SIZE;
                let mut found = Vec::new();
                region_extents(mask, start, &mut found);
                found.into_iter().for_each(|extent| push_joined(extents, extent));
            }
        }
    }
    Ok(())
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
