//! Joining: finds stored blocks with the content of a block that is about to
//! be stored, wherever they are.
//!
//! Most of a guest's memory is often its page cache, and those pages are blocks
//! of its disks; and disks of one template have most blocks in common. A
//! session remembers where the blocks of its own frames are. Of what earlier
//! sessions stored, hooks lead to the segments that are worth a look.
//!
//! It is advisory: a miss costs space. A hit counts only after the ids of the
//! frame, which its own id proves, say the same, and for a frame of an earlier
//! session after it was read and is good.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use tintype_types::SnapshotId;

use crate::Error;
use crate::cache::Cache;
use crate::epoch::Segments;
use crate::frame::{FrameKind, HEADER_LEN};
use crate::pointer::{BlockId, FramePointer, Place, SegmentName};
use crate::segment::{Table, index, index32};
use crate::vault::Vault;

/// Blocks whose places are remembered: those of 16 GiB. A power of two.
const BLOCKS: usize = 4 << 20;
/// Places where a block may be remembered, so that few push each other out.
const WAYS: usize = 4;
/// Frames whose places are remembered. Their numbers have 24 bits.
const FRAMES: usize = 256 << 10;
/// Frames of earlier sessions that are known to be good or bad, in bytes.
const PROVED: usize = 8 << 20;

/// A stored block with the content that was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Twin {
    pub frame: FramePointer,
    /// Which block of the frame.
    pub slot: u8,
}

/// What one session can join with.
#[derive(Debug)]
pub(crate) struct Joins {
    session: SnapshotId,
    /// What was stored when the session began and may be referred to.
    usable: Segments,
    memory: Mutex<Memory>,
    followed: Mutex<HashSet<SegmentName>>,
    proved: Cache<FramePointer, bool>,
}

impl Joins {
    /// Prepares a session. Its slot must have been put.
    pub(crate) fn begin(
        vault: &Vault,
        session: SnapshotId,
        forbidden: &Segments,
    ) -> Result<Self, Error> {
        vault.index.refresh(vault)?;
        let listed = vault.store.list("seg/")?;
        let usable = listed
            .iter()
            .filter_map(|listed| SegmentName::from_key(&listed.key))
            .filter(|name| !forbidden.contains(name))
            .collect();
        Ok(Self {
            session,
            usable,
            memory: Mutex::default(),
            followed: Mutex::default(),
            proved: Cache::new(PROVED),
        })
    }

    /// Whether a segment was there when the session began and may be referred to.
    pub(crate) fn may_use(&self, segment: &SegmentName) -> bool {
        self.usable.contains(segment)
    }

    /// Remembers the blocks of a frame.
    pub(crate) fn remember(&self, frame: FramePointer, ids: &[BlockId]) {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).add(frame, ids);
    }

    /// Finds a twin for each block, in order.
    pub(crate) fn find(&self, vault: &Vault, ids: &[BlockId]) -> Vec<Option<Twin>> {
        if ids.is_empty() {
            return Vec::new();
        }
        let mut twins = self.recall(ids);
        let unknown = ids.iter().zip(&twins).filter(|(_, twin)| twin.is_none());
        if unknown.filter(|(id, _)| self.follow(vault, id)).count() > 0 {
            twins = self.recall(ids);
        }
        let mut last = None;
        for (id, twin) in ids.iter().zip(&mut twins) {
            twin.take_if(|twin| !self.is_true(vault, id, twin, &mut last));
        }
        twins
    }

    fn recall(&self, ids: &[BlockId]) -> Vec<Option<Twin>> {
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().map(|id| memory.find(id)).collect()
    }

    /// Remembers the frames around a block that is a hook; says whether there
    /// are any that were not remembered before.
    fn follow(&self, vault: &Vault, id: &BlockId) -> bool {
        let Some(segment) = vault.index.segment(id) else { return false };
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        if !followed.insert(segment) || !self.usable.contains(&segment) {
            return false;
        }
        drop(followed);
        // Past the cache: what counts is what is stored now.
        match vault.read_table(segment) {
            Ok(table) => self.remember_all(vault, segment, &table),
            Err(error) => tracing::warn!(%error, "a segment of the index cannot be used"),
        }
        true
    }

    fn remember_all(&self, vault: &Vault, segment: SegmentName, table: &Table) {
        for (number, entry) in (0..=u16::MAX).zip(table.entries()) {
            if entry.kind != FrameKind::Blocks {
                continue;
            }
            let ids = table.block_ids(entry);
            let len = index32(HEADER_LEN + index(entry.stored));
            let place = Place { segment, number, offset: entry.offset, len };
            let blocks = u8::try_from(ids.len()).expect("a frame has at most 32 blocks");
            self.remember(FramePointer { place, blocks, id: vault.keys.frame_id(ids) }, ids);
        }
    }

    /// Whether the twin has the content. `last` has the ids of the frame that
    /// was looked at last, if it may be referred to.
    fn is_true(
        &self,
        vault: &Vault,
        id: &BlockId,
        twin: &Twin,
        last: &mut Option<(FramePointer, Option<Vec<BlockId>>)>,
    ) -> bool {
        if last.as_ref().is_none_or(|(frame, _)| *frame != twin.frame) {
            let ids = vault.block_ids(&twin.frame).ok();
            *last = Some((twin.frame, ids.filter(|_| self.is_good(vault, &twin.frame))));
        }
        let ids = last.as_ref().and_then(|(_, ids)| ids.as_ref());
        ids.and_then(|ids| ids.get(usize::from(twin.slot))) == Some(id)
    }

    /// Whether a frame may be referred to: one that is damaged must not be again.
    fn is_good(&self, vault: &Vault, frame: &FramePointer) -> bool {
        if frame.place.segment.session == self.session {
            return true;
        }
        if let Some(good) = self.proved.get(frame) {
            return *good;
        }
        let read = vault.read_frame(frame);
        if let Err(error) = &read {
            tracing::warn!(%error, "a stored frame is damaged and is stored again");
        }
        self.proved.insert(*frame, read.is_ok().into(), size_of::<FramePointer>());
        read.is_ok()
    }
}

/// Where blocks are, as far as there is room: what is new pushes out what is old.
#[derive(Default)]
struct Memory {
    /// Places of [`Remembered`] blocks; 0 where there is none, since memory that
    /// is zero costs nothing until it is used.
    places: Vec<[u64; WAYS]>,
    frames: Vec<FramePointer>,
    /// The frame that the next one replaces when there is no more room.
    oldest: usize,
}

/// Where a block may be.
struct Remembered {
    /// A part of the block's id.
    tag: u32,
    frame: u32,
    slot: u8,
}

impl Remembered {
    /// Returns the block as a number that is not 0.
    fn pack(&self) -> u64 {
        u64::from(self.tag) << 32 | u64::from(self.frame) << 8 | u64::from(self.slot + 1)
    }

    fn unpack(packed: u64) -> Option<Self> {
        let [slot, a, b, c, tag @ ..] = packed.to_le_bytes();
        let slot = slot.checked_sub(1)?;
        let frame = u32::from_le_bytes([a, b, c, 0]);
        Some(Self { tag: u32::from_le_bytes(tag), frame, slot })
    }

    /// Whether a place is free, or that of a block with the same tag.
    fn may_replace(&self, packed: u64) -> bool {
        Self::unpack(packed).is_none_or(|other| other.tag == self.tag)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").field("frames", &self.frames.len()).finish_non_exhaustive()
    }
}

impl Memory {
    fn add(&mut self, frame: FramePointer, ids: &[BlockId]) {
        if self.places.is_empty() {
            self.places = vec![[0; WAYS]; BLOCKS / WAYS];
        }
        let number = if self.frames.len() < FRAMES {
            self.frames.push(frame);
            self.frames.len() - 1
        } else {
            let number = self.oldest;
            self.frames[number] = frame;
            self.oldest = (number + 1) % FRAMES;
            number
        };
        for (slot, id) in (0..).zip(ids) {
            let (bucket, tag) = home(id);
            let remembered = Remembered { tag, frame: index32(number), slot };
            let ways = &mut self.places[bucket];
            let way = ways.iter().position(|way| remembered.may_replace(*way));
            ways[way.unwrap_or(number % WAYS)] = remembered.pack();
        }
    }

    fn find(&self, id: &BlockId) -> Option<Twin> {
        let (bucket, tag) = home(id);
        let mut ways = self.places.get(bucket)?.iter().filter_map(|way| Remembered::unpack(*way));
        let found = ways.find(|way| way.tag == tag)?;
        Some(Twin { frame: self.frames[index(found.frame)], slot: found.slot })
    }
}

/// Returns where a block is remembered, and as what.
fn home(id: &BlockId) -> (usize, u32) {
    let [.., a, b, c, d, e, f, g, h] = id.0;
    let bucket = index(u32::from_le_bytes([a, b, c, d])) % (BLOCKS / WAYS);
    (bucket, u32::from_le_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(number: u16) -> FramePointer {
        let segment = SegmentName { session: SnapshotId::from_bytes([1; 16]), number: 7 };
        let place = Place { segment, number, offset: 64, len: 100 };
        FramePointer { place, blocks: 32, id: crate::pointer::FrameId([2; 20]) }
    }

    fn id(number: u64) -> BlockId {
        BlockId(*blake3::hash(&number.to_le_bytes()).as_bytes().first_chunk().unwrap())
    }

    #[test]
    fn what_was_added_last_is_found() {
        let mut memory = Memory::default();
        assert_eq!(memory.find(&id(0)), None);
        for number in 0..100 {
            let ids: Vec<_> = (0..32).map(|block| id(u64::from(number) * 16 + block)).collect();
            memory.add(frame(number), &ids);
        }
        // Each frame has the last half of the one before as its first half.
        for block in 0..100 * 16 {
            let twin = memory.find(&id(block)).unwrap();
            let number = u16::try_from(block / 16).unwrap();
            let slot = u8::try_from(block % 16).unwrap();
            assert_eq!(twin, Twin { frame: frame(number), slot });
        }
        assert_eq!(memory.find(&id(5000)), None);
    }
}
