//! The map of an image as readers see it: the base with its runs over it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Error;
use crate::cache::Cache;
use crate::node::Leaf;
use crate::pointer::NodePointer;
use crate::run::{self, Change};
use crate::tree::{ImageRoot, as_leaf};
use crate::vault::Vault;

/// Leaves with runs applied that are kept in memory, in bytes.
const LEAF_CACHE: usize = 16 << 20;

/// The map of one image.
#[derive(Debug)]
pub(crate) struct ImageMap {
    pub vault: Arc<Vault>,
    pub root: ImageRoot,
    leaves: Cache<u64, Option<Arc<Leaf>>>,
}

impl ImageMap {
    pub(crate) fn new(vault: Arc<Vault>, root: ImageRoot) -> Self {
        Self { vault, root, leaves: Cache::new(LEAF_CACHE) }
    }

    /// Returns a leaf; `None` where all is zero.
    pub(crate) fn leaf(&self, index: u64) -> Result<Option<Arc<Leaf>>, Error> {
        if self.root.runs.is_empty() {
            let pointer = self.vault.subtree(&self.root, 0, index)?;
            return pointer.map(|pointer| self.read(&pointer)).transpose();
        }
        if let Some(leaf) = self.leaves.get(&index) {
            return Ok((*leaf).clone());
        }
        let leaf = self.merge(index)?;
        let weight = leaf.as_ref().map_or(0, |leaf| leaf.weight());
        self.leaves.insert(index, Arc::new(leaf.clone()), weight);
        Ok(leaf)
    }

    /// Returns a leaf's own node, if it has one and no run changes a part of it.
    pub(crate) fn pointer(&self, index: u64) -> Result<Option<NodePointer>, Error> {
        for run in self.root.runs.iter().rev() {
            match self.vault.changes(run, index, index + 1)?.pop() {
                None => {}
                Some((_, Change::Whole(pointer))) => return Ok(pointer),
                Some((_, Change::Regions(_))) => return Ok(None),
            }
        }
        self.vault.subtree(&self.root, 0, index)
    }

    /// Returns the leaves in `from..to` that may not be zero, in order.
    pub(crate) fn indexes(&self, from: u64, to: u64) -> Result<BTreeSet<u64>, Error> {
        let base = self.vault.leaves(&self.root, from, to)?;
        let mut found: BTreeSet<_> = base.into_iter().map(|(index, _)| index).collect();
        found.extend(self.changed(from, to)?);
        Ok(found)
    }

    /// Returns the leaves in `from..to` that a run speaks of, in order.
    pub(crate) fn changed(&self, from: u64, to: u64) -> Result<BTreeSet<u64>, Error> {
        let mut found = BTreeSet::new();
        for run in &self.root.runs {
            found.extend(self.vault.changes(run, from, to)?.into_iter().map(|(index, _)| index));
        }
        Ok(found)
    }

    fn merge(&self, index: u64) -> Result<Option<Arc<Leaf>>, Error> {
        // Newest first, until one replaces the whole leaf.
        let mut over = Vec::new();
        let mut whole = None;
        for run in self.root.runs.iter().rev() {
            match self.vault.changes(run, index, index + 1)?.pop() {
                None => {}
                Some((_, Change::Regions(regions))) => over.push(regions),
                Some((_, Change::Whole(pointer))) => {
                    whole = Some(pointer);
                    break;
                }
            }
        }
        let pointer = match whole {
            Some(pointer) => pointer,
            None => self.vault.subtree(&self.root, 0, index)?,
        };
        let mut leaf = pointer.map(|pointer| self.read(&pointer)).transpose()?;
        for regions in over.iter().rev() {
            run::apply(leaf.get_or_insert_default(), regions);
        }
        Ok(leaf)
    }

    fn read(&self, pointer: &NodePointer) -> Result<Arc<Leaf>, Error> {
        as_leaf(&*self.vault.node(pointer)?, pointer)
    }
}
