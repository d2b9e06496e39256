//! Labels: what people say of a snapshot after it was taken.
//!
//! ```text
//! label/<snapshot>-<n>   the n-th label of a snapshot, from 0: name, message,
//!                        tags and pin, as JSON, sealed like a record
//! ```
//!
//! Records are written once, so each change is another object, and the newest
//! counts. It says all that is different from the record, so one is enough. Who
//! loses a race for a number reads again and changes what the other has made of
//! it. They go with their snapshot.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tintype_types::{SnapshotId, SnapshotName};

use crate::error::Damage;
use crate::store::{Listed, Put};
use crate::vault::Vault;
use crate::{Error, listing, signed};

/// What its objects are signed as.
const KIND: &str = "label";
/// Where they are.
pub(crate) const PREFIX: &str = "label/";
/// The most bytes of one.
const MAX: u64 = 1 << 20;

/// What people say of a snapshot after it was taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    /// Its name, if it is not the record's.
    pub name: Option<SnapshotName>,
    /// What it is good for, if it is not what its maker wrote.
    pub message: Option<String>,
    /// Its tags, if they are not those that it was taken with.
    pub tags: Option<Vec<(String, String)>>,
    /// Whether it is protected from deletion.
    pub pinned: bool,
    /// When a VM of it was last seen alive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Timestamp>,
}

/// The labels of a repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// Those of the snapshots that have one.
    pub of: HashMap<SnapshotId, Label>,
    /// Those that cannot be read. In place of one counts what was before it, and
    /// the snapshot is taken for pinned.
    pub damaged: Vec<Damage>,
}

/// The numbers of the labels of each snapshot.
pub(crate) type Numbers = BTreeMap<SnapshotId, Vec<u32>>;

/// Returns the labels of all snapshots.
pub(crate) fn all(vault: &Vault) -> Result<Labels, Error> {
    read(vault, PREFIX)
}

/// Returns the label of one snapshot, which may have none.
pub(crate) fn of(vault: &Vault, snapshot: SnapshotId) -> Result<Labels, Error> {
    read(vault, &format!("{PREFIX}{snapshot}-"))
}

fn read(vault: &Vault, prefix: &str) -> Result<Labels, Error> {
    let numbers: Vec<_> = numbers(&vault.store.list(prefix)?).into_iter().collect();
    let mut labels = Labels::default();
    let newest = vault.at_once(&numbers, |(id, numbers)| newest(vault, *id, numbers));
    for ((id, _), newest) in numbers.iter().zip(newest) {
        let (label, damage) = newest?;
        labels.damaged.extend(damage);
        labels.of.extend(label.map(|label| (*id, label)));
    }
    Ok(labels)
}

/// Reads the numbers of labels off their names.
pub(crate) fn numbers(listed: &[Listed]) -> Numbers {
    let mut numbers = Numbers::new();
    for (id, number) in listed.iter().filter_map(|listed| parse(&listed.key)) {
        numbers.entry(id).or_default().push(number);
    }
    numbers.values_mut().for_each(|numbers| numbers.sort_unstable());
    numbers
}

/// Returns what the newest label says that can be read, and the damage of the
/// newest one. What a damaged one protected stays protected.
fn newest(
    vault: &Vault,
    snapshot: SnapshotId,
    numbers: &[u32],
) -> Result<(Option<Label>, Option<Damage>), Error> {
    let mut damage = None;
    for number in numbers.iter().rev() {
        let key = key(snapshot, *number);
        match vault.unchanging(&key, MAX, |bytes| decode(vault, &key, bytes)) {
            Ok(label) => {
                let pinned = label.pinned || damage.is_some();
                return Ok((Some(Label { pinned, ..label }), damage));
            }
            // It went with its snapshot.
            Err(Error::NotFound(_)) => {}
            Err(Error::Damaged(found)) => _ = damage.get_or_insert(found),
            Err(error) => return Err(error),
        }
    }
    let protected = damage.is_some().then(|| Label { pinned: true, ..Label::default() });
    Ok((protected, damage))
}

/// Says something of a snapshot that is not there yet, and has no label.
pub(crate) fn say_beforehand(
    vault: &Vault,
    snapshot: SnapshotId,
    label: &Label,
) -> Result<(), Error> {
    let key = key(snapshot, 0);
    vault.store.put_if_absent(&key, &encode(vault, &key, label)?).map(drop)
}

/// Changes what is said of a snapshot; returns what was said before, and after.
/// When this returns, it survives power loss. The change may be tried several
/// times.
pub(crate) fn change(
    vault: &Vault,
    snapshot: SnapshotId,
    change: &dyn Fn(&mut Label),
) -> Result<(Label, Label), Error> {
    let mut tried: Option<(u32, Label, Label)> = None;
    loop {
        listing::one(vault, snapshot)?;
        let listed = vault.store.list(&format!("{PREFIX}{snapshot}-"))?;
        let numbers = numbers(&listed).remove(&snapshot).unwrap_or_default();
        let (before, damage) = newest(vault, snapshot, &numbers)?;
        let before = before.unwrap_or_default();
        if let Some((number, old, new)) = tried
            && numbers.last() == Some(&number)
            && new == before
        {
            // It is this very change, whose first answer was lost.
            return Ok((old, new));
        }
        let mut after = before.clone();
        change(&mut after);
        if after == before && damage.is_none() {
            return Ok((before, after));
        }
        let number = match numbers.last() {
            Some(last) => last.checked_add(1).ok_or_else(|| too_often(snapshot))?,
            None => 0,
        };
        let key = key(snapshot, number);
        match vault.store.put_if_absent(&key, &encode(vault, &key, &after)?)? {
            // A collection may have come first, and then nothing reads it.
            Put::Created => return listing::one(vault, snapshot).map(|_| (before, after)),
            Put::Existed => tried = Some((number, before, after)),
        }
    }
}

fn too_often(snapshot: SnapshotId) -> Error {
    Error::Invalid(format!("the snapshot {snapshot} was changed too often"))
}

/// Removes the labels of snapshots that are gone for good.
pub(crate) fn forget(
    vault: &Vault,
    numbers: &Numbers,
    is_gone: impl Fn(SnapshotId) -> bool,
) -> Result<(), Error> {
    let gone = numbers.iter().filter(|(id, _)| is_gone(**id));
    let mut keys = gone.flat_map(|(id, numbers)| numbers.iter().map(|n| key(*id, *n)));
    keys.try_for_each(|key| vault.store.delete(&key))
}

/// Checks a label as it is stored.
pub(crate) fn check(vault: &Vault, key: &str) -> Result<(), Error> {
    decode(vault, key, &vault.store.get(key, MAX)?).map(drop)
}

/// Mends a label that cannot be read: by the one that was there, from one of
/// the places where it may be, or by what it is taken for.
pub(crate) fn mend(vault: &Vault, copy: Option<&Vault>, key: &str) -> Result<bool, Error> {
    let Some((snapshot, number)) = parse(key) else { return Ok(false) };
    let kept = vault.kept_object(key);
    let copied = copy.and_then(|copy| copy.store.get(key, MAX).ok());
    let good = kept.into_iter().chain(copied).find(|bytes| decode(vault, key, bytes).is_ok());
    let bytes = match good {
        Some(bytes) => bytes,
        None => {
            let listed = vault.store.list(&format!("{PREFIX}{snapshot}-"))?;
            let mut numbers = numbers(&listed).remove(&snapshot).unwrap_or_default();
            numbers.retain(|other| *other <= number);
            let (label, _) = newest(vault, snapshot, &numbers)?;
            encode(vault, key, &label.unwrap_or_default())?
        }
    };
    vault.store.replace(key, &bytes).map(|()| true)
}

fn encode(vault: &Vault, key: &str, label: &Label) -> Result<Vec<u8>, Error> {
    let bytes = signed::encode_hidden(vault, key, KIND, label);
    match u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX) {
        true => Ok(bytes),
        false => Err(Error::Invalid(format!("a label of {} bytes is too long", bytes.len()))),
    }
}

fn decode(vault: &Vault, key: &str, bytes: &[u8]) -> Result<Label, Error> {
    signed::decode_hidden(vault, key, KIND, bytes)
}

fn key(snapshot: SnapshotId, number: u32) -> String {
    format!("{PREFIX}{snapshot}-{number}")
}

/// Reads the key of a label.
pub(crate) fn parse(text: &str) -> Option<(SnapshotId, u32)> {
    let (snapshot, number) = text.strip_prefix(PREFIX)?.split_once('-')?;
    let (snapshot, number) = (snapshot.parse().ok()?, number.parse().ok()?);
    (key(snapshot, number) == text).then_some((snapshot, number))
}
