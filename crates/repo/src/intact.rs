//! Whether all that an image has is there as it was stored. What is sealed is not decoded:
//! whoever wrote a frame has decoded it again before it was sealed (`frame.rs`), so its
//! seal proves what a reader will get.

use std::collections::HashSet;

use tintype_types::ByteCount;

use crate::Error;
use crate::frame::FrameKind;
use crate::parallel;
use crate::pointer::Place;
use crate::reader::ImageReader;
use crate::supervisor::Supervisor;
use crate::tree::{self, LEAF_SIZE};

/// Leaves that are looked at together, and told as progress: 256 MiB of an image.
const BATCH: u64 = 16;
/// Frames that a thread takes at once.
const SHARE: usize = 64;

impl ImageReader {
    /// Checks that each frame of the image is there as it was stored; fails at the first
    /// that is not.
    pub fn check_stored(&self, supervisor: &dyn Supervisor) -> Result<(), Error> {
        let end = tree::leaf_count(self.size());
        for from in (0..end).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
            let to = end.min(from + BATCH);
            let frames = self.frames(from, to)?;
            let shares: Vec<&[Place]> = frames.chunks(SHARE).collect();
            let checked = parallel::map(&shares, parallel::readers(), |share| {
                supervisor.check()?;
                share
                    .iter()
                    .try_for_each(|place| self.vault().check_stored(place, FrameKind::Blocks))
            });
            checked.into_iter().collect::<Result<(), Error>>()?;
            let done = ByteCount(self.size().get().min(to.saturating_mul(LEAF_SIZE)));
            supervisor.advance(done, self.size());
        }
        Ok(())
    }

    /// Returns where the frames of some leaves are, each once, as they lie in the store.
    fn frames(&self, from: u64, to: u64) -> Result<Vec<Place>, Error> {
        let mut places = HashSet::new();
        for index in self.map().indexes(from, to)? {
            let leaf = self.map().leaf(index)?;
            let regions = leaf.iter().flat_map(|leaf| &leaf.regions);
            places.extend(regions.flat_map(|entry| &entry.parts).map(|part| part.frame.place));
        }
        let mut places: Vec<Place> = places.into_iter().collect();
        places.sort_unstable_by_key(|place| (place.segment, place.offset));
        Ok(places)
    }
}
