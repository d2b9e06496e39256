//! Finds snapshots by the names that people give them.

use tintype_repo::{Pin, Repository};
use tintype_types::{VmId, VmName};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};

/// The shortest prefix of an id that is looked up.
const MIN_PREFIX: usize = 2;

impl Engine {
    /// Returns the snapshots of a VM, or all, oldest first.
    pub fn log(&self, vm: Option<&VmName>) -> Result<Vec<Snapshot>> {
        let repository = self.repository()?;
        let mut snapshots = self.all_snapshots(&repository)?;
        if let Some(vm) = vm {
            // A VM that was forgotten still has its snapshots, under its name.
            let id = self.vm_state(vm).ok().map(|state| state.id);
            snapshots.retain(|snapshot| match id {
                Some(id) => snapshot.record.vm == id,
                None => snapshot.record.vm_name == *vm,
            });
            if snapshots.is_empty() && id.is_none() {
                return Err(Error::no_such_vm(vm));
            }
        }
        Ok(snapshots)
    }

    /// Returns one snapshot.
    pub fn show(&self, name: &str) -> Result<Snapshot> {
        let repository = self.repository()?;
        self.find_snapshot(&repository, name, None)
    }

    /// Finds a snapshot by `VM@NAME`, `VM@latest`, `VM@latest~2`, a unique prefix
    /// of its id, or by its bare name where the VM is known.
    pub(crate) fn find_snapshot(
        &self,
        repository: &Repository,
        text: &str,
        vm: Option<&VmName>,
    ) -> Result<Snapshot> {
        self.find_among(&self.all_snapshots(repository)?, text, vm)
    }

    /// The same, where all snapshots are known already.
    pub(crate) fn find_among(
        &self,
        all: &[Snapshot],
        text: &str,
        vm: Option<&VmName>,
    ) -> Result<Snapshot> {
        let (vm, name) = match text.split_once('@') {
            Some((vm, name)) => {
                let vm: VmName =
                    vm.parse().map_err(Error::step(format!("`{text}` names no snapshot")))?;
                (Some(vm), name)
            }
            None => (vm.cloned(), text),
        };
        let of_vm: Vec<&Snapshot> = match &vm {
            Some(vm) => {
                let id = self.vm_state(vm).ok().map(|state| state.id);
                all.iter()
                    .filter(|s| id.map_or(s.record.vm_name == *vm, |id| s.record.vm == id))
                    .collect()
            }
            None => Vec::new(),
        };
        let found = match parse_latest(name) {
            Some(back) => of_vm.iter().rev().nth(back).copied(),
            None => {
                let mut named = of_vm.iter().filter(|s| s.record.name.as_str() == name).copied();
                match (named.next(), named.next()) {
                    // One was deleted, its name given again, and the deletion undone.
                    (Some(first), Some(second)) => return Err(several(text, &[first, second])),
                    (first, _) => first,
                }
            }
        };
        if let Some(found) = found {
            return Ok(found.clone());
        }
        match text.contains('@') {
            true => match &vm {
                Some(vm) if of_vm.is_empty() && self.vm_state(vm).is_err() => {
                    Err(Error::no_such_vm(vm))
                }
                vm => Err(none_of(text, vm.as_ref(), &of_vm)),
            },
            false => by_prefix(text, vm.as_ref(), all, &of_vm).cloned(),
        }
    }

    pub(crate) fn snapshots_of(&self, repository: &Repository, vm: VmId) -> Result<Vec<Snapshot>> {
        let mut snapshots = self.all_snapshots(repository)?;
        snapshots.retain(|snapshot| snapshot.record.vm == vm);
        Ok(snapshots)
    }

    /// Reads all records, with what was said of them since. A damaged one is told
    /// of, and hides no other.
    pub(crate) fn all_snapshots(&self, repository: &Repository) -> Result<Vec<Snapshot>> {
        let (snapshots, damage) = self.read_snapshots(repository)?;
        for notice in damage {
            self.config.observer.notice(&notice);
        }
        self.remember_names(repository, &snapshots);
        Ok(snapshots)
    }

    /// The same, and says what is damaged.
    pub(crate) fn read_snapshots(
        &self,
        repository: &Repository,
    ) -> Result<(Vec<Snapshot>, Vec<String>)> {
        let listing = repository.snapshots().map_err(Error::step("cannot list the snapshots"))?;
        let damaged = listing.damaged.iter();
        let mut notices: Vec<String> = damaged
            .map(|damage| format!("the record of a snapshot is damaged: {damage}"))
            .collect();
        let labels = repository.labels().map_err(Error::step("cannot list the snapshots"))?;
        notices.extend(labels.damaged.iter().map(|damage| format!(
            "what was said of a snapshot is damaged: {damage}; what was said before counts, and it is taken for pinned"
        )));
        let mut snapshots = Vec::new();
        for record in listing.records {
            let label = labels.of.get(&record.id);
            match Snapshot::read(record) {
                Ok(snapshot) => snapshots.push(match label {
                    Some(label) => snapshot.labelled(label),
                    None => snapshot,
                }),
                Err(error) => notices.push(error.to_string()),
            }
        }
        Ok((snapshots, notices))
    }
}

/// Keeps the content of a snapshot where it is, and reads where that is: it may
/// have been moved since the snapshot was found.
pub(crate) fn hold(repository: &Repository, snapshot: &mut Snapshot) -> Result<Pin> {
    let held = repository
        .pin(snapshot.record.id)
        .map_err(Error::step("cannot hold on to the snapshot"))?;
    snapshot.record = held.record().clone();
    Ok(held)
}

/// Reads `latest` as 0 and `latest~2` as 2.
fn parse_latest(name: &str) -> Option<usize> {
    match name.strip_prefix("latest")? {
        "" => Some(0),
        back => back.strip_prefix('~')?.parse().ok(),
    }
}

fn by_prefix<'s>(
    text: &str,
    vm: Option<&VmName>,
    all: &'s [Snapshot],
    of_vm: &[&'s Snapshot],
) -> Result<&'s Snapshot> {
    let hexadecimal = text.len() >= MIN_PREFIX && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let matching: Vec<&Snapshot> =
        all.iter().filter(|s| hexadecimal && s.record.id.to_string().starts_with(text)).collect();
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(none_of(text, vm, of_vm)),
        matching => Err(several(text, matching)),
    }
}

fn several(text: &str, matching: &[&Snapshot]) -> Error {
    Error::invalid(format!("`{text}` may be one of several snapshots"))
        .state("nothing was changed")
        .hint(format!("type the id of one: {}", listed(matching)))
}

fn none_of(text: &str, vm: Option<&VmName>, of_vm: &[&Snapshot]) -> Error {
    let error =
        Error::invalid(format!("there is no snapshot `{text}`")).state("nothing was changed");
    match vm {
        Some(vm) if of_vm.is_empty() => error.hint(format!("`tintype take {vm}` takes one")),
        Some(vm) => error.hint(format!("`{vm}` has: {}", listed(of_vm))),
        None => error.hint(
            "name it as VM@NAME, VM@latest, or by the start of its id; `tintype log` lists all",
        ),
    }
}

/// Lists the newest few as a person would type them.
fn listed(snapshots: &[&Snapshot]) -> String {
    const SHOWN: usize = 8;
    let mut names: Vec<String> = snapshots
        .iter()
        .rev()
        .take(SHOWN)
        .map(|s| format!("{}@{} ({})", s.record.vm_name, s.record.name, s.record.id.short()))
        .collect();
    if snapshots.len() > SHOWN {
        names.push(format!("and {} more", snapshots.len() - SHOWN));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_counts_back() {
        let check = |name, back| assert_eq!(parse_latest(name), back, "{name}");
        check("latest", Some(0));
        check("latest~2", Some(2));
        check("latest~", None);
        check("latest~x", None);
        check("latest2", None);
        check("s1", None);
    }
}
