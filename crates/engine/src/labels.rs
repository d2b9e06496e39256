//! Changes what is said of a snapshot: its name, message and tags, and whether
//! it is pinned. Its content and its instant never change.

use tintype_repo::{Label, Repository};
use tintype_types::SnapshotName;

use crate::Engine;
use crate::details::{Snapshot, SnapshotReport};
use crate::error::{Error, Result};
use crate::operations::Reversal;

/// The most characters of the key of a tag, and of its value.
const MAX_KEY: usize = 64;
const MAX_VALUE: usize = 256;
/// The most tags of a snapshot.
const MAX_TAGS: usize = 64;
/// The most bytes of a message.
const MAX_MESSAGE: usize = 16 << 10;

/// A change of tags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TagParams {
    /// Tags to set; one that is there gets this value.
    pub set: Vec<(String, String)>,
    /// The keys of tags to remove.
    pub remove: Vec<String>,
}

impl Engine {
    /// Gives a snapshot another name.
    pub fn rename(&self, snapshot: &str, name: &SnapshotName) -> Result<SnapshotReport> {
        let repository = self.repository()?;
        let found = self.find_snapshot(&repository, snapshot, None)?;
        let others = self.snapshots_of(&repository, found.record.vm)?;
        let taken = others.iter().filter(|other| other.record.id != found.record.id);
        refuse_name(name, taken.map(|other| &other.record.name), found.record.vm_name.as_str())?;
        let did = format!("renamed {} to {name}", of(&found));
        self.relabel(&repository, found, ("rename", did), |_, label| {
            label.name = Some(name.clone())
        })
    }

    /// Sets and removes tags of a snapshot.
    pub fn tag(&self, snapshot: &str, params: &TagParams) -> Result<SnapshotReport> {
        check_tags(&params.set)?;
        let repository = self.repository()?;
        let found = self.find_snapshot(&repository, snapshot, None)?;
        if let Some(key) =
            params.remove.iter().find(|key| !found.details.tags.iter().any(|(k, _)| k == *key))
        {
            return Err(Error::invalid(format!("the snapshot has no tag `{key}`"))
                .state("nothing was changed")
                .hint(format!("`tintype show {snapshot}` shows its tags")));
        }
        let did = format!("changed the tags of {}", of(&found));
        self.relabel(&repository, found, ("tag", did), |own, label| {
            let tags = label.tags.get_or_insert_with(|| own.details.tags.clone());
            tags.retain(|(key, _)| !params.remove.contains(key));
            for (key, value) in &params.set {
                match tags.iter_mut().find(|(k, _)| k == key) {
                    Some((_, old)) => old.clone_from(value),
                    None => tags.push((key.clone(), value.clone())),
                }
            }
        })
    }

    /// Protects a snapshot from deletion, or ends that.
    pub fn set_pinned(&self, snapshot: &str, pinned: bool) -> Result<SnapshotReport> {
        let repository = self.repository()?;
        let found = self.find_snapshot(&repository, snapshot, None)?;
        let verb = if pinned { "pin" } else { "unpin" };
        let did = format!("{verb}ned {}", of(&found));
        self.relabel(&repository, found, (verb, did), |_, label| label.pinned = pinned)
    }

    /// Writes what a snapshot is good for.
    pub fn note(&self, snapshot: &str, message: &str) -> Result<SnapshotReport> {
        check_message(message)?;
        let repository = self.repository()?;
        let found = self.find_snapshot(&repository, snapshot, None)?;
        let did = format!("wrote a note on {}", of(&found));
        self.relabel(&repository, found, ("note", did), |_, label| {
            label.message = Some(message.to_owned())
        })
    }

    /// Changes a label. The change is told what the record itself says.
    fn relabel(
        &self,
        repository: &Repository,
        found: Snapshot,
        (verb, did): (&str, String),
        change: impl Fn(&Snapshot, &mut Label),
    ) -> Result<SnapshotReport> {
        let cannot = || {
            Error::failed(format!("cannot change `{}`", of(&found))).state("nothing was changed")
        };
        let record = repository.snapshot(found.record.id);
        let own = Snapshot::read(record.map_err(|error| cannot().because(error))?)?;
        let changed = repository.relabel(own.record.id, |label| change(&own, label));
        let (before, label) = changed.map_err(|error| cannot().because(error).hint_if_full())?;
        if before != label {
            let (snapshot, after) = (own.record.id, label.clone());
            let reversal = Reversal::Relabel { snapshot, before, after };
            self.log_operation(repository, verb, did, Some(reversal));
        }
        Ok(own.labelled(&label).report())
    }
}

fn of(snapshot: &Snapshot) -> String {
    format!("{}@{}", snapshot.record.vm_name, snapshot.record.name)
}

/// Refuses a name that another snapshot of the VM has, or that means something else.
pub(crate) fn refuse_name<'n>(
    name: &SnapshotName,
    mut taken: impl Iterator<Item = &'n SnapshotName>,
    vm: &str,
) -> Result<()> {
    if name.as_str() == "latest" {
        return Err(Error::invalid("`latest` is the newest snapshot, whichever that is")
            .state("nothing was changed")
            .hint("choose another name"));
    }
    if taken.any(|other| other == name) {
        return Err(Error::invalid(format!("`{vm}` has a snapshot `{name}` already"))
            .state("nothing was changed")
            .hint(format!("choose another name; `tintype log {vm}` shows those that are there")));
    }
    Ok(())
}

/// Refuses tags that nobody could type or read again.
pub(crate) fn check_tags(tags: &[(String, String)]) -> Result<()> {
    let refused = |why: String| {
        Err(Error::invalid(why).state("nothing was changed").hint(
            "a tag is KEY=VALUE: 1 to 64 letters, digits and `.`, `_`, `-`, `/` or `:`, and up to 256 characters",
        ))
    };
    if tags.len() > MAX_TAGS {
        return refused(format!("{} tags are too many for a snapshot", tags.len()));
    }
    for (at, (key, value)) in tags.iter().enumerate() {
        let is_letter = |c: char| c.is_alphanumeric() || "._-/:".contains(c);
        if key.is_empty() || key.chars().count() > MAX_KEY || !key.chars().all(is_letter) {
            return refused(format!("`{}` is no key of a tag", key.escape_debug()));
        }
        if value.chars().count() > MAX_VALUE || value.chars().any(char::is_control) {
            return refused(format!("the value of the tag `{key}` is too long, or not printable"));
        }
        if tags[..at].iter().any(|(other, _)| other == key) {
            return refused(format!("the tag `{key}` is given twice"));
        }
    }
    Ok(())
}

/// Refuses a message that is too long to be one.
pub(crate) fn check_message(message: &str) -> Result<()> {
    match message.len() <= MAX_MESSAGE {
        true => Ok(()),
        false => Err(Error::invalid(format!("a message of {} bytes is too long", message.len()))
            .state("nothing was changed")
            .hint(format!("it can have {MAX_MESSAGE} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_can_be_typed_and_read_again() {
        let check = |tags: &[(&str, &str)], is_good: bool| {
            let tags: Vec<_> = tags.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
            assert_eq!(check_tags(&tags).is_ok(), is_good, "{tags:?}");
        };
        check(&[], true);
        check(&[("env", "prod"), ("Größe/x:1.0_a-b", "")], true);
        check(&[("env", "two words, and = signs")], true);
        check(&[("", "x")], false);
        check(&[("a b", "x")], false);
        check(&[("a=b", "x")], false);
        check(&[("a", "x\ny")], false);
        check(&[("a", "\u{1b}[31m")], false);
        check(&[("a", "1"), ("a", "2")], false);
        check(&[(&"k".repeat(64), &"v".repeat(256))], true);
        check(&[(&"k".repeat(65), "")], false);
        check(&[("a", &"v".repeat(257))], false);
    }
}
