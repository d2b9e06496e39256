//! The map of an image as a persistent tree of nodes: finding leaves, and
//! building a new tree out of an old one and the leaves that changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tintype_types::ByteCount;

use crate::Error;
use crate::node::{FAN_OUT, Inner, Leaf, MAX_LEVEL, Node};
use crate::pointer::{NodePointer, Place};
use crate::run::Run;
use crate::vault::Vault;

/// Bytes that a leaf covers.
pub(crate) const LEAF_SIZE: u64 = 16 << 20;
/// The largest image, so that [`MAX_LEVEL`] is enough and offsets fit a file.
pub(crate) const MAX_IMAGE: u64 = 1 << 62;

/// The content of one disk or memory image, complete in itself.
///
/// Only the repository that made it can read it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRoot {
    pub(crate) size: ByteCount,
    /// The level of the node that `base` points to.
    pub(crate) height: u8,
    /// `None` where the whole image is zero.
    pub(crate) base: Option<NodePointer>,
    /// Changes of the base, oldest first, at most [`MAX_RUNS`].
    pub(crate) runs: Vec<Run>,
}

/// The most runs of an image.
pub(crate) const MAX_RUNS: usize = 4;

/// Which tree of an image a node belongs to: what may be below it differs, and
/// a tree that mixed them would have no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tree {
    Base,
    Run,
}

impl ImageRoot {
    /// Returns the size of the image.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Whether an image can have this root; one that was stored may lie.
    pub(crate) fn is_possible(&self) -> bool {
        self.size.get() <= MAX_IMAGE
            && self.runs.len() <= MAX_RUNS
            && self.runs.iter().map(|run| run.height).chain([self.height]).all(|h| h <= MAX_LEVEL)
    }

    /// Returns an image of zeroes.
    pub(crate) fn zero(size: ByteCount) -> Self {
        Self { size, height: height(size), base: None, runs: Vec::new() }
    }

    /// Whether every byte of the image is surely zero.
    pub(crate) fn is_zero(&self) -> bool {
        self.base.is_none() && self.runs.is_empty()
    }

    /// Returns the nodes that the root points to.
    pub(crate) fn pointers(&self) -> impl Iterator<Item = &NodePointer> {
        self.base.iter().chain(self.runs.iter().map(|run| &run.root))
    }
}

/// Returns how many leaves cover an image.
pub(crate) fn leaf_count(size: ByteCount) -> u64 {
    size.get().div_ceil(LEAF_SIZE)
}

/// Returns the level of the root of an image's tree.
pub(crate) fn height(size: ByteCount) -> u8 {
    let last = leaf_count(size).saturating_sub(1);
    (0..MAX_LEVEL).find(|level| last >> (8 * u32::from(*level)) == 0).unwrap_or(MAX_LEVEL)
}

impl Vault {
    /// Returns the node of an image's base at a level and an index there.
    pub(crate) fn subtree(
        &self,
        root: &ImageRoot,
        level: u8,
        index: u64,
    ) -> Result<Option<NodePointer>, Error> {
        let Some(depth) = root.height.checked_sub(level) else { return Ok(None) };
        if index.checked_shr(8 * u32::from(depth)).unwrap_or(0) != 0 {
            return Ok(None);
        }
        let mut pointer = root.base;
        for below in (0..depth).rev() {
            let Some(current) = pointer else { return Ok(None) };
            let node = self.node(&current)?;
            let child = usize::from(index.to_be_bytes()[7 - usize::from(below)]);
            pointer = self.inner(&current, &node, level + below + 1)?.children[child];
        }
        Ok(pointer)
    }

    /// Takes a node as an inner node of the level that it must have.
    pub(crate) fn inner<'a>(
        &self,
        pointer: &NodePointer,
        node: &'a Node,
        level: u8,
    ) -> Result<&'a Inner, Error> {
        match node {
            Node::Inner(inner) if inner.level == level => Ok(inner),
            _ => Err(misplaced(pointer)),
        }
    }

    /// Returns the pointers to the leaves of an image's base in `from..to`, in order,
    /// without reading the leaves.
    pub(crate) fn leaves(
        &self,
        root: &ImageRoot,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, NodePointer)>, Error> {
        let mut found = Vec::new();
        if let Some(base) = root.base {
            self.collect_leaves(&base, root.height, 0, (from, to), &mut found)?;
        }
        Ok(found)
    }

    fn collect_leaves(
        &self,
        pointer: &NodePointer,
        level: u8,
        index: u64,
        (from, to): (u64, u64),
        found: &mut Vec<(u64, NodePointer)>,
    ) -> Result<(), Error> {
        if level == 0 {
            found.push((index, *pointer));
            return Ok(());
        }
        let node = self.node(pointer)?;
        let span = 1_u64 << (8 * u32::from(level - 1));
        for (child, pointer) in (index * 256..).zip(&self.inner(pointer, &node, level)?.children) {
            let (first, end) = (child.saturating_mul(span), (child + 1).saturating_mul(span));
            if let Some(pointer) = pointer
                && first < to
                && end > from
            {
                self.collect_leaves(pointer, level - 1, child, (from, to), found)?;
            }
        }
        Ok(())
    }
}

/// Takes a node as a leaf.
pub(crate) fn as_leaf(node: &Node, pointer: &NodePointer) -> Result<Arc<Leaf>, Error> {
    match node {
        Node::Leaf(leaf) => Ok(Arc::clone(leaf)),
        _ => Err(misplaced(pointer)),
    }
}

pub(crate) fn misplaced(pointer: &NodePointer) -> Error {
    let Place { segment, offset, .. } = pointer.place;
    Error::damaged(segment.key(), Some(u64::from(offset)), "a node is not where it belongs")
}

/// What a new tree is made of.
pub(crate) struct TreePlan<'a> {
    pub vault: &'a Vault,
    /// The tree that everything not in `leaves` comes from.
    pub base: &'a ImageRoot,
    /// The leaves that differ; `None` is zero.
    pub leaves: &'a BTreeMap<u64, Option<NodePointer>>,
}

impl TreePlan<'_> {
    /// Builds the node at `level` and `index`; `put` stores new inner nodes.
    pub(crate) fn build(
        &self,
        level: u8,
        index: u64,
        put: &mut dyn FnMut(u8, u64, &Inner) -> Result<NodePointer, Error>,
    ) -> Result<Option<NodePointer>, Error> {
        let shift = 8 * u32::from(level);
        let first = index << shift;
        let last = first | ((1_u64 << shift) - 1);
        let changed = self.leaves.range(first..=last).next().is_some();
        if !changed && level <= self.base.height {
            return self.vault.subtree(self.base, level, index);
        }
        if level == 0 {
            return Ok(self.leaves.get(&index).copied().flatten());
        }
        let children = (0..)
            .take(FAN_OUT)
            .map(|child: u64| self.build(level - 1, index << 8 | child, put))
            .collect::<Result<Vec<_>, _>>()?;
        if children.iter().all(Option::is_none) {
            return Ok(None);
        }
        put(level, index, &Inner { level, children }).map(Some)
    }
}
