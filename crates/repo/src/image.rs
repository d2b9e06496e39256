//! The map of an image while it is written.
//!
//! Leaves are loaded when they are first touched and written out when there
//! are too many, so memory is bounded whatever the image's size.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::frame::FrameKind;
use crate::node::{Entry, Inner, Leaf};
use crate::pages::WINDOW_SIZE;
use crate::pointer::NodePointer;
use crate::session::Core;
use crate::tree::{self, ImageRoot, LEAF_SIZE, TreePlan, as_leaf};

/// Leaves held in memory for one image: 32 GiB of touched address space.
const MAX_LEAVES: usize = 2048;
/// Windows of a leaf.
const LEAF_WINDOWS: u64 = LEAF_SIZE / WINDOW_SIZE;
/// Regions of a window.
pub(crate) const WINDOW_REGIONS: usize = 32;

/// An image being written.
#[derive(Debug)]
pub(crate) struct ImageState {
    /// The image's number in the session.
    pub number: u64,
    /// What the image has where nothing is written.
    pub base: ImageRoot,
    /// What blocks are compared with, by position.
    pub reference: ImageRoot,
    size: tintype_types::ByteCount,
    leaves: Mutex<Leaves>,
}

#[derive(Debug, Default)]
struct Leaves {
    loaded: HashMap<u64, Arc<Mutex<Option<Leaf>>>>,
    /// The order in which leaves were loaded.
    order: VecDeque<u64>,
    written: BTreeMap<u64, Option<NodePointer>>,
    zeroed: BTreeMap<u64, u64>,
}

impl ImageState {
    pub(crate) fn new(
        number: u64,
        size: tintype_types::ByteCount,
        base: ImageRoot,
        reference: ImageRoot,
    ) -> Self {
        Self { number, base, reference, size, leaves: Mutex::default() }
    }

    pub(crate) fn size(&self) -> tintype_types::ByteCount {
        self.size
    }

    /// Returns the entries of a window as they are now.
    pub(crate) fn window(&self, core: &Core, window: u64) -> Result<Vec<Entry>, Error> {
        let index = window / LEAF_WINDOWS;
        let slot = self.slot(core, index)?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(self.load(core, index)?);
        }
        let leaf = slot.as_ref().expect("it was just loaded");
        Ok(leaf.regions[regions(window)].to_vec())
    }

    /// Replaces the entries of a window that `window` was called for.
    pub(crate) fn set_window(
        &self,
        core: &Core,
        window: u64,
        entries: Vec<Entry>,
    ) -> Result<(), Error> {
        let index = window / LEAF_WINDOWS;
        let slot = self.slot(core, index)?;
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = Some(self.load(core, index)?);
        }
        let leaf = slot.as_mut().expect("it was just loaded");
        for (entry, new) in leaf.regions[regions(window)].iter_mut().zip(entries) {
            *entry = new;
        }
        Ok(())
    }

    /// Returns the entries of a window in the image that blocks are compared with.
    pub(crate) fn reference_window(&self, core: &Core, window: u64) -> Result<Vec<Entry>, Error> {
        match core.vault.leaf(&self.reference, window / LEAF_WINDOWS)? {
            Some(node) => Ok(as_leaf(&node, "an image map")?.regions[regions(window)].to_vec()),
            None => Ok(vec![Entry::default(); WINDOW_REGIONS]),
        }
    }

    /// Makes the leaves of `from..to` zero. No work for them may be queued.
    pub(crate) fn zero_leaves(&self, from: u64, to: u64) {
        let mut leaves = self.lock();
        leaves.loaded.retain(|index, _| !(from..to).contains(index));
        leaves.order.retain(|index| !(from..to).contains(index));
        leaves.written.retain(|index, _| !(from..to).contains(index));
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

    /// Writes the nodes out and returns the image. No work may be queued.
    pub(crate) fn finish(&self, core: &Core) -> Result<ImageRoot, Error> {
        let mut leaves = self.lock();
        while let Some(index) = leaves.order.pop_front() {
            self.write_out(core, &mut leaves, index)?;
        }
        let height = tree::height(self.size);
        let plan = TreePlan {
            vault: &core.vault,
            base: &self.base,
            leaves: &leaves.written,
            zeroed: &leaves.zeroed,
        };
        let base = plan.build(height, 0, &mut |level, index, inner| {
            self.put_inner(core, level, index, inner)
        })?;
        Ok(ImageRoot { size: self.size, height, base })
    }

    fn lock(&self) -> MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the place of a leaf in memory, and makes room for it.
    fn slot(&self, core: &Core, index: u64) -> Result<Arc<Mutex<Option<Leaf>>>, Error> {
        let mut leaves = self.lock();
        if let Some(slot) = leaves.loaded.get(&index) {
            return Ok(Arc::clone(slot));
        }
        for _ in MAX_LEAVES..leaves.order.len() {
            let oldest = leaves.order.pop_front().expect("there are more than the most");
            // A worker is busy with it: try the next one.
            if leaves.loaded.get(&oldest).is_some_and(|slot| Arc::strong_count(slot) > 1) {
                leaves.order.push_back(oldest);
            } else {
                self.write_out(core, &mut leaves, oldest)?;
            }
        }
        let slot = Arc::default();
        leaves.loaded.insert(index, Arc::clone(&slot));
        leaves.order.push_back(index);
        Ok(slot)
    }

    fn load(&self, core: &Core, index: u64) -> Result<Leaf, Error> {
        let pointer = {
            let leaves = self.lock();
            match leaves.written.get(&index) {
                Some(pointer) => *pointer,
                None if leaves.zeroed.range(..=index).next_back().is_some_and(|r| *r.1 > index) => {
                    None
                }
                None => core.vault.subtree(&self.base, 0, index)?,
            }
        };
        match pointer {
            Some(pointer) => {
                let node = core.vault.node(&pointer)?;
                Ok(as_leaf(&node, &pointer.place.segment.key())?.clone())
            }
            None => Ok(Leaf::default()),
        }
    }

    fn write_out(&self, core: &Core, leaves: &mut Leaves, index: u64) -> Result<(), Error> {
        let Some(slot) = leaves.loaded.remove(&index) else { return Ok(()) };
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        // Never loaded: the job that wanted it failed before.
        let Some(leaf) = slot.as_ref() else { return Ok(()) };
        let pointer = if leaf.is_zero() {
            None
        } else {
            Some(self.put_node(core, 0, index, &leaf.encode())?)
        };
        leaves.written.insert(index, pointer);
        Ok(())
    }

    fn put_inner(
        &self,
        core: &Core,
        level: u8,
        index: u64,
        inner: &Inner,
    ) -> Result<NodePointer, Error> {
        self.put_node(core, level, index, &inner.encode())
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
        for old in [&self.reference, &self.base] {
            if let Some(pointer) = core.vault.subtree(old, level, index)?
                && pointer.id == id
            {
                return Ok(pointer);
            }
        }
        Ok(core.put_bytes(FrameKind::Node, id, bytes))
    }
}

/// Returns the indexes in its leaf of the regions of a window.
fn regions(window: u64) -> std::ops::Range<usize> {
    let first = usize::try_from(window % LEAF_WINDOWS).expect("it is at most 7") * WINDOW_REGIONS;
    first..first + WINDOW_REGIONS
}
