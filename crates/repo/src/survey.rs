//! How much of each segment is still needed, and which segments are worth
//! moving what is left of them.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};

use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::epoch::Segments;
use crate::gone::Deletions;
use crate::history::{History, Reading};
use crate::mark;
use crate::pointer::{BLOCK_ID_LEN, NodePointer, Place, SegmentName};
use crate::reach::{self, Reach, Target};
use crate::record::{MAX_OUTCOME, SnapshotRecord};
use crate::rewrite::{self, Rewriter};
use crate::segment::{HEADER_LEN, TRAILER_LEN};
use crate::supervisor::Supervisor;
use crate::vault::Vault;

/// What a frame takes in its segment's table, beside its ids.
const TABLE_ENTRY: u64 = 16;
const ENDS: u64 = (HEADER_LEN + TRAILER_LEN) as u64;

/// When what is left of segments is moved.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CompactionParams {
    /// Segments are emptied of which less than this share is needed.
    pub live_percent: u64,
    /// Only if so much is gained; `None` whatever it costs, once.
    pub least_gain: Option<ByteCount>,
    /// How much is moved at a time: as much space is needed meanwhile.
    pub step: ByteCount,
}

impl Default for CompactionParams {
    fn default() -> Self {
        Self { live_percent: 60, least_gain: Some(ByteCount(1 << 20)), step: ByteCount(1 << 30) }
    }
}

/// What is needed of one segment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Live {
    /// A bit for each frame that is needed.
    frames: Vec<u64>,
    /// Bytes of these frames, with their entries in the table.
    bytes: u64,
    /// Those of them that are not of nodes.
    pub content_bytes: u64,
}

impl Live {
    fn add(&mut self, place: &Place, target: Target) {
        let (word, bit) = (usize::from(place.number / 64), 1 << (place.number % 64));
        if self.frames.len() <= word {
            self.frames.resize(word + 1, 0);
        }
        if self.frames[word] & bit != 0 {
            return;
        }
        self.frames[word] |= bit;
        let ids = match target {
            Target::Node | Target::Chunk => 32,
            Target::Blocks(blocks) => BLOCK_ID_LEN * usize::from(blocks),
        };
        let bytes = u64::from(place.len) + TABLE_ENTRY + u64::try_from(ids).unwrap_or(0);
        self.bytes += bytes;
        self.content_bytes += if target == Target::Node { 0 } else { bytes };
    }

    /// Whether a frame is needed.
    pub(crate) fn has(&self, number: u16) -> bool {
        let word = self.frames.get(usize::from(number / 64));
        word.is_some_and(|word| word & 1 << (number % 64) != 0)
    }
}

/// What is needed of all segments.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub live: HashMap<SegmentName, Live>,
    sizes: BTreeMap<SegmentName, u64>,
    /// Segments that stay, whatever is moved out of them: of snapshots that are
    /// being read.
    held: Segments,
    records: Vec<SnapshotRecord>,
}

/// Segments to empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub victims: Segments,
    /// How many bytes fewer the repository has when it is done.
    pub gain: u64,
    pub snapshots: u64,
    /// How much is moved.
    pub content_bytes: u64,
    /// The same, with what is left to later steps as far as that is known.
    pub all_bytes: u64,
}

impl Survey {
    /// Looks at everything that snapshots need, also those whose deletion can be
    /// undone, but for what counts as gone. If an outcome is damaged, nobody knows
    /// what was moved.
    pub(crate) fn read(
        vault: &Vault,
        is_gone: impl Fn(&Deletions, SnapshotId) -> bool,
    ) -> Result<Self, Error> {
        let deletions = Deletions::read(vault)?;
        let history = History::read(vault, Reading::Known, |id| deletions.has_collected(id))?;
        history.must_be_whole()?;
        let read = mark::read_by_others(vault)?;
        let mut survey = Self::default();
        for id in history.snapshots() {
            let is_held = read.contains(&id);
            for record in history.superseded(id).iter().filter(|_| is_held) {
                match reach::segments_so_far(vault, record, &mut survey.held) {
                    Ok(()) | Err(Error::Damaged(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let current = history.current(id)?;
            for record in current.iter().filter(|_| is_held) {
                reach::segments_so_far(vault, record, &mut survey.held)?;
            }
            survey.records.extend(current.filter(|_| !is_gone(&deletions, id)));
        }
        for listed in vault.store.list("seg/")? {
            let name = SegmentName::from_key(&listed.key);
            survey.sizes.extend(name.map(|name| (name, listed.size)));
        }
        survey.count(vault)?;
        Ok(survey)
    }

    fn count(&mut self, vault: &Vault) -> Result<(), Error> {
        let (live, sizes) = (&mut self.live, &self.sizes);
        let mut reach = Reach::new(vault, |place: &Place, target| {
            // What is not there costs no memory.
            if sizes.contains_key(&place.segment) {
                live.entry(place.segment).or_default().add(place, target);
            }
        });
        self.records.iter().try_for_each(|record| reach.snapshot(record))
    }

    /// Chooses segments to empty in one step, those first of which least is
    /// needed; none if that does not pay.
    pub(crate) fn plan(
        &self,
        vault: &Vault,
        params: &CompactionParams,
        (step, avoid): (u64, &Segments),
        supervisor: &dyn Supervisor,
    ) -> Result<Option<Plan>, Error> {
        let mut candidates = self.candidates(params.live_percent, avoid);
        let mut content = 0_u64;
        let fits = candidates.iter().position(|name| {
            content = content.saturating_add(self.live[name].content_bytes);
            content > step
        });
        candidates.truncate(fits.unwrap_or(candidates.len()).max(1));
        while !candidates.is_empty() {
            supervisor.check()?;
            let victims = candidates.iter().copied().collect();
            if let Some(plan) = self.worth(vault, victims, (0, params.least_gain))? {
                return Ok(Some(plan));
            }
            candidates.truncate(candidates.len() / 2);
        }
        Ok(None)
    }

    /// Returns the segments of which little is needed, the emptiest first.
    fn candidates(&self, live_percent: u64, avoid: &Segments) -> Vec<SegmentName> {
        let share = |name: &SegmentName, live: &Live| {
            let size = self.sizes.get(name)?.saturating_sub(ENDS).max(1);
            Some(live.bytes.saturating_mul(1_000) / size)
        };
        let mut candidates: Vec<(u64, SegmentName)> = self
            .live
            .iter()
            .filter(|(name, _)| self.is_movable(name, avoid))
            .filter_map(|(name, live)| Some((share(name, live)?, *name)))
            .filter(|(share, _)| *share < live_percent.saturating_mul(10))
            .collect();
        candidates.sort_unstable();
        candidates.into_iter().map(|(_, name)| name).collect()
    }

    fn is_movable(&self, name: &SegmentName, avoid: &Segments) -> bool {
        !self.held.contains(name) && !avoid.contains(name)
    }

    /// Returns the segments that hold content and may be emptied, in order.
    pub(crate) fn with_content(&self, avoid: &Segments) -> Vec<SegmentName> {
        let holding = self.live.iter().filter(|(_, live)| live.content_bytes > 0);
        let mut names: Vec<_> =
            holding.map(|(name, _)| *name).filter(|name| self.is_movable(name, avoid)).collect();
        names.sort_unstable();
        names
    }

    /// Returns what emptying some segments gains, if that is enough, when their
    /// content shrinks by so many bytes on its way.
    pub(crate) fn worth(
        &self,
        vault: &Vault,
        victims: Segments,
        (shrinks, least): (u64, Option<ByteCount>),
    ) -> Result<Option<Plan>, Error> {
        let size = |name| self.sizes.get(name).copied().unwrap_or(0);
        let freed: u64 = victims.iter().map(size).sum();
        let content_bytes: u64 = victims.iter().map(|name| self.live[name].content_bytes).sum();
        let nodes = Cell::new(0);
        let elsewhere = SegmentName { session: SnapshotId::from_bytes([0; 16]), number: 0 };
        let is_victim = |place: &Place| victims.contains(&place.segment);
        let moved = |place: &Place| Place { segment: elsewhere, ..*place };
        let mut rewriter = Rewriter {
            vault,
            moved: &|place| is_victim(place).then(|| moved(place)),
            cut: &|_| None,
            leaves: &is_victim,
            put: &|pointer, _| {
                nodes.set(nodes.get() + rewrite::weight(&pointer.place));
                NodePointer { place: moved(&pointer.place), id: pointer.id }
            },
            nodes: HashMap::new(),
        };
        let (mut snapshots, mut outcome) = (0, 0);
        for record in &self.records {
            let now = rewriter.snapshot(record)?;
            if now.images != record.images || now.blobs != record.blobs {
                let json = serde_json::to_string(&(&now.images, &now.blobs));
                let len = json.expect("it is plain data").len() + 200;
                outcome += u64::try_from(len).unwrap_or(u64::MAX);
                snapshots += 1;
            }
        }
        if vault.keys.hides() {
            outcome *= 2;
        }
        let cost = nodes.get() + content_bytes + outcome + 2 * ENDS;
        let gain = (freed + shrinks).saturating_sub(cost);
        let is_enough = least.is_none_or(|least| gain >= least.get().max(1));
        let plan = Plan { victims, gain, snapshots, content_bytes, all_bytes: content_bytes };
        Ok((is_enough && outcome <= MAX_OUTCOME).then_some(plan))
    }
}
