//! Puts the record of a snapshot back that is damaged: from the copy of it that
//! another repository has.
//!
//! ```text
//! session: images and blobs anew ─► outcome/<session> = moved: the snapshot is there
//!       ─► outcome/<snapshot> = the record, with the same places
//! ```
//!
//! In this order, so that the record never leads to what nobody keeps. Killed in
//! between, the move means nothing, nothing is collected while the record is
//! damaged, and the next repair begins anew. All of it is on the word of the other
//! repository: nothing here says what the snapshot was.

use tintype_types::{ByteCount, SnapshotId};

use crate::error::Damage;
use crate::graft::{Graft, Surgery};
use crate::reader::ImageReader;
use crate::record::{
    ABORTED, MAX_OUTCOME, MOVED, NamedImage, Outcome, SnapshotRecord, outcome_key,
};
use crate::regrow::regrown;
use crate::repository::Pin;
use crate::vault::Vault;
use crate::{Error, listing, repair};

/// Puts back all damaged records of which the other repository has the snapshot.
pub(crate) fn all(graft: &mut Graft<'_>, damaged: &[Damage]) -> Result<(), Error> {
    for key in damaged.iter().map(|damage| &damage.object) {
        let Some(id) = listing::session_of(key).filter(|id| outcome_key(*id) == *key) else {
            continue;
        };
        graft.supervisor.check()?;
        let Some(same) = graft.donor.taken_here(id)? else { continue };
        if may_be_record(graft.vault, key)? {
            record(graft, id, &same)?;
        }
    }
    Ok(())
}

/// Whether an outcome may have been that of a snapshot, as far as its first line says:
/// a repository that lies must not have a move forgotten.
fn may_be_record(vault: &Vault, key: &str) -> Result<bool, Error> {
    let bytes = repair::readable(vault.store.get(key, MAX_OUTCOME))?;
    Ok(bytes.is_some_and(|bytes| ![MOVED, ABORTED].iter().any(|l| bytes.starts_with(l.as_bytes()))))
}

fn record(graft: &mut Graft<'_>, id: SnapshotId, same: &Pin) -> Result<(), Error> {
    let surgery = Surgery::begin(graft.vault, &graft.damaged, None)?;
    let Some(mut record) = described(graft, &surgery, id, same)? else { return Ok(()) };
    let mut unproved = 0;
    for NamedImage { name, root } in &same.record().images {
        let Some(root) = regrown(graft, &surgery, (&record, same), (name, root.size))? else {
            return Ok(());
        };
        let shown = ImageReader::new(graft.vault.clone(), root.clone()).data_extents();
        for extent in shown {
            unproved += extent?.len;
        }
        record.images.push(NamedImage { name: name.clone(), root });
    }
    for (name, blob) in &same.record().blobs {
        let Some(bytes) = graft.donor.blob(same, name, blob.len)? else { return Ok(()) };
        graft.done.fetched_bytes.0 += blob.len;
        unproved += blob.len;
        record.blobs.push((name.clone(), surgery.session.blob(&bytes)?));
    }
    for record in surgery.commit(vec![record])? {
        let key = outcome_key(id);
        let vault = graft.vault;
        let outcome = Outcome::Committed(Box::new(record.clone()));
        let bytes = outcome.encode(&vault.keys, vault.id, &key);
        if repair::put_back(vault, id, &bytes)? {
            graft.note(&record, ByteCount(unproved))?;
            graft.done.repaired.push(key);
        }
    }
    Ok(())
}

/// Returns the record without its content, as the other repository tells it.
fn described(
    graft: &Graft<'_>,
    surgery: &Surgery,
    id: SnapshotId,
    same: &Pin,
) -> Result<Option<SnapshotRecord>, Error> {
    let there = graft.donor.records();
    let copy = same.record();
    let Some(at) = there.iter().position(|record| record.id == copy.id) else { return Ok(None) };
    let known_here = |record: &SnapshotRecord| graft.donor.here(record, &surgery.records);
    let later = there[at + 1..].iter().filter_map(known_here);
    let sequences = later.filter_map(|id| surgery.records.iter().find(|record| record.id == id));
    let known = sequences.map(|record| record.sequence).min();
    // What is later here and not there, as far as the clocks were right.
    let newer = surgery.records.iter().filter(|record| record.created > copy.created);
    let sequence = match known.or(newer.map(|record| record.sequence).min()) {
        Some(sequence) => sequence,
        None => listing::newest_sequence(graft.vault)?.saturating_add(1),
    };
    let parent = there.iter().find(|record| Some(record.id) == copy.parent);
    Ok(Some(SnapshotRecord {
        id,
        sequence,
        parent: parent.and_then(known_here),
        images: Vec::new(),
        blobs: Vec::new(),
        origin: None,
        part: None,
        ..copy.clone()
    }))
}
