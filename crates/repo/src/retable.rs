//! Makes what describes a segment anew from its frames: each says what it is, and
//! where the next one begins.
//!
//! What is made is what was there, byte for byte, or it is not used: either the
//! trailer has its checksum, or all but the trailer is as it is made.

use crate::frame::{self, FrameHeader, FrameKind, HEADER_LEN as FRAME_HEADER_LEN, MAX_BLOCKS};
use crate::pointer::SegmentName;
use crate::segment::{self, HEADER_LEN, Identity, SegmentKind, TRAILER_LEN, Table, index, index32};
use crate::vault::Vault;

/// Returns a segment whose header, table or trailer is damaged as it was; `None` if that
/// cannot be proved, or if a frame is damaged too.
pub(crate) fn retable(vault: &Vault, name: SegmentName, bytes: &[u8]) -> Option<Vec<u8>> {
    let (table, end) = table_of_frames(vault, name, bytes)?;
    headers(vault, name).find_map(|header| {
        let mut made = [&header[..], bytes.get(HEADER_LEN..end)?].concat();
        segment::finish(&mut made, &table);
        let (all, trailer) = made.split_last_chunk::<TRAILER_LEN>()?;
        let is_proved =
            made.len() == bytes.len() && (bytes.ends_with(trailer) || bytes.starts_with(all));
        is_proved.then_some(made)
    })
}

/// Reads frame after frame; returns what they are, and where the last one ends.
fn table_of_frames(vault: &Vault, name: SegmentName, bytes: &[u8]) -> Option<(Table, usize)> {
    let mut table = Table::default();
    let mut at = HEADER_LEN;
    while let Some(mut frame) = frame::first(bytes.get(at..)?).map(<[u8]>::to_vec) {
        let FrameHeader { kind, codec, number, stored, raw, .. } =
            FrameHeader::decode(&frame).ok()?;
        if usize::from(number) != table.entries().len() {
            return None;
        }
        let content = vault.decode_frame(name, &mut frame, number, kind).ok()?;
        let ids;
        let id = match kind {
            FrameKind::Blocks => {
                ids = vault.keys.ids_of(&content);
                Identity::Blocks(&ids)
            }
            FrameKind::Node | FrameKind::Blob => {
                Identity::Node(kind, vault.keys.node_id(kind as u8, &content))
            }
        };
        if matches!(id, Identity::Blocks(ids) if !(1..=MAX_BLOCKS).contains(&ids.len())) {
            return None;
        }
        table.push(codec, index32(at), stored, raw, id);
        at += FRAME_HEADER_LEN + index(stored);
    }
    Some((table, at))
}

/// Returns what the header of a segment can be.
fn headers(vault: &Vault, name: SegmentName) -> impl Iterator<Item = Vec<u8>> {
    let kinds = [SegmentKind::Data, SegmentKind::Meta].into_iter();
    kinds.flat_map(move |kind| {
        [0, frame::STRONG_LEVEL].map(|level| segment::header(kind, level, name, vault.id))
    })
}
