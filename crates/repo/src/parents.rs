//! Which images a session may refer to: those of snapshots that were there
//! when it began, and its own.
//!
//! A caller may hold the root of a snapshot that was deleted and collected
//! meanwhile. What such a root leads to may still be in memory, but not in
//! the store.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::Error;
use crate::epoch::Segments;
use crate::listing;
use crate::pointer::Place;
use crate::reach::Reach;
use crate::tree::ImageRoot;
use crate::vault::Vault;

/// The images that a session may refer to.
#[derive(Debug)]
pub(crate) struct Parents {
    /// Condemned or quarantined when the session began.
    forbidden: Segments,
    /// Read when first asked, after the session's slot was put.
    listed: OnceLock<Vec<ImageRoot>>,
    own: Mutex<Vec<ImageRoot>>,
}

impl Parents {
    pub(crate) fn new(forbidden: Segments) -> Self {
        Self { forbidden, listed: OnceLock::new(), own: Mutex::default() }
    }

    /// Adds an image of the session.
    pub(crate) fn add(&self, root: ImageRoot) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push(root);
    }

    /// Whether all that an image needs is there until the session ends.
    pub(crate) fn lives(&self, vault: &Vault, root: &ImageRoot) -> Result<bool, Error> {
        if root.is_zero() || self.own.lock().unwrap_or_else(PoisonError::into_inner).contains(root)
        {
            return Ok(true);
        }
        if self.listed.get().is_none() {
            let records = listing::list(vault)?.records;
            let images = records.into_iter().flat_map(|record| record.images);
            // Another thread may have been first with the same.
            let _ = self.listed.set(images.map(|image| image.root).collect());
        }
        if !self.listed.get().is_some_and(|listed| listed.contains(root)) {
            return Ok(false);
        }
        Ok(self.forbidden.is_empty() || self.avoids_forbidden(vault, root)?)
    }

    /// Whether an image needs nothing that was forbidden when the session began:
    /// condemned, if its deletion was undone since, or damaged.
    fn avoids_forbidden(&self, vault: &Vault, root: &ImageRoot) -> Result<bool, Error> {
        let mut avoids = true;
        let visit = |place: &Place| avoids &= !self.forbidden.contains(&place.segment);
        match Reach::new(vault, visit).image(root) {
            Ok(()) => Ok(avoids),
            Err(Error::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
