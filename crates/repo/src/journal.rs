//! The log of operations: what was done, and what takes it back.
//!
//! ```text
//! op/<n>   8 decimal digits, from 1: what the caller says, as JSON, hidden
//!          like a record
//! ```
//!
//! An entry is put when what it tells of is done, so a killed command leaves
//! none. Who loses a race for a number takes the next. The newest stay; older
//! ones are removed as new ones come.

use serde_json::Value;

use crate::store::Put;
use crate::vault::Vault;
use crate::{Error, signed};

/// What its objects are signed as.
const KIND: &str = "op";
/// Where they are.
pub(crate) const PREFIX: &str = "op/";
/// The most bytes of one.
const MAX: u64 = 4 << 20;
/// How many stay.
const KEPT: u64 = 1_000;

/// An entry in the log of operations.
#[derive(Debug, Clone, PartialEq)]
pub struct Logged {
    /// Its number; later ones are higher.
    pub number: u64,
    /// What the caller said of it; `None` if that cannot be read any more.
    pub entry: Option<Value>,
}

/// Adds an entry; returns its number. When this returns, it survives power loss.
pub(crate) fn add(vault: &Vault, entry: &Value) -> Result<u64, Error> {
    loop {
        let numbers = numbers(vault)?;
        let number = numbers.last().map_or(Some(1), |last| last.checked_add(1));
        let number = number.ok_or_else(|| Error::Invalid("the log is full".to_owned()))?;
        let key = key(number);
        let bytes = signed::encode_hidden(vault, &key, KIND, entry);
        if !u64::try_from(bytes.len()).is_ok_and(|len| len <= MAX) {
            return Err(Error::Invalid(format!("an entry of {} bytes is too long", bytes.len())));
        }
        if vault.store.put_if_absent(&key, &bytes)? == Put::Created {
            let old = numbers.iter().filter(|old| number - **old >= KEPT);
            { old }.try_for_each(|old| vault.store.delete(&self::key(*old)))?;
            return Ok(number);
        }
    }
}

/// Returns the newest entries, the newest first.
pub(crate) fn newest(vault: &Vault, limit: usize) -> Result<Vec<Logged>, Error> {
    let mut numbers = numbers(vault)?;
    numbers.reverse();
    numbers.truncate(limit);
    let entries = vault.at_once(&numbers, |number| read(vault, *number));
    numbers
        .iter()
        .zip(entries)
        .map(|(number, entry)| Ok(Logged { number: *number, entry: entry? }))
        .collect()
}

fn read(vault: &Vault, number: u64) -> Result<Option<Value>, Error> {
    let key = key(number);
    match vault.unchanging(&key, MAX, |bytes| decode(vault, &key, bytes)) {
        Ok(entry) => Ok(Some(entry).filter(|entry| !entry.is_null())),
        Err(Error::Damaged(damage)) => {
            tracing::warn!(%damage, "an entry in the log of operations cannot be read");
            Ok(None)
        }
        // It was old.
        Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Checks an entry as it is stored.
pub(crate) fn check(vault: &Vault, key: &str) -> Result<(), Error> {
    decode(vault, key, &vault.store.get(key, MAX)?).map(drop)
}

/// Mends an entry that cannot be read: by the one that was there, from one of
/// the places where it may be, or by one that says nothing.
pub(crate) fn mend(vault: &Vault, copy: Option<&Vault>, key: &str) -> Result<bool, Error> {
    let kept = vault.kept_object(key);
    let copied = copy.and_then(|copy| copy.store.get(key, MAX).ok());
    let good = kept.into_iter().chain(copied).find(|bytes| decode(vault, key, bytes).is_ok());
    let bytes = good.unwrap_or_else(|| signed::encode_hidden(vault, key, KIND, &Value::Null));
    vault.store.replace(key, &bytes).map(|()| true)
}

fn decode(vault: &Vault, key: &str, bytes: &[u8]) -> Result<Value, Error> {
    signed::decode_hidden(vault, key, KIND, bytes)
}

/// Returns the numbers of the entries, the oldest first.
fn numbers(vault: &Vault) -> Result<Vec<u64>, Error> {
    let listed = vault.store.list(PREFIX)?;
    let mut numbers: Vec<_> = listed.iter().filter_map(|listed| parse(&listed.key)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

fn key(number: u64) -> String {
    format!("{PREFIX}{number:08}")
}

/// Reads the key of an entry.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let number = text.strip_prefix(PREFIX)?.parse().ok()?;
    (key(number) == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::repository::create_in;
    use crate::store::{Memory, Pulse, Shared};
    use crate::{InitParams, Repository};

    #[test]
    fn the_newest_stay() {
        let pulse = Pulse { beat: Duration::from_secs(10), patience: Duration::from_secs(180) };
        let memory = Memory::default();
        let store = || Box::new(Shared::new(memory.clone(), pulse));
        create_in(&*store(), &InitParams::default()).unwrap();
        let place = Path::new("s3://memory");
        let repository = Repository::open_in(store(), None, place, &[]).unwrap();
        let vault = &*repository.vault;
        (0..3).for_each(|_| assert!(add(vault, &json!("old")).unwrap() > 0));
        let far = key(KEPT + 1);
        let entry = signed::encode_hidden(vault, &far, KIND, &json!("far"));
        vault.store.put_if_absent(&far, &entry).unwrap();
        assert_eq!(add(vault, &json!("next")).unwrap(), KEPT + 2);
        assert_eq!(numbers(vault).unwrap(), [3, KEPT + 1, KEPT + 2]);
    }
}
