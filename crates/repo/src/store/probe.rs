//! Finding out whether a store keeps what the protocol relies on: one of
//! several puts of a name wins, and everybody sees at once what was done.
//!
//! Servers that take `If-None-Match: *` for a word without meaning, or look
//! first and write later, lose snapshots of several hosts. Whether one does is
//! seen in a real race only.

use std::io::ErrorKind;
use std::thread;

use tintype_types::SnapshotId;

use super::{Objects, Put};
use crate::Error;

/// How many puts of one name race.
const RACERS: usize = 8;

/// What a probe has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All is as it should be.
    Sound,
    /// We may not write, so there is no harm that we could do.
    ReadOnly,
    /// Several hosts would lose data; what was seen, as a fragment.
    Unsound(String),
}

/// Races for a fresh name, and looks at what came of it.
pub(crate) fn probe(objects: &dyn Objects) -> Result<Verdict, Error> {
    let key = format!("probe/{}", SnapshotId::random());
    let puts = race(objects, &key);
    if puts.iter().all(is_forbidden) {
        return Ok(Verdict::ReadOnly);
    }
    let verdict = judge(objects, &key, puts);
    match objects.delete(&key) {
        // Hosts that must not delete leave it; it means nothing.
        Err(error) if error_kind(&error) == Some(ErrorKind::PermissionDenied) => verdict,
        Err(error) => Err(error),
        Ok(()) => match verdict? {
            Verdict::Sound if objects.size(&key)?.is_some() => {
                Ok(unsound("an object that was deleted was still there"))
            }
            verdict => Ok(verdict),
        },
    }
}

fn content(racer: usize) -> Vec<u8> {
    format!("racer {racer}\n").into_bytes()
}

fn race(objects: &dyn Objects, key: &str) -> Vec<Result<Put, Error>> {
    thread::scope(|scope| {
        let racer = |number| scope.spawn(move || objects.put_if_absent(key, &content(number)));
        let racers: Vec<_> = (0..RACERS).map(racer).collect();
        racers.into_iter().map(|racer| racer.join().expect("a put does not panic")).collect()
    })
}

fn judge(
    objects: &dyn Objects,
    key: &str,
    puts: Vec<Result<Put, Error>>,
) -> Result<Verdict, Error> {
    let mut winners = Vec::new();
    for (number, put) in puts.into_iter().enumerate() {
        match put {
            Ok(Put::Created) => winners.push(number),
            Ok(Put::Existed) => {}
            // It was accepted, and overwritten before it could be read.
            Err(error) if error_kind(&error) == Some(ErrorKind::InvalidData) => {
                winners.push(number);
            }
            Err(error) => return Err(error),
        }
    }
    let [winner] = winners.as_slice() else {
        return Ok(unsound(&format!(
            "of {RACERS} puts of one new name at once it accepted {}, where one may win",
            winners.len()
        )));
    };
    let again = objects.put_if_absent(key, b"late\n");
    let is_refused = matches!(again, Ok(Put::Existed));
    let is_kept = objects.get(key, 64).is_ok_and(|there| there == content(*winner));
    let is_listed = objects.list("probe/")?.iter().any(|listed| listed.key == key);
    Ok(match (is_refused, is_kept, is_listed) {
        (false, ..) => unsound("it accepted a second put of a name that was taken"),
        (_, false, _) => unsound("it did not give back the object that had won"),
        (.., false) => unsound("it did not list an object that was there"),
        (true, true, true) => Verdict::Sound,
    })
}

fn unsound(seen: &str) -> Verdict {
    Verdict::Unsound(seen.to_owned())
}

fn is_forbidden(put: &Result<Put, Error>) -> bool {
    put.as_ref().is_err_and(|error| error_kind(error) == Some(ErrorKind::PermissionDenied))
}

fn error_kind(error: &Error) -> Option<ErrorKind> {
    match error {
        Error::Io { source, .. } => Some(source.kind()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::{Flaw, Memory};
    use super::*;

    #[test]
    fn flaws_are_found() {
        let check = |flaw: Option<Flaw>, expected: &str| {
            let memory = Memory::with(flaw);
            match probe(&memory).unwrap() {
                Verdict::Sound => assert_eq!(expected, "", "{flaw:?}"),
                Verdict::Unsound(seen) => assert!(
                    !expected.is_empty() && seen.contains(expected),
                    "{flaw:?}: {seen}, not {expected}"
                ),
                Verdict::ReadOnly => assert_eq!(expected, "read only", "{flaw:?}"),
            }
        };
        check(None, "");
        check(Some(Flaw::IgnoresConditions), "accepted 8,");
        check(Some(Flaw::LooksThenWrites), "where one may win");
        check(Some(Flaw::ListsLate), "did not list");
        check(Some(Flaw::DeletesLate), "deleted was still there");
        check(Some(Flaw::ReadOnly), "read only");
    }

    #[test]
    fn a_probe_leaves_nothing() {
        let memory = Memory::default();
        probe(&memory).unwrap();
        assert_eq!(memory.list("").unwrap(), []);
    }
}
