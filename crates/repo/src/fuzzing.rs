//! The decoders, for the fuzz targets in `fuzz/`: what a repository's bytes meet
//! when their checksums and tags are right, which chance does not find.
#![expect(missing_docs, reason = "for one caller, and only when it is fuzzed")]

use std::path::Path;

use crate::frame::{self, Codec, FrameHeader};
use crate::location::Location;
use crate::node::Node;
use crate::pointer::SegmentName;
use crate::record::{SnapshotRecord, decode_moved};
use crate::segment::{Table, Trailer};
use crate::slots::StoredSlot;
use crate::{epoch, gone, index, journal, label, listing, quarantine, repository};

pub fn node(bytes: &[u8]) {
    let Ok(node) = Node::decode(bytes) else { return };
    // A node is held in memory, with room for all children that it can have.
    assert!(node.weight() <= 64 * bytes.len() + (1 << 16), "{} bytes", node.weight());
    let again = match &node {
        Node::Leaf(leaf) => leaf.encode(),
        Node::Inner(inner) => inner.encode(),
        Node::RunLeaf(_) | Node::RunInner(_) => return,
    };
    assert!(Node::decode(&again).is_ok_and(|decoded| decoded == node));
}

pub fn segment(bytes: &[u8]) {
    let size = u64::try_from(bytes.len()).expect("a usize fits in 64 bits");
    let _ = Trailer::decode(bytes, size);
    let Some((frames, rest)) = bytes.split_first_chunk() else { return };
    let Some((end, table)) = rest.split_first_chunk() else { return };
    let (frames, end) = (u32::from_le_bytes(*frames), u32::from_le_bytes(*end));
    let Ok(decoded) = Table::decode(table, frames, end) else { return };
    assert_eq!(decoded.encoded_len(), table.len());
    for entry in decoded.entries() {
        assert!(entry.range().end <= usize::try_from(end).expect("it has 64 bits"));
    }
}

pub fn frame(bytes: &[u8]) {
    let _ = FrameHeader::decode(bytes).map(|header| header.check(bytes));
    let Some((codec, rest)) = bytes.split_first() else { return };
    let Some((raw, stored)) = rest.split_first_chunk() else { return };
    let (Ok(codec), raw) = (Codec::from_byte(*codec), u32::from_le_bytes(*raw)) else { return };
    if let Ok(decoded) = frame::decode(codec, stored, raw) {
        assert_eq!(u32::try_from(decoded.len()), Ok(raw));
    }
}

pub fn record(bytes: &[u8]) {
    if let Ok(moved) = decode_moved(bytes) {
        let text = serde_json::to_vec(&moved).expect("it was read from such text");
        assert_eq!(decode_moved(&text).ok(), Some(moved));
    }
    let Ok(record) = serde_json::from_slice::<SnapshotRecord>(bytes) else { return };
    for image in &record.images {
        let _ = image.root.is_possible();
    }
    let text = serde_json::to_vec(&record).expect("it was read from such text");
    assert_eq!(serde_json::from_slice::<SnapshotRecord>(&text).ok(), Some(record));
}

pub fn settings(bytes: &[u8]) {
    let _ = repository::parse_config(bytes);
    if let Ok(slot) = serde_json::from_slice::<StoredSlot>(bytes) {
        let text = serde_json::to_vec(&slot).expect("it was read from such text");
        assert!(serde_json::from_slice::<StoredSlot>(&text).is_ok());
    }
}

pub fn hooks(bytes: &[u8]) {
    let checksum = blake3::hash(bytes);
    let _ = index::decode(&[bytes, checksum.as_bytes()].concat());
}

pub fn names(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(name) = SegmentName::from_key(text) {
        assert_eq!(name.key(), text);
    }
    let _ = (listing::session_of(text), Location::parse(Path::new(text)));
    let _ = (epoch::parse(text), gone::parse(text), quarantine::segment(text));
    let _ = (label::parse(text), journal::parse(text));
}
