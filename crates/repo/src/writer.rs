//! The caller's end of an image being written: takes blocks in any order and
//! gathers them by window. It hashes and compresses nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tintype_types::{BLOCK_SIZE, ByteCount, Extent};

use crate::Error;
use crate::image::ImageState;
use crate::lanes::Job;
use crate::pages::{Pages, WINDOW_SIZE};
use crate::reader::ImageReader;
use crate::session::Core;
use crate::tree::{ImageRoot, LEAF_SIZE};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Takes the content of one image.
///
/// Blocks come in any order and any number of times; the last version counts.
/// One thread feeds it. A call blocks only while the session's queue is full.
#[derive(Debug)]
pub struct ImageWriter {
    core: Arc<Core>,
    image: Arc<ImageState>,
    window: u64,
    pages: Pages,
    /// Leaves that were written to.
    touched: HashSet<u64>,
}

impl ImageWriter {
    pub(crate) fn begin(core: Arc<Core>, image: Arc<ImageState>) -> Result<Self, Error> {
        let mut writer =
            Self { core, image, window: 0, pages: Pages::default(), touched: HashSet::new() };
        writer.cut_base()?;
        Ok(writer)
    }

    /// Makes zero what the base has beyond the image's size, so that it cannot
    /// come back when a later image is larger.
    fn cut_base(&mut self) -> Result<(), Error> {
        let (size, base) = (self.image.size().get(), self.image.base.root.clone());
        if base.size.get() <= size {
            return Ok(());
        }
        let cut = size.next_multiple_of(BLOCK);
        if cut > size {
            let start = cut - BLOCK;
            let mut tail = [0; BLOCK_SIZE];
            let kept = usize::try_from(size - start).expect("it is less than a block");
            ImageReader::new(Arc::clone(&self.core.vault), base.clone())
                .read_at(start, &mut tail[..kept])?;
            self.put(start, &tail)?;
        }
        let end = base.size.get().next_multiple_of(BLOCK);
        if end > cut { self.zero(Extent { offset: cut, len: end - cut }) } else { Ok(()) }
    }

    /// Returns the size of the image.
    pub fn size(&self) -> ByteCount {
        self.image.size()
    }

    /// Takes bytes at an offset. Both ends lie on multiples of 4 KiB; only the
    /// end of the image may lie elsewhere.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let len = u64::try_from(bytes.len()).expect("a usize fits in 64 bits");
        self.check(offset, len)?;
        self.core.counters.read_bytes.fetch_add(len, Relaxed);
        let whole = bytes.len() - bytes.len() % BLOCK_SIZE;
        let (mut rest, tail) = bytes.split_at(whole);
        let mut offset = offset;
        while !rest.is_empty() {
            let room = WINDOW_SIZE - offset % WINDOW_SIZE;
            let len = usize::try_from(room).unwrap_or(usize::MAX).min(rest.len());
            let (piece, later) = rest.split_at(len);
            self.put(offset, piece)?;
            offset += u64::try_from(len).expect("a usize fits in 64 bits");
            rest = later;
        }
        if !tail.is_empty() {
            let mut block = [0; BLOCK_SIZE];
            block[..tail.len()].copy_from_slice(tail);
            self.put(offset, &block)?;
        }
        Ok(())
    }

    /// Makes a range zero, aligned like `write`. Cheap however large it is.
    pub fn write_zeroes(&mut self, extent: Extent) -> Result<(), Error> {
        self.check(extent.offset, extent.len)?;
        let end = extent.end().next_multiple_of(BLOCK);
        self.zero(Extent { offset: extent.offset, len: end - extent.offset })
    }

    /// Ends the image. It becomes durable when the session is committed.
    pub fn finish(mut self) -> Result<ImageRoot, Error> {
        self.submit()?;
        self.core.lanes.wait_idle(self.image.number)?;
        let root = self.image.finish(&self.core)?;
        self.core.parents.add(root.clone());
        Ok(root)
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), Error> {
        let size = self.size().get();
        let end = offset.checked_add(len).filter(|end| *end <= size);
        let aligned = |at: u64| at.is_multiple_of(BLOCK) || at == size;
        match end {
            Some(end) if offset.is_multiple_of(BLOCK) && aligned(end) => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{len} bytes at {offset} are not whole blocks of an image of {size} bytes"
            ))),
        }
    }

    /// Takes whole blocks within one window.
    fn put(&mut self, offset: u64, blocks: &[u8]) -> Result<(), Error> {
        let first = self.turn_to(offset)?;
        self.pages.put(first, blocks);
        if self.pages.is_full() { self.submit() } else { Ok(()) }
    }

    /// Makes the window of an offset the current one, and returns the block of
    /// the offset in it.
    fn turn_to(&mut self, offset: u64) -> Result<usize, Error> {
        let window = offset / WINDOW_SIZE;
        if window != self.window {
            self.submit()?;
            self.window = window;
        }
        self.touched.insert(offset / LEAF_SIZE);
        Ok(usize::try_from(offset % WINDOW_SIZE / BLOCK).expect("a window has 512 blocks"))
    }

    /// Hands the current window to the workers.
    fn submit(&mut self) -> Result<(), Error> {
        if self.pages.is_empty() {
            return self.core.lanes.check();
        }
        // After a full window another is likely.
        let next = if self.pages.is_full() { self.core.large_pages() } else { Pages::default() };
        let pages = std::mem::replace(&mut self.pages, next);
        let image = Arc::clone(&self.image);
        self.core.lanes.submit(Job { image, window: self.window, pages })
    }

    /// Makes whole blocks zero, also beyond the image's end.
    fn zero(&mut self, extent: Extent) -> Result<(), Error> {
        let whole_from = extent.offset.next_multiple_of(LEAF_SIZE);
        let whole_to = extent.end() - extent.end() % LEAF_SIZE;
        if whole_from >= whole_to {
            return self.zero_windows(extent.offset, extent.end());
        }
        self.zero_windows(extent.offset, whole_from)?;
        self.zero_leaves(whole_from / LEAF_SIZE, whole_to / LEAF_SIZE)?;
        self.zero_windows(whole_to, extent.end())
    }

    /// Zeroes parts of at most two leaves, block by block.
    fn zero_windows(&mut self, from: u64, to: u64) -> Result<(), Error> {
        let extent = Extent { offset: from, len: to.saturating_sub(from) };
        let mut offset = from;
        while offset < extent.end() {
            let len = (WINDOW_SIZE - offset % WINDOW_SIZE).min(extent.end() - offset);
            let untouched = !self.touched.contains(&(offset / LEAF_SIZE));
            if !(untouched && self.image.base.root.is_zero()) {
                let first = self.turn_to(offset)?;
                let count = usize::try_from(len / BLOCK).expect("a window has 512 blocks");
                self.pages.put_zeroes(first, count);
            }
            offset += len;
        }
        Ok(())
    }

    fn zero_leaves(&mut self, from: u64, to: u64) -> Result<(), Error> {
        let before = self.touched.len();
        if to - from > u64::try_from(before).unwrap_or(u64::MAX) {
            self.touched.retain(|leaf| !(from..to).contains(leaf));
        } else {
            (from..to).for_each(|leaf| _ = self.touched.remove(&leaf));
        }
        if self.touched.len() < before {
            // Blocks of these leaves may be queued: they come first.
            self.submit()?;
            self.core.lanes.wait_idle(self.image.number)?;
        } else if self.image.base.root.is_zero() {
            return Ok(());
        }
        self.image.zero_leaves(from, to);
        Ok(())
    }
}
