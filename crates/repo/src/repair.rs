//! Repair: puts damaged objects back as they were, and keeps new snapshots away
//! from those that it cannot put back.
//!
//! ```text
//! verify ─► segments    from a copy of the repository, or what this machine
//!                       keeps of a bucket, frame by frame; what describes them
//!                       also from their frames, see `retable`
//!           records     from a copy
//!           deletions   an end that cannot be read is taken for "undone"
//!           labels      from a copy or this machine, else what was before it, and pinned
//!           operations  from a copy or this machine, else an entry that says nothing
//!           epochs      see `epoch::settle` and `gc::decide_again`
//!        ─► verify, and again what is damaged that nothing led to before
//!        ─► the segments that are still damaged: quarantined
//!        ─► from another repository: `graft` moves out what is needed of them,
//!           `regrow` makes damaged maps anew, `recall` damaged records
//! ```
//!
//! Nothing is ever encoded anew in its old place, since a nonce would serve
//! twice: what takes the place of a damaged frame is the frame that was first
//! there, and proves it by its id. Nothing is deleted, and nothing is written
//! if nothing is damaged.

use std::collections::BTreeSet;
use std::sync::Arc;

use tintype_types::{ByteCount, SnapshotId};

use crate::donor::Donor;
use crate::error::Damage;
use crate::gc;
use crate::gone::{self, Deletions};
use crate::graft::{self, Grafted, Mended, Mismatch};
use crate::journal;
use crate::label;
use crate::listing;
use crate::loss::Loss;
use crate::pointer::SegmentName;
use crate::record::{MAX_OUTCOME, Outcome, outcome_key};
use crate::repository::Repository;
use crate::segment::{self, SEGMENT_SIZE, Table, Trailer};
use crate::slot;
use crate::supervisor::Supervisor;
use crate::vault::Vault;
use crate::verify::{self, VerifyLevel};
use crate::wire::Malformed;
use crate::{Error, epoch, quarantine, retable};

const MAX_SEGMENT: u64 = SEGMENT_SIZE as u64;

/// Where repair takes things from, beside what this machine keeps.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Nothing,
    /// The same repository elsewhere, byte for byte.
    Copy(&'a Vault),
    /// Another one, with copies of snapshots of this one, or the reverse.
    Other(&'a Repository),
}

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
    /// The snapshots that were moved out of damaged segments, with what is good there
    /// and what another repository has.
    pub mended: Vec<Mended>,
    /// The damaged segments that no snapshot needs any more because of that.
    pub emptied: Vec<String>,
    /// How many bytes of content the other repository gave.
    pub fetched_bytes: ByteCount,
    /// Where it has something else than this one had.
    pub mismatches: Vec<Mismatch>,
    /// Everything that is still wrong.
    pub damaged: Vec<Damage>,
    /// What cannot be read because of that.
    pub losses: Vec<Loss>,
}

/// Repairs what is damaged, from what there is.
pub(crate) fn repair(
    vault: &Arc<Vault>,
    source: Source<'_>,
    supervisor: &dyn Supervisor,
) -> Result<RepairReport, Error> {
    let verify = || verify::verify(vault, &[], VerifyLevel::ReadData, supervisor);
    let (copy, donor) = match source {
        Source::Nothing => (None, None),
        Source::Copy(copy) => (Some(copy), None),
        Source::Other(other) => (None, Some(donor(vault, other)?)),
    };
    let mut after = verify()?;
    let mut found = after.damaged.clone();
    let mut repaired = Vec::new();
    let mut tried = BTreeSet::new();
    loop {
        let mended = mend_new(vault, copy, &after.damaged, &mut tried, supervisor)?;
        if mended.is_empty() {
            break;
        }
        repaired.extend(mended);
        // What is whole again may lead to more that is not.
        after = verify()?;
        found
            .extend(after.damaged.iter().filter(|damage| !tried.contains(&damage.object)).cloned());
    }
    // Before anything is stored, so that nothing new leads there.
    let (mut quarantined, mut released) = keep_away(vault, &after.damaged)?;
    let mut grafted = Grafted::default();
    let mut emptied = BTreeSet::new();
    if let Some(donor) = donor
        && !after.damaged.is_empty()
    {
        emptied.extend(after.damaged.iter().map(|damage| damage.object.clone()));
        emptied.retain(|key| SegmentName::from_key(key).is_some());
        grafted = graft::graft(vault, &donor, &after.damaged, supervisor)?;
        repaired.append(&mut grafted.repaired);
        after = verify()?;
        let (more, gone) = keep_away(vault, &after.damaged)?;
        quarantined.extend(more);
        released.extend(gone);
    }
    let is_good = |key: &String| after.damaged.iter().all(|damage| damage.object != *key);
    // What is good of one that is not whole was moved too, and does not count.
    let lost: BTreeSet<_> = after.damaged.iter().flat_map(|damage| &damage.snapshots).collect();
    grafted.mended.retain(|id, _| !lost.contains(id));
    repaired.retain(is_good);
    emptied.retain(is_good);
    quarantined.retain(|key| !emptied.contains(key));
    Ok(RepairReport {
        found,
        repaired,
        quarantined,
        released,
        mended: grafted.mended.into_values().collect(),
        emptied: emptied.into_iter().collect(),
        fetched_bytes: grafted.fetched_bytes,
        mismatches: grafted.mismatches.into_values().collect(),
        damaged: after.damaged,
        losses: after.losses,
    })
}

/// Opens another repository, which must have something in common with this one.
fn donor<'d>(vault: &Vault, other: &'d Repository) -> Result<Donor<'d>, Error> {
    let donor = Donor::new(other, vault.id)?;
    if donor.has_any_of(&listing::list_with_trash(vault)?.0.records) {
        return Ok(donor);
    }
    let place = other.path().display();
    Err(Error::Invalid(format!("{place} has no copy of this repository or of its snapshots")))
}

/// Mends the damaged objects that were not tried yet; returns those that are others now.
fn mend_new(
    vault: &Vault,
    copy: Option<&Vault>,
    damaged: &[Damage],
    tried: &mut BTreeSet<String>,
    supervisor: &dyn Supervisor,
) -> Result<Vec<String>, Error> {
    let objects: BTreeSet<&String> = damaged.iter().map(|damage| &damage.object).collect();
    let mut mended = Vec::new();
    for key in objects {
        supervisor.check()?;
        if tried.insert(key.clone()) && mend(vault, copy, key)? {
            mended.push(key.clone());
        }
    }
    Ok(mended)
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
/// no version has a good table, or frames that tell what was in it.
fn best_of(vault: &Vault, name: SegmentName, versions: &[Vec<u8>]) -> Option<Vec<u8>> {
    let with_table = |bytes: &Vec<u8>| Some((bytes.clone(), table_of(vault, name, bytes).ok()?));
    let retabled = || versions.iter().find_map(|bytes| retable::retable(vault, name, bytes));
    let (mut best, table) = versions
        .iter()
        .find_map(with_table)
        .or_else(|| retabled().as_ref().and_then(with_table))?;
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
    put_back(vault, snapshot, &record)
}

/// Replaces a damaged outcome by these bytes, unless it was forgotten meanwhile.
pub(crate) fn put_back(vault: &Vault, session: SnapshotId, outcome: &[u8]) -> Result<bool, Error> {
    // No collector forgets a snapshot that somebody reads. So if its deletion is not
    // ended now and its record is there, it is while this is put back.
    let key = outcome_key(session);
    let slot = slot::put_reader(vault, session)?;
    let is_there =
        || Ok(!Deletions::read(vault)?.has_collected(session) && vault.store.size(&key)?.is_some());
    let put_back = match is_there() {
        Ok(true) => vault.store.replace(&key, outcome).map(|()| true),
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
pub(crate) fn readable(bytes: Result<Vec<u8>, Error>) -> Result<Option<Vec<u8>>, Error> {
    match bytes {
        Ok(bytes) => Ok(Some(bytes)),
        Err(Error::NotFound(_) | Error::Damaged(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
