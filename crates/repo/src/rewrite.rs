//! Rewrites maps, so that they refer to content at other places: every node that
//! leads to something that has moved, or is itself to be moved, is stored anew.
//! What does not lead there stays, and is shared as before.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use crate::Error;
use crate::blob;
use crate::node::{Entry, Inner, Node, Part};
use crate::pointer::{NodePointer, Place};
use crate::record::{BlobId, SnapshotRecord};
use crate::run::{Change, RunInner, RunLeaf};
use crate::segment::index;
use crate::tree::{ImageRoot, Tree, misplaced};
use crate::vault::Vault;

/// Where things are to be.
pub(crate) struct Rewriter<'a> {
    pub vault: &'a Vault,
    /// Where a frame of blocks or chunk is now; `None` where it was.
    pub moved: &'a dyn Fn(&Place) -> Option<Place>,
    /// What a part becomes that is not only moved; `None` for all others.
    pub cut: &'a dyn Fn(&Part) -> Option<Vec<Part>>,
    /// Whether a node has to be stored anew, whatever it leads to.
    pub leaves: &'a dyn Fn(&Place) -> bool,
    /// Stores a node, given where it was.
    pub put: &'a dyn Fn(&NodePointer, &[u8]) -> NodePointer,
    /// The nodes that were looked at, and where they are now.
    pub nodes: HashMap<NodePointer, NodePointer>,
}

impl Rewriter<'_> {
    /// Returns the record with its images and blobs where they are now.
    pub(crate) fn snapshot(&mut self, record: &SnapshotRecord) -> Result<SnapshotRecord, Error> {
        let mut record = record.clone();
        for image in &mut record.images {
            image.root = self.image(&image.root)?;
        }
        for (_, blob) in &mut record.blobs {
            *blob = self.blob(blob)?;
        }
        Ok(record)
    }

    pub(crate) fn image(&mut self, root: &ImageRoot) -> Result<ImageRoot, Error> {
        let mut root = root.clone();
        if let Some(base) = &mut root.base {
            *base = self.node(base, Tree::Base, root.height)?;
        }
        for run in &mut root.runs {
            run.root = self.node(&run.root, Tree::Run, run.height)?;
        }
        Ok(root)
    }

    pub(crate) fn blob(&mut self, blob: &BlobId) -> Result<BlobId, Error> {
        if let Some(list) = self.nodes.get(&blob.list) {
            return Ok(BlobId { list: *list, ..blob.clone() });
        }
        let is_changed = Cell::new((self.leaves)(&blob.list.place));
        let mut chunks = blob::chunks(self.vault, blob)?;
        chunks.iter_mut().for_each(|chunk| self.place(&mut chunk.place, &is_changed));
        let list = match is_changed.get() {
            true => (self.put)(&blob.list, &blob::encode_list(blob.len, &chunks)),
            false => blob.list,
        };
        self.nodes.insert(blob.list, list);
        Ok(BlobId { list, ..blob.clone() })
    }

    fn node(&mut self, pointer: &NodePointer, tree: Tree, level: u8) -> Result<NodePointer, Error> {
        if let Some(now) = self.nodes.get(pointer) {
            return Ok(*now);
        }
        let is_changed = Cell::new((self.leaves)(&pointer.place));
        let node = self.vault.node(pointer)?;
        let encode: Box<dyn Fn() -> Vec<u8>> = match (tree, &*node) {
            (Tree::Base, Node::Inner(inner)) if level > 0 && inner.level == level => {
                let mut inner = Inner::clone(inner);
                for child in inner.children.iter_mut().flatten() {
                    self.child(child, (tree, level - 1), &is_changed)?;
                }
                Box::new(move || inner.encode())
            }
            (Tree::Run, Node::RunInner(inner)) if level > 0 && inner.level == level => {
                let mut inner = RunInner::clone(inner);
                for (_, child) in &mut inner.children {
                    self.child(child, (tree, level - 1), &is_changed)?;
                }
                Box::new(move || inner.encode())
            }
            (Tree::Base, Node::Leaf(leaf)) if level == 0 => {
                let mut leaf = Arc::clone(leaf);
                if leaf.regions.iter().flat_map(|entry| &entry.parts).any(|p| self.moves(p)) {
                    let regions = &mut Arc::make_mut(&mut leaf).regions;
                    regions.iter_mut().for_each(|entry| self.entry(entry, &is_changed));
                }
                Box::new(move || leaf.encode())
            }
            (Tree::Run, Node::RunLeaf(leaf)) if level == 0 => {
                let leaf = self.run_leaf(leaf, &is_changed)?;
                Box::new(move || leaf.encode())
            }
            _ => return Err(misplaced(pointer)),
        };
        let now = if is_changed.get() { (self.put)(pointer, &encode()) } else { *pointer };
        self.nodes.insert(*pointer, now);
        Ok(now)
    }

    fn run_leaf(&mut self, leaf: &RunLeaf, is_changed: &Cell<bool>) -> Result<RunLeaf, Error> {
        let mut leaf = leaf.clone();
        for (_, change) in &mut leaf.changes {
            match change {
                Change::Whole(Some(leaf)) => self.child(leaf, (Tree::Base, 0), is_changed)?,
                Change::Whole(None) => {}
                Change::Regions(regions) => {
                    regions.iter_mut().for_each(|(_, entry)| self.entry(entry, is_changed));
                }
            }
        }
        Ok(leaf)
    }

    fn child(
        &mut self,
        child: &mut NodePointer,
        (tree, level): (Tree, u8),
        is_changed: &Cell<bool>,
    ) -> Result<(), Error> {
        let now = self.node(child, tree, level)?;
        is_changed.set(is_changed.get() || now != *child);
        *child = now;
        Ok(())
    }

    fn moves(&self, part: &Part) -> bool {
        (self.moved)(&part.frame.place).is_some() || (self.cut)(part).is_some()
    }

    fn entry(&self, entry: &mut Entry, is_changed: &Cell<bool>) {
        if entry.parts.iter().any(|part| (self.cut)(part).is_some()) {
            let cut = |part: Part| (self.cut)(&part).unwrap_or_else(|| vec![part]);
            entry.parts = std::mem::take(&mut entry.parts).into_iter().flat_map(cut).collect();
            entry.parts.sort_unstable_by_key(|part| part.used.trailing_zeros());
            is_changed.set(true);
        }
        for part in &mut entry.parts {
            self.place(&mut part.frame.place, is_changed);
        }
    }

    fn place(&self, place: &mut Place, is_changed: &Cell<bool>) {
        if let Some(now) = (self.moved)(place) {
            *place = now;
            is_changed.set(true);
        }
    }
}

/// Returns about how many bytes a node takes that was at a place, with its
/// entry in the table.
pub(crate) fn weight(place: &Place) -> u64 {
    u64::try_from(index(place.len)).unwrap_or(0) + 48
}
