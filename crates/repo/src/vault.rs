//! The open repository below sessions and readers: follows pointers, and
//! returns only what it has verified.
//!
//! Also the place where segments under construction are registered, so that a
//! session can read what it has written before it is stored.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tintype_types::{BLOCK_SIZE, RepositoryId, SnapshotId};

use crate::Error;
use crate::cache::Cache;
use crate::frame::{self, FrameHeader, FrameKind, HEADER_LEN};
use crate::index::Index;
use crate::keys::Keys;
use crate::nearby::Nearby;
use crate::node::Node;
use crate::parallel;
use crate::pointer::{BlockId, FramePointer, NodePointer, Place, SegmentName};
use crate::record::Outcome;
use crate::seal::frame_nonce;
use crate::segment::{self, Table, TableEntry, Trailer, index};
use crate::store::Store;
use crate::wire::Malformed;

/// Decoded frames kept in memory, in bytes.
const FRAME_CACHE: usize = 32 << 20;
/// Decoded nodes kept in memory, in bytes.
const NODE_CACHE: usize = 48 << 20;
/// Frame tables kept in memory, in bytes.
const TABLE_CACHE: usize = 48 << 20;

/// Outcomes of sessions kept in memory, in bytes.
const OUTCOME_CACHE: usize = 32 << 20;
/// Requests that go to a store that is far away at the same time.
const REQUESTS: usize = 16;
/// How many objects of a near store are worth the start of a thread.
const WORTH_THREADS: usize = 64;

/// A segment that is not stored yet.
#[derive(Debug, Default)]
pub(crate) struct Building {
    pub content: RwLock<(Vec<u8>, Table)>,
}

/// An open repository.
#[derive(Debug)]
pub(crate) struct Vault {
    pub store: Box<dyn Store>,
    pub keys: Keys,
    pub id: RepositoryId,
    pub index: Index,
    nearby: Option<Nearby>,
    /// Outcomes, which are known to be there only as long as they are listed.
    pub outcomes: Cache<SnapshotId, Outcome>,
    building: RwLock<HashMap<SegmentName, Arc<Building>>>,
    frames: Cache<FramePointer, Vec<u8>>,
    nodes: Cache<NodePointer, Node>,
    tables: Cache<SegmentName, Table>,
}

impl Vault {
    pub(crate) fn new(
        store: Box<dyn Store>,
        nearby: Option<Nearby>,
        keys: Keys,
        id: RepositoryId,
    ) -> Self {
        Self {
            store,
            keys,
            id,
            index: Index::default(),
            nearby,
            outcomes: Cache::new(OUTCOME_CACHE),
            building: RwLock::default(),
            frames: Cache::new(FRAME_CACHE),
            nodes: Cache::new(NODE_CACHE),
            tables: Cache::new(TABLE_CACHE),
        }
    }

    /// Makes a segment under construction readable.
    pub(crate) fn register(&self, name: SegmentName, building: Arc<Building>) {
        self.building.write().unwrap_or_else(PoisonError::into_inner).insert(name, building);
    }

    /// Forgets a segment under construction: it is stored, or given up.
    pub(crate) fn unregister(&self, name: SegmentName) {
        self.building.write().unwrap_or_else(PoisonError::into_inner).remove(&name);
    }

    /// Does the same for each, in their order; several at the same time if the
    /// store is far away, or if there are many.
    pub(crate) fn at_once<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: impl Fn(&T) -> R + Sync,
    ) -> Vec<R> {
        let threads = match self.nearby {
            Some(_) => REQUESTS,
            None if items.len() < WORTH_THREADS => 1,
            None => parallel::cores(),
        };
        parallel::map(items, threads, work)
    }

    /// Returns what is read from a small object that never changes, from this
    /// machine if it is right there.
    pub(crate) fn unchanging<T>(
        &self,
        key: &str,
        max: u64,
        read: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let nearby = self.nearby.as_ref();
        if let Some(here) = nearby.and_then(|nearby| read(&nearby.object(key)?).ok()) {
            return Ok(here);
        }
        let bytes = self.store.get(key, max)?;
        let value = read(&bytes)?;
        if let Some(nearby) = nearby {
            nearby.keep_object(key, &bytes);
        }
        Ok(value)
    }

    /// Returns what this machine keeps of a small object, unverified.
    pub(crate) fn kept_object(&self, key: &str) -> Option<Vec<u8>> {
        self.nearby.as_ref()?.object(key)
    }

    /// Keeps a segment that was stored on this machine too, if it is far away.
    pub(crate) fn keep(&self, name: SegmentName, content: &[u8]) {
        if let Some(nearby) = &self.nearby {
            nearby.keep(&name.key(), content);
        }
    }

    fn building(&self, name: SegmentName) -> Option<Arc<Building>> {
        self.building.read().unwrap_or_else(PoisonError::into_inner).get(&name).cloned()
    }

    /// Returns the decoded, verified blocks of a frame.
    pub(crate) fn frame(&self, pointer: &FramePointer) -> Result<Arc<Vec<u8>>, Error> {
        if let Some(frame) = self.frames.get(pointer) {
            return Ok(frame);
        }
        let frame = Arc::new(self.read_frame(pointer)?);
        self.frames.insert(*pointer, Arc::clone(&frame), frame.len());
        Ok(frame)
    }

    /// Like `frame`, without keeping the frame: for reading in sequence.
    pub(crate) fn read_frame(&self, pointer: &FramePointer) -> Result<Vec<u8>, Error> {
        let mut raw = vec![0; usize::from(pointer.blocks) * BLOCK_SIZE];
        self.read_frame_to(pointer, &mut raw)?;
        Ok(raw)
    }

    /// Does so to where the blocks are wanted, which has just enough room. What is there
    /// after a failure is not to be used.
    pub(crate) fn read_frame_to(
        &self,
        pointer: &FramePointer,
        room: &mut [u8],
    ) -> Result<(), Error> {
        let Place { segment, number, .. } = pointer.place;
        self.of_stored(&pointer.place, |stored| {
            let (header, packed) = self.open_frame(segment, stored, number, FrameKind::Blocks)?;
            if usize::try_from(header.raw) != Ok(room.len()) {
                return Err(Malformed("a frame has the wrong number of blocks"));
            }
            frame::decode_to(header.codec, packed, room)?;
            if self.keys.frame_id(&self.keys.ids_of(room)) != pointer.id {
                return Err(Malformed("the content of a frame is not what was written"));
            }
            Ok(())
        })
    }

    /// Returns the verified bytes of a node or blob chunk.
    pub(crate) fn bytes(&self, pointer: &NodePointer, kind: FrameKind) -> Result<Vec<u8>, Error> {
        let Place { segment, number, .. } = pointer.place;
        self.of_stored(&pointer.place, |stored| {
            let raw = self.decode_frame(segment, stored, number, kind)?;
            if self.keys.node_id(kind as u8, &raw) != pointer.id {
                return Err(Malformed("the content of a frame is not what was written"));
            }
            Ok(raw)
        })
    }

    /// Checks that a frame is there as it was stored, without decoding it.
    pub(crate) fn check_stored(&self, place: &Place, kind: FrameKind) -> Result<(), Error> {
        self.of_stored(place, |stored| {
            self.check_frame_stored(place.segment, stored, place.number, kind)
        })
    }

    /// Does something with the stored bytes of a frame: those in the store, if it fails
    /// with those that are kept on this machine.
    fn of_stored<T>(
        &self,
        place: &Place,
        mut work: impl FnMut(&mut [u8]) -> Result<T, Malformed>,
    ) -> Result<T, Error> {
        let mut once = || Ok(work(&mut self.stored(place)?));
        let done = match once()? {
            // What is kept on this machine may be what is wrong.
            Err(_) if self.forget(place.segment, index(place.offset), index(place.len)) => once()?,
            done => done,
        };
        done.map_err(|malformed| damaged(place, malformed))
    }

    /// Forgets what is kept of a range of a segment on this machine; whether
    /// anything was.
    pub(crate) fn forget(&self, name: SegmentName, offset: usize, len: usize) -> bool {
        self.nearby.as_ref().is_some_and(|nearby| nearby.forget(&name.key(), offset, len))
    }

    /// Returns what this machine keeps of a segment, unverified, if that is all.
    pub(crate) fn kept(&self, name: SegmentName) -> Option<Vec<u8>> {
        self.nearby.as_ref()?.whole(&name.key())
    }

    /// Returns a range of a segment, unverified, from this machine if it is there.
    pub(crate) fn range_nearby(
        &self,
        name: SegmentName,
        offset: usize,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        match &self.nearby {
            Some(nearby) => nearby.get_range(&*self.store, &name.key(), offset, len),
            None => self.range(name, offset, len),
        }
    }

    /// Returns a range of a segment, unverified, from the store.
    pub(crate) fn range(
        &self,
        name: SegmentName,
        offset: usize,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        let offset = u64::try_from(offset).expect("a usize fits in 64 bits");
        self.store.get_range(&name.key(), offset, len)
    }

    /// Returns a verified node of an image map.
    pub(crate) fn node(&self, pointer: &NodePointer) -> Result<Arc<Node>, Error> {
        if let Some(node) = self.nodes.get(pointer) {
            return Ok(node);
        }
        let bytes = self.bytes(pointer, FrameKind::Node)?;
        let node = Node::decode(&bytes).map_err(|malformed| damaged(&pointer.place, malformed))?;
        let node = Arc::new(node);
        self.nodes.insert(*pointer, Arc::clone(&node), node.weight());
        Ok(node)
    }

    /// Returns the ids of the blocks of a frame, proved by the frame's id.
    pub(crate) fn block_ids(&self, pointer: &FramePointer) -> Result<Vec<BlockId>, Error> {
        let number = pointer.place.number;
        let find = |table: &Table| {
            let entry = table.entry(number)?;
            Some(table.block_ids(entry).to_vec())
        };
        let ids = match self.building(pointer.place.segment) {
            Some(building) => {
                find(&building.content.read().unwrap_or_else(PoisonError::into_inner).1)
            }
            None => find(&*self.table(pointer.place.segment)?),
        };
        let is_right = |ids: &Vec<BlockId>| {
            ids.len() == usize::from(pointer.blocks) && self.keys.frame_id(ids) == pointer.id
        };
        ids.filter(is_right).ok_or_else(|| {
            damaged(&pointer.place, Malformed("the table has other ids than the image map"))
        })
    }

    /// Returns the verified table of a stored segment.
    pub(crate) fn table(&self, name: SegmentName) -> Result<Arc<Table>, Error> {
        if let Some(table) = self.tables.get(&name) {
            return Ok(table);
        }
        let table = Arc::new(self.read_table(name)?);
        self.tables.insert(name, Arc::clone(&table), table.weight());
        Ok(table)
    }

    /// Reads the table from the store, whether it is in memory or not.
    pub(crate) fn read_table(&self, name: SegmentName) -> Result<Table, Error> {
        let key = name.key();
        let damaged = |Malformed(reason)| Error::damaged(&key, None, reason);
        let size =
            self.store.size(&key)?.ok_or_else(|| Error::damaged(&key, None, "it is missing"))?;
        let trailer_len = u64::try_from(segment::TRAILER_LEN).unwrap_or(u64::MAX);
        let Some(trailer_at) = size.checked_sub(trailer_len) else {
            return Err(Error::damaged(&key, None, "it ends early"));
        };
        let bytes = self.store.get_range(&key, trailer_at, segment::TRAILER_LEN)?;
        let trailer = Trailer::decode(&bytes, size).map_err(damaged)?;
        let header = self.store.get_range(&key, 0, segment::HEADER_LEN)?;
        let end_len = index(trailer.table_len) + segment::TRAILER_LEN;
        let end = self.store.get_range(&key, u64::from(trailer.table_offset), end_len)?;
        trailer.table(&header, &end, name, self.id).map_err(damaged)
    }

    /// Returns at which level the frames of a segment were tried again, unverified.
    pub(crate) fn level(&self, name: SegmentName) -> Result<u8, Error> {
        Ok(self.range(name, segment::LEVEL_AT, 1)?[0])
    }

    /// Decodes a frame, opening it in place, and checks that it is the one that
    /// was asked for.
    pub(crate) fn decode_frame(
        &self,
        segment: SegmentName,
        stored: &mut [u8],
        number: u16,
        kind: FrameKind,
    ) -> Result<Vec<u8>, Malformed> {
        let (header, packed) = self.open_frame(segment, stored, number, kind)?;
        frame::decode(header.codec, packed, header.raw)
    }

    /// Checks that a frame is what was stored as the one that was asked for, opening it in
    /// place. A seal proves all of it, a checksum not what its header says: then it is
    /// decoded, too.
    pub(crate) fn check_frame_stored(
        &self,
        segment: SegmentName,
        stored: &mut [u8],
        number: u16,
        kind: FrameKind,
    ) -> Result<(), Malformed> {
        let (header, packed) = self.open_frame(segment, stored, number, kind)?;
        if self.keys.hides() {
            return Ok(());
        }
        frame::decode(header.codec, packed, header.raw).map(drop)
    }

    fn open_frame<'s>(
        &self,
        segment: SegmentName,
        stored: &'s mut [u8],
        number: u16,
        kind: FrameKind,
    ) -> Result<(FrameHeader, &'s [u8]), Malformed> {
        let header = FrameHeader::decode(stored)?;
        if header.number != number || header.kind != kind {
            return Err(Malformed("it is another frame"));
        }
        let payload = &mut stored[HEADER_LEN..];
        let Some(sealer) = self.keys.segment_sealer(segment) else {
            header.check(payload)?;
            return Ok((header, payload));
        };
        // A seal proves more than the checksum, which takes as long.
        let bound = FrameHeader::bound(header.kind, header.codec, header.raw);
        let opened = sealer.open(frame_nonce(number), &bound, payload)?;
        Ok((header, opened))
    }

    /// Whether bytes are the content of a frame that a table names.
    pub(crate) fn is_content(&self, table: &Table, entry: &TableEntry, raw: &[u8]) -> bool {
        match Table::node_id(entry) {
            Some(id) => self.keys.node_id(entry.kind as u8, raw) == id,
            None => self.keys.ids_of(raw) == table.block_ids(entry),
        }
    }

    /// Returns the bytes of a frame with its header, unverified.
    fn stored(&self, place: &Place) -> Result<Vec<u8>, Error> {
        let (offset, len) = (index(place.offset), index(place.len));
        if len < HEADER_LEN || offset.saturating_add(len) > segment::SEGMENT_SIZE {
            return Err(damaged(place, Malformed("a pointer leads out of the segment")));
        }
        if let Some(building) = self.building(place.segment) {
            let content = building.content.read().unwrap_or_else(PoisonError::into_inner);
            let bytes = content.0.get(offset..offset + len);
            return bytes.map(<[u8]>::to_vec).ok_or_else(|| {
                damaged(place, Malformed("a pointer leads out of a segment in memory"))
            });
        }
        match self.range_nearby(place.segment, offset, len) {
            Err(Error::NotFound(object)) => Err(Error::damaged(object, None, "it is missing")),
            result => result,
        }
    }
}

fn damaged(place: &Place, Malformed(reason): Malformed) -> Error {
    Error::damaged(place.segment.key(), Some(u64::from(place.offset)), reason)
}
