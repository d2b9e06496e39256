//! What snapshots reach: every frame that their images and blobs need.

use std::collections::HashSet;

use crate::Error;
use crate::blob;
use crate::epoch::Segments;
use crate::node::{Entry, Node};
use crate::pointer::{NodePointer, Place};
use crate::record::SnapshotRecord;
use crate::run::Change;
use crate::tree::{ImageRoot, Tree, misplaced};
use crate::vault::Vault;

/// What is at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Node,
    Chunk,
    /// A frame of so many blocks.
    Blocks(u8),
}

/// Walks maps; each node once, however many images share it.
pub(crate) struct Reach<'a, F> {
    vault: &'a Vault,
    seen: HashSet<NodePointer>,
    /// Is told the place of each node, chunk and frame of blocks; of the last
    /// two as often as they are needed.
    visit: F,
}

impl<'a, F: FnMut(&Place, Target)> Reach<'a, F> {
    pub(crate) fn new(vault: &'a Vault, visit: F) -> Self {
        Self { vault, seen: HashSet::new(), visit }
    }

    pub(crate) fn snapshot(&mut self, record: &SnapshotRecord) -> Result<(), Error> {
        for image in &record.images {
            self.image(&image.root)?;
        }
        for (_, blob) in &record.blobs {
            if self.seen.insert(blob.list) {
                (self.visit)(&blob.list.place, Target::Node);
                for chunk in blob::chunks(self.vault, blob)? {
                    (self.visit)(&chunk.place, Target::Chunk);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn image(&mut self, root: &ImageRoot) -> Result<(), Error> {
        if let Some(base) = &root.base {
            self.node(base, Tree::Base, root.height)?;
        }
        root.runs.iter().try_for_each(|run| self.node(&run.root, Tree::Run, run.height))
    }

    fn node(&mut self, pointer: &NodePointer, tree: Tree, level: u8) -> Result<(), Error> {
        if !self.seen.insert(*pointer) {
            return Ok(());
        }
        (self.visit)(&pointer.place, Target::Node);
        match (tree, &*self.vault.node(pointer)?) {
            (Tree::Base, Node::Inner(inner)) if level > 0 && inner.level == level => {
                let mut children = inner.children.iter().flatten();
                children.try_for_each(|child| self.node(child, tree, level - 1))
            }
            (Tree::Run, Node::RunInner(inner)) if level > 0 && inner.level == level => {
                inner.children.iter().try_for_each(|(_, child)| self.node(child, tree, level - 1))
            }
            (Tree::Base, Node::Leaf(leaf)) if level == 0 => {
                self.entries(leaf.regions.iter());
                Ok(())
            }
            (Tree::Run, Node::RunLeaf(leaf)) if level == 0 => {
                for (_, change) in &leaf.changes {
                    match change {
                        Change::Whole(Some(leaf)) => self.node(leaf, Tree::Base, 0)?,
                        Change::Whole(None) => {}
                        Change::Regions(regions) => {
                            self.entries(regions.iter().map(|(_, entry)| entry));
                        }
                    }
                }
                Ok(())
            }
            _ => Err(misplaced(pointer)),
        }
    }

    fn entries<'e>(&mut self, entries: impl Iterator<Item = &'e Entry>) {
        for part in entries.flat_map(|entry| &entry.parts) {
            (self.visit)(&part.frame.place, Target::Blocks(part.frame.blocks));
        }
    }
}

/// Returns the segments that some snapshots need.
pub(crate) fn segments<'r>(
    vault: &Vault,
    records: impl IntoIterator<Item = &'r SnapshotRecord>,
) -> Result<Segments, Error> {
    let mut segments = Segments::new();
    let mut reach = Reach::new(vault, |place: &Place, _| _ = segments.insert(place.segment));
    records.into_iter().try_for_each(|record| reach.snapshot(record))?;
    Ok(segments)
}

/// Adds the segments that a snapshot needs, as far as its maps can be read.
pub(crate) fn segments_so_far(
    vault: &Vault,
    record: &SnapshotRecord,
    segments: &mut Segments,
) -> Result<(), Error> {
    Reach::new(vault, |place: &Place, _| _ = segments.insert(place.segment)).snapshot(record)
}
