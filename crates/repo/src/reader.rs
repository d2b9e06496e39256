//! Reading images: any bytes at random, and where they have data.
//!
//! What is returned was verified; damage is an error and never zeroes.

use std::sync::Arc;

use tintype_types::{BLOCK_SIZE, ByteCount, Extent};

use crate::Error;
use crate::map::ImageMap;
use crate::node::{Part, REGION_BLOCKS};
use crate::pointer::FramePointer;
use crate::tree::{self, ImageRoot, LEAF_SIZE};
use crate::vault::Vault;

const BLOCK: u64 = BLOCK_SIZE as u64;
pub(crate) const REGION_SIZE: u64 = BLOCK * REGION_BLOCKS as u64;

/// Reads one image. Cheap to clone; any number of threads may use it.
#[derive(Debug, Clone)]
pub struct ImageReader {
    map: Arc<ImageMap>,
}

/// The frame that was read last, so that reading in order decodes it once.
type Last = Option<(FramePointer, Arc<Vec<u8>>)>;

impl ImageReader {
    pub(crate) fn new(vault: Arc<Vault>, root: ImageRoot) -> Self {
        Self { map: Arc::new(ImageMap::new(vault, root)) }
    }

    pub(crate) fn vault(&self) -> &Arc<Vault> {
        &self.map.vault
    }

    pub(crate) fn map(&self) -> &ImageMap {
        &self.map
    }

    /// Returns the size of the image.
    pub fn size(&self) -> ByteCount {
        self.map.root.size
    }

    /// Fills `buf` with the bytes from `offset` on; no alignment is needed.
    /// The range has to lie within the image.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        buf.fill(0);
        self.read(offset, buf)
    }

    /// Returns the ranges that are not zero, in order and joined.
    pub fn data_extents(&self) -> DataExtents {
        self.data_extents_from(0)
    }

    /// Returns the same from the leaf of an offset on.
    pub(crate) fn data_extents_from(&self, offset: u64) -> DataExtents {
        let leaf = offset / LEAF_SIZE;
        DataExtents { reader: self.clone(), leaf, found: Vec::new().into_iter(), open: None }
    }

    /// Fills a buffer of zeroes.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let len = u64::try_from(buf.len()).expect("a usize fits in 64 bits");
        let size = self.size().get();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::Invalid(format!(
                "{len} bytes at {offset} are not within an image of {size} bytes"
            )));
        }
        let mut last = None;
        let (mut offset, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let room = usize::try_from(REGION_SIZE - offset % REGION_SIZE).unwrap_or(usize::MAX);
            let (piece, later) = rest.split_at_mut(room.min(rest.len()));
            self.read_region(offset, piece, &mut last)?;
            offset += u64::try_from(piece.len()).expect("a usize fits in 64 bits");
            rest = later;
        }
        Ok(())
    }

    /// Fills a piece of one region.
    fn read_region(&self, offset: u64, piece: &mut [u8], last: &mut Last) -> Result<(), Error> {
        let Some(leaf) = self.map.leaf(offset / LEAF_SIZE)? else { return Ok(()) };
        let region = usize::try_from(offset % LEAF_SIZE / REGION_SIZE).expect("it is below 256");
        let start = usize::try_from(offset % REGION_SIZE).expect("it is below 64 KiB");
        for part in &leaf.regions[region].parts {
            if served(part, start, piece.len()).next().is_none() {
                continue;
            }
            let bytes = match last {
                Some((pointer, bytes)) if *pointer == part.frame => Arc::clone(bytes),
                _ => self.map.vault.frame(&part.frame)?,
            };
            for Served { from, to, len } in served(part, start, piece.len()) {
                piece[to..to + len].copy_from_slice(&bytes[from..from + len]);
            }
            *last = Some((part.frame, bytes));
        }
        Ok(())
    }

    /// Adds what a leaf has, joined with what comes before.
    pub(crate) fn leaf_extents(&self, index: u64, extents: &mut Vec<Extent>) -> Result<(), Error> {
        let Some(leaf) = self.map.leaf(index)? else { return Ok(()) };
        for (region, entry) in (0..).zip(&leaf.regions) {
            let start = index * LEAF_SIZE + region * REGION_SIZE;
            region_extents(entry.used(), start, extents);
        }
        // The last block may be longer than what the image has of it.
        let size = self.size().get();
        if let Some(last) = extents.last_mut() {
            last.len = last.len.min(size.saturating_sub(last.offset));
        }
        Ok(())
    }
}

/// Bytes of one block that a part serves.
pub(crate) struct Served {
    /// Where they are in the frame.
    pub from: usize,
    /// Where they are in the range that was asked for.
    pub to: usize,
    pub len: usize,
}

/// Returns what a part serves of `start..start + len` of its region.
pub(crate) fn served(part: &Part, start: usize, len: usize) -> impl Iterator<Item = Served> {
    let end = start + len;
    let blocks =
        (start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE)).filter(|b| part.used & (1 << b) != 0);
    blocks.map(move |block| {
        let first = start.max(block * BLOCK_SIZE);
        Served {
            from: part.slot(block) * BLOCK_SIZE + first % BLOCK_SIZE,
            to: first - start,
            len: end.min((block + 1) * BLOCK_SIZE) - first,
        }
    })
}

/// Adds the runs of blocks that a mask has, joined with what comes before.
pub(crate) fn region_extents(mask: u16, start: u64, extents: &mut Vec<Extent>) {
    for block in (0..16_u32).filter(|block| mask & (1 << block) != 0) {
        push_joined(extents, Extent { offset: start + u64::from(block) * BLOCK, len: BLOCK });
    }
}

/// Adds an extent, joined with the last one if it follows directly.
pub(crate) fn push_joined(extents: &mut Vec<Extent>, extent: Extent) {
    match extents.last_mut() {
        Some(last) if last.end() == extent.offset => last.len += extent.len,
        _ => extents.push(extent),
    }
}

/// The ranges of an image that are not zero, in order.
#[derive(Debug)]
pub struct DataExtents {
    reader: ImageReader,
    /// The next leaf to read.
    leaf: u64,
    found: std::vec::IntoIter<Extent>,
    /// The last extent, which the next leaf may continue.
    open: Option<Extent>,
}

impl DataExtents {
    /// Reads leaves until one has data; `None` at the end of the image.
    fn next_extent(&mut self) -> Option<Result<Extent, Error>> {
        loop {
            if let Some(extent) = self.found.next() {
                return Some(Ok(extent));
            }
            let map = &self.reader.map;
            let end = tree::leaf_count(map.root.size);
            if self.leaf >= end {
                return None;
            }
            // One inner node at a time, so that memory does not grow.
            let batch_end = (self.leaf | 0xff).saturating_add(1).min(end);
            let mut extents = Vec::new();
            let read = map.indexes(self.leaf, batch_end).and_then(|batch| {
                batch.into_iter().try_for_each(|leaf| self.reader.leaf_extents(leaf, &mut extents))
            });
            if let Err(error) = read {
                return Some(Err(self.stop(error)));
            }
            self.leaf = batch_end;
            self.found = extents.into_iter();
        }
    }

    fn stop(&mut self, error: Error) -> Error {
        self.leaf = u64::MAX;
        self.open = None;
        error
    }
}

impl Iterator for DataExtents {
    type Item = Result<Extent, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match (self.next_extent(), self.open) {
                (Some(Ok(extent)), Some(open)) if open.end() == extent.offset => {
                    self.open = Some(Extent { len: open.len + extent.len, ..open });
                }
                (Some(Ok(extent)), Some(open)) => {
                    self.open = Some(extent);
                    return Some(Ok(open));
                }
                (Some(Ok(extent)), None) => self.open = Some(extent),
                (Some(Err(error)), _) => return Some(Err(error)),
                (None, _) => return self.open.take().map(Ok),
            }
        }
    }
}
