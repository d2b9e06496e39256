//! Which of some bytes an image has, too, by the ids of blocks alone: no content is
//! read, so what is the same need not be readable.

use std::ops::Range;

use tintype_types::BLOCK_SIZE;

use crate::Error;
use crate::node::{Entry, REGION_BLOCKS};
use crate::pointer::{BlockId, FramePointer};
use crate::reader::ImageReader;
use crate::tree::LEAF_SIZE;

const REGION_SIZE: usize = REGION_BLOCKS * BLOCK_SIZE;

/// The ids of the frame that was asked for last.
type Last = Option<(FramePointer, Vec<BlockId>)>;

impl ImageReader {
    /// Returns the ranges of `bytes`, joined, that the image does not have at `offset`.
    /// They begin at multiples of 4 KiB, as `offset` has to, and end there or with
    /// the bytes. The bytes have to lie within the image, and to fill its blocks. Blocks
    /// whose ids cannot be read count as others: to read them tells whether they are
    /// damaged.
    pub fn differing(&self, offset: u64, bytes: &[u8]) -> Result<Vec<Range<usize>>, Error> {
        let end = u64::try_from(bytes.len()).ok().and_then(|len| offset.checked_add(len));
        let size = self.size().get();
        let is_whole = |at: u64| at.is_multiple_of(BLOCK_SIZE as u64) || at == size;
        if !end.is_some_and(|end| end <= size && is_whole(end)) || !is_whole(offset) {
            return Err(Error::Invalid(format!(
                "{} bytes at {offset} are not whole blocks of an image of {size} bytes",
                bytes.len()
            )));
        }
        let mut found: Vec<Range<usize>> = Vec::new();
        let mut last = None;
        let mut at = 0;
        while at < bytes.len() {
            let start = offset + at as u64;
            let within = usize::try_from(start % REGION_SIZE as u64).unwrap_or_default();
            let piece = &bytes[at..bytes.len().min(at + REGION_SIZE - within)];
            self.differing_in_region(start, piece, &mut last, |range| {
                let range = at + range.start..at + range.end;
                match found.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => found.push(range),
                }
            })?;
            at += piece.len();
        }
        Ok(found)
    }

    /// Tells of each block of a piece of one region that the image does not have.
    fn differing_in_region(
        &self,
        offset: u64,
        piece: &[u8],
        last: &mut Last,
        mut tell: impl FnMut(Range<usize>),
    ) -> Result<(), Error> {
        let leaf = self.map().leaf(offset / LEAF_SIZE)?;
        let zeros = Entry::default();
        let within = |unit: u64, size: usize| usize::try_from(unit).unwrap_or(0) / size;
        let region = within(offset % LEAF_SIZE, REGION_SIZE);
        let first = within(offset % REGION_SIZE as u64, BLOCK_SIZE);
        let entry = leaf.as_ref().map_or(&zeros, |leaf| &leaf.regions[region]);
        for (number, bytes) in piece.chunks(BLOCK_SIZE).enumerate() {
            if !self.has_block(entry, first + number, bytes, last)? {
                tell(number * BLOCK_SIZE..number * BLOCK_SIZE + bytes.len());
            }
        }
        Ok(())
    }

    /// Tells whether a block of a region has these bytes. The last one of an image may be
    /// short: what it lacks is kept as zeros.
    fn has_block(
        &self,
        entry: &Entry,
        block: usize,
        bytes: &[u8],
        last: &mut Last,
    ) -> Result<bool, Error> {
        let Some(part) = entry.part(block) else {
            return Ok(bytes.iter().all(|byte| *byte == 0));
        };
        let ids = match last.take() {
            Some((frame, ids)) if frame == part.frame => ids,
            _ => match self.vault().block_ids(&part.frame) {
                Ok(ids) => ids,
                // Its content may be readable for all that.
                Err(_) => return Ok(false),
            },
        };
        let mut whole = [0; BLOCK_SIZE];
        whole[..bytes.len()].copy_from_slice(bytes);
        let is_same = ids.get(part.slot(block)) == Some(&self.vault().keys.block_id(&whole));
        *last = Some((part.frame, ids));
        Ok(is_same)
    }
}
