//! Committing a session: the checks before, and the one write that counts.

use std::collections::HashSet;
use std::sync::PoisonError;

use crate::Error;
use crate::index;
use crate::listing;
use crate::record::{
    MAX_OUTCOME, Opaque, Origin, Outcome, Part, SnapshotDraft, SnapshotRecord, outcome_key,
};
use crate::session::{Core, SessionStats};
use crate::store::Put;

/// Checks a draft before anything irreversible is done, and takes each image from
/// where it is.
pub(crate) fn check(core: &Core, draft: &mut SnapshotDraft) -> Result<(), Error> {
    let images = draft.images.iter().map(|image| &image.name);
    let blobs = draft.blobs.iter().map(|(name, _)| name);
    for names in [images.collect::<Vec<_>>(), blobs.collect()] {
        let mut seen = HashSet::new();
        if let Some(name) = names.into_iter().find(|name| !seen.insert(*name)) {
            return Err(Error::Invalid(format!("the snapshot has two parts named `{name}`")));
        }
    }
    for image in &mut draft.images {
        image.root = core
            .parents
            .find(&core.vault, &image.root)?
            .ok_or_else(|| Error::NotFound(format!("image `{}` of the draft", image.name)))?;
    }
    Ok(())
}

/// What a copy says of a snapshot besides.
#[derive(Debug, Default)]
pub(crate) struct Provenance {
    /// What it is a copy of.
    pub origin: Option<Origin>,
    /// How far it is.
    pub part: Option<Part>,
    /// Its place in the order; the last if `None`.
    pub sequence: Option<u64>,
    /// What the parts before have cost.
    pub before: SessionStats,
}

/// Puts the outcome. All segments must be stored.
pub(crate) fn commit(
    core: &Core,
    draft: SnapshotDraft,
    provenance: Provenance,
) -> Result<SnapshotRecord, Error> {
    let sequence = match provenance.sequence {
        Some(sequence) => sequence,
        None => listing::newest_sequence(&core.vault)?.saturating_add(1),
    };
    let record = SnapshotRecord {
        id: core.id,
        sequence,
        created: draft.created,
        vm: draft.vm,
        vm_name: draft.vm_name,
        name: draft.name,
        parent: draft.parent,
        images: draft.images,
        blobs: draft.blobs,
        details: Opaque::new(&draft.details),
        stats: provenance.before + core.stats(),
        origin: provenance.origin,
        part: provenance.part,
    };
    put(core, &Outcome::Committed(Box::new(record.clone())))?;
    Ok(record)
}

/// Puts an outcome of any kind. All segments must be stored.
pub(crate) fn put(core: &Core, outcome: &Outcome) -> Result<(), Error> {
    let hooks = std::mem::take(&mut *core.hooks.lock().unwrap_or_else(PoisonError::into_inner));
    index::store(&core.vault, core.id, hooks)?;
    let key = outcome_key(core.id);
    let bytes = outcome.encode(&core.vault.keys, core.vault.id, &key);
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_OUTCOME) {
        return Err(Error::Invalid(format!("a record of {} bytes is too long", bytes.len())));
    }
    match core.vault.store.put_if_absent(&key, &bytes) {
        Ok(Put::Created) => Ok(()),
        // Either this very record, whose first answer was lost, or the abort
        // of someone who took this session for dead.
        Ok(Put::Existed) => match core.vault.store.get(&key, MAX_OUTCOME)? == bytes {
            true => Ok(()),
            false => Err(Error::Fenced(core.id)),
        },
        // The answer may be lost and the record there, but only a put that
        // succeeds, or finds it there, says that it stays.
        Err(error) => match core.vault.store.put_if_absent(&key, &bytes) {
            Ok(Put::Created) => Ok(()),
            Ok(Put::Existed) if core.vault.store.get(&key, MAX_OUTCOME)? == bytes => Ok(()),
            Ok(Put::Existed) | Err(_) => Err(error),
        },
    }
}
