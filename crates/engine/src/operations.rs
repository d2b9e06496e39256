//! The log of operations.
//!
//! What changes the snapshots of a repository, or puts a VM back to one, leaves
//! an entry when it is done: when, who, what was typed, what it did, and what
//! takes it back (`undo`). What is done to the registration of VMs and to clones
//! changes no repository, and is not here.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tintype_repo::{Deleted, Label, Repository};
use tintype_types::{SnapshotId, VmId};

use crate::Engine;
use crate::error::{Error, Result};

/// Entries that are looked through for something to take back.
const LOOKED_AT: usize = 1_000;
/// What an undo is called: the next `undo` passes it over.
pub(crate) const UNDO: &str = "undo";
/// The most bytes of a command line that are kept.
const MAX_WORDS: usize = 4 << 10;

/// Who runs this command, and what was typed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The name of this machine.
    pub host: String,
    /// The user.
    pub user: String,
    /// The command line as it was typed, without the program.
    pub words: Vec<String>,
}

/// What takes an operation back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub(crate) enum Reversal {
    /// Snapshots that were deleted are put back.
    Restore { snapshots: Vec<SnapshotId> },
    /// Snapshots that were made are deleted.
    Delete { snapshots: Vec<SnapshotId> },
    /// What was said of a snapshot before is said again.
    Relabel { snapshot: SnapshotId, before: Label, after: Label },
    /// A VM is put back to what it was.
    Revert { vm: VmId, to: SnapshotId },
    /// What was made is in another repository, whose log has it.
    Elsewhere { place: PathBuf, operation: Option<u64> },
}

impl Reversal {
    /// Whether it is a matter of this repository.
    fn is_here(&self) -> bool {
        !matches!(self, Self::Elsewhere { .. })
    }
}

/// An operation, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) at: Timestamp,
    pub(crate) host: String,
    pub(crate) user: String,
    pub(crate) verb: String,
    command: Vec<String>,
    did: String,
    #[serde(default)]
    pub(crate) reversal: Option<Reversal>,
    #[serde(default)]
    pub(crate) undoes: Option<u64>,
    /// Deletions that a collection has met and that are dated ahead of its clock.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    met: Vec<(SnapshotId, u32)>,
}

/// When things were done, by the clocks of those who did them.
#[derive(Debug, Default)]
pub(crate) struct Times {
    /// In the order in which they were noted.
    pub(crate) all: Vec<Timestamp>,
    /// Where in that order a collection has first met a deletion that is dated ahead.
    met: HashMap<(SnapshotId, u32), usize>,
}

impl Times {
    /// Returns the times since a deletion that is dated ahead was first met; none if it
    /// was not.
    pub(crate) fn since_met(&self, deleted: &Deleted) -> &[Timestamp] {
        self.met.get(&(deleted.id, deleted.number)).map_or(&[], |at| &self.all[*at..])
    }

    /// Whether a collection has met a deletion that is dated ahead.
    pub(crate) fn have_met(&self, deleted: &Deleted) -> bool {
        self.met.contains_key(&(deleted.id, deleted.number))
    }
}

/// An operation, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// Its number; later ones are higher.
    pub number: u64,
    /// When it was done, by the clock of who did it.
    pub at: Timestamp,
    /// The name of the machine.
    pub host: String,
    /// The user.
    pub user: String,
    /// The command: `rm`.
    pub verb: String,
    /// The command line as it was typed, without the program.
    pub command: Vec<String>,
    /// What was done, as a fragment.
    pub did: String,
    /// The operation that it took back.
    pub undoes: Option<u64>,
    /// The operation that has taken it back.
    pub undone_by: Option<u64>,
    /// Whether there is something that takes it back.
    pub can_be_undone: bool,
}

/// The operations by their numbers, the newest first, and of those that were
/// taken back, by which.
pub(crate) struct History {
    pub(crate) entries: Vec<(u64, Entry)>,
    pub(crate) undone: BTreeMap<u64, u64>,
}

/// Something that was done.
struct Done<'d> {
    verb: &'d str,
    did: String,
    reversal: Option<Reversal>,
    undoes: Option<u64>,
    met: Vec<(SnapshotId, u32)>,
}

impl Engine {
    /// Returns the newest operations, the newest first.
    pub fn operations(&self, limit: usize) -> Result<Vec<Operation>> {
        // All are read, since any may have been taken back by a later one.
        let History { entries, undone } = self.entries(&self.repository()?)?;
        let shown = entries.into_iter().take(limit).map(|(number, entry)| Operation {
            number,
            at: entry.at,
            host: entry.host,
            user: entry.user,
            verb: entry.verb,
            command: entry.command,
            did: entry.did,
            undoes: entry.undoes,
            undone_by: undone.get(&number).copied(),
            can_be_undone: entry.reversal.is_some_and(|reversal| reversal.is_here()),
        });
        Ok(shown.collect())
    }

    /// Notes what was done, and returns its number. It is done: that it cannot be
    /// noted is told, and is no error.
    pub(crate) fn log_operation(
        &self,
        repository: &Repository,
        verb: &str,
        did: String,
        reversal: Option<Reversal>,
    ) -> Option<u64> {
        let (undoes, met) = (None, Vec::new());
        self.log_entry(repository, Done { verb, did, reversal, undoes, met })
    }

    /// Notes that something was taken back, of the log or of none.
    pub(crate) fn log_undo(
        &self,
        repository: &Repository,
        did: String,
        reversal: Option<Reversal>,
        undoes: Option<u64>,
    ) -> Option<u64> {
        let met = Vec::new();
        self.log_entry(repository, Done { verb: UNDO, did, reversal, undoes, met })
    }

    /// Notes that a collection has kept something, and which deletions that are dated
    /// ahead it has met.
    pub(crate) fn log_kept(
        &self,
        repository: &Repository,
        did: String,
        met: Vec<(SnapshotId, u32)>,
    ) {
        let (reversal, undoes) = (None, None);
        self.log_entry(repository, Done { verb: "gc", did, reversal, undoes, met });
    }

    fn log_entry(&self, repository: &Repository, done: Done<'_>) -> Option<u64> {
        self.remember_changed_names(repository);
        let Done { verb, did, reversal, undoes, met } = done;
        let Caller { host, user, words } = self.config.caller.clone();
        let mut left = MAX_WORDS;
        let fits = |word: &String| {
            left = left.saturating_sub(word.len() + 1);
            left > 0
        };
        let command = words.into_iter().take_while(fits).collect();
        let (at, verb) = (self.now(), verb.to_owned());
        let entry = Entry { at, host, user, verb, command, did, reversal, undoes, met };
        let value = serde_json::to_value(entry).expect("our own values are plain data");
        let noted = repository.log_operation(&value).inspect_err(|error| {
            self.config.observer.notice(&format!(
                "it is done, but it could not be written to the log of operations: {error}"
            ));
        });
        noted.ok()
    }

    /// Returns when things were done.
    pub(crate) fn times_of_operations(&self, repository: &Repository) -> Result<Times> {
        let History { entries, .. } = self.entries(repository)?;
        let mut times = Times::default();
        for (at, (_, entry)) in entries.into_iter().rev().enumerate() {
            times.all.push(entry.at);
            for deletion in entry.met {
                times.met.entry(deletion).or_insert(at);
            }
        }
        Ok(times)
    }

    /// Reads the log.
    pub(crate) fn entries(&self, repository: &Repository) -> Result<History> {
        let logged = repository
            .operations(LOOKED_AT)
            .map_err(Error::step("cannot read the log of operations"))?;
        let count = logged.len();
        let read = logged.into_iter().filter_map(|logged| {
            // One that a newer version has written is not ours to take back.
            Some((logged.number, serde_json::from_value::<Entry>(logged.entry?).ok()?))
        });
        let entries: Vec<_> = read.collect();
        let unreadable = count - entries.len();
        if unreadable > 0 {
            self.config.observer.notice(&format!(
                "{unreadable} entries in the log of operations cannot be read, and are passed over"
            ));
        }
        let mut undone = BTreeMap::new();
        for (number, entry) in &entries {
            if let Some(of) = entry.undoes
                && !undone.contains_key(number)
            {
                undone.entry(of).or_insert(*number);
            }
        }
        Ok(History { entries, undone })
    }
}

/// Lists the first few names.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text = format!("{text} and {} more", names.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_short() {
        let names: Vec<String> = (0..6).map(|n| format!("web@s{n}")).collect();
        assert_eq!(listed(&names), "web@s0, web@s1, web@s2, web@s3 and 2 more");
        assert_eq!(listed(&names[..2]), "web@s0, web@s1");
    }
}
