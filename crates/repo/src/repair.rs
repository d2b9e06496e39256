//! Repair: puts damaged objects back as they were, and keeps new snapshots away
//! from those that it cannot put back.
//!
//! ```text
//! verify ─► segments    from a copy of the repository, or what this machine
//!                       keeps of a bucket, frame by frame
//!           records     from a copy
//!           deletions   an end that cannot be read is taken for "undone"
//!           labels      from a copy or this machine, else what was before it, and pinned
//!           operations  from a copy or this machine, else an entry that says nothing
//!           epochs      see `epoch::settle` and `gc::decide_again`
//!        ─► verify ─► the segments that are still damaged: quarantined
//! ```
//!
//! Nothing is ever encoded anew in its old place, since a nonce would serve
//! twice: what takes the place of a damaged frame is the frame that was first
//! there, and proves it by its id. Nothing is deleted, and nothing is written
//! if nothing is damaged.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::Damage;
use crate::gc;
use crate::gone::{self, Deletions};
use crate::journal;
use crate::label;
use crate::listing;
use crate::loss::Loss;
use crate::pointer::SegmentName;
use crate::record::{MAX_OUTCOME, Outcome};
use crate::segment::{self, SEGMENT_SIZE, Table, Trailer};
use crate::slot;
use crate::supervisor::Supervisor;
use crate::vault::Vault;
use crate::verify::{self, VerifyLevel};
use crate::wire::Malformed;
use crate::{Error, epoch, quarantine};

const MAX_SEGMENT: u64 = SEGMENT_SIZE as u64;

/// What a repair has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Everything that was wrong.
    pub found: Vec<Damage>,
    /// The objects that are whole again.
    pub repaired: Vec<String>,
    /// The segments that no new snapshot refers to from now on.
    pub quarantined: Vec<String>,
    /// The segments to which this no longer applies: they are good, or gone.
    pub released: Vec<String>,
    /// Everything that is still wrong.
    pub damaged: Vec<Damage>,
    /// What cannot be read because of that.
    pub losses: Vec<Loss>,
}

/// Repairs what is damaged, from a copy of the repository if there is one.
pub(crate) fn repair(
    vault: &Arc<Vault>,
    copy: Option<&Vault>,
    supervisor: &dyn Supervisor,
) -> Result<RepairReport, Error> {
    let verify = || verify::verify(vault, &[], VerifyLevel::ReadData, supervisor);
    let before = verify()?;
    let objects: BTreeSet<&String> = before.damaged.iter().map(|damage| &damage.object).collect();
    let mut repaired = Vec::new();
    for key in objects {
        supervisor.check()?;
        if mend(vault, copy, key)? {
            repaired.push(key.clone());
        }
    }
    let after = if repaired.is_empty() { before.clone() } else { verify()? };
    repaired.retain(|key| after.damaged.iter().all(|damage| damage.object != *key));
    let (quarantined, released) = keep_away(vault, &after.damaged)?;
    Ok(RepairReport {
        found: before.damaged,
        repaired,
        quarantined,
        released,
        damaged: after.damaged,
        losses: after.losses,
    })
}

/// Mends an object; whether it is another one now.
fn mend(vault: &Vault, copy: Option<&Vault>, key: &str) -> Result<bool, Error> {
    if let Some(name) = SegmentName::from_key(key) {
        return mend_segment(vault, copy, name);
    }
    if key.starts_with("gone/") {
        return gone::settle(vault, key);
    }
    if key.starts_with(label::PREFIX) {
        return label::mend(vault, copy, key);
    }
    if key.starts_with(journal::PREFIX) {
        return journal::mend(vault, copy, key);
    }
    if key.starts_with("ep/") {
        return Ok(epoch::settle(vault, key)? || gc::decide_again(vault, key)?);
    }
    copy.map_or(Ok(false), |copy| mend_record(vault, copy, key))
}

fn mend_segment(vault: &Vault, copy: Option<&Vault>, name: SegmentName) -> Result<bool, Error> {
    let key = name.key();
    let ours = readable(vault.store.get(&key, MAX_SEGMENT))?;
    let mut versions: Vec<Vec<u8>> = ours.iter().cloned().collect();
    versions.extend(vault.kept(name));
    if let Some(copy) = copy {
        versions.extend(readable(copy.store.get(&key, MAX_SEGMENT))?);
    }
    match best_of(vault, name, &versions) {
        Some(best) if ours.as_ref() != Some(&best) => {
            vault.store.replace(&key, &best)?;
            vault.forget(name, 0, SEGMENT_SIZE);
            vault.keep(name, &best);
            Ok(true)
        }
        _ => Ok(false),
    }
}

/// Puts a segment together from the good frames of all its versions; `None` if
/// no version has a good table.
fn best_of(vault: &Vault, name: SegmentName, versions: &[Vec<u8>]) -> Option<Vec<u8>> {
    let with_table = |bytes: &Vec<u8>| Some((bytes.clone(), table_of(vault, name, bytes).ok()?));
    let (mut best, table) = versions.iter().find_map(with_table)?;
    for (number, entry) in (0..).zip(table.entries()) {
        let frames = versions.iter().filter_map(|bytes| bytes.get(entry.range()));
        let is_good = |frame: &&[u8]| {
            verify::check_frame(vault, name, &table, (number, entry), &mut frame.to_vec()).is_ok()
        };
        if let Some(good) = { frames }.find(is_good) {
            best[entry.range()].copy_from_slice(good);
        }
    }
    Some(best)
}

fn table_of(vault: &Vault, name: SegmentName, bytes: &[u8]) -> Result<Table, Malformed> {
    let early = Malformed("it ends early");
    let size = u64::try_from(bytes.len()).expect("a usize fits in 64 bits");
    let end = bytes.last_chunk::<{ segment::TRAILER_LEN }>().ok_or(early)?;
    let trailer = Trailer::decode(end, size)?;
    let header = bytes.get(..segment::HEADER_LEN).ok_or(early)?;
    trailer.table(header, &bytes[segment::index(trailer.table_offset)..], name, vault.id)
}

/// Puts the outcome of a snapshot or a move back, unless it was forgotten meanwhile.
fn mend_record(vault: &Vault, copy: &Vault, key: &str) -> Result<bool, Error> {
    let Some(snapshot) = listing::session_of(key) else { return Ok(false) };
    let Some(record) = readable(copy.store.get(key, MAX_OUTCOME))? else { return Ok(false) };
    let outcome = Outcome::decode(&vault.keys, vault.id, key, &record);
    if !matches!(outcome, Ok(Outcome::Committed(_) | Outcome::Moved(_))) {
        return Ok(false);
    }
    // No collector forgets a snapshot that somebody reads. So if it is not
    // deleted now and its record is there, it is while this is put back.
    let slot = slot::put_reader(vault, snapshot)?;
    let is_there =
        || Ok(!Deletions::read(vault)?.has(snapshot) && vault.store.size(key)?.is_some());
    let put_back = match is_there() {
        Ok(true) => vault.store.replace(key, &record).map(|()| true),
        other => other,
    };
    slot.release(vault).and(put_back)
}

/// Marks the segments that are damaged, and takes the marks from those that
/// are not; returns both.
fn keep_away(vault: &Vault, damaged: &[Damage]) -> Result<(Vec<String>, Vec<String>), Error> {
    let marked = quarantine::read(vault)?;
    let is_of = |name: SegmentName| move |damage: &&Damage| damage.object == name.key();
    let bad: BTreeSet<_> =
        damaged.iter().filter_map(|damage| SegmentName::from_key(&damage.object)).collect();
    let quarantined = bad.difference(&marked).copied().map(|name| {
        let reasons: Vec<_> = damaged.iter().filter(is_of(name)).map(Damage::to_string).collect();
        quarantine::mark(vault, name, &reasons).map(|()| name.key())
    });
    let quarantined = quarantined.collect::<Result<_, _>>()?;
    let mut released = Vec::new();
    for name in marked.difference(&bad) {
        if is_good_or_gone(vault, *name)? {
            quarantine::release(vault, *name)?;
            released.push(name.key());
        }
    }
    Ok((quarantined, released))
}

/// Whether a segment, which no snapshot may need, has no damage.
fn is_good_or_gone(vault: &Vault, name: SegmentName) -> Result<bool, Error> {
    let mut bytes = match vault.store.get(&name.key(), MAX_SEGMENT) {
        Ok(bytes) => bytes,
        Err(Error::NotFound(_)) => return Ok(true),
        Err(Error::Damaged(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let Ok(table) = table_of(vault, name, &bytes) else { return Ok(false) };
    Ok((0..).zip(table.entries()).all(|(number, entry)| {
        let frame = &mut bytes[entry.range()];
        verify::check_frame(vault, name, &table, (number, entry), frame).is_ok()
    }))
}

/// The bytes of an object, if there are any.
fn readable(bytes: Result<Vec<u8>, Error>) -> Result<Option<Vec<u8>>, Error> {
    match bytes {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::NotFound(_) | Error::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
