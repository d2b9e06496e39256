//! Moves snapshots out of damaged segments: with what is still good there, and
//! from another repository with what is not.
//!
//! ```text
//! a damaged frame ◄── maps ──► image and block ──► bytes over there
//!        └───────────── our ids of its blocks ◄─── must be theirs
//! ```
//!
//! Like a compaction whose victims are the damaged segments: a session stores the
//! frames anew, rewrites the maps that lead there, and puts one outcome that moves
//! all of their snapshots at once. Nothing is written in an old place. What an
//! image map says nothing of, since it is damaged itself, is for `regrow`, and a
//! record that is damaged for `recall`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tintype_types::{BLOCK_SIZE, ByteCount, SnapshotId};

use crate::blob;
use crate::donor::{self, Donor};
use crate::epoch::Segments;
use crate::error::Damage;
use crate::frame::{Encoder, FrameKind};
use crate::gone::Deletions;
use crate::history::{History, Reading};
use crate::loss::sound;
use crate::map::ImageMap;
use crate::node::{Part, REGION_BLOCKS};
use crate::parallel;
use crate::pointer::{FramePointer, Place, SegmentName};
use crate::reach::{self, Reach};
use crate::reader::ImageReader;
use crate::record::{BlobId, Moved, SnapshotRecord};
use crate::rewrite::Rewriter;
use crate::session::{Session, SessionParams};
use crate::slot;
use crate::supervisor::Supervisor;
use crate::tree::{self, ImageRoot, LEAF_SIZE};
use crate::vault::Vault;
use crate::{Error, recall, regrow};

/// Damaged segments that one session empties: a kill loses that much work.
const STEP: usize = 64;
/// Frames whose content is in memory at once: 16 MiB.
const BATCH: usize = 128;
/// Leaves whose pointers are in one inner node.
const LEAVES: u64 = 256;
const BLOCK: u64 = BLOCK_SIZE as u64;
const REGION_SIZE: u64 = BLOCK * REGION_BLOCKS as u64;

/// A snapshot of which something was put together anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mended {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The same one in the other repository, if it is there.
    pub same: Option<SnapshotId>,
    /// Bytes of its images and blobs that nothing here could prove any more: they
    /// are what the other repository says.
    pub unproved_bytes: ByteCount,
}

/// Bytes that are not what they must be, in the other repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The snapshot here.
    pub snapshot: SnapshotId,
    /// The image or blob.
    pub part: String,
    /// The first byte that cannot be the same, if it is of an image.
    pub offset: Option<u64>,
}

/// What was moved out of damaged segments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Grafted {
    pub mended: BTreeMap<SnapshotId, Mended>,
    pub mismatches: BTreeMap<(SnapshotId, String), Mismatch>,
    pub fetched_bytes: ByteCount,
    /// Objects that are whole again.
    pub repaired: Vec<String>,
}

/// What there is to do it with.
pub(crate) struct Graft<'a> {
    pub vault: &'a Arc<Vault>,
    pub donor: &'a Donor<'a>,
    /// All segments with damage.
    pub damaged: Segments,
    pub supervisor: &'a dyn Supervisor,
    pub done: Grafted,
}

/// Moves all snapshots out of the segments that are damaged, as far as that is
/// possible. They must be quarantined, so that nothing new leads there.
pub(crate) fn graft(
    vault: &Arc<Vault>,
    donor: &Donor<'_>,
    broken: &[Damage],
    supervisor: &dyn Supervisor,
) -> Result<Grafted, Error> {
    let damaged: Segments =
        broken.iter().filter_map(|damage| SegmentName::from_key(&damage.object)).collect();
    let victims: Vec<_> = damaged.iter().copied().collect();
    let mut graft = Graft { vault, donor, damaged, supervisor, done: Grafted::default() };
    for victims in victims.chunks(STEP) {
        supervisor.check()?;
        graft.empty(&victims.iter().copied().collect())?;
    }
    regrow::all(&mut graft)?;
    recall::all(&mut graft, broken)?;
    Ok(graft.done)
}

/// A session that moves snapshots.
pub(crate) struct Surgery {
    pub session: Session,
    /// What must not be referred to, but for what is damaged.
    forbidden: Segments,
    history: History,
    /// What is there or can be put back, oldest first, where it was when the session
    /// began.
    pub records: Vec<SnapshotRecord>,
}

impl Surgery {
    /// Registers, and then reads where everything is: what is there now stays
    /// until the session ends. A damaged outcome is no obstacle: as long as it is
    /// damaged nothing is collected, so what it says is complete too.
    pub(crate) fn begin(
        vault: &Arc<Vault>,
        damaged: &Segments,
        threads: Option<usize>,
    ) -> Result<Self, Error> {
        let slot = slot::register_writer(vault)?;
        let forbidden = slot.forbidden.difference(damaged).copied().collect();
        let params = SessionParams { threads, ..SessionParams::default() };
        let session = Session::begin(Arc::clone(vault), slot, &params)?;
        let deletions = Deletions::read(vault)?;
        let history = History::read(vault, Reading::Known, |id| deletions.has_collected(id))?;
        let mut records = Vec::new();
        for id in history.snapshots() {
            records.extend(sound(history.current(id))?.flatten());
        }
        records.sort_by_key(|record| (record.sequence, record.created, record.id));
        Ok(Self { session, forbidden, history, records })
    }

    /// Lets snapshots be where they are in these records; returns those that are. If
    /// there are none, nothing of the session stays.
    pub(crate) fn commit(self, records: Vec<SnapshotRecord>) -> Result<Vec<SnapshotRecord>, Error> {
        let vault = Arc::clone(&self.session.core().vault);
        let records = self.allowed(&vault, records)?;
        let moved = records.iter().map(|SnapshotRecord { id, images, blobs, .. }| {
            let version = self.history.next_version(*id)?;
            Ok(Moved { snapshot: *id, version, images: images.clone(), blobs: blobs.clone() })
        });
        let moved = moved.collect::<Result<Vec<_>, Error>>()?;
        if !moved.is_empty() {
            self.session.commit_moved(moved)?;
        }
        Ok(records)
    }

    /// Returns those that need nothing that a collection may be removing.
    fn allowed(
        &self,
        vault: &Vault,
        mut records: Vec<SnapshotRecord>,
    ) -> Result<Vec<SnapshotRecord>, Error> {
        if self.forbidden.is_empty() {
            return Ok(records);
        }
        let mut failed = None;
        records.retain(|record| {
            let mut needed = Segments::new();
            match sound(reach::segments_so_far(vault, record, &mut needed)) {
                Ok(_) => needed.is_disjoint(&self.forbidden),
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        });
        failed.map_or(Ok(records), Err)
    }
}

/// Where a block can be read over there.
#[derive(Debug, Clone, Copy)]
struct Site {
    /// Which of the images.
    image: usize,
    offset: u64,
}

/// A frame in a damaged segment that snapshots show something of.
#[derive(Debug, Default)]
struct Wanted {
    /// A bit for each block that an image shows.
    visible: u32,
    sites: [Option<Site>; 32],
}

/// An image over there, and what it is of.
struct Source {
    reader: ImageReader,
    snapshot: SnapshotId,
    name: String,
}

/// What could be got of a frame.
struct Regained {
    raw: Vec<u8>,
    /// A bit for each block that it is of.
    slots: u32,
    /// Those that the other repository has given, and those of them without a proof.
    fetched: u32,
    unproved: u32,
    /// Where the other repository has something else.
    mismatch: Option<Site>,
}

/// What became of a frame.
struct Now {
    frame: Option<FramePointer>,
    /// A bit for each block of the old frame that the new one has.
    kept: u32,
    /// A bit for each that an image shows.
    visible: u32,
}

type Places = HashMap<FramePointer, Now>;
/// Bytes of snapshots that only the other repository vouches for.
type Unproved = HashMap<SnapshotId, u64>;

impl Graft<'_> {
    /// Moves everything out of some segments that can be.
    fn empty(&mut self, victims: &Segments) -> Result<(), Error> {
        let surgery = Surgery::begin(self.vault, &self.damaged, Some(1))?;
        let mut sources = Vec::new();
        let mut wanted: HashMap<FramePointer, Wanted> = HashMap::new();
        let mut affected = Vec::new();
        for record in &surgery.records {
            self.supervisor.check()?;
            if let Some(readable) = self.look(record, victims, &mut sources, &mut wanted)? {
                affected.push((record, readable));
            }
        }
        let (places, unproved) = self.store(&surgery.session, &sources, &wanted)?;
        let chunks = self.chunks(&surgery.session, &affected, victims)?;
        let core = surgery.session.core();
        let mut rewriter = Rewriter {
            vault: self.vault,
            moved: &|place| chunks.get(place).copied(),
            cut: &|part| {
                let is_victim = victims.contains(&part.frame.place.segment);
                if is_victim { cut(part, places.get(&part.frame)) } else { None }
            },
            leaves: &|place| victims.contains(&place.segment),
            put: &|_, bytes| core.put_node(bytes),
            nodes: HashMap::new(),
        };
        let mut moved = Vec::new();
        for (record, readable) in affected {
            self.supervisor.check()?;
            let mut now = record.clone();
            // Of any other image nobody has noted what it shows.
            let images = now.images.iter_mut().zip(readable).filter(|(_, readable)| *readable);
            for (image, _) in images {
                if let Some(root) = sound(rewriter.image(&image.root))? {
                    image.root = root;
                }
            }
            for (_, blob) in &mut now.blobs {
                if let Some(now) = sound(rewriter.blob(blob))? {
                    *blob = now;
                }
            }
            if now.images != record.images || now.blobs != record.blobs {
                moved.push(now);
            }
        }
        core.lanes.check()?;
        for record in surgery.commit(moved)? {
            let unproved = unproved.get(&record.id).copied().unwrap_or(0);
            self.note(&record, ByteCount(unproved))?;
        }
        Ok(())
    }

    /// Notes that a snapshot was mended.
    pub(crate) fn note(
        &mut self,
        record: &SnapshotRecord,
        unproved: ByteCount,
    ) -> Result<(), Error> {
        let same = self.donor.same(record)?.map(|pin| pin.record().id);
        let snapshot = record.id;
        let new = || Mended { snapshot, same, unproved_bytes: ByteCount(0) };
        let mended = self.done.mended.entry(snapshot).or_insert_with(new);
        mended.unproved_bytes.0 += unproved.get();
        Ok(())
    }

    /// Looks which frames of the victims a snapshot shows, and where its blocks are
    /// over there; returns of which images that is known, if it needs anything of them.
    fn look(
        &self,
        record: &SnapshotRecord,
        victims: &Segments,
        sources: &mut Vec<Source>,
        wanted: &mut HashMap<FramePointer, Wanted>,
    ) -> Result<Option<Vec<bool>>, Error> {
        let mut needs_any = false;
        let mut readable = Vec::new();
        for image in &record.images {
            let mut needs = false;
            let visit = |place: &Place, _| needs |= victims.contains(&place.segment);
            let read = sound(Reach::new(self.vault, visit).image(&image.root))?;
            needs_any |= needs;
            if !needs || read.is_none() {
                readable.push(false);
                continue;
            }
            let mut source = None;
            if let Some(pin) = self.donor.same(record)? {
                let opened = self.donor.image(&pin, &image.name, image.root.size)?;
                source = opened.map(|(_, reader)| {
                    let (snapshot, name) = (record.id, image.name.clone());
                    sources.push(Source { reader, snapshot, name });
                    sources.len() - 1
                });
            }
            let shown = sound(self.show(&image.root, victims, source, wanted))?;
            readable.push(shown.is_some());
        }
        for (_, blob) in &record.blobs {
            needs_any |= victims.contains(&blob.list.place.segment);
            let chunks = sound(blob::chunks(self.vault, blob))?.unwrap_or_default();
            needs_any |= chunks.iter().any(|chunk| victims.contains(&chunk.place.segment));
        }
        Ok(needs_any.then_some(readable))
    }

    /// Adds the blocks of an image that are in the victims.
    fn show(
        &self,
        root: &ImageRoot,
        victims: &Segments,
        source: Option<usize>,
        wanted: &mut HashMap<FramePointer, Wanted>,
    ) -> Result<(), Error> {
        let map = ImageMap::new(Arc::clone(self.vault), root.clone());
        let leaves = tree::leaf_count(root.size);
        for from in (0..leaves).step_by(usize::try_from(LEAVES).unwrap_or(usize::MAX)) {
            for index in map.indexes(from, from.saturating_add(LEAVES).min(leaves))? {
                let Some(leaf) = map.leaf(index)? else { continue };
                let regions = (0..).zip(&leaf.regions);
                let parts = regions.flat_map(|(region, entry)| {
                    let offset = index * LEAF_SIZE + region * REGION_SIZE;
                    entry.parts.iter().map(move |part| (offset, part))
                });
                for (offset, part) in parts {
                    if victims.contains(&part.frame.place.segment) {
                        wanted.entry(part.frame).or_default().add(part, offset, source);
                    }
                }
            }
        }
        Ok(())
    }

    /// Stores what can be got of the frames; returns where it is, and how much of
    /// it nothing proves, for each snapshot.
    fn store(
        &mut self,
        session: &Session,
        sources: &[Source],
        wanted: &HashMap<FramePointer, Wanted>,
    ) -> Result<(Places, Unproved), Error> {
        let mut frames: Vec<_> = wanted.iter().collect();
        // In the order in which they are over there.
        frames.sort_by_key(|(pointer, wanted)| {
            let first = wanted.sites.iter().flatten().next();
            (
                first.map(|site| (site.image, site.offset)),
                pointer.place.segment,
                pointer.place.number,
            )
        });
        let threads = parallel::cores();
        let total = ByteCount(frames.iter().map(|(pointer, _)| size(pointer)).sum());
        let (mut places, mut unproved) = (Places::new(), Unproved::new());
        let mut encoder = Encoder::new();
        let mut done = 0;
        for batch in frames.chunks(BATCH) {
            self.supervisor.check()?;
            let regained = parallel::map(batch, threads, |(pointer, wanted)| {
                self.regain(pointer, wanted, sources)
            });
            for ((pointer, wanted), regained) in batch.iter().zip(regained) {
                let regained = regained?;
                done += size(pointer);
                self.count(&regained, wanted, sources, &mut unproved);
                let frame = (regained.slots != 0).then(|| {
                    let ids = self.vault.keys.ids_of(&regained.raw);
                    let core = session.core();
                    core.put_frame(encoder.encode(&regained.raw), regained.raw.len(), &ids)
                });
                let (kept, visible) = (regained.slots, wanted.visible);
                places.insert(**pointer, Now { frame, kept, visible });
            }
            session.core().lanes.check()?;
            self.supervisor.advance(ByteCount(done), total);
        }
        Ok((places, unproved))
    }

    /// Notes what the other repository has given of a frame, or could not give.
    fn count(
        &mut self,
        regained: &Regained,
        wanted: &Wanted,
        sources: &[Source],
        unproved: &mut Unproved,
    ) {
        self.done.fetched_bytes.0 += u64::from(regained.fetched.count_ones()) * BLOCK;
        for slot in (0..32).filter(|slot| regained.unproved & 1 << slot != 0) {
            if let Some(site) = wanted.sites[slot] {
                *unproved.entry(sources[site.image].snapshot).or_default() += BLOCK;
            }
        }
        if let Some(Site { image, offset }) = regained.mismatch {
            let Source { snapshot, name, .. } = &sources[image];
            self.mismatch(*snapshot, name, Some(offset));
        }
    }

    /// Notes that the other repository has something else.
    pub(crate) fn mismatch(&mut self, snapshot: SnapshotId, part: &str, offset: Option<u64>) {
        let mismatch = Mismatch { snapshot, part: part.to_owned(), offset };
        self.done.mismatches.entry((snapshot, part.to_owned())).or_insert(mismatch);
    }

    /// Returns the frame as it is here, or else of it what the other repository has.
    fn regain(
        &self,
        pointer: &FramePointer,
        wanted: &Wanted,
        sources: &[Source],
    ) -> Result<Regained, Error> {
        if let Some(raw) = sound(self.vault.read_frame(pointer))? {
            let slots = u32::MAX >> (32 - u32::from(pointer.blocks));
            return Ok(Regained { raw, slots, fetched: 0, unproved: 0, mismatch: None });
        }
        let ids = sound(self.vault.block_ids(pointer))?;
        let mut got =
            Regained { raw: Vec::new(), slots: 0, fetched: 0, unproved: 0, mismatch: None };
        let sites = wanted.sites.iter().take(usize::from(pointer.blocks)).enumerate();
        for (slot, site) in sites {
            let Some(site) = *site else { continue };
            let Some(bytes) = donor::block(&sources[site.image].reader, site.offset)? else {
                continue;
            };
            if ids.as_ref().is_some_and(|ids| self.vault.keys.ids_of(&bytes) != [ids[slot]]) {
                got.mismatch = Some(site);
                continue;
            }
            got.raw.extend_from_slice(&bytes);
            got.slots |= 1 << slot;
        }
        got.fetched = got.slots;
        if ids.is_none() && got.slots != 0 {
            let is_whole = got.slots.count_ones() == u32::from(pointer.blocks);
            let keys = &self.vault.keys;
            match is_whole && keys.frame_id(&keys.ids_of(&got.raw)) == pointer.id {
                true => {}
                // The id of the frame proves all of its blocks or none.
                false if is_whole => {
                    let mismatch = wanted.sites.iter().flatten().next().copied();
                    let (raw, slots, fetched) = (Vec::new(), 0, 0);
                    got = Regained { raw, slots, fetched, unproved: 0, mismatch };
                }
                false => got.unproved = got.slots,
            }
        }
        Ok(got)
    }

    /// Stores the chunks of blobs that are in the victims; returns where they are.
    fn chunks(
        &mut self,
        session: &Session,
        affected: &[(&SnapshotRecord, Vec<bool>)],
        victims: &Segments,
    ) -> Result<HashMap<Place, Place>, Error> {
        let mut places = HashMap::new();
        for (record, _) in affected {
            for (name, blob) in &record.blobs {
                self.chunks_of((record, name, blob), session, victims, &mut places)?;
            }
        }
        Ok(places)
    }

    fn chunks_of(
        &mut self,
        (record, name, blob): (&SnapshotRecord, &str, &BlobId),
        session: &Session,
        victims: &Segments,
        places: &mut HashMap<Place, Place>,
    ) -> Result<(), Error> {
        let Some(chunks) = sound(blob::chunks(self.vault, blob))? else { return Ok(()) };
        let mut theirs = None;
        for (number, chunk) in chunks.iter().enumerate() {
            if !victims.contains(&chunk.place.segment) || places.contains_key(&chunk.place) {
                continue;
            }
            let bytes = match sound(self.vault.bytes(chunk, FrameKind::Blob))? {
                Some(bytes) => bytes,
                None => {
                    if theirs.is_none() {
                        let pin = self.donor.same(record)?;
                        let read = pin.map(|pin| self.donor.blob(&pin, name, blob.len));
                        theirs = Some(read.transpose()?.flatten());
                    }
                    let Some(Some(all)) = &theirs else { continue };
                    let bytes = blob::chunk(all, number).to_vec();
                    if self.vault.keys.node_id(FrameKind::Blob as u8, &bytes) != chunk.id {
                        self.mismatch(record.id, name, None);
                        continue;
                    }
                    self.done.fetched_bytes.0 += u64::try_from(bytes.len()).unwrap_or(0);
                    bytes
                }
            };
            let now = session.core().put_bytes(FrameKind::Blob, chunk.id, &bytes);
            places.insert(chunk.place, now.place);
        }
        Ok(())
    }
}

impl Wanted {
    /// Adds the blocks that a part shows of a region at an offset.
    fn add(&mut self, part: &Part, offset: u64, source: Option<usize>) {
        for block in (0..REGION_BLOCKS).filter(|block| part.used & (1 << block) != 0) {
            let slot = part.slot(block);
            self.visible |= 1 << slot;
            let at = offset + BLOCK * u64::try_from(block).expect("a region has 16 blocks");
            let site = source.map(|image| Site { image, offset: at });
            self.sites[slot] = self.sites[slot].or(site);
        }
    }
}

/// Returns what a part becomes: what is stored anew is there, what an image shows
/// and is lost stays where it is, and what is shown nowhere is left out.
fn cut(part: &Part, now: Option<&Now>) -> Option<Vec<Part>> {
    let Some(Now { frame, kept, visible }) = now else { return Some(Vec::new()) };
    let with = |slots: u32, mask: u16| {
        let is_in = |block: &usize| mask & 1 << block != 0 && slots & 1 << part.slot(*block) != 0;
        (0..REGION_BLOCKS).filter(is_in).fold(0, |mask, block| mask | 1_u16 << block)
    };
    let mask = with(*kept, part.mask);
    let (used, lost) = (part.used & mask, with(*visible, part.used & !mask));
    if lost == part.used {
        return None;
    }
    let before = kept & ((1_u32 << part.first) - 1);
    let first = u8::try_from(before.count_ones()).expect("it is at most 32");
    let moved = frame.map(|frame| Part { frame, first, mask, used });
    let stays = Part { used: lost, ..*part };
    Some(moved.into_iter().chain([stays]).filter(|part| part.used != 0).collect())
}

fn size(frame: &FramePointer) -> u64 {
    u64::from(frame.blocks) * BLOCK
}
