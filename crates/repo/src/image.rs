//! The map of an image while it is written.
//!
//! Leaves are loaded when they are first touched and put away when there are
//! too many, so memory is bounded by what changed. What is put away is what
//! differs from the parent's leaf; `finish` decides whether that becomes a run
//! or new leaves.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tintype_types::ByteCount;

use crate::Error;
use crate::frame::FrameKind;
use crate::map::ImageMap;
use crate::node::{Entry, FAN_OUT, Leaf};
use crate::pages::WINDOW_SIZE;
use crate::pointer::NodePointer;
use crate::run::{self, Change};
use crate::session::Core;
use crate::tree::{self, ImageRoot, LEAF_SIZE, MAX_RUNS, TreePlan, as_leaf};

/// Leaves held in memory for one image: 32 GiB of touched address space.
const MAX_LEAVES: usize = 2048;
/// Regions of a leaf that may differ before a new leaf is better than a list.
const FEW_REGIONS: usize = FAN_OUT / 4;
/// Windows of a leaf.
const LEAF_WINDOWS: u64 = LEAF_SIZE / WINDOW_SIZE;
/// Regions of a window.
pub(crate) const WINDOW_REGIONS: usize = 32;

/// About the bytes of a new leaf, of a changed region and of a replaced leaf
/// in a run; and how much cheaper a run has to be.
const LEAF_COST: usize = 6000;
const REGION_COST: usize = 48;
const WHOLE_COST: usize = 60;
const RUN_ADVANTAGE: usize = 4;
/// New leaves that cost less than this are not worth a run.
const CHEAP: usize = 64 << 10;

/// An image being written.
#[derive(Debug)]
pub(crate) struct ImageState {
    /// The image's number in the session.
    pub number: u64,
    /// What the image has where nothing is written.
    pub base: Arc<ImageMap>,
    /// What blocks are compared with, by position.
    pub reference: Arc<ImageMap>,
    size: ByteCount,
    leaves: Mutex<Leaves>,
}

type Slot = Arc<Mutex<Option<Leaf>>>;

#[derive(Debug, Default)]
struct Leaves {
    loaded: HashMap<u64, Slot>,
    /// The order in which leaves were loaded.
    order: VecDeque<u64>,
    /// What was put away, as changes of the reference.
    put_away: BTreeMap<u64, Change>,
    /// Ranges of leaves that were made zero: start to end.
    zeroed: BTreeMap<u64, u64>,
}

impl ImageState {
    pub(crate) fn new(
        number: u64,
        size: ByteCount,
        base: Arc<ImageMap>,
        reference: Arc<ImageMap>,
    ) -> Self {
        Self { number, base, reference, size, leaves: Mutex::default() }
    }

    pub(crate) fn size(&self) -> ByteCount {
        self.size
    }

    /// Returns the entries of a window as they are now.
    pub(crate) fn window(&self, window: u64, core: &Core) -> Result<Vec<Entry>, Error> {
        self.with_leaf(window, core, |regions| regions.to_vec())
    }

    /// Replaces the entries of a window.
    pub(crate) fn set_window(
        &self,
        window: u64,
        entries: Vec<Entry>,
        core: &Core,
    ) -> Result<(), Error> {
        self.with_leaf(window, core, |regions| {
            regions.iter_mut().zip(entries).for_each(|(entry, new)| *entry = new);
        })
    }

    fn with_leaf<T>(
        &self,
        window: u64,
        core: &Core,
        work: impl FnOnce(&mut [Entry]) -> T,
    ) -> Result<T, Error> {
        let index = window / LEAF_WINDOWS;
        let slot = self.slot(core, index)?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let leaf = match &mut *slot {
            Some(leaf) => leaf,
            empty => empty.insert(self.load(core, index)?),
        };
        Ok(work(&mut leaf.regions[regions(window)]))
    }

    /// Returns the entries of a window in the image that blocks are compared with.
    pub(crate) fn reference_window(&self, window: u64) -> Result<Vec<Entry>, Error> {
        match self.reference.leaf(window / LEAF_WINDOWS)? {
            Some(leaf) => Ok(leaf.regions[regions(window)].to_vec()),
            None => Ok(vec![Entry::default(); WINDOW_REGIONS]),
        }
    }

    /// Makes the leaves of `from..to` zero. No work for them may be queued.
    pub(crate) fn zero_leaves(&self, from: u64, to: u64) {
        let mut leaves = self.lock();
        leaves.loaded.retain(|index, _| !(from..to).contains(index));
        leaves.order.retain(|index| !(from..to).contains(index));
        leaves.put_away.retain(|index, _| !(from..to).contains(index));
        let (mut start, mut end) = (from, to);
        // Join with the ranges that overlap or touch.
        while let Some((&other, &other_end)) = leaves.zeroed.range(..=end).next_back()
            && other_end >= start
        {
            leaves.zeroed.remove(&other);
            start = start.min(other);
            end = end.max(other_end);
        }
        leaves.zeroed.insert(start, end);
    }

    /// Writes the map out and returns the image. No work may be queued.
    pub(crate) fn finish(&self, core: &Core) -> Result<ImageRoot, Error> {
        let changes = self.take_changes(core)?;
        let old = &self.reference.root;
        if changes.is_empty() {
            return Ok(ImageRoot { size: self.size, ..old.clone() });
        }
        let mut affected = self.reference.changed(0, u64::MAX)?;
        affected.extend(changes.keys());
        let whole = changes.values().filter(|c| matches!(c, Change::Whole(_))).count();
        let regions: usize = changes
            .values()
            .map(|change| match change {
                Change::Whole(_) => 0,
                Change::Regions(regions) => regions.len(),
            })
            .sum();
        let run_cost = regions * REGION_COST + whole * WHOLE_COST;
        let leaf_cost = affected.len().saturating_sub(whole) * LEAF_COST;
        if old.base.is_some()
            && old.runs.len() < MAX_RUNS
            && leaf_cost > CHEAP.max(RUN_ADVANTAGE * run_cost)
        {
            let mut runs = old.runs.clone();
            runs.push(run::write(&changes, &|bytes| self.put_new(core, bytes)));
            return Ok(ImageRoot { size: self.size, height: old.height, base: old.base, runs });
        }
        self.fold(core, &affected.into_iter().collect::<Vec<_>>(), changes)
    }

    /// Returns all changes of the reference.
    fn take_changes(&self, core: &Core) -> Result<BTreeMap<u64, Change>, Error> {
        let mut leaves = self.lock();
        while let Some(index) = leaves.order.pop_front() {
            self.put_away(core, &mut leaves, index)?;
        }
        let mut zeroed = std::mem::take(&mut leaves.zeroed);
        if !Arc::ptr_eq(&self.base, &self.reference) {
            zeroed = BTreeMap::from([(0, u64::MAX)]);
        }
        let mut changes = std::mem::take(&mut leaves.put_away);
        for (from, to) in zeroed {
            for index in self.reference.indexes(from, to)? {
                changes.entry(index).or_insert(Change::Whole(None));
            }
        }
        changes.retain(|_, change| *change != Change::Regions(Vec::new()));
        Ok(changes)
    }

    /// Makes a base of its own: new leaves for everything that changed.
    fn fold(
        &self,
        core: &Core,
        affected: &[u64],
        mut changes: BTreeMap<u64, Change>,
    ) -> Result<ImageRoot, Error> {
        let mut leaves = BTreeMap::new();
        for &index in affected {
            let pointer = match changes.remove(&index) {
                Some(Change::Whole(pointer)) => pointer,
                Some(Change::Regions(regions)) => {
                    let mut leaf = self.reference.leaf(index)?.unwrap_or_default();
                    run::apply(&mut leaf, &regions);
                    self.put_leaf(core, index, &leaf)?
                }
                None => match self.reference.leaf(index)? {
                    Some(leaf) => self.put_leaf(core, index, &leaf)?,
                    None => None,
                },
            };
            leaves.insert(index, pointer);
        }
        let height = tree::height(self.size);
        let plan = TreePlan { vault: &core.vault, base: &self.reference.root, leaves: &leaves };
        let base = plan.build(height, 0, &mut |level, index, inner| {
            self.put_node(core, level, index, &inner.encode())
        })?;
        Ok(ImageRoot { size: self.size, height, base, runs: Vec::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the place of a leaf in memory, and makes room for it.
    fn slot(&self, core: &Core, index: u64) -> Result<Slot, Error> {
        let mut leaves = self.lock();
        if let Some(slot) = leaves.loaded.get(&index) {
            return Ok(Arc::clone(slot));
        }
        for _ in MAX_LEAVES..leaves.order.len() {
            let Some(oldest) = leaves.order.pop_front() else { break };
            // A worker is busy with it: try the next one.
            if leaves.loaded.get(&oldest).is_some_and(|slot| Arc::strong_count(slot) > 1) {
                leaves.order.push_back(oldest);
            } else {
                self.put_away(core, &mut leaves, oldest)?;
            }
        }
        let slot = Slot::default();
        leaves.loaded.insert(index, Arc::clone(&slot));
        leaves.order.push_back(index);
        Ok(slot)
    }

    fn load(&self, core: &Core, index: u64) -> Result<Leaf, Error> {
        let (change, zeroed) = {
            let leaves = self.lock();
            let zeroed = leaves.zeroed.range(..=index).next_back();
            (leaves.put_away.get(&index).cloned(), zeroed.is_some_and(|(_, end)| *end > index))
        };
        let leaf = match change {
            Some(Change::Whole(None)) => None,
            Some(Change::Whole(Some(pointer))) => {
                Some(as_leaf(&*core.vault.node(&pointer)?, &pointer)?)
            }
            Some(Change::Regions(regions)) => {
                let mut leaf = self.reference.leaf(index)?.unwrap_or_default();
                run::apply(&mut leaf, &regions);
                Some(leaf)
            }
            None if zeroed => None,
            None => self.base.leaf(index)?,
        };
        Ok(leaf.map(Arc::unwrap_or_clone).unwrap_or_default())
    }

    /// Takes a leaf out of memory and keeps what differs from the reference.
    fn put_away(&self, core: &Core, leaves: &mut Leaves, index: u64) -> Result<(), Error> {
        let Some(slot) = leaves.loaded.remove(&index) else { return Ok(()) };
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // Never loaded: the job that wanted it failed before.
        let Some(leaf) = slot.as_ref() else { return Ok(()) };
        let old = self.reference.leaf(index)?;
        let zero = Leaf::default();
        let old_regions = &old.as_deref().unwrap_or(&zero).regions;
        let differing: Vec<_> = (0..=u8::MAX)
            .zip(leaf.regions.iter().zip(old_regions))
            .filter(|(_, (new, old))| new != old)
            .map(|(region, (new, _))| (region, new.clone()))
            .collect();
        let change = if differing.is_empty() || (old.is_some() && differing.len() <= FEW_REGIONS) {
            Change::Regions(differing)
        } else {
            Change::Whole(self.put_leaf(core, index, leaf)?)
        };
        leaves.put_away.insert(index, change);
        Ok(())
    }

    fn put_leaf(&self, core: &Core, index: u64, leaf: &Leaf) -> Result<Option<NodePointer>, Error> {
        if leaf.is_zero() {
            return Ok(None);
        }
        self.put_node(core, 0, index, &leaf.encode()).map(Some)
    }

    /// Stores a node unless the parent has the same one at the same place.
    fn put_node(
        &self,
        core: &Core,
        level: u8,
        index: u64,
        bytes: &[u8],
    ) -> Result<NodePointer, Error> {
        let id = core.vault.keys.node_id(FrameKind::Node as u8, bytes);
        match core.vault.subtree(&self.reference.root, level, index)? {
            Some(pointer) if pointer.id == id => Ok(pointer),
            _ => Ok(core.put_bytes(FrameKind::Node, id, bytes)),
        }
    }

    fn put_new(&self, core: &Core, bytes: &[u8]) -> NodePointer {
        core.put_bytes(
            FrameKind::Node,
            core.vault.keys.node_id(FrameKind::Node as u8, bytes),
            bytes,
        )
    }
}

/// Returns the indexes in its leaf of the regions of a window.
fn regions(window: u64) -> std::ops::Range<usize> {
    let first = usize::try_from(window % LEAF_WINDOWS).expect("it is at most 7") * WINDOW_REGIONS;
    first..first + WINDOW_REGIONS
}
