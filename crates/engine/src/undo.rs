//! Takes operations back. That is an operation itself, so it can be taken back too;
//! without that, the next `undo` goes one further back.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use serde::Serialize;
use tintype_repo::{Deleted, Kind, Label, Repository};
use tintype_types::{SnapshotId, VmId, VmName};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::lazy::LoadMode;
use crate::observer::Step;
use crate::operations::{Entry, History, Reversal, UNDO, listed};
use crate::removal::names_of;
use crate::revert::{RevertParams, Reverted};

/// What was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UndoReport {
    /// The command that was taken back: `rm`.
    pub undone: String,
    /// Its number in the log of operations; `None` if it is not there.
    pub operation: Option<u64>,
    /// What was done to take it back, as a fragment.
    pub did: String,
    /// The ids of the snapshots that this is about.
    pub snapshots: Vec<SnapshotId>,
    /// The snapshots as `VM@NAME`.
    pub names: Vec<String>,
}

/// Something to take back.
struct Candidate {
    number: Option<u64>,
    verb: String,
    reversal: Reversal,
}

/// What taking back did.
struct TakenBack {
    did: String,
    ids: Vec<SnapshotId>,
    names: Vec<String>,
    reversal: Option<Reversal>,
}

impl Engine {
    /// Takes back the last operation that can be taken back, or a certain one.
    pub fn undo(&self, number: Option<u64>) -> Result<UndoReport> {
        let repository = self.repository()?;
        let deleted = repository.deleted().map_err(Error::step("cannot list what is deleted"))?;
        let candidate = match number {
            Some(number) => self.certain(&repository, number)?,
            None => self.last(&repository, &deleted)?,
        };
        let Candidate { number, verb, reversal } = candidate;
        self.config.observer.step(Step::UndoChosen);
        let back = self.take_back_operation(&repository, &deleted, reversal).map_err(|error| {
            match number {
                Some(number) => error.hint_unless_known(format!(
                    "`tintype op log` shows what else was done; `tintype undo --operation N` takes back another than {number}"
                )),
                None => error,
            }
        })?;
        self.config.observer.step(Step::UndoDone);
        let own = self.log_undo(&repository, back.did.clone(), back.reversal, number);
        if let Some((of, own)) = number.zip(own) {
            self.tell_if_second(&repository, of, own)?;
        }
        Ok(UndoReport {
            undone: verb,
            operation: number,
            did: back.did,
            snapshots: back.ids,
            names: back.names,
        })
    }

    /// Says so if another command has taken back the same operation meanwhile: of two
    /// that do so at once, the one whose entry comes second.
    fn tell_if_second(&self, repository: &Repository, of: u64, own: u64) -> Result<()> {
        let History { entries, undone } = self.entries(repository)?;
        let is_first = |(number, entry): &&(u64, Entry)| {
            *number < own && entry.undoes == Some(of) && !undone.contains_key(number)
        };
        if let Some((number, entry)) = entries.iter().find(is_first) {
            self.config.observer.notice(&format!(
                "operation {of} was taken back at the same time by {}@{}, as operation {number}: what this command did was done already",
                entry.user, entry.host
            ));
        }
        Ok(())
    }

    /// Puts back single snapshots from the trash, by their names or ids.
    pub fn undelete(&self, names: &[String]) -> Result<UndoReport> {
        let repository = self.repository()?;
        let deleted = repository.deleted().map_err(Error::step("cannot list what is deleted"))?;
        let mut trash = self.in_trash(&repository, deleted.clone())?;
        trash.sort_by_key(|(snapshot, _)| (snapshot.record.sequence, snapshot.record.created));
        let trash: Vec<Snapshot> = trash.into_iter().map(|(snapshot, _)| snapshot).collect();
        let mut ids = Vec::new();
        for name in names {
            let id = match (self.find_among(&trash, name, None), name.parse()) {
                (Ok(snapshot), _) => snapshot.record.id,
                // One whose record is damaged, by its whole id.
                (Err(_), Ok(id)) if deleted.iter().any(|one| one.id == id) => id,
                (Err(error), _) => {
                    return Err(Error::invalid(format!("cannot put back `{name}`"))
                        .because(error)
                        .hint("`tintype log --deleted` lists what can be put back, with its ids"));
                }
            };
            ids.push(id);
        }
        let back = self.put_back(&repository, &deleted, &ids)?;
        self.log_undo(&repository, back.did.clone(), back.reversal, None);
        let (undone, did) = ("rm".to_owned(), back.did);
        Ok(UndoReport { undone, operation: None, did, snapshots: back.ids, names: back.names })
    }

    fn certain(&self, repository: &Repository, number: u64) -> Result<Candidate> {
        let History { entries, undone } = self.entries(repository)?;
        let invalid = |what: String| {
            Error::invalid(what)
                .state("nothing was changed")
                .hint("`tintype op log` shows what was done")
        };
        let found = entries.into_iter().find(|(of, _)| *of == number);
        let (_, entry) = found.ok_or_else(|| invalid(format!("there is no operation {number}")))?;
        if let Some(by) = undone.get(&number) {
            return Err(invalid(format!("operation {number} was taken back by {by} already")));
        }
        let reversal = entry
            .reversal
            .ok_or_else(|| invalid(format!("nothing takes back operation {number}")))?;
        Ok(Candidate { number: Some(number), verb: entry.verb, reversal })
    }

    /// Finds the newest act that was not taken back: an operation of the log, or a
    /// deletion that is in no log, since its command was killed.
    fn last(&self, repository: &Repository, deleted: &[Deleted]) -> Result<Candidate> {
        let History { entries, undone } = self.entries(repository)?;
        let open: HashSet<SnapshotId> = deleted.iter().map(|deleted| deleted.id).collect();
        let all = self.all_snapshots(repository)?;
        let there: HashSet<SnapshotId> = all.iter().map(|snapshot| snapshot.record.id).collect();
        // What is collected nobody can bring back, nor delete, nor rename.
        let is_possible = |reversal: &Reversal| match reversal {
            Reversal::Restore { snapshots } => snapshots.iter().any(|id| open.contains(id)),
            Reversal::Delete { snapshots } => snapshots.iter().any(|id| there.contains(id)),
            Reversal::Relabel { snapshot, .. } => there.contains(snapshot),
            Reversal::Revert { to, .. } => there.contains(to),
            Reversal::Elsewhere { .. } => false,
        };
        let mut logged = HashSet::new();
        let (mut found, mut told) = (None, false);
        for (number, entry) in entries {
            let Some(reversal) = entry.reversal.filter(|_| !undone.contains_key(&number)) else {
                continue;
            };
            if let Reversal::Restore { snapshots } = &reversal {
                logged.extend(snapshots.iter().copied());
            }
            if found.is_none()
                && !told
                && let Reversal::Elsewhere { place, operation } = &reversal
            {
                told = true;
                let there = elsewhere(place, *operation);
                self.config.observer.notice(&format!("copies stay where they are: {there}"));
            }
            if found.is_none() && entry.verb != UNDO && is_possible(&reversal) {
                let number = Some(number);
                found = Some((entry.at, Candidate { number, verb: entry.verb, reversal }));
            }
        }
        let unlogged = deleted.iter().find(|deleted| !logged.contains(&deleted.id));
        let at = unlogged.and_then(|deleted| deleted.at);
        if let Some(first) = unlogged
            && found.as_ref().is_none_or(|(found, _)| at.is_some_and(|at| at > *found))
        {
            let act = deleted.iter().filter(|d| d.at == first.at && !logged.contains(&d.id));
            let reversal = Reversal::Restore { snapshots: act.map(|deleted| deleted.id).collect() };
            return Ok(Candidate { number: None, verb: "rm".to_owned(), reversal });
        }
        found.map(|(_, candidate)| candidate).ok_or_else(|| {
            Error::invalid("there is nothing to undo")
                .state("nothing was changed")
                .hint("`tintype log --deleted` lists what is deleted and can be put back; `tintype op log` shows what was done")
        })
    }

    fn take_back_operation(
        &self,
        repository: &Repository,
        deleted: &[Deleted],
        reversal: Reversal,
    ) -> Result<TakenBack> {
        match reversal {
            Reversal::Restore { snapshots } => self.put_back(repository, deleted, &snapshots),
            Reversal::Delete { snapshots } => self.delete_again(repository, &snapshots),
            Reversal::Relabel { snapshot, before, after } => {
                self.say_again(repository, snapshot, &before, &after)
            }
            Reversal::Revert { vm, to } => self.revert_again(vm, to),
            Reversal::Elsewhere { place, operation } => {
                Err(Error::invalid("what this made is in another repository")
                    .state("nothing was changed")
                    .hint(elsewhere(&place, operation)))
            }
        }
    }

    /// Puts back those of some snapshots that are deleted and not collected.
    fn put_back(
        &self,
        repository: &Repository,
        deleted: &[Deleted],
        ids: &[SnapshotId],
    ) -> Result<TakenBack> {
        let (mut back, mut lost) = (Vec::new(), 0);
        let was_deleted: BTreeSet<_> = deleted.iter().map(|deleted| deleted.id).collect();
        for id in ids {
            match repository.undo_remove(*id) {
                Ok(_) => back.push(*id),
                // It is there again, and damaged.
                Err(error) if error.kind() == Kind::Damaged => back.push(*id),
                Err(error) if error.kind() == Kind::NotFound => lost += 1,
                Err(error) => {
                    return Err(Error::failed("cannot undo the deletion")
                        .because(error)
                        .state("some snapshots may be there again already"));
                }
            }
        }
        // What was there all the time is not put back.
        back.retain(|id| was_deleted.contains(id));
        if back.is_empty() {
            return Err(Error::invalid("the deletion cannot be taken back any more")
                .state("what it deleted was collected, or is there again"));
        }
        if lost > 0 {
            let gone = format!("{lost} of the deleted snapshots were collected, and stay deleted");
            self.config.observer.notice(&gone);
        }
        let names = names_of(&self.all_snapshots(repository)?, &back);
        let did = format!("put back {}", listed(&names));
        let reversal = Some(Reversal::Delete { snapshots: back.clone() });
        Ok(TakenBack { did, ids: back, names, reversal })
    }

    fn delete_again(&self, repository: &Repository, ids: &[SnapshotId]) -> Result<TakenBack> {
        let all = self.all_snapshots(repository)?;
        let there = all.iter().filter(|snapshot| ids.contains(&snapshot.record.id));
        let there: Vec<SnapshotId> = there.map(|snapshot| snapshot.record.id).collect();
        if there.is_empty() {
            return Err(
                Error::invalid("the snapshot is not there any more").state("nothing was changed")
            );
        }
        let names = names_of(&all, &there);
        self.delete_all(repository, &all, &there)?;
        let did = format!("deleted {}", listed(&names));
        let reversal = Some(Reversal::Restore { snapshots: there.clone() });
        Ok(TakenBack { did, ids: there, names, reversal })
    }

    /// Takes back what a change has changed, and nothing that was changed since.
    fn say_again(
        &self,
        repository: &Repository,
        id: SnapshotId,
        before: &Label,
        after: &Label,
    ) -> Result<TakenBack> {
        let cannot = |why: &str| Error::invalid(why).state("nothing was changed");
        let now = repository.labels_of(id).map_err(Error::step("cannot read what was said"))?;
        let now = now.of.get(&id).cloned().unwrap_or_default();
        if !restored(&now, before, after).1 {
            return Err(cannot("what was changed was changed again since"));
        }
        let changed = repository.relabel(id, |label| *label = restored(label, before, after).0);
        let (old, new) = changed.map_err(|error| match error.kind() {
            Kind::NotFound => cannot("the snapshot is not there any more"),
            _ => Error::failed("cannot change the snapshot").because(error),
        })?;
        let names = names_of(&self.all_snapshots(repository)?, &[id]);
        let did = format!("changed back {}", listed(&names));
        let reversal = Some(Reversal::Relabel { snapshot: id, before: old, after: new });
        Ok(TakenBack { did, ids: vec![id], names, reversal })
    }

    fn revert_again(&self, vm: VmId, to: SnapshotId) -> Result<TakenBack> {
        let mut names = self.home.vm_names()?.into_iter();
        let is_it = |name: &VmName| self.vm_state(name).is_ok_and(|state| state.id == vm);
        let Some(name) = names.find(is_it) else {
            return Err(Error::invalid("the VM that was reverted is not registered here")
                .state("nothing was changed")
                .hint("undo it on the machine where it was reverted"));
        };
        let params = RevertParams {
            snapshot: to.to_string(),
            safety: true,
            load: LoadMode::default(),
            ignore_media: false,
        };
        let Reverted { report, reversal, .. } = self.put_back_vm(&name, &params)?;
        let did = format!("put {name} back to what it was before, {name}@{}", report.name);
        let names = vec![format!("{name}@{}", report.name)];
        Ok(TakenBack { did, ids: vec![report.snapshot], names, reversal })
    }
}

/// Returns a label with what a change has changed as it was before, and whether
/// none of that was changed since.
fn restored(now: &Label, before: &Label, after: &Label) -> (Label, bool) {
    let mut label = now.clone();
    let mut is_untouched = true;
    if before.name != after.name {
        is_untouched &= now.name == after.name;
        label.name.clone_from(&before.name);
    }
    if before.message != after.message {
        is_untouched &= now.message == after.message;
        label.message.clone_from(&before.message);
    }
    if before.tags != after.tags {
        is_untouched &= now.tags == after.tags;
        label.tags.clone_from(&before.tags);
    }
    if before.pinned != after.pinned {
        is_untouched &= now.pinned == after.pinned;
        label.pinned = before.pinned;
    }
    (label, is_untouched)
}

/// Says what deletes copies.
fn elsewhere(place: &Path, operation: Option<u64>) -> String {
    let number = operation.map(|number| format!(" --operation {number}")).unwrap_or_default();
    format!("`tintype --repo {} undo{number}` deletes them there", place.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_changed_is_changed_back() {
        let label = |message: Option<&str>, pinned| Label {
            message: message.map(str::to_owned),
            pinned,
            ..Label::default()
        };
        let check = |now: &Label, before: &Label, after: &Label, expected: (Label, bool)| {
            assert_eq!(restored(now, before, after), expected, "{now:?}");
        };
        let (none, said) = (label(None, false), label(Some("a"), false));
        check(&said, &none, &said, (none.clone(), true));
        // Pinned since: stays so.
        check(&label(Some("a"), true), &none, &said, (label(None, true), true));
        // Said again since: not ours to take back.
        check(&label(Some("b"), false), &none, &said, (none.clone(), false));
    }
}
