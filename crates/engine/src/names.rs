//! The names of VMs and snapshots, for a shell that completes what is typed: soon,
//! or as the last command knew them, and without a word if that fails.
//!
//! ```text
//! HOME/names/PLACE    the names in the repository of that place, as JSON
//! ```
//!
//! A repository in a folder that a key file opens is read; it has to answer within a
//! limit. Of others nobody is asked: not a server, and not the user. What their
//! snapshots are called is what each command leaves here that has listed or changed
//! them. The folder can be deleted at any time.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tintype_repo::{Encryption, Repository};
use tintype_types::{SnapshotId, SnapshotName, VmId, VmName};

use crate::details::Snapshot;
use crate::home::{make_folder, read_json};
use crate::observer::Silence;
use crate::vms::VmState;
use crate::{Engine, EngineConfig, is_bucket};

/// The longest name of a file on Linux.
const MAX_FILE_NAME: usize = 255;

/// What can be named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// The registered VMs, sorted.
    pub vms: Vec<VmName>,
    /// The snapshots, oldest first.
    pub snapshots: Vec<NamedSnapshot>,
}

/// What a snapshot is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedSnapshot {
    /// Its VM.
    pub vm: VmName,
    /// The id of its VM.
    pub vm_id: VmId,
    /// Its name.
    pub name: SnapshotName,
    /// Its id.
    pub id: SnapshotId,
    /// Its instant.
    pub created: Timestamp,
    /// Its tags.
    pub tags: Vec<(String, String)>,
}

impl EngineConfig {
    /// Returns what can be named, within about `limit`. Changes nothing but what is
    /// known of names, and makes nothing.
    pub fn names(mut self, limit: Duration) -> Names {
        self.observer = Arc::new(Silence);
        self.home = fs::canonicalize(&self.home).unwrap_or(self.home);
        // A passphrase takes long to check on purpose.
        self.keys.retain(|key| matches!(key, Encryption::KeyFile(_)));
        let vms = registered(&self.home);
        let known = self.known().unwrap_or_default();
        let mut snapshots = self.listed_within(limit).unwrap_or(known);
        // Of a name that was given to another VM, that one's snapshots are meant.
        snapshots.retain(|one| vms.get(&one.vm).is_none_or(|id| *id == one.vm_id));
        let mut vms: Vec<VmName> = vms.into_keys().collect();
        vms.sort();
        Names { vms, snapshots }
    }

    fn listed_within(self, limit: Duration) -> Option<Vec<NamedSnapshot>> {
        let place = self.repository_place();
        if is_bucket(&place) || !place.exists() || !self.home.exists() {
            return None;
        }
        let (sender, receiver) = mpsc::channel();
        // It ends with the process if it takes longer.
        thread::spawn(move || {
            let listed = || -> Option<Vec<NamedSnapshot>> {
                let engine = Engine::open(self).ok()?;
                let repository = engine.open_repository(&place).ok()?;
                Some(named(&engine.all_snapshots(&repository).ok()?))
            };
            let _ = sender.send(listed());
        });
        receiver.recv_timeout(limit).ok()?
    }

    /// Returns the names as the last command knew them.
    fn known(&self) -> Option<Vec<NamedSnapshot>> {
        read_json(&file(&self.home, &self.repository_place())?).ok()?
    }

    /// Returns where the repository is.
    pub(crate) fn repository_place(&self) -> PathBuf {
        self.repository.clone().unwrap_or_else(|| self.home.join("repository"))
    }

    /// Whether somebody who completes a name can read it in the repository itself.
    fn is_read_at_once(&self) -> bool {
        let slow = |key: &Encryption| !matches!(key, Encryption::KeyFile(_));
        !is_bucket(&self.repository_place()) && !self.keys.iter().any(slow)
    }
}

impl Engine {
    /// Keeps the names of snapshots that have been listed. That this fails is no
    /// matter.
    pub(crate) fn remember_names(&self, repository: &Repository, snapshots: &[Snapshot]) {
        let Some(file) = file(self.home.path(), repository.path()) else { return };
        let bytes = serde_json::to_vec(&named(snapshots)).expect("our own values are plain data");
        if fs::read(&file).is_ok_and(|known| known == bytes) {
            return;
        }
        if let Err(error) = replace(&file, &bytes) {
            tracing::debug!(%error, "cannot keep the names of snapshots");
        }
    }

    /// Does so after a change, if nobody could read them for completion.
    pub(crate) fn remember_changed_names(&self, repository: &Repository) {
        if self.config.is_read_at_once() && self.typed.get().is_none() {
            return;
        }
        if let Ok((snapshots, _)) = self.read_snapshots(repository) {
            self.remember_names(repository, &snapshots);
        }
    }
}

/// Returns the ids of the registered VMs.
fn registered(home: &Path) -> HashMap<VmName, VmId> {
    let entries = fs::read_dir(home.join("vms")).into_iter().flatten().flatten();
    let read = entries.filter_map(|entry| {
        let name = VmName::new(entry.file_name().to_str()?).ok()?;
        let state: VmState = read_json(&entry.path().join("vm.json")).ok()??;
        Some((name, state.id))
    });
    read.collect()
}

fn named(snapshots: &[Snapshot]) -> Vec<NamedSnapshot> {
    let named = snapshots.iter().map(|snapshot| NamedSnapshot {
        vm: snapshot.record.vm_name.clone(),
        vm_id: snapshot.record.vm,
        name: snapshot.record.name.clone(),
        id: snapshot.record.id,
        created: snapshot.record.created,
        tags: snapshot.details.tags.clone(),
    });
    named.collect()
}

/// Returns where the names in a repository are kept: in a file called like its
/// place, with `%2F` for each slash. None if that is too long.
fn file(home: &Path, place: &Path) -> Option<PathBuf> {
    let place = match is_bucket(place) {
        true => place.to_owned(),
        false => std::path::absolute(place).ok()?,
    };
    let name = place.to_str()?.replace('%', "%25").replace('/', "%2F");
    (name.len() <= MAX_FILE_NAME).then(|| home.join("names").join(name))
}

/// Replaces a file, which need not survive power loss, as a whole.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = file.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    make_folder(folder).map_err(io::Error::other)?;
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(bytes)?;
    new.persist(file)?;
    Ok(())
}
