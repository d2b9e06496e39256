//! Nodes of image maps: leaves say where each block is, inner nodes where the
//! leaves are.
//!
//! ```text
//! node    kind u8 (1 leaf, 2 inner), level u8, segments u16, then the names
//!         of the segments (20 each), then the items, in order of their index
//! leaf    region u8, parts u8, then per part: used u16, mask u16, first u8,
//!         blocks u8, segment u16, number u16, offset u32, length u32, id 20
//! inner   child u8, then segment u16, number u16, offset u32, length u32, id 32
//! ```
//!
//! Nodes of runs share this frame and are in `run`.
//!
//! A node covers 256 items: a leaf 256 regions of 64 KiB, an inner node 256
//! nodes of the level below. What has no item is zero. The same content always
//! has the same bytes, so equal ids mean equal content and the reverse.

use std::collections::HashMap;
use std::sync::Arc;

use crate::frame::MAX_BLOCKS;
use crate::pointer::{FrameId, FramePointer, NodeId, NodePointer, Place, SegmentName};
use crate::run::{RunInner, RunLeaf};
use crate::wire::{Fields, Malformed};

/// Items of a node.
pub(crate) const FAN_OUT: usize = 256;
/// Blocks of a region.
pub(crate) const REGION_BLOCKS: usize = 16;
/// The highest level of an inner node: four levels cover 2^56 bytes and more.
pub(crate) const MAX_LEVEL: u8 = 5;

/// Some blocks of one region, all in one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub frame: FramePointer,
    /// The slot in the frame of the first block of `mask`.
    pub first: u8,
    /// Which blocks of the region the frame holds, from slot `first` on.
    pub mask: u16,
    /// Which of them are the region's content now.
    pub used: u16,
}

impl Part {
    /// Returns the slot of a block that `mask` has.
    pub(crate) fn slot(&self, block: usize) -> usize {
        let before = self.mask & ((1_u16 << block) - 1);
        usize::from(self.first) + usize_from(before.count_ones())
    }
}

/// Where the blocks of one region are; a block in no part is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub parts: Vec<Part>,
}

impl Entry {
    /// Returns the part that holds a block, `None` for a zero block.
    pub(crate) fn part(&self, block: usize) -> Option<&Part> {
        self.parts.iter().find(|part| part.used & (1 << block) != 0)
    }

    /// Returns which blocks are not zero.
    pub(crate) fn used(&self) -> u16 {
        self.parts.iter().fold(0, |used, part| used | part.used)
    }
}

/// The map of 16 MiB of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Always [`FAN_OUT`] entries.
    pub regions: Vec<Entry>,
}

impl Default for Leaf {
    fn default() -> Self {
        Self { regions: vec![Entry::default(); FAN_OUT] }
    }
}

/// A node above the leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inner {
    pub level: u8,
    /// Always [`FAN_OUT`] children.
    pub children: Vec<Option<NodePointer>>,
}

/// A decoded node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Leaf(Arc<Leaf>),
    Inner(Arc<Inner>),
    RunLeaf(Arc<RunLeaf>),
    RunInner(Arc<RunInner>),
}

const LEAF: u8 = 1;
const INNER: u8 = 2;
pub(crate) const RUN_LEAF: u8 = 3;
pub(crate) const RUN_INNER: u8 = 5;

impl Leaf {
    pub(crate) fn is_zero(&self) -> bool {
        self.regions.iter().all(|entry| entry.parts.is_empty())
    }

    /// Returns about how much memory the leaf takes.
    pub(crate) fn weight(&self) -> usize {
        self.regions
            .iter()
            .map(|entry| size_of::<Entry>() + entry.parts.len() * size_of::<Part>())
            .sum()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut segments = Segments::default();
        let mut items = Vec::new();
        for (region, entry) in (0_u8..=u8::MAX).zip(&self.regions) {
            if entry.parts.is_empty() {
                continue;
            }
            segments.encode_entry(region, entry, &mut items);
        }
        segments.finish(LEAF, 0, &items)
    }
}

impl Inner {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut segments = Segments::default();
        let mut items = Vec::new();
        for (child, pointer) in (0_u8..=u8::MAX).zip(&self.children) {
            if let Some(pointer) = pointer {
                items.push(child);
                segments.encode_pointer(pointer, &mut items);
            }
        }
        segments.finish(INNER, self.level, &items)
    }
}

impl Node {
    /// Decodes a node of untrusted bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        let (kind, level) = (fields.u8()?, fields.u8()?);
        let count = fields.u16()?;
        let segments =
            (0..count).map(|_| SegmentName::decode(&mut fields)).collect::<Result<Vec<_>, _>>()?;
        match (kind, level) {
            (LEAF, 0) => decode_leaf(fields, &segments).map(|leaf| Node::Leaf(Arc::new(leaf))),
            (INNER, 1..=MAX_LEVEL) => {
                let children = decode_inner(fields, &segments)?;
                Ok(Node::Inner(Arc::new(Inner { level, children })))
            }
            (RUN_LEAF, 0) => {
                RunLeaf::decode(fields, &segments).map(|leaf| Node::RunLeaf(Arc::new(leaf)))
            }
            (RUN_INNER, 1..=MAX_LEVEL) => RunInner::decode(fields, &segments, level)
                .map(|inner| Node::RunInner(Arc::new(inner))),
            _ => Err(Malformed("a node has an unknown kind or level")),
        }
    }

    /// Returns about how much memory the node takes.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Node::Leaf(leaf) => leaf.weight(),
            Node::Inner(inner) => inner.children.len() * size_of::<Option<NodePointer>>(),
            Node::RunLeaf(leaf) => leaf.weight(),
            Node::RunInner(inner) => inner.children.len() * size_of::<(u64, NodePointer)>(),
        }
    }
}

fn decode_leaf(mut fields: Fields<'_>, segments: &[SegmentName]) -> Result<Leaf, Malformed> {
    let mut leaf = Leaf::default();
    let mut next = 0;
    while !fields.is_empty() {
        let (region, entry) = decode_entry(&mut fields, segments)?;
        let region = usize::from(region);
        if region < next || entry.parts.is_empty() {
            return Err(Malformed("a leaf has impossible regions"));
        }
        next = region + 1;
        leaf.regions[region] = entry;
    }
    Ok(leaf)
}

/// Reads a region's number and its entry.
pub(crate) fn decode_entry(
    fields: &mut Fields<'_>,
    segments: &[SegmentName],
) -> Result<(u8, Entry), Malformed> {
    let region = fields.u8()?;
    let parts = usize::from(fields.u8()?);
    if parts > REGION_BLOCKS {
        return Err(Malformed("a region has too many parts"));
    }
    let mut entry = Entry::default();
    for _ in 0..parts {
        let part = decode_part(fields, segments)?;
        if part.used & entry.used() != 0 {
            return Err(Malformed("a region holds a block twice"));
        }
        entry.parts.push(part);
    }
    Ok((region, entry))
}

fn decode_part(fields: &mut Fields<'_>, segments: &[SegmentName]) -> Result<Part, Malformed> {
    let (used, mask) = (fields.u16()?, fields.u16()?);
    let (first, blocks) = (fields.u8()?, fields.u8()?);
    let place = decode_place(fields, segments)?;
    let id = FrameId(fields.array()?);
    let slots = usize::from(first) + usize_from(mask.count_ones());
    if used == 0
        || used & !mask != 0
        || slots > usize::from(blocks)
        || usize::from(blocks) > MAX_BLOCKS
    {
        return Err(Malformed("a leaf has an impossible part"));
    }
    Ok(Part { frame: FramePointer { place, blocks, id }, first, mask, used })
}

fn decode_inner(
    mut fields: Fields<'_>,
    segments: &[SegmentName],
) -> Result<Vec<Option<NodePointer>>, Malformed> {
    let mut children = vec![None; FAN_OUT];
    let mut next = 0;
    while !fields.is_empty() {
        let child = usize::from(fields.u8()?);
        if child < next {
            return Err(Malformed("a node has impossible children"));
        }
        next = child + 1;
        children[child] = Some(decode_pointer(&mut fields, segments)?);
    }
    Ok(children)
}

/// Reads a pointer to a node.
pub(crate) fn decode_pointer(
    fields: &mut Fields<'_>,
    segments: &[SegmentName],
) -> Result<NodePointer, Malformed> {
    let place = decode_place(fields, segments)?;
    Ok(NodePointer { place, id: NodeId(fields.array()?) })
}

fn decode_place(fields: &mut Fields<'_>, segments: &[SegmentName]) -> Result<Place, Malformed> {
    let segment = segments
        .get(usize::from(fields.u16()?))
        .ok_or(Malformed("a node names a segment that it does not list"))?;
    Ok(Place {
        segment: *segment,
        number: fields.u16()?,
        offset: fields.u32()?,
        len: fields.u32()?,
    })
}

/// The table of the segments that a node names, in order of first use.
#[derive(Default)]
pub(crate) struct Segments {
    names: Vec<SegmentName>,
    indexes: HashMap<SegmentName, u16>,
}

impl Segments {
    fn encode_place(&mut self, place: &Place, out: &mut Vec<u8>) {
        let next = u16::try_from(self.names.len()).expect("a node has at most 4096 pointers");
        let index = *self.indexes.entry(place.segment).or_insert_with(|| {
            self.names.push(place.segment);
            next
        });
        out.extend_from_slice(&index.to_le_bytes());
        out.extend_from_slice(&place.number.to_le_bytes());
        out.extend_from_slice(&place.offset.to_le_bytes());
        out.extend_from_slice(&place.len.to_le_bytes());
    }

    pub(crate) fn encode_entry(&mut self, region: u8, entry: &Entry, out: &mut Vec<u8>) {
        let parts = u8::try_from(entry.parts.len()).expect("a region has at most 16 parts");
        out.extend_from_slice(&[region, parts]);
        for part in &entry.parts {
            out.extend_from_slice(&part.used.to_le_bytes());
            out.extend_from_slice(&part.mask.to_le_bytes());
            out.extend_from_slice(&[part.first, part.frame.blocks]);
            self.encode_place(&part.frame.place, out);
            out.extend_from_slice(&part.frame.id.0);
        }
    }

    pub(crate) fn encode_pointer(&mut self, pointer: &NodePointer, out: &mut Vec<u8>) {
        self.encode_place(&pointer.place, out);
        out.extend_from_slice(&pointer.id.0);
    }

    pub(crate) fn finish(&self, kind: u8, level: u8, items: &[u8]) -> Vec<u8> {
        let count = u16::try_from(self.names.len()).expect("a node has at most 4096 pointers");
        let mut out = vec![kind, level];
        out.extend_from_slice(&count.to_le_bytes());
        self.names.iter().for_each(|name| name.encode(&mut out));
        out.extend_from_slice(items);
        out
    }
}

/// A count of bits as a count of blocks.
pub(crate) fn usize_from(bits: u32) -> usize {
    usize::try_from(bits).expect("a usize has at least 32 bits")
}
