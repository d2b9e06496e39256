//! Puts images together anew whose maps are damaged: from the same snapshot in
//! another repository, as a whole.
//!
//! What can still be proved of the old map is: each block that a good part of it
//! shows must be the same in the new one, by our ids. Of the rest nothing here says
//! what it was, and it is taken on the word of the other repository.

use std::sync::Arc;

use tintype_types::{BLOCK_SIZE, ByteCount};

use crate::carry::{Meter, Pieces, carry};
use crate::copy::{CopyError, named};
use crate::donor::there;
use crate::graft::{Graft, Surgery};
use crate::loss::sound;
use crate::map::ImageMap;
use crate::node::{Leaf, Part, REGION_BLOCKS};
use crate::pointer::{BlockId, FramePointer, Place};
use crate::reach::Reach;
use crate::record::SnapshotRecord;
use crate::repository::Pin;
use crate::session::{ImageParams, Unwritten};
use crate::tree::{self, ImageRoot, LEAF_SIZE};
use crate::vault::Vault;
use crate::{Error, blob, listing};

const BLOCK: u64 = BLOCK_SIZE as u64;
const REGION_SIZE: u64 = BLOCK * REGION_BLOCKS as u64;
/// Leaves whose pointers are in one inner node.
const LEAVES: u64 = 256;
/// Snapshots that are looked at for what an image may be like.
const MOST_PARENTS: usize = 8;

/// Mends the snapshots with a damaged map, one after the other: each is kept as soon
/// as it is whole.
pub(crate) fn all(graft: &mut Graft<'_>) -> Result<(), Error> {
    for record in listing::list_with_trash(graft.vault)?.0.records {
        graft.supervisor.check()?;
        if has_maps(graft.vault, &record)? {
            continue;
        }
        let Some(same) = graft.donor.same(&record)? else { continue };
        let surgery = Surgery::begin(graft.vault, &graft.damaged, None)?;
        // Where it is now: others may have moved it, or mended it.
        let now = surgery.records.iter().find(|now| now.id == record.id);
        if let Some(now) = now.cloned() {
            snapshot(graft, surgery, &now, &same)?;
        }
    }
    Ok(())
}

/// Whether the maps of a snapshot can be read.
fn has_maps(vault: &Vault, record: &SnapshotRecord) -> Result<bool, Error> {
    Ok(sound(Reach::new(vault, |_, _| {}).snapshot(record))?.is_some())
}

fn snapshot(
    graft: &mut Graft<'_>,
    surgery: Surgery,
    was: &SnapshotRecord,
    same: &Pin,
) -> Result<(), Error> {
    let mut record = was.clone();
    let mut unproved = 0;
    for image in &mut record.images {
        if sound(Reach::new(graft.vault, |_, _| {}).image(&image.root))?.is_some() {
            continue;
        }
        let Some(root) = regrown(graft, &surgery, (was, same), (&image.name, image.root.size))?
        else {
            continue;
        };
        match compare(graft.vault, &image.root, &root)? {
            Compared::Same { unproved: more } => {
                unproved += more;
                image.root = root;
            }
            Compared::Differs { offset } => graft.mismatch(was.id, &image.name, Some(offset)),
        }
    }
    for (name, blob) in &mut record.blobs {
        if sound(blob::chunks(graft.vault, blob))?.is_some() {
            continue;
        }
        let Some(bytes) = graft.donor.blob(same, name, blob.len)? else { continue };
        graft.done.fetched_bytes.0 += blob.len;
        unproved += blob.len;
        *blob = surgery.session.blob(&bytes)?;
    }
    if (&record.images, &record.blobs) == (&was.images, &was.blobs) {
        return Ok(());
    }
    for record in surgery.commit(vec![record])? {
        graft.note(&record, ByteCount(unproved))?;
    }
    Ok(())
}

/// Returns an image as the other repository has it, stored here; `None` if it is
/// damaged there too. What the other one knows to be as in another snapshot, which
/// is whole here, is not read.
pub(crate) fn regrown(
    graft: &mut Graft<'_>,
    surgery: &Surgery,
    (of, same): (&SnapshotRecord, &Pin),
    (name, size): (&str, ByteCount),
) -> Result<Option<ImageRoot>, Error> {
    let Some((theirs, reader)) = graft.donor.image(same, name, size)? else { return Ok(None) };
    let like = likeness(graft, surgery, of, name)?;
    let base = like.as_ref().map(|(_, theirs)| theirs);
    let Some(pieces) = there(Pieces::new(&reader, &theirs, base, 0))? else { return Ok(None) };
    let unwritten = if like.is_some() { Unwritten::Parent } else { Unwritten::Zero };
    let params = ImageParams { size, parent: like.map(|(ours, _)| ours), unwritten };
    let mut writer = surgery.session.image(params)?;
    let meter = Meter { supervisor: graft.supervisor, before: 0, total: size.get() };
    let mut budget = u64::MAX;
    match carry(&reader, &mut pieces.peekable(), &mut writer, &mut budget, &meter) {
        Ok(_) => {}
        Err(CopyError::Source(error)) => return there(Err(error)),
        Err(CopyError::Target(error)) => return Err(error),
    }
    graft.done.fetched_bytes.0 += u64::MAX - budget;
    writer.finish().map(Some)
}

/// Returns the same image of another snapshot of the VM that is whole here and is
/// there too: ours and theirs.
fn likeness(
    graft: &Graft<'_>,
    surgery: &Surgery,
    of: &SnapshotRecord,
    name: &str,
) -> Result<Option<(ImageRoot, ImageRoot)>, Error> {
    let place = |record: &SnapshotRecord| (record.sequence, record.created, record.id);
    let at = surgery.records.partition_point(|record| place(record) < place(of));
    let (before, after) = surgery.records.split_at(at);
    let is_parent = |record: &&SnapshotRecord| Some(record.id) == of.parent;
    let parent = surgery.records.iter().filter(is_parent);
    let all = parent.chain(before.iter().rev()).chain(after);
    let others = all.filter(|record| record.vm == of.vm && record.id != of.id);
    for record in others.take(MOST_PARENTS) {
        let Some(ours) = named(&record.images, name) else { continue };
        let mut is_whole = true;
        let visit = |place: &Place, _| {
            is_whole &= !graft.damaged.contains(&place.segment);
        };
        let read = sound(Reach::new(graft.vault, visit).image(ours))?;
        if read.is_none() || !is_whole || !surgery.session.may_refer_to(ours)? {
            continue;
        }
        let Some(pin) = graft.donor.same(record)? else { continue };
        if let Some((theirs, _)) = graft.donor.image(&pin, name, ours.size)? {
            return Ok(Some((ours.clone(), theirs)));
        }
    }
    Ok(None)
}

/// How a new image compares with what can be read of the old one's map.
#[derive(Debug, PartialEq, Eq)]
enum Compared {
    /// All that can be proved is the same; so many bytes cannot.
    Same { unproved: u64 },
    /// Here it is not.
    Differs { offset: u64 },
}

fn compare(vault: &Arc<Vault>, old: &ImageRoot, new: &ImageRoot) -> Result<Compared, Error> {
    let [old, new] = [old, new].map(|root| ImageMap::new(Arc::clone(vault), root.clone()));
    let leaves = tree::leaf_count(new.root.size);
    let zero = vault.keys.block_id(&[0; BLOCK_SIZE]);
    let mut blocks = Blocks { vault, zero, last: [None, None] };
    let mut unproved = 0;
    for from in (0..leaves).step_by(usize::try_from(LEAVES).unwrap_or(usize::MAX)) {
        let to = from.saturating_add(LEAVES).min(leaves);
        let mut indexes = new.indexes(from, to)?;
        let readable = sound(old.indexes(from, to))?;
        let is_known = readable.is_some();
        indexes.extend(readable.into_iter().flatten());
        for index in indexes {
            let now = new.leaf(index)?;
            let was = if is_known { sound(old.leaf(index))? } else { None };
            match was {
                Some(was) => match blocks.differ(was.as_deref(), now.as_deref())? {
                    Ok(more) => unproved += more,
                    Err(offset) => {
                        return Ok(Compared::Differs { offset: index * LEAF_SIZE + offset });
                    }
                },
                None => unproved += now.map_or(0, |now| shown(&now)),
            }
        }
    }
    Ok(Compared::Same { unproved })
}

/// Returns how many bytes of a leaf are not zero.
fn shown(leaf: &Leaf) -> u64 {
    leaf.regions.iter().map(|entry| u64::from(entry.used().count_ones()) * BLOCK).sum()
}

/// The ids of blocks, of the frames that were looked at last.
struct Blocks<'a> {
    vault: &'a Vault,
    zero: BlockId,
    last: [Option<(FramePointer, Option<Vec<BlockId>>)>; 2],
}

impl Blocks<'_> {
    /// Compares two leaves: how many bytes cannot be proved to be the same, or
    /// where they are not.
    fn differ(
        &mut self,
        was: Option<&Leaf>,
        now: Option<&Leaf>,
    ) -> Result<Result<u64, u64>, Error> {
        let empty = Leaf::default();
        let [was, now] = [was, now].map(|leaf| leaf.unwrap_or(&empty));
        let mut unproved = 0;
        for (region, (was, now)) in (0..).zip(was.regions.iter().zip(&now.regions)) {
            for (offset, block) in (0..).zip(0..REGION_BLOCKS) {
                let (was, now) = (was.part(block), now.part(block));
                if was == now {
                    continue;
                }
                match [self.id(0, was, block)?, self.id(1, now, block)?] {
                    [Some(was), Some(now)] if was == now => {}
                    [Some(_), Some(_)] => {
                        return Ok(Err(region * REGION_SIZE + offset * BLOCK));
                    }
                    _ => unproved += BLOCK,
                }
            }
        }
        Ok(Ok(unproved))
    }

    /// Returns the id of a block; `None` if the table of its segment is damaged.
    fn id(
        &mut self,
        side: usize,
        part: Option<&Part>,
        block: usize,
    ) -> Result<Option<BlockId>, Error> {
        let Some(part) = part else { return Ok(Some(self.zero)) };
        if self.last[side].as_ref().is_none_or(|(frame, _)| *frame != part.frame) {
            let ids = sound(self.vault.block_ids(&part.frame))?;
            self.last[side] = Some((part.frame, ids));
        }
        let ids = self.last[side].as_ref().and_then(|(_, ids)| ids.as_ref());
        Ok(ids.map(|ids| ids[part.slot(block)]))
    }
}
