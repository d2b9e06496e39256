//! Runs: what a snapshot changed of its parent's map, as a sorted table, so
//! that scattered changes cost what changed and not a whole leaf each.
//!
//! ```text
//! run leaf   (kind 3, level 0)  items, ascending by leaf: leaf u64, tag u8;
//!            tag 0: the leaf is zero
//!            tag 1: then a pointer: the leaf is this node
//!            tag 2: then count u8 (count + 1 regions), then region items as
//!                   in leaves, where no parts means a region of zeroes
//! run inner  (kind 5)  items, ascending: first leaf u64, pointer
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::node::{
    Entry, FAN_OUT, Leaf, MAX_LEVEL, Node, Part, RUN_INNER, RUN_LEAF, Segments, decode_entry,
    decode_pointer,
};
use crate::pointer::{NodePointer, SegmentName};
use crate::vault::Vault;
use crate::wire::{Fields, Malformed};

/// About how many bytes of items a run leaf gets.
const LEAF_BYTES: usize = 24 << 10;

/// A run of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Run {
    /// The level of the node that `root` points to.
    pub height: u8,
    pub root: NodePointer,
    /// How many leaves it changes.
    pub leaves: u64,
}

/// What a run says of one leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is this node now; `None` is zero.
    Whole(Option<NodePointer>),
    /// Some of its regions are different.
    Regions(Vec<(u8, Entry)>),
}

/// Changes of leaves in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunLeaf {
    pub changes: Vec<(u64, Change)>,
}

/// Nodes of the level below, each with its first leaf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunInner {
    pub level: u8,
    pub children: Vec<(u64, NodePointer)>,
}

impl RunLeaf {
    pub(crate) fn weight(&self) -> usize {
        let parts = |entry: &Entry| size_of::<Entry>() + entry.parts.len() * size_of::<Part>();
        self.changes
            .iter()
            .map(|(_, change)| match change {
                Change::Whole(_) => 0,
                Change::Regions(regions) => regions.iter().map(|(_, entry)| parts(entry)).sum(),
            })
            .map(|heap: usize| heap + size_of::<(u64, Change)>())
            .sum()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut segments = Segments::default();
        let mut items = Vec::new();
        for (leaf, change) in &self.changes {
            encode_change(*leaf, change, &mut segments, &mut items);
        }
        segments.finish(RUN_LEAF, 0, &items)
    }

    pub(crate) fn decode(
        mut fields: Fields<'_>,
        segments: &[SegmentName],
    ) -> Result<Self, Malformed> {
        let mut changes: Vec<(u64, Change)> = Vec::new();
        while !fields.is_empty() {
            let leaf = fields.u64()?;
            if changes.last().is_some_and(|(last, _)| *last >= leaf) {
                return Err(Malformed("a run is not in order"));
            }
            let change = match fields.u8()? {
                0 => Change::Whole(None),
                1 => Change::Whole(Some(decode_pointer(&mut fields, segments)?)),
                2 => {
                    let count = usize::from(fields.u8()?) + 1;
                    let regions = (0..count)
                        .map(|_| decode_entry(&mut fields, segments))
                        .collect::<Result<Vec<_>, _>>()?;
                    Change::Regions(regions)
                }
                _ => return Err(Malformed("a run has an unknown change")),
            };
            changes.push((leaf, change));
        }
        Ok(Self { changes })
    }
}

impl RunInner {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode_inner(self.level, &self.children)
    }

    pub(crate) fn decode(
        mut fields: Fields<'_>,
        segments: &[SegmentName],
        level: u8,
    ) -> Result<Self, Malformed> {
        let mut children: Vec<(u64, NodePointer)> = Vec::new();
        while !fields.is_empty() {
            let first = fields.u64()?;
            if children.last().is_some_and(|(last, _)| *last >= first) {
                return Err(Malformed("a run is not in order"));
            }
            children.push((first, decode_pointer(&mut fields, segments)?));
        }
        Ok(Self { level, children })
    }
}

/// Writes a run of at least one change; `put` stores a node.
pub(crate) fn write(changes: &BTreeMap<u64, Change>, put: &dyn Fn(&[u8]) -> NodePointer) -> Run {
    let mut nodes = Vec::new();
    let mut segments = Segments::default();
    let mut items = Vec::new();
    let mut first = None;
    for (leaf, change) in changes {
        first.get_or_insert(*leaf);
        encode_change(*leaf, change, &mut segments, &mut items);
        if items.len() >= LEAF_BYTES {
            let bytes = std::mem::take(&mut segments).finish(RUN_LEAF, 0, &items);
            nodes.push((first.take().expect("an item was added"), put(&bytes)));
            items.clear();
        }
    }
    if let Some(first) = first {
        nodes.push((first, put(&segments.finish(RUN_LEAF, 0, &items))));
    }
    let mut height = 0;
    while nodes.len() > 1 {
        height += 1;
        nodes = nodes
            .chunks(FAN_OUT)
            .map(|nodes| (nodes[0].0, put(&encode_inner(height, nodes))))
            .collect();
    }
    let leaves = u64::try_from(changes.len()).expect("a usize fits in 64 bits");
    Run { height, root: nodes[0].1, leaves }
}

fn encode_change(leaf: u64, change: &Change, segments: &mut Segments, items: &mut Vec<u8>) {
    items.extend_from_slice(&leaf.to_le_bytes());
    match change {
        Change::Whole(None) => items.push(0),
        Change::Whole(Some(pointer)) => {
            items.push(1);
            segments.encode_pointer(pointer, items);
        }
        Change::Regions(regions) => {
            let count = u8::try_from(regions.len() - 1).expect("a leaf has 256 regions");
            items.extend_from_slice(&[2, count]);
            for (region, entry) in regions {
                segments.encode_entry(*region, entry, items);
            }
        }
    }
}

fn encode_inner(level: u8, nodes: &[(u64, NodePointer)]) -> Vec<u8> {
    let mut segments = Segments::default();
    let mut items = Vec::new();
    for (first, pointer) in nodes {
        items.extend_from_slice(&first.to_le_bytes());
        segments.encode_pointer(pointer, &mut items);
    }
    segments.finish(RUN_INNER, level, &items)
}

impl Vault {
    /// Returns what a run says of the leaves in `from..to`, in order.
    pub(crate) fn changes(
        &self,
        run: &Run,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, Change)>, Error> {
        let mut found = Vec::new();
        if run.height <= MAX_LEVEL {
            self.collect_changes(&run.root, run.height, (from, to), &mut found)?;
        }
        Ok(found)
    }

    fn collect_changes(
        &self,
        pointer: &NodePointer,
        level: u8,
        (from, to): (u64, u64),
        found: &mut Vec<(u64, Change)>,
    ) -> Result<(), Error> {
        match &*self.node(pointer)? {
            Node::RunLeaf(leaf) if level == 0 => {
                let first = leaf.changes.partition_point(|(leaf, _)| *leaf < from);
                let inside = leaf.changes[first..].iter().take_while(|(leaf, _)| *leaf < to);
                found.extend(inside.cloned());
                Ok(())
            }
            Node::RunInner(inner) if level > 0 && inner.level == level => {
                // The last child that starts at or before `from` may reach it.
                let after = inner.children.partition_point(|(first, _)| *first <= from);
                for (first, child) in &inner.children[after.saturating_sub(1)..] {
                    if *first >= to {
                        break;
                    }
                    self.collect_changes(child, level - 1, (from, to), found)?;
                }
                Ok(())
            }
            _ => Err(crate::tree::misplaced(pointer)),
        }
    }
}

/// Applies a change to a leaf; a `Whole` change has to be read by the caller.
pub(crate) fn apply(leaf: &mut Arc<Leaf>, regions: &[(u8, Entry)]) {
    let leaf = Arc::make_mut(leaf);
    for (region, entry) in regions {
        leaf.regions[usize::from(*region)] = entry.clone();
    }
}
