//! Copies snapshots to another repository, encrypted for its keys.
//!
//! ```text
//! base: copied before ─► what differs, by the maps ─► session ─► part ─► … ─► commit
//! ```
//!
//! A copy remembers what it is a copy of, so nothing is copied twice. It is
//! written like any snapshot. What takes long is kept in parts: snapshots that
//! are deleted before they are there, so that nobody sees them and a collection
//! removes them, unless the copy that is under way reads them. A copy that was
//! interrupted goes on from its last part if that is still there.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use tintype_types::{ByteCount, SnapshotId};

use crate::attempt::{Attempt, Trouble};
use crate::carry::Pieces;
use crate::error::{Error, Kind};
use crate::listing;
use crate::record::{NamedImage, Origin, SnapshotRecord};
use crate::repository::{Pin, Repository};
use crate::session::SessionParams;
use crate::supervisor::Supervisor;
use crate::tree::ImageRoot;

use CopyError::{Source, Target};

/// How snapshots are copied.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct CopyParams {
    /// How many bytes are read until what has arrived is kept, come what may;
    /// 512 MiB if `None`, or more for what is very large.
    pub part: Option<ByteCount>,
    /// How the session may use the machine.
    pub session: SessionParams,
}

/// A copy failed, on one side or the other.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The repository that is copied from.
    #[error("cannot read what is to be copied")]
    Source(#[source] Error),
    /// The repository that is copied to.
    #[error("cannot write the copy")]
    Target(#[source] Error),
}

impl CopyError {
    /// Returns the stable class of the error.
    pub fn kind(&self) -> Kind {
        match self {
            Source(error) | Target(error) => error.kind(),
        }
    }
}

/// A snapshot that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyReport {
    /// Its id in the other repository.
    pub copy: SnapshotId,
    /// Whether it was there before.
    pub was_there: bool,
    /// The snapshot from which it was told what differs.
    pub base: Option<SnapshotId>,
    /// Whether it went on from what an earlier copy had left.
    pub resumed: bool,
    /// Bytes that were read.
    pub read_bytes: ByteCount,
    /// Bytes that the other repository grew by.
    pub stored_bytes: ByteCount,
}

/// What a copy would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyPlan {
    /// Its id in the other repository, if it is there.
    pub copy: Option<SnapshotId>,
    /// The snapshot from which it would be told what differs.
    pub base: Option<SnapshotId>,
    /// Bytes that would be read, if no earlier copy has left anything.
    pub read_bytes: ByteCount,
}

/// Copies snapshots of one repository to another.
#[derive(Debug)]
pub struct Copier {
    pub(crate) source: Repository,
    pub(crate) target: Repository,
    pub(crate) params: CopyParams,
    /// All of the source, oldest first.
    records: Vec<SnapshotRecord>,
    /// All of the target, by what they are known as.
    there: HashMap<Origin, SnapshotRecord>,
    /// What earlier copies have left in the target.
    parts: Vec<SnapshotRecord>,
    /// What would be there, if plans were done.
    planned: HashSet<Origin>,
}

/// What a copy begins with.
pub(crate) struct Basis<'c> {
    /// What an earlier copy has left, and the snapshot as which its last image is
    /// where it is not copied.
    pub part: Option<(&'c SnapshotRecord, Option<Pin>)>,
    /// A snapshot that the images are like that nobody has begun to copy.
    pub base: Option<Base<'c>>,
}

/// A snapshot of the source, which is kept in place, and its copy.
pub(crate) struct Base<'c> {
    pub pin: Pin,
    pub copy: &'c SnapshotRecord,
}

impl Copier {
    /// Prepares to copy. Both must be different repositories.
    pub fn new(
        source: &Repository,
        target: &Repository,
        params: CopyParams,
    ) -> Result<Self, CopyError> {
        if source.id() == target.id() {
            return Err(Target(Error::Invalid("it is the same repository".to_owned())));
        }
        let mut copier = Self {
            source: source.clone(),
            target: target.clone(),
            params,
            records: listing::list(&source.vault).map_err(Source)?.records,
            there: HashMap::new(),
            parts: listing::parts(&target.vault).map_err(Target)?,
            planned: HashSet::new(),
        };
        copier.look().map_err(Target)?;
        Ok(copier)
    }

    /// Says what copying a snapshot would do, after what was planned before.
    pub fn plan(&mut self, id: SnapshotId) -> Result<CopyPlan, CopyError> {
        let record = listing::one(&self.source.vault, id).map_err(Source)?;
        let identity = record.identity(self.source.id());
        if let Some(copy) = self.there.get(&identity) {
            let (copy, read_bytes) = (Some(copy.id), ByteCount(0));
            return Ok(CopyPlan { copy, base: None, read_bytes });
        }
        let is_there =
            |origin: &Origin| self.there.contains_key(origin) || self.planned.contains(origin);
        let base = self.bases(&record).find(|base| is_there(&self.identity(base)));
        let mut read_bytes = record.blobs.iter().map(|(_, blob)| blob.len()).sum();
        for image in &record.images {
            let reader = self.source.open_image(&image.root).map_err(Source)?;
            let base = base.and_then(|base| named(&base.images, &image.name));
            let pieces = Pieces::new(&reader, &image.root, base, 0).map_err(Source)?;
            for piece in pieces {
                read_bytes += piece.map_err(Source)?.to_read();
            }
        }
        let base = base.map(|base| base.id);
        self.planned.insert(identity);
        Ok(CopyPlan { copy: None, base, read_bytes: ByteCount(read_bytes) })
    }

    /// Copies a snapshot, unless it is there already. When this returns, the copy
    /// survives power loss. It stays in place while it is read, even if it is
    /// deleted.
    pub fn copy(
        &mut self,
        id: SnapshotId,
        supervisor: &dyn Supervisor,
    ) -> Result<CopyReport, CopyError> {
        let pin = self.source.pin(id).map_err(Source)?;
        let identity = self.identity(pin.record());
        let mut avoided = HashSet::new();
        loop {
            if let Some(copy) = self.there.get(&identity) {
                return Ok(CopyReport {
                    copy: copy.id,
                    was_there: true,
                    base: None,
                    resumed: false,
                    read_bytes: ByteCount(0),
                    stored_bytes: ByteCount(0),
                });
            }
            let basis = self.basis(pin.record(), &avoided);
            let attempted = Attempt::begin(self, pin.record(), &basis, supervisor).run();
            drop(basis);
            match attempted {
                Ok(Some((record, report))) => {
                    self.there.insert(identity, record);
                    return Ok(report);
                }
                // Another has copied it meanwhile.
                Ok(None) => self.look().map_err(Target)?,
                Err(Trouble::Failed(error)) => return Err(error),
                Err(Trouble::Without(these)) => avoided.extend(these),
            }
        }
    }

    pub(crate) fn identity(&self, record: &SnapshotRecord) -> Origin {
        record.identity(self.source.id())
    }

    /// Lists what the target has now.
    fn look(&mut self) -> Result<(), Error> {
        self.there = self.listed()?;
        Ok(())
    }

    pub(crate) fn listed(&self) -> Result<HashMap<Origin, SnapshotRecord>, Error> {
        let listed = listing::list(&self.target.vault)?.records.into_iter();
        let id = self.target.id();
        Ok(listed.map(|record| (record.identity(id), record)).collect())
    }

    /// Returns the snapshots of the source that a snapshot is probably like, the
    /// likeliest first: its parent, those of its VM before it, and then the rest.
    fn bases<'c>(&'c self, of: &SnapshotRecord) -> impl Iterator<Item = &'c SnapshotRecord> {
        let (id, vm, parent) = (of.id, of.vm, of.parent);
        let at = self.records.iter().position(|record| record.id == id);
        let (before, after) = self.records.split_at(at.unwrap_or(self.records.len()));
        let of_vm = before.iter().rev().chain(after).filter(move |r| r.vm == vm && r.id != id);
        self.records.iter().filter(move |record| Some(record.id) == parent).chain(of_vm)
    }

    /// Chooses what a copy begins with. What is used of the source is kept in
    /// place.
    fn basis(&self, record: &SnapshotRecord, avoided: &HashSet<SnapshotId>) -> Basis<'_> {
        let part = self.parts_of(record).into_iter().find_map(|part| {
            let pin = match part.part.and_then(|part| part.base) {
                None => None,
                Some(base) => Some(self.source.pin(self.known_as(base)?.id).ok()?),
            };
            (!avoided.contains(&part.id)).then_some((part, pin))
        });
        let base = self.bases(record).find_map(|base| {
            let copy = self.there.get(&self.identity(base))?;
            let pin = self.source.pin(base.id).ok()?;
            (!avoided.contains(&copy.id)).then_some(Base { pin, copy })
        });
        Basis { part, base }
    }

    fn known_as(&self, origin: Origin) -> Option<&SnapshotRecord> {
        self.records.iter().find(|record| self.identity(record) == origin)
    }

    /// Returns what earlier copies have left of a snapshot, the most first.
    fn parts_of(&self, record: &SnapshotRecord) -> Vec<&SnapshotRecord> {
        let identity = self.identity(record);
        let is_of_this = |part: &&SnapshotRecord| {
            part.origin == Some(identity)
                && part.images.len() <= record.images.len()
                && part.images.iter().zip(&record.images).all(|(a, b)| a.name == b.name)
        };
        let mut parts: Vec<_> = self.parts.iter().filter(is_of_this).collect();
        let reached = |part: &&SnapshotRecord| {
            let done = part.part.and_then(|part| part.done);
            Reverse((part.images.len(), done.unwrap_or(u64::MAX)))
        };
        parts.sort_by_key(reached);
        parts
    }

    /// Returns the copy of the snapshot's parent, or of the nearest one before
    /// that is there.
    pub(crate) fn parent(&self, of: &SnapshotRecord) -> Option<SnapshotId> {
        let mut parent = of.parent?;
        for _ in 0..=self.records.len() {
            let record = self.records.iter().find(|record| record.id == parent);
            let native = Origin { repository: self.source.id(), snapshot: parent };
            let identity = record.map_or(native, |record| self.identity(record));
            if let Some(copy) = self.there.get(&identity) {
                return Some(copy.id);
            }
            parent = record?.parent?;
        }
        None
    }

    /// Returns the place in the target's order: before what is later in the
    /// source. Of two with the same place the instants decide.
    pub(crate) fn sequence(&self, of: &SnapshotRecord) -> Option<u64> {
        let at = self.records.iter().position(|record| record.id == of.id)?;
        let later = self.records[at + 1..].iter();
        let there = later.filter_map(|record| self.there.get(&self.identity(record)));
        there.map(|copy| copy.sequence).min()
    }
}

pub(crate) fn named<'r>(images: &'r [NamedImage], name: &str) -> Option<&'r ImageRoot> {
    images.iter().find(|image| image.name == name).map(|image| &image.root)
}
