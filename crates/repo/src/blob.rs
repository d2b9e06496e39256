//! Byte strings in chunks: a list node, and the chunks it names.
//!
//! ```text
//! list   kind u8 (4), 0 u8, length u64, then per chunk: segment name 20,
//!        number u16, offset u32, length u32, id 32
//! ```

use crate::Error;
use crate::frame::FrameKind;
use crate::pointer::{NodeId, NodePointer, Place, SegmentName};
use crate::record::BlobId;
use crate::session::Core;
use crate::vault::Vault;
use crate::wire::{Fields, Malformed};

/// Bytes of a chunk; the last may have fewer.
const CHUNK: usize = 256 << 10;
const CHUNK_LEN: u64 = CHUNK as u64;
/// The longest blob: its list has to fit into a frame.
const MAX_BLOB: usize = 2 << 30;
const LIST: u8 = 4;
const POINTER_LEN: usize = 62;

/// Stores a blob in a session.
pub(crate) fn store(core: &Core, bytes: &[u8]) -> Result<BlobId, Error> {
    if bytes.len() > MAX_BLOB {
        return Err(Error::Invalid(format!("a blob cannot have {} bytes", bytes.len())));
    }
    let len = u64::try_from(bytes.len()).expect("a usize fits in 64 bits");
    let chunks: Vec<_> = bytes
        .chunks(CHUNK)
        .map(|chunk| {
            let id = core.vault.keys.node_id(FrameKind::Blob as u8, chunk);
            core.put_bytes(FrameKind::Blob, id, chunk)
        })
        .collect();
    Ok(BlobId { len, list: core.put_node(&encode_list(len, &chunks)) })
}

/// Writes the list of a blob's chunks.
pub(crate) fn encode_list(len: u64, chunks: &[NodePointer]) -> Vec<u8> {
    let mut list = vec![LIST, 0];
    list.extend_from_slice(&len.to_le_bytes());
    for NodePointer { place, id } in chunks {
        place.segment.encode(&mut list);
        list.extend_from_slice(&place.number.to_le_bytes());
        list.extend_from_slice(&place.offset.to_le_bytes());
        list.extend_from_slice(&place.len.to_le_bytes());
        list.extend_from_slice(&id.0);
    }
    list
}

/// Returns the bytes of one chunk of a blob; empty if it has none there.
pub(crate) fn chunk(blob: &[u8], number: usize) -> &[u8] {
    blob.chunks(CHUNK).nth(number).unwrap_or_default()
}

/// Returns a blob's bytes.
pub(crate) fn read(vault: &Vault, blob: &BlobId) -> Result<Vec<u8>, Error> {
    let chunks = chunks(vault, blob)?;
    let mut bytes = Vec::new();
    for chunk in chunks {
        let chunk = vault.bytes(&chunk, FrameKind::Blob)?;
        let rest = blob.len.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        if u64::try_from(chunk.len()) != Ok(rest.min(CHUNK_LEN)) {
            return Err(damaged(blob, "its chunks have the wrong length"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Returns the pointers to a blob's chunks, in order.
pub(crate) fn chunks(vault: &Vault, blob: &BlobId) -> Result<Vec<NodePointer>, Error> {
    let list = vault.bytes(&blob.list, FrameKind::Node)?;
    decode_list(&list, blob.len).map_err(|Malformed(reason)| damaged(blob, reason))
}

fn decode_list(list: &[u8], len: u64) -> Result<Vec<NodePointer>, Malformed> {
    let mut fields = Fields::new(list);
    if fields.array()? != [LIST, 0] || fields.u64()? != len {
        return Err(Malformed("it is not the list of this blob"));
    }
    let mut chunks = Vec::with_capacity(list.len() / POINTER_LEN);
    while !fields.is_empty() {
        let place = Place {
            segment: SegmentName::decode(&mut fields)?,
            number: fields.u16()?,
            offset: fields.u32()?,
            len: fields.u32()?,
        };
        chunks.push(NodePointer { place, id: NodeId(fields.array()?) });
    }
    let expected = usize::try_from(len).unwrap_or(usize::MAX).div_ceil(CHUNK);
    if chunks.len() != expected {
        return Err(Malformed("it lists the wrong number of chunks"));
    }
    Ok(chunks)
}

fn damaged(blob: &BlobId, reason: &str) -> Error {
    let place = &blob.list.place;
    Error::damaged(place.segment.key(), Some(u64::from(place.offset)), reason)
}
