//! Epochs of garbage collection, as objects.
//!
//! ```text
//! ep/<n>         the segments that a collector condemned: none may be
//!                referred to by sessions that begin from now on
//! ep/<n>.final   those of them that are still not needed: they are deleted
//! ep/<n>.done    they are deleted
//! ```
//!
//! An epoch begins only when the one before is done. Each object is put by
//! the first collector that gets there; the others go on with what it says.

use std::collections::BTreeSet;

use crate::Error;
use crate::pointer::SegmentName;
use crate::signed;
use crate::store::Put;
use crate::vault::Vault;

/// What its objects are signed as.
pub(crate) const KIND: &str = "epoch";
/// Epochs have eight digits: a hundred million collections.
const LAST: u64 = 99_999_999;

/// A set of segments in the order of their names.
pub(crate) type Segments = BTreeSet<SegmentName>;

/// How far an epoch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    Condemned,
    Final,
    Done,
}

impl Stage {
    fn suffix(self) -> &'static str {
        match self {
            Stage::Condemned => "",
            Stage::Final => ".final",
            Stage::Done => ".done",
        }
    }
}

/// Returns the newest epoch and how far it has come; 0 is done from the start.
pub(crate) fn newest(vault: &Vault) -> Result<(u64, Stage), Error> {
    let mut newest = (0, Stage::Done);
    for listed in vault.store.list("ep/")? {
        let name = &listed.key["ep/".len()..];
        let (number, stage) = match name.split_once('.') {
            None => (name, Stage::Condemned),
            Some((number, "final")) => (number, Stage::Final),
            Some((number, "done")) => (number, Stage::Done),
            Some(_) => continue,
        };
        if let Some(number) = parse(number) {
            newest = newest.max_by_progress((number, stage));
        }
    }
    Ok(newest)
}

/// Reads exactly the digits that `key` writes.
pub(crate) fn parse(number: &str) -> Option<u64> {
    let number = number.parse().ok().filter(|parsed| format!("{parsed:08}") == number)?;
    (number <= LAST).then_some(number)
}

/// Returns the epoch after this one.
pub(crate) fn after(epoch: u64) -> Result<u64, Error> {
    let after = (epoch < LAST).then(|| epoch + 1);
    after.ok_or_else(|| Error::damaged("ep", None, "there are more epochs than there can be"))
}

trait Progress {
    fn max_by_progress(self, other: Self) -> Self;
}

impl Progress for (u64, Stage) {
    fn max_by_progress(self, other: Self) -> Self {
        if self.0 == other.0 { (self.0, self.1.max(other.1)) } else { self.max(other) }
    }
}

/// Returns the key of an epoch's object.
pub(crate) fn key(epoch: u64, stage: Stage) -> String {
    format!("ep/{epoch:08}{}", stage.suffix())
}

/// Puts an epoch's object.
pub(crate) fn put(
    vault: &Vault,
    epoch: u64,
    stage: Stage,
    segments: &Segments,
) -> Result<Put, Error> {
    let key = key(epoch, stage);
    let lines: Vec<_> = segments.iter().map(SegmentName::key).collect();
    vault.store.put_if_absent(&key, &signed::encode(vault, &key, KIND, &lines))
}

/// Reads the segments of an epoch's object.
pub(crate) fn read(vault: &Vault, epoch: u64, stage: Stage) -> Result<Segments, Error> {
    let key = key(epoch, stage);
    let segment = |line: &String| {
        SegmentName::from_key(line)
            .ok_or_else(|| Error::damaged(&key, None, "it names something else than segments"))
    };
    signed::read(vault, &key, KIND)?.iter().map(segment).collect()
}

/// Replaces an epoch's object that cannot be read by one that says nothing, if
/// that is safe; whether it was.
///
/// What was done says nothing any more. Of an epoch under way nobody knows what
/// was condemned, so it has to end with nothing deleted, or with what somebody
/// has decided already. For a damaged decision, see `gc::decide_again`.
pub(crate) fn settle(vault: &Vault, damaged: &str) -> Result<bool, Error> {
    let (epoch, stage) = newest(vault)?;
    let none = Segments::new();
    let segments = if stage == Stage::Done || !damaged.starts_with(&key(epoch, Stage::Condemned)) {
        none
    } else if damaged == key(epoch, Stage::Condemned) {
        put(vault, epoch, Stage::Final, &none)?;
        match read(vault, epoch, Stage::Final) {
            Err(Error::Damaged(_)) => return Ok(false),
            decided => decided?,
        }
    } else {
        return Ok(false);
    };
    replace(vault, damaged, &segments).map(|()| true)
}

/// Replaces an epoch's object.
pub(crate) fn replace(vault: &Vault, key: &str, segments: &Segments) -> Result<(), Error> {
    let lines: Vec<_> = segments.iter().map(SegmentName::key).collect();
    vault.store.replace(key, &signed::encode(vault, key, KIND, &lines))
}

/// Returns what sessions of this epoch must not refer to.
pub(crate) fn forbidden(vault: &Vault, newest: (u64, Stage)) -> Result<Segments, Error> {
    match newest {
        (_, Stage::Done) => Ok(Segments::new()),
        // All that was condemned, not only what is final: what was spared may
        // be needed by a snapshot that is deleted by now.
        (epoch, Stage::Condemned | Stage::Final) => read(vault, epoch, Stage::Condemned),
    }
}
