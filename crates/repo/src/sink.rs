//! Where a session's frames go: into an open segment in memory, and when that
//! is full, to the threads that store it.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender};
use tintype_types::SnapshotId;

use crate::Error;
use crate::frame::{Codec, FrameHeader, FrameKind, HEADER_LEN, checksum};
use crate::pointer::{BLOCK_ID_LEN, Place, SegmentName};
use crate::seal::{Sealer, TAG_LEN, frame_nonce};
use crate::segment::{self, Identity, SEGMENT_SIZE, SegmentKind, TRAILER_LEN, index32};
use crate::store::Put;
use crate::vault::{Building, Vault};

/// Work for the threads that store segments.
#[derive(Debug)]
pub(crate) enum Flush {
    /// A complete segment.
    Segment(SegmentName, Arc<Building>),
    /// No more work: the thread ends.
    Stop,
}

/// The numbers of a session's segments and what they hold together.
#[derive(Debug, Default)]
pub(crate) struct Numbers {
    next: AtomicU32,
    stored_bytes: AtomicU64,
}

impl Numbers {
    /// Returns the bytes of all sealed segments.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.stored_bytes.load(Ordering::Relaxed)
    }
}

/// The segment that frames go into.
#[derive(Debug)]
struct Open {
    name: SegmentName,
    building: Arc<Building>,
    sealer: Option<Sealer>,
}

/// Collects frames of one kind of segment.
#[derive(Debug)]
pub(crate) struct Sink {
    kind: SegmentKind,
    /// At which level frames were tried again.
    level: AtomicU8,
    session: SnapshotId,
    vault: Arc<Vault>,
    numbers: Arc<Numbers>,
    open: Mutex<Option<Open>>,
    flush: Sender<Flush>,
}

impl Sink {
    pub(crate) fn new(
        kind: SegmentKind,
        session: SnapshotId,
        vault: Arc<Vault>,
        numbers: Arc<Numbers>,
        flush: Sender<Flush>,
    ) -> Self {
        let (level, open) = (AtomicU8::new(0), Mutex::default());
        Self { kind, level, session, vault, numbers, open, flush }
    }

    /// Says at which level the frames to come were tried again; they go into
    /// segments of their own.
    pub(crate) fn set_level(&self, level: u8) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if self.level.swap(level, Ordering::Relaxed) != level {
            self.seal_open(&mut open);
        }
    }

    /// Appends a frame and says where it is. Blocks while many segments wait
    /// to be stored.
    pub(crate) fn append(
        &self,
        codec: Codec,
        stored: &[u8],
        raw_len: usize,
        id: Identity<'_>,
    ) -> Place {
        let mut slot = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|open| !has_room(&open.building, stored.len())) {
            self.seal_open(&mut slot);
        }
        let open = slot.get_or_insert_with(|| self.begin());
        let mut content = open.building.content.write().unwrap_or_else(PoisonError::into_inner);
        let (bytes, table) = &mut *content;
        let kind = match id {
            Identity::Blocks(_) => FrameKind::Blocks,
            Identity::Node(kind, _) => kind,
        };
        let number = u16::try_from(table.entries().len()).expect("has_room limits the count");
        let (offset, raw) = (bytes.len(), index32(raw_len));
        // The header is filled in when the stored bytes are final.
        bytes.resize(offset + HEADER_LEN, 0);
        bytes.extend_from_slice(stored);
        if let Some(sealer) = &open.sealer {
            let bound = FrameHeader::bound(kind, codec, raw);
            sealer.seal(frame_nonce(number), &bound, bytes, offset + HEADER_LEN);
        }
        let (_, payload) = bytes.split_at(offset + HEADER_LEN);
        let stored = index32(payload.len());
        let header = FrameHeader { kind, codec, number, stored, raw, checksum: checksum(payload) };
        bytes[offset..offset + HEADER_LEN].copy_from_slice(&header.encode());
        let (offset, len) = (index32(offset), index32(bytes.len() - offset));
        table.push(codec, offset, stored, raw, id);
        Place { segment: open.name, number, offset, len }
    }

    /// Sends the open segment to be stored.
    pub(crate) fn seal(&self) {
        self.seal_open(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Gives up the open segment.
    pub(crate) fn discard(&self) {
        if let Some(open) = self.open.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.vault.unregister(open.name);
        }
    }

    fn begin(&self) -> Open {
        let number = self.numbers.next.fetch_add(1, Ordering::Relaxed);
        let name = SegmentName { session: self.session, number };
        let building = Arc::new(Building::default());
        let mut bytes = Vec::with_capacity(match self.kind {
            SegmentKind::Data => SEGMENT_SIZE,
            SegmentKind::Meta => 0,
        });
        let level = self.level.load(Ordering::Relaxed);
        bytes.extend_from_slice(&segment::header(self.kind, level, name, self.vault.id));
        building.content.write().unwrap_or_else(PoisonError::into_inner).0 = bytes;
        self.vault.register(name, Arc::clone(&building));
        Open { name, building, sealer: self.vault.keys.segment_sealer(name) }
    }

    fn seal_open(&self, open: &mut Option<Open>) {
        let Some(Open { name, building, .. }) = open.take() else { return };
        {
            let mut content = building.content.write().unwrap_or_else(PoisonError::into_inner);
            let (bytes, table) = &mut *content;
            segment::finish(bytes, table);
            let len = u64::from(index32(bytes.len()));
            self.numbers.stored_bytes.fetch_add(len, Ordering::Relaxed);
        }
        // The storing threads outlive every sink in use; after they have
        // stopped the session is over and the segment is garbage.
        if self.flush.send(Flush::Segment(name, building)).is_err() {
            self.vault.unregister(name);
        }
    }
}

fn has_room(building: &Building, stored: usize) -> bool {
    let content = building.content.read().unwrap_or_else(PoisonError::into_inner);
    let (bytes, table) = &*content;
    let table_len = table.encoded_len() + 16 + BLOCK_ID_LEN * crate::frame::MAX_BLOCKS;
    table.entries().len() < usize::from(u16::MAX)
        && bytes.len() + HEADER_LEN + stored + TAG_LEN + table_len + TRAILER_LEN <= SEGMENT_SIZE
}

/// Stores segments until told to stop; returns the first failure. Segments
/// that come after a failure are given up.
pub(crate) fn store_segments(
    vault: &Vault,
    work: &Receiver<Flush>,
    failed: &dyn Fn() -> bool,
    fail: &dyn Fn(Error),
) {
    while let Ok(Flush::Segment(name, building)) = work.recv() {
        if !failed() {
            let content = building.content.read().unwrap_or_else(PoisonError::into_inner);
            match vault.store.put_if_absent(&name.key(), &content.0) {
                Ok(Put::Created) => vault.keep(name, &content.0),
                Ok(Put::Existed) => {
                    fail(Error::damaged(name.key(), None, "another session took its place"));
                }
                Err(error) => fail(error),
            }
        }
        vault.unregister(name);
    }
}
