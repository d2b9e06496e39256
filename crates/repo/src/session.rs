//! A session: one snapshot on its way into the repository.
//!
//! ```text
//! begin: slot put and held ─► images, blobs ─► commit: outcome put ─► slot gone
//!                                          └─► drop: segments gone ─► slot gone
//! ```
//!
//! A session whose process is killed leaves its slot without a holder; the
//! next open of the repository ends it and removes its segments.

use std::ops::Add;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};
use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::blob;
use crate::commit::{self, Provenance};
use crate::frame::{Codec, Encoder, FrameKind};
use crate::heal;
use crate::image::ImageState;
use crate::index::{self, Hooks};
use crate::join::Joins;
use crate::lanes::Lanes;
use crate::map::ImageMap;
use crate::pages::Pages;
use crate::parallel;
use crate::parents::Parents;
use crate::pointer::{BlockId, FramePointer, NodeId, NodePointer, Place};
use crate::reach::Reach;
use crate::record::{BlobId, Moved, Outcome, SnapshotDraft, SnapshotRecord};
use crate::segment::{Identity, SegmentKind};
use crate::sink::{Flush, Numbers, Sink, store_segments};
use crate::slot::Slot;
use crate::tree::{ImageRoot, MAX_IMAGE};
use crate::vault::Vault;
use crate::weave::Weaver;
use crate::writer::ImageWriter;

/// Memory that a session needs beside its queue: segments on their way,
/// leaves and tables.
const FIXED_MEMORY: u64 = 128 << 20;
/// The least memory for the queue.
const LEAST_QUEUE: u64 = 32 << 20;
/// Threads that store segments, so that a slow sync delays only one.
const STORING_THREADS: usize = 2;
/// Windows of memory kept for reuse: fresh memory costs page faults.
const SPARE_WINDOWS: usize = 16;

/// How a session may use the machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionParams {
    /// Memory for everything that the session holds, at least 160 MiB. Half
    /// of what is left for the queue is kept for [`Session::enter_burst`].
    pub memory: ByteCount,
    /// Threads that compare, hash and compress; the machine's cores if `None`.
    pub threads: Option<usize>,
}

impl Default for SessionParams {
    fn default() -> Self {
        Self { memory: ByteCount(384 << 20), threads: None }
    }
}

/// What an image has where nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritten {
    /// Zeroes. The parent only serves for comparison.
    Zero,
    /// What the parent has there.
    Parent,
}

/// A new image.
#[derive(Debug, Clone)]
pub struct ImageParams {
    /// Its size. It may be another one than the parent's.
    pub size: ByteCount,
    /// An image that it resembles: what is the same at the same place is not
    /// stored again.
    pub parent: Option<ImageRoot>,
    /// What it has where nothing is written.
    pub unwritten: Unwritten,
}

/// What a session has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStats {
    /// Bytes given to image writers and blobs.
    pub read_bytes: ByteCount,
    /// Bytes of the segments that hold what is new.
    pub stored_bytes: ByteCount,
    /// Blocks that went into new frames.
    pub new_blocks: u64,
    /// Blocks that were the same as at their place before.
    pub unchanged_blocks: u64,
    /// Blocks that were the same as others, of this session or an earlier one.
    pub joined_blocks: u64,
    /// Blocks of zeroes that were written.
    pub zero_blocks: u64,
}

impl Add for SessionStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            read_bytes: ByteCount(self.read_bytes.get() + other.read_bytes.get()),
            stored_bytes: ByteCount(self.stored_bytes.get() + other.stored_bytes.get()),
            new_blocks: self.new_blocks + other.new_blocks,
            unchanged_blocks: self.unchanged_blocks + other.unchanged_blocks,
            joined_blocks: self.joined_blocks + other.joined_blocks,
            zero_blocks: self.zero_blocks + other.zero_blocks,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub read_bytes: AtomicU64,
    pub new_blocks: AtomicU64,
    pub unchanged_blocks: AtomicU64,
    pub joined_blocks: AtomicU64,
    pub zero_blocks: AtomicU64,
}

/// What a session's threads and image writers share.
pub(crate) struct Core {
    pub id: SnapshotId,
    pub vault: Arc<Vault>,
    pub lanes: Lanes,
    pub data: Sink,
    pub meta: Sink,
    pub counters: Counters,
    /// Where blocks are that others can be joined with.
    pub joins: Joins,
    pub hooks: Mutex<Hooks>,
    /// Memory of windows that are stored, for windows to come.
    spare: Mutex<Vec<Vec<u8>>>,
    numbers: Arc<Numbers>,
    images: AtomicU64,
    pub parents: Parents,
    encoder: Mutex<Encoder>,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Core {
    /// Stores a node or blob chunk.
    pub(crate) fn put_bytes(&self, kind: FrameKind, id: NodeId, bytes: &[u8]) -> NodePointer {
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let (codec, stored) = encoder.encode(bytes);
        let sink = if kind == FrameKind::Node { &self.meta } else { &self.data };
        let place = sink.append(codec, stored, bytes.len(), Identity::Node(kind, id));
        NodePointer { place, id }
    }

    /// Stores a node.
    pub(crate) fn put_node(&self, bytes: &[u8]) -> NodePointer {
        let id = self.vault.keys.node_id(FrameKind::Node as u8, bytes);
        self.put_bytes(FrameKind::Node, id, bytes)
    }

    /// Stores a frame of blocks with these ids.
    pub(crate) fn put_frame(
        &self,
        (codec, stored): (Codec, &[u8]),
        raw_len: usize,
        ids: &[BlockId],
    ) -> FramePointer {
        let place = self.data.append(codec, stored, raw_len, Identity::Blocks(ids));
        let blocks = u8::try_from(ids.len()).expect("a frame has at most 32 blocks");
        let frame = FramePointer { place, blocks, id: self.vault.keys.frame_id(ids) };
        self.joins.remember(frame, ids);
        let new = ids.iter().filter_map(index::hook).map(|hook| (hook, place.segment.number));
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
        frame
    }

    /// Returns an empty window for blocks that come one after the other.
    pub(crate) fn large_pages(&self) -> Pages {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(Pages::default, Pages::reusing)
    }

    fn recycle(&self, pages: Pages) {
        if let Some(memory) = pages.into_memory() {
            let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            if spare.len() < SPARE_WINDOWS {
                spare.push(memory);
            }
        }
    }

    pub(crate) fn stats(&self) -> SessionStats {
        let counters = &self.counters;
        SessionStats {
            read_bytes: ByteCount(counters.read_bytes.load(Relaxed)),
            stored_bytes: ByteCount(self.numbers.stored_bytes()),
            new_blocks: counters.new_blocks.load(Relaxed),
            unchanged_blocks: counters.unchanged_blocks.load(Relaxed),
            joined_blocks: counters.joined_blocks.load(Relaxed),
            zero_blocks: counters.zero_blocks.load(Relaxed),
        }
    }
}

/// One snapshot being written. Several threads may use it at once.
///
/// Dropping it without `commit` removes what it has stored.
#[derive(Debug)]
pub struct Session {
    core: Arc<Core>,
    workers: Vec<JoinHandle<()>>,
    storing: Vec<JoinHandle<()>>,
    flush: Sender<Flush>,
    /// Held until the session's end; `None` afterwards.
    slot: Option<Slot>,
}

impl Session {
    pub(crate) fn begin(
        vault: Arc<Vault>,
        slot: Slot,
        params: &SessionParams,
    ) -> Result<Self, Error> {
        let id = slot.id;
        let queue = params.memory.get().saturating_sub(FIXED_MEMORY).max(LEAST_QUEUE);
        let half = usize::try_from(queue / 2).unwrap_or(usize::MAX / 4);
        let (flush, work) = crossbeam_channel::bounded(1);
        let numbers = Arc::new(Numbers::default());
        let sink =
            |kind| Sink::new(kind, id, Arc::clone(&vault), Arc::clone(&numbers), flush.clone());
        let core = Arc::new(Core {
            id,
            lanes: Lanes::new(half, half),
            data: sink(SegmentKind::Data),
            meta: sink(SegmentKind::Meta),
            counters: Counters::default(),
            joins: Joins::begin(&vault, id, &slot.forbidden)?,
            hooks: Mutex::default(),
            spare: Mutex::default(),
            numbers: Arc::clone(&numbers),
            images: AtomicU64::new(0),
            parents: Parents::new(slot.forbidden.clone()),
            encoder: Mutex::new(Encoder::new()),
            vault,
        });
        let mut session =
            Self { core, workers: Vec::new(), storing: Vec::new(), flush, slot: Some(slot) };
        for _ in 0..STORING_THREADS {
            let (core, work) = (Arc::clone(&session.core), work.clone());
            session.storing.push(spawn("repo-store", move || {
                let failed = || core.lanes.check().is_err_and(|e| matches!(e, Error::Session(_)));
                store_segments(&core.vault, &work, &failed, &|error| core.lanes.fail(error));
            })?);
        }
        for _ in 0..params.threads.unwrap_or_else(parallel::cores).max(1) {
            let core = Arc::clone(&session.core);
            session.workers.push(spawn("repo-work", move || work_off(core))?);
        }
        Ok(session)
    }

    /// Returns the id that the snapshot will have.
    pub fn snapshot_id(&self) -> SnapshotId {
        self.core.id
    }

    /// Begins an image. Each writer is fed by one thread; different writers of
    /// a session may be fed at once.
    pub fn image(&self, params: ImageParams) -> Result<ImageWriter, Error> {
        let ImageParams { size, parent, unwritten } = params;
        if size.get() > MAX_IMAGE {
            return Err(Error::Invalid(format!("an image cannot have {} bytes", size.get())));
        }
        let parent = match parent.map(|parent| self.core.parents.find(&self.core.vault, &parent)) {
            Some(found) => match found? {
                None if unwritten == Unwritten::Parent => {
                    return Err(Error::NotFound("the snapshot of the parent image".to_owned()));
                }
                // If nothing may refer to it, the image is stored in full.
                found => found,
            },
            None => None,
        };
        let number = self.core.images.fetch_add(1, Relaxed);
        let map = |root| Arc::new(ImageMap::new(Arc::clone(&self.core.vault), root));
        let reference = map(parent.unwrap_or_else(|| ImageRoot::zero(size)));
        let base = match unwritten {
            Unwritten::Zero => map(ImageRoot::zero(size)),
            Unwritten::Parent => Arc::clone(&reference),
        };
        let image = ImageState::new(number, size, base, reference);
        ImageWriter::begin(Arc::clone(&self.core), Arc::new(image))
    }

    /// Whether an image may be the parent of others, or a part of the snapshot.
    pub(crate) fn may_refer_to(&self, root: &ImageRoot) -> Result<bool, Error> {
        Ok(self.core.parents.find(&self.core.vault, root)?.is_some())
    }

    /// Lets the session refer to what a snapshot has that nobody else sees, if
    /// all of it is there and stays: whether it is.
    ///
    /// It stays if it was there after the session's slot was put, and was not
    /// condemned by then: later collections wait for the session.
    pub(crate) fn adopt(&self, record: &SnapshotRecord) -> Result<bool, Error> {
        let vault = &self.core.vault;
        let mut stays = true;
        let visit = |place: &Place, _| stays &= self.core.joins.may_use(&place.segment);
        match Reach::new(vault, visit).snapshot(record) {
            Ok(()) if stays => {}
            Ok(()) | Err(Error::Damaged(_)) => return Ok(false),
            Err(error) => return Err(error),
        }
        record.images.iter().for_each(|image| self.core.parents.add(image.root.clone()));
        Ok(true)
    }

    /// Stores a byte string. It is durable when the session is committed.
    pub fn blob(&self, bytes: &[u8]) -> Result<BlobId, Error> {
        self.core.lanes.check()?;
        let len = u64::try_from(bytes.len()).expect("a usize fits in 64 bits");
        self.core.counters.read_bytes.fetch_add(len, Relaxed);
        blob::store(&self.core, bytes)
    }

    /// Returns the id that the snapshot will have.
    pub fn id(&self) -> SnapshotId {
        self.core.id
    }

    /// Lets the writers use all of the session's memory from now on. To be
    /// called before the VM is paused, so that what comes then is taken at the
    /// speed of a copy even if the queue was full.
    pub fn enter_burst(&self) {
        self.core.lanes.set_burst(true);
    }

    /// Ends what `enter_burst` began.
    pub fn leave_burst(&self) {
        self.core.lanes.set_burst(false);
    }

    /// Returns what the session has done so far.
    pub fn stats(&self) -> SessionStats {
        self.core.stats()
    }

    /// Makes the snapshot permanent: when this returns `Ok`, everything in it
    /// survives power loss and was read back. On an error there is no snapshot,
    /// unless the error is that of the very last write: then the repository
    /// decides when it is opened next.
    pub fn commit(self, draft: SnapshotDraft) -> Result<SnapshotRecord, Error> {
        self.commit_copy(draft, Provenance::default())
    }

    /// Does the same with a snapshot that comes from another repository.
    pub(crate) fn commit_copy(
        mut self,
        mut draft: SnapshotDraft,
        provenance: Provenance,
    ) -> Result<SnapshotRecord, Error> {
        commit::check(&self.core, &mut draft)?;
        self.finish(|core| commit::commit(core, draft, provenance))
    }

    /// Ends the session without a snapshot of its own: when this returns `Ok`,
    /// the content of the snapshots is where the session has put it, and survives
    /// power loss there. Their places must be made of those that counted when the
    /// session had its slot.
    pub(crate) fn commit_moved(mut self, moved: Vec<Moved>) -> Result<SessionStats, Error> {
        self.finish(|core| commit::put(core, &Outcome::Moved(moved)).map(|()| core.stats()))
    }

    /// Stores what is in memory, and lets the outcome be put.
    fn finish<T>(&mut self, commit: impl FnOnce(&Core) -> Result<T, Error>) -> Result<T, Error> {
        self.core.lanes.check()?;
        self.stop(true);
        self.core.lanes.check().or_else(|error| match error {
            Error::Session(_) => Err(error),
            // It is over because `stop` ended it.
            _ => Ok(()),
        })?;
        let committed = commit(&self.core)?;
        // The outcome is there; a slot that stays is removed at the next open.
        if let Err(error) = self.release() {
            tracing::warn!(session = %self.core.id, %error, "the slot of a session stays");
        }
        Ok(committed)
    }

    /// Returns what the session's parts share.
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// Ends all threads; stores what is in memory if it is to be kept.
    fn stop(&mut self, keep: bool) {
        self.core.lanes.close();
        self.workers.drain(..).for_each(join);
        for sink in [&self.core.data, &self.core.meta] {
            if keep { sink.seal() } else { sink.discard() }
        }
        for _ in &self.storing {
            // A thread that has ended needs no message.
            let _ = self.flush.send(Flush::Stop);
        }
        self.storing.drain(..).for_each(join);
    }

    fn release(&mut self) -> Result<(), Error> {
        self.slot.take().map_or(Ok(()), |slot| slot.release(&self.core.vault))
    }

    /// Ends the session like one that died: the last write of a failed commit
    /// may have reached the store, and then the snapshot stays.
    fn abort(&mut self) -> Result<(), Error> {
        let Some(slot) = self.slot.take() else { return Ok(()) };
        heal::end(&self.core.vault, self.core.id, &slot.key)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.slot.is_none() {
            return;
        }
        self.core.lanes.fail(Error::Invalid("the session was given up".to_owned()));
        self.stop(false);
        if let Err(error) = self.abort() {
            tracing::warn!(session = %self.core.id, %error, "a session's leftovers stay");
        }
    }
}

fn work_off(core: Arc<Core>) {
    let mut weaver = Weaver::new(Arc::clone(&core));
    while let Some(job) = core.lanes.take() {
        let result = core.lanes.check().map_or_else(
            |error| if matches!(error, Error::Session(_)) { Err(error) } else { Ok(()) },
            Ok,
        );
        let result = result.and_then(|()| {
            catch_unwind(AssertUnwindSafe(|| weaver.store(&job))).unwrap_or_else(|_| {
                Err(Error::Invalid("a worker of the session panicked".to_owned()))
            })
        });
        let (image, window, bytes) = (job.image.number, job.window, job.pages.weight());
        core.recycle(job.pages);
        core.lanes.done(image, window, bytes, result);
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map_err(|error| Error::io("start a thread for", std::path::Path::new(name), error))
}

fn join(thread: JoinHandle<()>) {
    // Workers catch their panics and storing threads have none to report that
    // the session's failure would not show.
    let _ = thread.join();
}
