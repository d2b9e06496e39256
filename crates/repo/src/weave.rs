//! Decides what becomes of the blocks that came for a window: zero, a
//! reference to what is stored already, or part of a new frame.
//!
//! A region refers to at most four frames, so that reading it costs at most
//! four decompressions: those that serve most of its blocks stay, the blocks of
//! others go into a new one. 16 new blocks of 128 KiB or more get a frame of
//! their own; fewer are packed with those of their neighbours in the window.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tintype_types::BLOCK_SIZE;

use crate::Error;
use crate::frame::{Encoder, MAX_BLOCKS};
use crate::image::WINDOW_REGIONS;
use crate::join::Twin;
use crate::lanes::Job;
use crate::node::{Entry, Part, REGION_BLOCKS};
use crate::pages::{Page, Pages, is_zero};
use crate::pointer::{BlockId, FramePointer};
use crate::session::Core;

/// Regions that a frame of its own may span.
const GROUP_REGIONS: usize = MAX_BLOCKS / REGION_BLOCKS;
/// New blocks of such a group that deserve a frame of their own.
const DENSE: usize = MAX_BLOCKS / 2;
/// Frames that a region may refer to.
const MOST_FRAMES: usize = 4;

/// One worker's tools.
pub(crate) struct Weaver {
    core: Arc<Core>,
    encoder: Encoder,
}

/// What one block of a region becomes.
enum Content<'a> {
    Zero,
    Stored(Part),
    Fresh(BlockId, Cow<'a, [u8]>),
}

/// Blocks on their way into a new frame.
#[derive(Default)]
struct Packing {
    raw: Vec<u8>,
    ids: Vec<BlockId>,
    /// Region in the window, and which of its blocks.
    members: Vec<(usize, u16)>,
}

impl Weaver {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core, encoder: Encoder::new() }
    }

    /// Stores the blocks of a job and enters them in the image's map.
    pub(crate) fn store(&mut self, job: &Job) -> Result<(), Error> {
        let image = &job.image;
        let mut entries = image.window(job.window, &self.core)?;
        let reference = image.reference_window(job.window)?;
        let mut packing = Packing::default();
        for group in 0..WINDOW_REGIONS / GROUP_REGIONS {
            let mut fresh = Packing::default();
            for region in group * GROUP_REGIONS..(group + 1) * GROUP_REGIONS {
                let entry = &mut entries[region];
                self.region(&job.pages, region, &reference[region], entry, &mut fresh)?;
            }
            if fresh.ids.len() >= DENSE {
                self.put(&mut fresh, &mut entries)?;
                continue;
            }
            if packing.ids.len() + fresh.ids.len() > MAX_BLOCKS {
                self.put(&mut packing, &mut entries)?;
            }
            packing.append(fresh);
        }
        self.put(&mut packing, &mut entries)?;
        image.set_window(job.window, entries, &self.core)
    }

    /// Enters what is stored of a region, and adds the rest to `fresh`.
    fn region(
        &self,
        pages: &Pages,
        region: usize,
        reference: &Entry,
        entry: &mut Entry,
        fresh: &mut Packing,
    ) -> Result<(), Error> {
        let first = region * REGION_BLOCKS;
        if (first..first + REGION_BLOCKS).all(|block| pages.page(block) == Page::Absent) {
            return Ok(());
        }
        let mut contents = self.classify(pages, first, entry, reference)?;
        let joined = self.join(&mut contents);
        let kept = self.keep(&mut contents, pages, first)?;
        *entry = Entry { parts: kept };
        let counters = &self.core.counters;
        counters.joined_blocks.fetch_add((joined & entry.used()).count_ones().into(), Relaxed);
        fresh.add(region, &contents);
        Ok(())
    }

    /// Compares each block of a region with what is at its place, in the
    /// parent and in the image as written so far.
    fn classify<'a>(
        &self,
        pages: &'a Pages,
        first: usize,
        current: &Entry,
        reference: &Entry,
    ) -> Result<Vec<Content<'a>>, Error> {
        let mut known = Known { core: &self.core, ids: Vec::new() };
        let counters = &self.core.counters;
        let mut contents = Vec::with_capacity(REGION_BLOCKS);
        for block in 0..REGION_BLOCKS {
            contents.push(match pages.page(first + block) {
                Page::Absent => {
                    current.part(block).map_or(Content::Zero, |part| Content::Stored(*part))
                }
                Page::Zero => Content::Zero,
                Page::Bytes(bytes) if is_zero(bytes) => {
                    counters.zero_blocks.fetch_add(1, Relaxed);
                    Content::Zero
                }
                Page::Bytes(bytes) => {
                    let id = self.core.vault.keys.block_id(bytes);
                    match known.same([reference, current], block, id)? {
                        Some(part) => {
                            counters.unchanged_blocks.fetch_add(1, Relaxed);
                            Content::Stored(part)
                        }
                        None => Content::Fresh(id, Cow::Borrowed(&bytes[..])),
                    }
                }
            });
        }
        Ok(contents)
    }

    /// Turns fresh blocks that are stored elsewhere into references, and
    /// returns which.
    fn join(&self, contents: &mut [Content<'_>]) -> u16 {
        let fresh = |(block, content): (usize, &Content<'_>)| match content {
            Content::Fresh(id, _) => Some((block, *id)),
            Content::Zero | Content::Stored(_) => None,
        };
        let (blocks, ids): (Vec<usize>, Vec<BlockId>) =
            contents.iter().enumerate().filter_map(fresh).unzip();
        let mut joined = 0;
        // Twins side by side become one part.
        let mut run: Option<(usize, Twin)> = None;
        let twins = self.core.joins.find(&self.core.vault, &ids);
        let found: Vec<_> = blocks.into_iter().zip(twins).collect();
        for (block, twin) in &found {
            let Some(twin) = twin else { continue };
            let continues = run.is_some_and(|(start, first)| {
                first.frame == twin.frame
                    && usize::from(first.slot) + (block - start) == usize::from(twin.slot)
                    && joined & (1 << (block - 1)) != 0
            });
            if !continues {
                run = Some((*block, *twin));
            }
            joined |= 1 << block;
            let (start, first) = run.expect("it was just set");
            let mask = (u16::MAX << start) & (u16::MAX >> (REGION_BLOCKS - 1 - block));
            let part = Part { frame: first.frame, first: first.slot, mask, used: mask };
            contents[start..=*block].fill_with(|| Content::Stored(part));
        }
        joined
    }

    /// Returns the parts that stay, at most [`MOST_FRAMES`] with the one of
    /// fresh blocks; the blocks of all others become fresh.
    fn keep(
        &self,
        contents: &mut [Content<'_>],
        pages: &Pages,
        first: usize,
    ) -> Result<Vec<Part>, Error> {
        let mut parts: Vec<Part> = Vec::new();
        let mut fresh = false;
        for (block, content) in contents.iter().enumerate() {
            match content {
                Content::Zero => {}
                Content::Fresh(..) => fresh = true,
                Content::Stored(part) => {
                    let same = |other: &&mut Part| {
                        (other.frame, other.first, other.mask)
                            == (part.frame, part.first, part.mask)
                    };
                    match parts.iter_mut().find(same) {
                        Some(part) => part.used |= 1 << block,
                        None => parts.push(Part { used: 1 << block, ..*part }),
                    }
                }
            }
        }
        loop {
            let least = parts.iter().min_by_key(|part| part.used.count_ones()).copied();
            let Some(least) = least else { break };
            let frames: HashSet<_> = parts.iter().map(|part| part.frame).collect();
            if frames.len() + usize::from(fresh) <= MOST_FRAMES {
                break;
            }
            self.refresh(contents, &least, pages, first)?;
            parts.retain(|part| part.used != least.used);
            fresh = true;
        }
        Ok(parts)
    }

    /// Makes the blocks that a part serves fresh.
    fn refresh(
        &self,
        contents: &mut [Content<'_>],
        part: &Part,
        pages: &Pages,
        first: usize,
    ) -> Result<(), Error> {
        let ids = self.core.vault.block_ids(&part.frame)?;
        let mut frame = None;
        for (block, content) in contents.iter_mut().enumerate() {
            if part.used & (1 << block) == 0 {
                continue;
            }
            let slot = part.slot(block);
            let bytes = match pages.page(first + block) {
                Page::Bytes(bytes) => bytes.to_vec(),
                Page::Absent | Page::Zero => {
                    if frame.is_none() {
                        frame = Some(self.core.vault.frame(&part.frame)?);
                    }
                    let frame = frame.as_ref().expect("it was just read");
                    frame[slot * BLOCK_SIZE..(slot + 1) * BLOCK_SIZE].to_vec()
                }
            };
            *content = Content::Fresh(ids[slot], Cow::Owned(bytes));
        }
        Ok(())
    }

    /// Stores a frame and enters it.
    fn put(&mut self, packing: &mut Packing, entries: &mut [Entry]) -> Result<(), Error> {
        if packing.ids.is_empty() {
            return Ok(());
        }
        let frame = self.put_frame(&packing.raw, &packing.ids);
        let mut first = 0;
        for (region, mask) in packing.members.drain(..) {
            let parts = &mut entries[region].parts;
            parts.push(Part { frame, first, mask, used: mask });
            parts.sort_unstable_by_key(|part| part.used.trailing_zeros());
            first += u8::try_from(mask.count_ones()).expect("a region has 16 blocks");
        }
        packing.raw.clear();
        packing.ids.clear();
        self.core.lanes.check()
    }

    fn put_frame(&mut self, raw: &[u8], ids: &[BlockId]) -> FramePointer {
        let counters = &self.core.counters;
        let count = u64::try_from(ids.len()).expect("a usize fits in 64 bits");
        counters.new_blocks.fetch_add(count, Relaxed);
        self.core.put_frame(self.encoder.encode(raw), raw.len(), ids)
    }
}

impl Packing {
    fn add(&mut self, region: usize, contents: &[Content<'_>]) {
        let mut mask = 0;
        for (block, content) in contents.iter().enumerate() {
            if let Content::Fresh(id, bytes) = content {
                self.raw.extend_from_slice(bytes);
                self.ids.push(*id);
                mask |= 1 << block;
            }
        }
        if mask != 0 {
            self.members.push((region, mask));
        }
    }

    fn append(&mut self, other: Self) {
        self.raw.extend_from_slice(&other.raw);
        self.ids.extend_from_slice(&other.ids);
        self.members.extend(other.members);
    }
}

/// The ids of the blocks of the few frames that a region refers to.
struct Known<'a> {
    core: &'a Core,
    ids: Vec<(FramePointer, Vec<BlockId>)>,
}

impl Known<'_> {
    /// Returns the part of the first entry that has this content at a block.
    fn same(
        &mut self,
        entries: [&Entry; 2],
        block: usize,
        id: BlockId,
    ) -> Result<Option<Part>, Error> {
        for part in entries.into_iter().filter_map(|entry| entry.part(block)) {
            if self.id(part, block)? == id {
                return Ok(Some(*part));
            }
        }
        Ok(None)
    }

    fn id(&mut self, part: &Part, block: usize) -> Result<BlockId, Error> {
        let slot = part.slot(block);
        if let Some((_, ids)) = self.ids.iter().find(|(frame, _)| *frame == part.frame) {
            return Ok(ids[slot]);
        }
        let ids = self.core.vault.block_ids(&part.frame)?;
        let id = ids[slot];
        self.ids.push((part.frame, ids));
        Ok(id)
    }
}
