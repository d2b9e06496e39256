//! Segments: immutable objects of about 16 MiB that hold frames and describe
//! themselves.
//!
//! ```text
//! header    64   magic "TINTYSEG", version u16, kind u8, level u8, number u32,
//!                session 16, repository 16, key epoch u32, zeroes 12
//! frames         see `frame`
//! table          per frame: kind u8, codec u8, blocks u8, 0 u8, offset u32,
//!                stored u32, raw u32, then its ids: 16 bytes a block for
//!                frames of blocks, 32 bytes for all others
//! trailer   64   magic "TINTYEND", table offset u32, table length u32,
//!                frames u32, total length u32, BLAKE3 32 of the header, the
//!                table and the first 24 bytes of the trailer, zeroes 8
//! ```
//!
//! All integers are little-endian. Anything derived can be rebuilt from
//! segments alone.

use std::ops::Range;

use tintype_types::{BLOCK_SIZE, RepositoryId, SnapshotId};

use crate::frame::{Codec, FrameKind, HEADER_LEN as FRAME_HEADER_LEN, MAX_BLOCKS, MAX_RAW};
use crate::pointer::{BLOCK_ID_LEN, BlockId, NodeId, SegmentName};
use crate::wire::{Fields, Malformed};

/// The size a segment grows to, and the most bytes it can have.
pub(crate) const SEGMENT_SIZE: usize = 16 << 20;
/// The length of a segment's header.
pub(crate) const HEADER_LEN: usize = 64;
/// Where the header says at which level of zstd the frames were tried again; 0 if
/// they were not.
pub(crate) const LEVEL_AT: usize = 11;
/// The length of a segment's trailer.
pub(crate) const TRAILER_LEN: usize = 64;

const VERSION: u16 = 1;
const MAGIC: [u8; 8] = *b"TINTYSEG";
const END_MAGIC: [u8; 8] = *b"TINTYEND";
const ENTRY_LEN: usize = 16;

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum SegmentKind {
    /// Frames of blocks and of blobs.
    Data = 1,
    /// Nodes of image maps and of blobs.
    Meta = 2,
}

/// What the table says of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableEntry {
    pub kind: FrameKind,
    pub codec: Codec,
    /// The frame's first byte in the segment.
    pub offset: u32,
    /// Bytes after the frame's header.
    pub stored: u32,
    /// Bytes when decoded.
    pub raw: u32,
    ids: Range<u32>,
    node: Option<NodeId>,
}

impl TableEntry {
    /// Returns where the frame is in the segment, with its header.
    pub(crate) fn range(&self) -> Range<usize> {
        let start = index(self.offset);
        start..start + FRAME_HEADER_LEN + index(self.stored)
    }
}

/// The table of a segment: what it holds and where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    entries: Vec<TableEntry>,
    blocks: Vec<BlockId>,
}

/// The identity of a frame's content.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Identity<'a> {
    Blocks(&'a [BlockId]),
    Node(FrameKind, NodeId),
}

impl Table {
    /// Adds a frame.
    pub(crate) fn push(
        &mut self,
        codec: Codec,
        offset: u32,
        stored: u32,
        raw: u32,
        id: Identity<'_>,
    ) {
        let start = index32(self.blocks.len());
        let (kind, node) = match id {
            Identity::Blocks(blocks) => {
                self.blocks.extend_from_slice(blocks);
                (FrameKind::Blocks, None)
            }
            Identity::Node(kind, id) => (kind, Some(id)),
        };
        let ids = start..index32(self.blocks.len());
        self.entries.push(TableEntry { kind, codec, offset, stored, raw, ids, node });
    }

    /// Returns what the table says of a frame.
    pub(crate) fn entry(&self, number: u16) -> Option<&TableEntry> {
        self.entries.get(usize::from(number))
    }

    /// Returns the entries in the order of the frames.
    pub(crate) fn entries(&self) -> &[TableEntry] {
        &self.entries
    }

    /// Returns the ids of the blocks of a frame, empty for other frames.
    pub(crate) fn block_ids(&self, entry: &TableEntry) -> &[BlockId] {
        &self.blocks[index(entry.ids.start)..index(entry.ids.end)]
    }

    /// Returns the id of a node or blob chunk, `None` for frames of blocks.
    pub(crate) fn node_id(entry: &TableEntry) -> Option<NodeId> {
        entry.node
    }

    /// Returns the length of the encoded table.
    pub(crate) fn encoded_len(&self) -> usize {
        let nodes = self.entries.iter().filter(|entry| entry.node.is_some()).count();
        self.entries.len() * ENTRY_LEN + self.blocks.len() * BLOCK_ID_LEN + nodes * 32
    }

    /// Returns about how much memory the table takes.
    pub(crate) fn weight(&self) -> usize {
        self.entries.len() * size_of::<TableEntry>() + self.blocks.len() * BLOCK_ID_LEN
    }

    fn encode(&self, out: &mut Vec<u8>) {
        for entry in &self.entries {
            let ids = self.block_ids(entry);
            let count = u8::try_from(ids.len()).expect("a frame has at most 32 blocks");
            out.extend_from_slice(&[entry.kind as u8, entry.codec as u8, count, 0]);
            for field in [entry.offset, entry.stored, entry.raw] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            ids.iter().for_each(|id| out.extend_from_slice(&id.0));
            if let Some(NodeId(id)) = entry.node {
                out.extend_from_slice(&id);
            }
        }
    }

    /// Decodes a table of untrusted bytes that has so many frames, which end there.
    pub(crate) fn decode(bytes: &[u8], frames: u32, end: u32) -> Result<Self, Malformed> {
        if index(frames) > bytes.len() / ENTRY_LEN {
            return Err(Malformed("its table counts too many frames"));
        }
        let mut fields = Fields::new(bytes);
        let mut table = Self::default();
        let mut next = index32(HEADER_LEN);
        for _ in 0..frames {
            let kind = FrameKind::from_byte(fields.u8()?)?;
            let codec = Codec::from_byte(fields.u8()?)?;
            let count = usize::from(fields.u8()?);
            fields.u8()?;
            let (offset, stored, raw) = (fields.u32()?, fields.u32()?, fields.u32()?);
            let total = stored.checked_add(index32(FRAME_HEADER_LEN));
            let Some(after) = total.and_then(|total| offset.checked_add(total)) else {
                return Err(Malformed("its table has an impossible frame"));
            };
            if offset != next || after > end || index(raw) > MAX_RAW {
                return Err(Malformed("its table has an impossible frame"));
            }
            next = after;
            match kind {
                FrameKind::Blocks => {
                    if count == 0 || count > MAX_BLOCKS || index(raw) != count * BLOCK_SIZE {
                        return Err(Malformed("its table has an impossible frame of blocks"));
                    }
                    let mut ids = [BlockId([0; BLOCK_ID_LEN]); MAX_BLOCKS];
                    for id in &mut ids[..count] {
                        *id = BlockId(fields.array()?);
                    }
                    table.push(codec, offset, stored, raw, Identity::Blocks(&ids[..count]));
                }
                FrameKind::Node | FrameKind::Blob => {
                    let id = NodeId(fields.array()?);
                    table.push(codec, offset, stored, raw, Identity::Node(kind, id));
                }
            }
        }
        if next != end {
            return Err(Malformed("its table leaves a gap"));
        }
        fields.end()?;
        Ok(table)
    }
}

/// Returns a new segment's header.
pub(crate) fn header(
    kind: SegmentKind,
    level: u8,
    name: SegmentName,
    repository: RepositoryId,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_LEN);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&[kind as u8, level]);
    out.extend_from_slice(&name.number.to_le_bytes());
    out.extend_from_slice(name.session.as_bytes());
    out.extend_from_slice(repository.as_bytes());
    out.resize(HEADER_LEN, 0);
    out
}

/// Ends a segment: appends the table and the trailer.
pub(crate) fn finish(segment: &mut Vec<u8>, table: &Table) {
    let table_offset = segment.len();
    table.encode(segment);
    let table_len = segment.len() - table_offset;
    let trailer = segment.len();
    segment.extend_from_slice(&END_MAGIC);
    for field in [table_offset, table_len, table.entries.len(), trailer + TRAILER_LEN] {
        segment.extend_from_slice(&index32(field).to_le_bytes());
    }
    let checksum = seal(&segment[..HEADER_LEN], &segment[table_offset..]);
    segment.extend_from_slice(&checksum);
    segment.resize(trailer + TRAILER_LEN, 0);
}

/// The trailer of a segment, checked against the object's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub table_offset: u32,
    pub table_len: u32,
    frames: u32,
    checksum: [u8; 32],
}

impl Trailer {
    /// Reads the last [`TRAILER_LEN`] bytes of a segment of `size` bytes.
    pub(crate) fn decode(bytes: &[u8], size: u64) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        if fields.array()? != END_MAGIC {
            return Err(Malformed("it has no trailer"));
        }
        let trailer = Self {
            table_offset: fields.u32()?,
            table_len: fields.u32()?,
            frames: fields.u32()?,
            checksum: {
                if u64::from(fields.u32()?) != size {
                    return Err(Malformed("it has the wrong size"));
                }
                fields.array()?
            },
        };
        if fields.array()? != [0; 8] {
            return Err(Malformed("its trailer has unknown fields"));
        }
        fields.end()?;
        let table_end = u64::from(trailer.table_offset) + u64::from(trailer.table_len);
        if index(trailer.table_offset) < HEADER_LEN
            || table_end + u64::try_from(TRAILER_LEN).unwrap_or(0) != size
            || size > u64::from(index32(SEGMENT_SIZE))
        {
            return Err(Malformed("its trailer points to an impossible table"));
        }
        Ok(trailer)
    }

    /// Checks header, table and trailer together and decodes the table.
    /// `end` is the table with the trailer after it.
    pub(crate) fn table(
        &self,
        header_bytes: &[u8],
        end: &[u8],
        name: SegmentName,
        repository: RepositoryId,
    ) -> Result<Table, Malformed> {
        let table = end.get(..index(self.table_len)).ok_or(Malformed("it ends early"))?;
        let sealed = end.get(..table.len() + 24).ok_or(Malformed("it ends early"))?;
        if seal(header_bytes, sealed) != self.checksum {
            return Err(Malformed("the checksum of its table does not match"));
        }
        check_header(header_bytes, name, repository)?;
        Table::decode(table, self.frames, self.table_offset)
    }
}

fn check_header(
    bytes: &[u8],
    name: SegmentName,
    repository: RepositoryId,
) -> Result<(), Malformed> {
    let mut fields = Fields::new(bytes);
    if fields.array()? != MAGIC {
        return Err(Malformed("it has no header"));
    }
    if fields.u16()? != VERSION {
        return Err(Malformed("it has a version that this program does not know"));
    }
    fields.u16()?;
    let number = fields.u32()?;
    let session = SnapshotId::from_bytes(fields.array()?);
    let repository_there = RepositoryId::from_bytes(fields.array()?);
    if (number, session, repository_there) != (name.number, name.session, repository) {
        return Err(Malformed("it is another segment"));
    }
    Ok(())
}

fn seal(header: &[u8], table_and_trailer: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(header).update(table_and_trailer).finalize().as_bytes()
}

/// A 32-bit field as an index: this program runs on 64-bit machines only.
pub(crate) fn index(field: u32) -> usize {
    usize::try_from(field).expect("a usize has at least 32 bits")
}

/// A length within a segment as a 32-bit field.
pub(crate) fn index32(len: usize) -> u32 {
    u32::try_from(len).expect("a segment has at most 16 MiB")
}
