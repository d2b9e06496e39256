//! One attempt to copy a snapshot: sessions that each keep a part, and the last
//! one that commits.

use std::iter::Peekable;

use tintype_types::{ByteCount, SnapshotId};

use crate::Error;
use crate::carry::{Meter, Pieces, carry};
use crate::commit::Provenance;
use crate::copy::CopyError::{self, Source, Target};
use crate::copy::{Base, Basis, Copier, CopyReport, named};
use crate::error::Kind;
use crate::gone;
use crate::label;
use crate::reader::ImageReader;
use crate::record::{NamedImage, Origin, Part, SnapshotDraft, SnapshotRecord, outcome_key};
use crate::repository::Pin;
use crate::session::{ImageParams, Session, SessionStats, Unwritten};
use crate::slot;
use crate::supervisor::Supervisor;
use crate::tree::ImageRoot;

/// The least bytes that are read for a part.
const LEAST_PART: u64 = 512 << 20;
/// The most parts of a snapshot, about.
const MOST_PARTS: u64 = 32;

/// Why an attempt did not succeed.
pub(crate) enum Trouble {
    /// Another one may, without these snapshots of the target.
    Without(Vec<SnapshotId>),
    Failed(CopyError),
}

impl From<CopyError> for Trouble {
    fn from(error: CopyError) -> Self {
        Trouble::Failed(error)
    }
}

/// An image that is copied in part.
struct Open {
    root: ImageRoot,
    /// Where it goes on.
    done: u64,
    /// The snapshot of the source as which it is from there on.
    like: Option<Origin>,
    /// What is left of it, if that is known already.
    pieces: Option<Peekable<Pieces>>,
}

/// A copy under way.
pub(crate) struct Attempt<'c> {
    copier: &'c Copier,
    record: &'c SnapshotRecord,
    basis: &'c Basis<'c>,
    supervisor: &'c dyn Supervisor,
    /// Images of the target, in the order of the source.
    complete: Vec<NamedImage>,
    open: Option<Open>,
    stats: SessionStats,
    /// The last part of this attempt, which a collection spares.
    kept: Option<Pin>,
}

impl<'c> Attempt<'c> {
    pub(crate) fn begin(
        copier: &'c Copier,
        record: &'c SnapshotRecord,
        basis: &'c Basis<'c>,
        supervisor: &'c dyn Supervisor,
    ) -> Self {
        let left = basis.part.as_ref().map(|(record, _)| *record);
        let mut complete = left.map_or_else(Vec::new, |left| left.images.clone());
        let open = left.and_then(|left| left.part).and_then(|Part { done, base }| {
            let (done, NamedImage { root, .. }) = (done?, complete.pop()?);
            Some(Open { root, done, like: base, pieces: None })
        });
        let stats = left.map(|left| left.stats).unwrap_or_default();
        Self { copier, record, basis, supervisor, complete, open, stats, kept: None }
    }

    /// Copies the snapshot; `None` if it is there by now.
    pub(crate) fn run(mut self) -> Result<Option<(SnapshotRecord, CopyReport)>, Trouble> {
        let before = self.stats;
        loop {
            self.supervisor.check().map_err(Source)?;
            let Copier { target, params, .. } = self.copier;
            let session = target.begin(params.session.clone()).map_err(Target)?;
            self.adopt(&session)?;
            if !self.fill(&session)? {
                self.keep(session)?;
                self.supervisor.keeps_part();
                continue;
            }
            let Some(record) = self.commit(session)? else { return Ok(None) };
            let after = record.stats;
            let grown = |after: ByteCount, before: ByteCount| ByteCount(after.get() - before.get());
            let report = CopyReport {
                copy: record.id,
                was_there: false,
                base: self.basis.base.as_ref().map(|base| base.pin.record().id),
                resumed: self.basis.part.is_some(),
                read_bytes: grown(after.read_bytes, before.read_bytes),
                stored_bytes: grown(after.stored_bytes, before.stored_bytes),
            };
            return Ok(Some((record, report)));
        }
    }

    /// Lets a session go on from the last part.
    fn adopt(&self, session: &Session) -> Result<(), Trouble> {
        let kept = self.kept.as_ref().map(Pin::record);
        let left = self.basis.part.as_ref().map(|(left, _)| *left);
        let Some(part) = kept.or(left) else { return Ok(()) };
        match session.adopt(part).map_err(Target)? {
            true => Ok(()),
            // Collected, or about to be.
            false => Err(Trouble::Without(vec![part.id])),
        }
    }

    /// Copies until all is there, or enough for a part; whether it is all.
    fn fill(&mut self, session: &Session) -> Result<bool, Trouble> {
        let total = self.record.images.iter().map(|image| image.root.size().get()).sum();
        let usual = LEAST_PART.max(total / MOST_PARTS);
        let mut budget = self.copier.params.part.map_or(usual, ByteCount::get).max(1);
        let mut before = 0;
        for (number, image) in self.record.images.iter().enumerate() {
            if number >= self.complete.len() {
                let meter = Meter { supervisor: self.supervisor, before, total };
                let Some(root) = self.image(session, image, &mut budget, &meter)? else {
                    return Ok(false);
                };
                self.complete.push(NamedImage { name: image.name.clone(), root });
            }
            before += image.root.size().get();
        }
        Ok(true)
    }

    /// Copies an image, or goes on with it; `None` if it is not complete.
    fn image(
        &mut self,
        session: &Session,
        image: &NamedImage,
        budget: &mut u64,
        meter: &Meter<'_>,
    ) -> Result<Option<ImageRoot>, Trouble> {
        let reader = self.copier.source.open_image(&image.root).map_err(Source)?;
        let (parent, like, from, pieces) = match self.open.take() {
            Some(Open { root, done, like, pieces }) => (Some(root), like, done, pieces),
            None => {
                let (parent, like) = self.likeness(session, image)?.unzip();
                (parent, like, 0, None)
            }
        };
        let mut pieces = match pieces {
            Some(pieces) => pieces,
            None => self.pieces(&reader, image, like, from)?.peekable(),
        };
        let unwritten = if parent.is_some() { Unwritten::Parent } else { Unwritten::Zero };
        let params = ImageParams { size: image.root.size(), parent, unwritten };
        let mut writer = session.image(params).map_err(|error| self.blame(Target(error)))?;
        let next = carry(&reader, &mut pieces, &mut writer, budget, meter)
            .map_err(|error| self.blame_target(error))?;
        let root = writer.finish().map_err(|error| self.blame(Target(error)))?;
        let Some(done) = next else { return Ok(Some(root)) };
        self.open = Some(Open { root, done, like, pieces: Some(pieces) });
        Ok(None)
    }

    /// Returns an image of the target that this one is like, and which snapshot
    /// of the source tells what differs.
    fn likeness(
        &self,
        session: &Session,
        image: &NamedImage,
    ) -> Result<Option<(ImageRoot, Origin)>, CopyError> {
        let Some(Base { pin, copy }) = &self.basis.base else { return Ok(None) };
        let images = [&pin.record().images, &copy.images].map(|in_it| named(in_it, &image.name));
        let [Some(_), Some(parent)] = images else { return Ok(None) };
        let usable = session.may_refer_to(parent).map_err(Target)?;
        Ok(usable.then(|| (parent.clone(), self.copier.identity(pin.record()))))
    }

    /// Returns what is to be copied of an image from an offset on.
    fn pieces(
        &self,
        reader: &ImageReader,
        image: &NamedImage,
        like: Option<Origin>,
        from: u64,
    ) -> Result<Pieces, Trouble> {
        let Basis { part, base } = self.basis;
        let pins = part.iter().filter_map(|(_, pin)| pin.as_ref());
        let mut records = pins.chain(base.iter().map(|base| &base.pin)).map(Pin::record);
        let record = records.find(|record| Some(self.copier.identity(record)) == like);
        let image_there = record.and_then(|record| named(&record.images, &image.name));
        if like.is_some() && image_there.is_none() {
            // A part that says of itself what cannot be.
            return Err(Trouble::Without(self.used()));
        }
        Pieces::new(reader, &image.root, image_there, from)
            .map_err(|error| self.blame(Source(error)))
    }

    /// Blames damage on what the copy began with, if anything.
    fn blame(&self, error: CopyError) -> Trouble {
        match self.used() {
            used if !used.is_empty() && error.kind() == Kind::Damaged => Trouble::Without(used),
            _ => Trouble::Failed(error),
        }
    }

    /// Returns what the copy began with.
    fn used(&self) -> Vec<SnapshotId> {
        let Basis { part, base } = self.basis;
        let part = part.iter().map(|(part, _)| part.id);
        part.chain(base.iter().map(|base| base.copy.id)).collect()
    }

    fn blame_target(&self, error: CopyError) -> Trouble {
        match error {
            Source(_) => Trouble::Failed(error),
            Target(_) => self.blame(error),
        }
    }

    /// Keeps what is there as a part. It is deleted before it is there, and has
    /// a reader before it is deleted, so nobody sees it and it stays.
    fn keep(&mut self, session: Session) -> Result<(), CopyError> {
        let vault = &self.copier.target.vault;
        let id = session.snapshot_id();
        let mut images = self.complete.clone();
        if let Some(open) = &self.open {
            let name = self.record.images[images.len()].name.clone();
            images.push(NamedImage { name, root: open.root.clone() });
        }
        let open = self.open.as_ref();
        let part = Part { done: open.map(|open| open.done), base: open.and_then(|open| open.like) };
        let provenance = Provenance { part: Some(part), sequence: Some(0), ..self.provenance() };
        let slot = slot::put_reader(vault, id).map_err(Target)?;
        let kept = gone::delete_beforehand(vault, id)
            .and_then(|()| session.commit_copy(self.draft(images, Vec::new())?, provenance));
        match kept {
            Ok(record) => {
                self.stats = record.stats;
                self.kept = Some(Pin::new(vault, slot, record));
                Ok(())
            }
            Err(error) => {
                slot.release(vault).map_err(Target)?;
                Err(Target(error))
            }
        }
    }

    /// Ends the copy; `None` if it is there by now.
    fn commit(&self, session: Session) -> Result<Option<SnapshotRecord>, CopyError> {
        let mut blobs = Vec::new();
        for (name, blob) in &self.record.blobs {
            let bytes = self.copier.source.read_blob(blob).map_err(Source)?;
            blobs.push((name.clone(), session.blob(&bytes).map_err(Target)?));
        }
        let there = self.copier.listed().map_err(Target)?;
        if there.contains_key(&self.copier.identity(self.record)) {
            return Ok(None);
        }
        let draft = self.draft(self.complete.clone(), blobs).map_err(Source)?;
        let sequence = self.copier.sequence(self.record);
        let provenance = Provenance { sequence, ..self.provenance() };
        let (source, target) = (&self.copier.source.vault, &self.copier.target.vault);
        let id = session.snapshot_id();
        let label = label::of(source, self.record.id).map_err(Source)?.of.remove(&self.record.id);
        if let Some(label) = &label {
            label::say_beforehand(target, id, label).map_err(Target)?;
        }
        let record = session.commit_copy(draft, provenance).map_err(Target)?;
        if let Some(said) = label {
            // A collection may have removed it, since the snapshot was not there.
            let again = label::change(target, id, &|label| label.clone_from(&said));
            if let Err(error) = again {
                tracing::warn!(%id, %error, "what is said of a copy may be missing");
            }
        }
        Ok(Some(record))
    }

    fn provenance(&self) -> Provenance {
        let origin = Some(self.copier.identity(self.record));
        Provenance { origin, part: None, sequence: None, before: self.stats }
    }

    fn draft(
        &self,
        images: Vec<NamedImage>,
        blobs: Vec<(String, crate::BlobId)>,
    ) -> Result<SnapshotDraft, Error> {
        let SnapshotRecord { id, vm, vm_name, name, created, details, .. } = self.record.clone();
        let details = details.read().map_err(|_| {
            Error::damaged(outcome_key(id), None, "what it says of the VM cannot be understood")
        })?;
        let parent = self.copier.parent(self.record);
        Ok(SnapshotDraft { vm, vm_name, name, parent, created, images, blobs, details })
    }
}
