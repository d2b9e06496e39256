//! Decides what becomes of the blocks that came for a window: zero, a
//! reference to what is stored already, or part of a new frame.
//!
//! A region refers to at most two frames, so a read costs at most two
//! decompressions: the frame that serves most of its blocks stays, everything
//! else goes into a new one. Eight new blocks of a region or more get a frame
//! of their own; fewer are packed with those of its neighbours in the window.

use std::array;
use std::borrow::Cow;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use tintype_types::BLOCK_SIZE;

use crate::Error;
use crate::frame::{Encoder, MAX_BLOCKS};
use crate::image::WINDOW_REGIONS;
use crate::index;
use crate::lanes::Job;
use crate::node::{Entry, Part, REGION_BLOCKS};
use crate::pages::{Page, Pages, is_zero};
use crate::pointer::{BlockId, FramePointer};
use crate::segment::Identity;
use crate::session::Core;

/// New blocks of a region that deserve a frame of their own.
const DENSE: usize = 8;
/// A frame that serves no more blocks of a region than this is not kept
/// beside a new one.
const NOT_WORTH_KEEPING: usize = 2;

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
        for region in 0..WINDOW_REGIONS {
            let first = region * REGION_BLOCKS;
            if (first..first + REGION_BLOCKS).all(|block| job.pages.page(block) == Page::Absent) {
                continue;
            }
            let mut contents =
                self.classify(&job.pages, first, &entries[region], &reference[region])?;
            let kept = self.keep(&mut contents, &job.pages, first)?;
            entries[region] = Entry { parts: kept };
            let fresh = contents.iter().filter(|c| matches!(c, Content::Fresh(..))).count();
            if fresh >= DENSE {
                let mut own = Packing::default();
                own.add(region, &contents);
                self.put(&mut own, &mut entries)?;
            } else if fresh > 0 {
                if packing.ids.len() + fresh > MAX_BLOCKS {
                    self.put(&mut packing, &mut entries)?;
                }
                packing.add(region, &contents);
            }
        }
        self.put(&mut packing, &mut entries)?;
        image.set_window(job.window, entries, &self.core)
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
        let pages: [_; REGION_BLOCKS] = array::from_fn(|block| pages.page(first + block));
        let data = pages.map(|page| match page {
            Page::Bytes(bytes) if !is_zero(bytes) => Some(bytes),
            _ => None,
        });
        let hashed: Vec<_> = data.iter().flatten().copied().collect();
        let mut ids = self.core.vault.keys.block_ids(&hashed).into_iter();
        let mut contents = Vec::with_capacity(REGION_BLOCKS);
        for (block, page) in pages.into_iter().enumerate() {
            contents.push(match (page, data[block]) {
                (Page::Absent, _) => {
                    current.part(block).map_or(Content::Zero, |part| Content::Stored(*part))
                }
                (Page::Zero, _) => Content::Zero,
                (Page::Bytes(_), None) => {
                    counters.zero_blocks.fetch_add(1, Relaxed);
                    Content::Zero
                }
                (Page::Bytes(_), Some(bytes)) => {
                    let id = ids.next().expect("every such block was hashed");
                    let mut found = None;
                    for entry in [reference, current] {
                        if let Some(part) = entry.part(block)
                            && known.id(part, block)? == id
                        {
                            found = Some(*part);
                            break;
                        }
                    }
                    match found {
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

    /// Returns the parts that stay, at most two and at most one beside fresh
    /// blocks; the blocks of all others become fresh.
    fn keep(
        &self,
        contents: &mut [Content<'_>],
        pages: &Pages,
        first: usize,
    ) -> Result<Vec<Part>, Error> {
        let mut parts: Vec<Part> = Vec::new();
        let mut fresh = 0;
        for (block, content) in contents.iter().enumerate() {
            match content {
                Content::Zero => {}
                Content::Fresh(..) => fresh += 1,
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
            let most = if fresh > 0 { 1 } else { 2 };
            let least = parts.iter().min_by_key(|part| part.used.count_ones()).copied();
            let Some(least) = least else { break };
            let blocks = crate::node::usize_from(least.used.count_ones());
            let poor = fresh > 0 && blocks <= NOT_WORTH_KEEPING;
            if parts.len() <= most && !poor {
                break;
            }
            self.refresh(contents, &least, pages, first)?;
            parts.retain(|part| part.used != least.used);
            fresh += blocks;
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

    /// Stores a frame, unless the session has the same one, and enters it.
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
        let id = self.core.vault.keys.frame_id(ids);
        let counters = &self.core.counters;
        let count = u64::try_from(ids.len()).expect("a usize fits in 64 bits");
        let known = self.core.written.get(&id).map(|pointer| *pointer);
        let known = known.or_else(|| {
            let found = self.core.lookup.find(&self.core.vault, &id)?;
            self.core.written.insert(id, Arc::new(found), size_of::<FramePointer>());
            Some(found)
        });
        if let Some(pointer) = known {
            counters.joined_blocks.fetch_add(count, Relaxed);
            return pointer;
        }
        counters.new_blocks.fetch_add(count, Relaxed);
        let (codec, stored) = self.encoder.encode(raw);
        let place = self.core.data.append(codec, stored, raw.len(), Identity::Blocks(ids));
        let blocks = u8::try_from(ids.len()).expect("a frame has at most 16 blocks");
        let pointer = FramePointer { place, blocks, id };
        self.core.written.insert(id, Arc::new(pointer), size_of::<FramePointer>());
        if let Some(hook) = index::hook(&id) {
            let mut hooks = self.core.hooks.lock().unwrap_or_else(PoisonError::into_inner);
            hooks.push((hook, place.segment.number));
        }
        pointer
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
        self.members.push((region, mask));
    }
}

/// The ids of the blocks of the few frames that a region refers to.
struct Known<'a> {
    core: &'a Core,
    ids: Vec<(FramePointer, Vec<BlockId>)>,
}

impl Known<'_> {
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
