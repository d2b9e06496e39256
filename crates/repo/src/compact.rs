//! Compaction: moves what is left of segments that are mostly garbage, so that
//! the next collection removes them whole.
//!
//! ```text
//! survey ─► slot ─► copy frames ─► rewrite the maps of all snapshots that lead
//!        there ─► outcome/<session> = moved ─► slot gone ─► collection
//! ```
//!
//! It is a session like one that takes a snapshot: registered, fenced, and ended
//! by others if it dies. Putting the one outcome moves all of its snapshots at
//! once. A frame keeps its content and its id; it is sealed anew for its new
//! segment, and nothing is ever written in an old place. Why it is safe is in
//! `docs/locking.md`. Recompression moves in the same way, and encodes frames anew.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use tintype_types::ByteCount;

use crate::epoch::Segments;
use crate::frame::{self, Codec, FrameHeader, FrameKind, HEADER_LEN, STRONG_LEVEL};
use crate::gc::GcReport;
use crate::gone::{Deletions, Due};
use crate::history::{History, Reading};
use crate::index;
use crate::parallel;
use crate::pointer::{Place, SegmentName};
use crate::reach;
use crate::recompress::Recoder;
use crate::record::{Moved, SnapshotRecord};
use crate::rewrite::Rewriter;
use crate::seal::frame_nonce;
use crate::segment::{self, Identity, Table, TableEntry, index32};
use crate::session::{Core, Session, SessionParams};
use crate::slot;
use crate::supervisor::Supervisor;
use crate::survey::{Live, Plan, Survey};
use crate::vault::Vault;
use crate::wire::Malformed;
use crate::{Error, Kind};

/// With less room than for this, or for what one segment holds, nothing is moved.
const LEAST_STEP: u64 = 1 << 20;

/// What was left undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skipped {
    /// There is no room to move anything.
    NoSpace,
    /// Something is damaged.
    Damaged,
}

/// What a compaction or recompression has done, or would do in a dry run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompactionReport {
    /// Segments that were emptied.
    pub segments: u64,
    /// How often a snapshot's maps were written anew.
    pub snapshots: u64,
    /// What was written for that: it counts against what was freed.
    pub written_bytes: ByteCount,
    /// In a dry run, how many bytes fewer the repository would have.
    pub gain_bytes: ByteCount,
    /// Why more was not done.
    pub skipped: Option<Skipped>,
}

/// Chooses segments to empty in one step, of not much more content than that, and
/// none of those.
pub(crate) type Choose<'c> = dyn Fn(&Survey, u64, &Segments) -> Result<Option<Plan>, Error> + 'c;

/// What is done in steps.
pub(crate) struct Work<'w> {
    /// How much is moved in a step.
    pub step: ByteCount,
    /// Whether there is a second step at all.
    pub is_once: bool,
    pub choose: &'w Choose<'w>,
    /// Encodes anew what is moved.
    pub recoder: Option<&'w Recoder>,
}

/// Says what moving would gain, when those others are moved anyway; and which
/// segments it would empty.
pub(crate) fn estimate(
    vault: &Vault,
    choose: &Choose<'_>,
    (due, others): (&Due, &Segments),
) -> Result<(CompactionReport, Segments), Error> {
    let survey = Survey::read(vault, |deletions, id| deletions.has_due(id, due));
    let plan = survey.and_then(|survey| choose(&survey, u64::MAX, others));
    let (plan, skipped) = match plan {
        Err(Error::Damaged(_)) => (None, Some(Skipped::Damaged)),
        plan => (plan?, None),
    };
    let Plan { victims, gain, snapshots, .. } = plan.unwrap_or_default();
    let gain_bytes = ByteCount(gain);
    let segments = count(victims.len());
    let report = CompactionReport {
        segments,
        snapshots,
        gain_bytes,
        skipped,
        ..CompactionReport::default()
    };
    Ok((report, victims))
}

/// Moves as long as it pays, in steps with a collection after each; returns what
/// they did together.
pub(crate) fn run(
    vault: &Arc<Vault>,
    work: &Work<'_>,
    supervisor: &dyn Supervisor,
    collect: &dyn Fn() -> Result<GcReport, Error>,
) -> Result<GcReport, Error> {
    let mut total = GcReport::default();
    let mut avoid = Segments::new();
    let mut room = work.step.get();
    let mut moved = 0;
    while total.waiting_for == 0 {
        let mut content_bytes = 0;
        let next = choose(vault, work, (room, &avoid));
        let done = next.and_then(|next| {
            let Some((survey, plan)) = next else { return Ok(None) };
            content_bytes = if plan.victims.len() > 1 { plan.content_bytes } else { 0 };
            let step = Step::begin(vault, (&survey, &plan), work.recoder)?;
            step.perform(supervisor, moved).map(Some)
        });
        let done = match done {
            Ok(Some(done)) => done,
            Ok(None) => break,
            Err(Error::Damaged(damage)) => {
                tracing::warn!(%damage, "it stops compaction");
                total.compaction.skipped = Some(Skipped::Damaged);
                break;
            }
            // What it has stored was removed.
            Err(error) if error.kind() == Kind::NoSpace => {
                room = content_bytes.min(room) / 4;
                if room < LEAST_STEP {
                    total.compaction.skipped = Some(Skipped::NoSpace);
                    break;
                }
                continue;
            }
            Err(error) => return Err(error),
        };
        if done.has_damage {
            total.compaction.skipped = Some(Skipped::Damaged);
        }
        avoid.extend(done.left);
        moved += done.moved;
        total.compaction.segments += done.segments;
        total.compaction.snapshots += done.snapshots;
        total.compaction.written_bytes.0 += done.written;
        let collected = collect()?;
        total.segments += collected.segments;
        total.freed_bytes.0 += collected.freed_bytes.get();
        total.waiting_for = collected.waiting_for;
        if work.is_once || collected.freed_bytes.get() <= done.written {
            break;
        }
    }
    Ok(total)
}

/// Looks what there is to do. What others move and collect meanwhile looks like
/// damage, but only once.
fn choose(
    vault: &Vault,
    work: &Work<'_>,
    (room, avoid): (u64, &Segments),
) -> Result<Option<(Survey, Plan)>, Error> {
    let look = || {
        let survey = Survey::read(vault, Deletions::has_collected)?;
        let plan = (work.choose)(&survey, room, avoid)?;
        Ok(plan.map(|plan| (survey, plan)))
    };
    match look() {
        Err(Error::Damaged(_)) => look(),
        found => found,
    }
}

fn count(len: usize) -> u64 {
    u64::try_from(len).expect("a usize fits in 64 bits")
}

/// One step: a session that moves what some segments still hold.
struct Step<'a> {
    session: Session,
    survey: &'a Survey,
    plan: &'a Plan,
    recoder: Option<&'a Recoder>,
    /// The snapshots that are there, where they were when the session began.
    records: Vec<SnapshotRecord>,
    history: History,
    /// Where frames are now.
    places: HashMap<Place, Place>,
    /// Segments that stay as they are: damaged, or emptied by others.
    left: Vec<SegmentName>,
    has_damage: bool,
}

/// What a step has done.
struct Done {
    segments: u64,
    snapshots: u64,
    /// Bytes that were moved, as they were before.
    moved: u64,
    written: u64,
    left: Vec<SegmentName>,
    has_damage: bool,
}

impl<'a> Step<'a> {
    /// Registers, and then reads where everything is: what is there now stays
    /// until the session ends.
    fn begin(
        vault: &Arc<Vault>,
        (survey, plan): (&'a Survey, &'a Plan),
        recoder: Option<&'a Recoder>,
    ) -> Result<Self, Error> {
        let slot = slot::register_writer(vault)?;
        let forbidden = slot.forbidden.clone();
        let params = SessionParams { threads: Some(1), ..SessionParams::default() };
        let session = Session::begin(Arc::clone(vault), slot, &params)?;
        let deletions = Deletions::read(vault)?;
        let history = History::read(vault, Reading::Known, |id| deletions.has_collected(id))?;
        history.must_be_whole()?;
        let mut records = Vec::new();
        // A deletion that is open may be undone, so what it deleted is moved too.
        for id in history.snapshots().filter(|id| !deletions.has_collected(*id)) {
            let Some(record) = history.current(id)? else { continue };
            let needed = match forbidden.is_empty() {
                true => Segments::new(),
                false => reach::segments(vault, [&record])?,
            };
            if forbidden.is_disjoint(&needed) {
                records.push(record);
            }
        }
        let (places, left, has_damage) = (HashMap::new(), Vec::new(), false);
        Ok(Self { session, survey, plan, recoder, records, history, places, left, has_damage })
    }

    /// Moves; `before` is how much was moved in earlier steps.
    fn perform(mut self, supervisor: &dyn Supervisor, before: u64) -> Result<Done, Error> {
        let mut done = 0;
        for (level, name) in self.victims() {
            supervisor.check()?;
            let live = &self.survey.live[&name];
            self.session.core().data.set_level(level);
            match self.copy(name, live, supervisor) {
                Ok(bytes) => done += bytes,
                Err(error @ (Error::Damaged(_) | Error::NotFound(_))) => {
                    let vault = &self.session.core().vault;
                    self.has_damage |= vault.store.size(&name.key())?.is_some();
                    tracing::warn!(%error, "a segment stays as it is");
                    self.left.push(name);
                }
                Err(error) => return Err(error),
            }
            let total = self.plan.all_bytes.max(done);
            supervisor.advance(ByteCount(before + done), ByteCount(before + total));
        }
        let moved = self.rewrite(supervisor)?;
        let snapshots = count(moved.len());
        let segments = count(self.plan.victims.len() - self.left.len());
        let written = self.session.commit_moved(moved)?.stored_bytes.get();
        let Self { left, has_damage, .. } = self;
        Ok(Done { segments, snapshots, moved: done, written, left, has_damage })
    }

    /// Returns the segments to empty, and at which level their frames were tried
    /// when they are moved; those of one level together.
    fn victims(&self) -> Vec<(u8, SegmentName)> {
        let vault = &self.session.core().vault;
        let level = |name| match self.recoder {
            Some(_) => STRONG_LEVEL,
            // One that cannot be read stays as it is, and says so when it is copied.
            None => vault.level(name).unwrap_or_default(),
        };
        let mut victims: Vec<_> =
            self.plan.victims.iter().map(|name| (level(*name), *name)).collect();
        victims.sort_unstable();
        victims
    }

    /// Copies the frames of blocks and blobs that a segment still holds; returns
    /// how many bytes they have.
    fn copy(
        &mut self,
        name: SegmentName,
        live: &Live,
        supervisor: &dyn Supervisor,
    ) -> Result<u64, Error> {
        let core = self.session.core();
        let vault = &core.vault;
        let table = vault.read_table(name)?;
        let needed = |(number, entry): &(u16, &TableEntry)| {
            entry.kind != FrameKind::Node && live.has(*number)
        };
        let frames: Vec<_> = (0..=u16::MAX).zip(table.entries()).filter(needed).collect();
        let Some(end) = frames.last().map(|(_, entry)| entry.range().end) else { return Ok(0) };
        let bytes = vault.range(name, segment::HEADER_LEN, end - segment::HEADER_LEN)?;
        let threads = parallel::cores();
        let coded = parallel::map(&frames, threads, |(number, entry)| -> Result<_, Error> {
            let range = entry.range();
            let frame = &bytes[range.start - segment::HEADER_LEN..range.end - segment::HEADER_LEN];
            supervisor.check()?;
            let taken = take_out(vault, name, &table, (*number, entry), frame)?;
            Ok(match self.recoder {
                Some(recoder) => recoder.shorter(taken),
                None => taken.coded(),
            })
        });
        let mut copied = 0;
        for ((number, entry), coded) in frames.into_iter().zip(coded) {
            let (codec, coded) = coded?;
            let now = put(core, &table, entry, (codec, &coded));
            let len = index32(HEADER_LEN) + entry.stored;
            let was = Place { segment: name, number, offset: entry.offset, len };
            self.places.insert(was, now);
            copied += u64::from(len);
        }
        // The storing threads may have failed.
        core.lanes.check()?;
        Ok(copied)
    }

    /// Writes the maps of all snapshots that lead to what was moved; returns
    /// their new places.
    fn rewrite(&self, supervisor: &dyn Supervisor) -> Result<Vec<Moved>, Error> {
        let core = self.session.core();
        let leaves = |place: &Place| {
            self.plan.victims.contains(&place.segment) && !self.left.contains(&place.segment)
        };
        let mut rewriter = Rewriter {
            vault: &core.vault,
            moved: &|place| self.places.get(place).copied(),
            cut: &|_| None,
            leaves: &leaves,
            put: &|_, bytes| core.put_node(bytes),
            nodes: HashMap::new(),
        };
        let mut moved = Vec::new();
        for record in &self.records {
            supervisor.check()?;
            let SnapshotRecord { images, blobs, .. } = rewriter.snapshot(record)?;
            if images != record.images || blobs != record.blobs {
                let version = self.history.next_version(record.id)?;
                moved.push(Moved { snapshot: record.id, version, images, blobs });
            }
        }
        Ok(moved)
    }
}

/// A frame on its way from one segment to another.
pub(crate) struct Taken {
    pub codec: Codec,
    pub coded: Vec<u8>,
    pub raw: Vec<u8>,
}

impl Taken {
    /// Returns it as it was coded.
    pub(crate) fn coded(self) -> (Codec, Vec<u8>) {
        (self.codec, self.coded)
    }
}

/// Takes a frame out of its segment, when it decodes to what was written.
pub(crate) fn take_out(
    vault: &Vault,
    name: SegmentName,
    table: &Table,
    (number, entry): (u16, &TableEntry),
    frame: &[u8],
) -> Result<Taken, Error> {
    prove(vault, name, table, (number, entry), frame).map_err(|Malformed(reason)| {
        Error::damaged(name.key(), Some(u64::from(entry.offset)), reason)
    })
}

fn prove(
    vault: &Vault,
    name: SegmentName,
    table: &Table,
    (number, entry): (u16, &TableEntry),
    frame: &[u8],
) -> Result<Taken, Malformed> {
    let header = FrameHeader::decode(frame)?;
    if (header.number, header.kind) != (number, entry.kind) {
        return Err(Malformed("it is another frame"));
    }
    let mut payload = frame[HEADER_LEN..].to_vec();
    header.check(&payload)?;
    if let Some(sealer) = vault.keys.segment_sealer(name) {
        let bound = FrameHeader::bound(header.kind, header.codec, header.raw);
        payload = sealer.open(frame_nonce(number), &bound, &mut payload)?.to_vec();
    }
    let raw = frame::decode(header.codec, &payload, header.raw)?;
    if !vault.is_content(table, entry, &raw) {
        return Err(Malformed("the content is not what was written"));
    }
    Ok(Taken { codec: header.codec, coded: payload, raw })
}

/// Stores the coded bytes of a frame in a segment of the session.
fn put(core: &Core, table: &Table, entry: &TableEntry, (codec, coded): (Codec, &[u8])) -> Place {
    let ids = table.block_ids(entry);
    let identity = match Table::node_id(entry) {
        Some(id) => Identity::Node(entry.kind, id),
        None => Identity::Blocks(ids),
    };
    let place = core.data.append(codec, coded, segment::index(entry.raw), identity);
    let new = ids.iter().filter_map(index::hook).map(|hook| (hook, place.segment.number));
    core.hooks.lock().unwrap_or_else(PoisonError::into_inner).extend(new);
    place
}
