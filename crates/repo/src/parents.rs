//! Which images a session may refer to: those of snapshots that were there
//! when it began, where they were then, and its own.
//!
//! A caller may hold the root of a snapshot that was deleted and collected
//! meanwhile, or moved. What such a root leads to may still be in memory, but
//! not in the store.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::Error;
use crate::epoch::Segments;
use crate::gone::Deletions;
use crate::history::{History, Reading};
use crate::mark;
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
    listed: OnceLock<Listed>,
    own: Mutex<Vec<ImageRoot>>,
}

#[derive(Debug)]
struct Listed {
    /// Where each image is now, by where it is or was.
    now: HashMap<ImageRoot, ImageRoot>,
    /// What is there, if an outcome is damaged: it may have moved anything.
    present: Option<Segments>,
}

impl Listed {
    fn read(vault: &Vault) -> Result<Self, Error> {
        let deletions = Deletions::read(vault)?;
        let history = History::read(vault, Reading::Known, |id| deletions.has(id))?;
        let (mut now, mut moved) = (HashMap::new(), Vec::new());
        for id in history.snapshots() {
            let record = match history.current(id) {
                Ok(Some(record)) => record,
                Ok(None) | Err(Error::Damaged(_)) => continue,
                Err(error) => return Err(error),
            };
            for old in history.superseded(id) {
                let images = old.images.into_iter().zip(&record.images);
                moved.extend(images.map(|(old, new)| (old.root, new.root.clone())));
            }
            now.extend(record.images.into_iter().map(|i| (i.root.clone(), i.root)));
        }
        // One snapshot may still be where another one with the same image was: what
        // begins now had better not keep the old place too.
        now.extend(moved);
        let present = (!history.damaged.is_empty()).then(|| mark::present(vault)).transpose()?;
        Ok(Self { now, present })
    }
}

impl Parents {
    pub(crate) fn new(forbidden: Segments) -> Self {
        Self { forbidden, listed: OnceLock::new(), own: Mutex::default() }
    }

    /// Adds an image of the session.
    pub(crate) fn add(&self, root: ImageRoot) {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).push(root);
    }

    /// Returns where an image is whose parts all stay until the session ends;
    /// `None` if they may not.
    pub(crate) fn find(&self, vault: &Vault, root: &ImageRoot) -> Result<Option<ImageRoot>, Error> {
        if root.is_zero() || self.own.lock().unwrap_or_else(PoisonError::into_inner).contains(root)
        {
            return Ok(Some(root.clone()));
        }
        let listed = match self.listed.get() {
            Some(listed) => listed,
            None => {
                let read = Listed::read(vault)?;
                // Another thread may have been first with the same.
                self.listed.get_or_init(|| read)
            }
        };
        let Some(root) = listed.now.get(root) else { return Ok(None) };
        let is_usable = (self.forbidden.is_empty() && listed.present.is_none())
            || self.is_all_usable(vault, root, listed.present.as_ref())?;
        Ok(is_usable.then(|| root.clone()))
    }

    /// Whether an image needs nothing that was forbidden when the session began:
    /// condemned, if its deletion was undone since, or damaged; nor anything that
    /// is not there.
    fn is_all_usable(
        &self,
        vault: &Vault,
        root: &ImageRoot,
        present: Option<&Segments>,
    ) -> Result<bool, Error> {
        let mut is_usable = true;
        let visit = |place: &Place, _| {
            is_usable &= !self.forbidden.contains(&place.segment)
                && present.is_none_or(|present| present.contains(&place.segment));
        };
        match Reach::new(vault, visit).image(root) {
            Ok(()) => Ok(is_usable),
            Err(Error::Damaged(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
