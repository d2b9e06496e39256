//! Snapshot records, and the outcome objects that hold them.
//!
//! ```text
//! line 1   "tintype outcome 1 committed", "… moved" or "… aborted"
//! line 2   the record as JSON (committed), the new places of some snapshots'
//!          content as JSON (moved), or empty (aborted); in a repository that
//!          hides its content what is not empty is sealed and hexadecimal
//! line 3   64 hexadecimal digits: keyed BLAKE3 of repository id, key length
//!          as u64, key, and lines 1 and 2 with their line ends
//! ```
//!
//! The first outcome of a session wins, so putting it is the commit point.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tintype_types::{RepositoryId, SnapshotId, SnapshotName, VmId, VmName};

use crate::Error;
use crate::keys::Keys;
use crate::pointer::{NodePointer, hex, unhex_bytes};
use crate::session::SessionStats;
use crate::tree::ImageRoot;
use crate::wire::Malformed;

/// The most bytes of an outcome object.
pub(crate) const MAX_OUTCOME: u64 = 32 << 20;

/// A byte string of any length kept in a repository.
///
/// Only the repository that made it can read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobId {
    pub(crate) len: u64,
    /// The node that lists the chunks.
    pub(crate) list: NodePointer,
}

impl BlobId {
    /// Returns the length of the blob in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the blob has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// One image of a snapshot, under the name that the snapshot's maker gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedImage {
    /// The name, unique in the snapshot. It is data, never a path.
    pub name: String,
    /// The content.
    pub root: ImageRoot,
}

/// What the maker of a snapshot wants to remember: JSON that nobody looks into here.
/// It is most of a record, and records are read and copied whenever snapshots are
/// listed, so it is kept as text, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Opaque(Arc<RawValue>);

impl Opaque {
    pub(crate) fn new(value: &serde_json::Value) -> Self {
        Self(to_raw_value(value).expect("it is plain data").into())
    }

    /// Reads it as what it was.
    pub fn read<'o, T: Deserialize<'o>>(&'o self) -> serde_json::Result<T> {
        serde_json::from_str(self.0.get())
    }
}

impl fmt::Display for Opaque {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.get())
    }
}

/// Two are the same if they mean the same, however it is written.
impl PartialEq for Opaque {
    fn eq(&self, other: &Self) -> bool {
        let value = |opaque: &Self| opaque.read::<serde_json::Value>().ok();
        self.0.get() == other.0.get() || value(self).is_some_and(|own| value(other) == Some(own))
    }
}

/// What a caller says of a snapshot when it commits it.
#[derive(Debug, Clone)]
pub struct SnapshotDraft {
    /// The VM it was taken of.
    pub vm: VmId,
    /// The VM's name at that time.
    pub vm_name: VmName,
    /// The snapshot's own name.
    pub name: SnapshotName,
    /// The snapshot whose state the VM's state came from.
    pub parent: Option<SnapshotId>,
    /// The instant that it shows.
    pub created: Timestamp,
    /// Its disks and memory.
    pub images: Vec<NamedImage>,
    /// Smaller things, by name.
    pub blobs: Vec<(String, BlobId)>,
    /// What the caller wants to remember; opaque here.
    pub details: serde_json::Value,
}

/// A snapshot as it is known in every repository that has a copy of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The repository that it was taken in.
    pub repository: RepositoryId,
    /// Its id there.
    pub snapshot: SnapshotId,
}

/// How far a copy is that was not finished. A snapshot that has this was deleted
/// before it was there: nobody sees it but the copy that goes on from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Of the last image only what is before this byte is copied; all if `None`.
    pub done: Option<u64>,
    /// The snapshot as which the last image is from there on; zero if `None`.
    pub base: Option<Origin>,
}

/// A committed snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Its place in the order of the repository's snapshots. Two that were
    /// committed at once may have the same; the id decides then.
    pub sequence: u64,
    /// The instant that it shows.
    pub created: Timestamp,
    /// The VM it was taken of.
    pub vm: VmId,
    /// The VM's name at that time.
    pub vm_name: VmName,
    /// The snapshot's own name.
    pub name: SnapshotName,
    /// The snapshot whose state the VM's state came from; it may be gone.
    pub parent: Option<SnapshotId>,
    /// Its disks and memory.
    pub images: Vec<NamedImage>,
    /// Smaller things, by name.
    pub blobs: Vec<(String, BlobId)>,
    /// What its maker wants to remember.
    pub details: Opaque,
    /// What writing it cost.
    pub stats: SessionStats,
    /// What it is a copy of, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// How far it is, if it is a part of a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

#[cfg(test)]
impl SnapshotDraft {
    /// A draft without content, for tests that tell snapshots apart by their details.
    pub(crate) fn plain(details: serde_json::Value) -> Self {
        Self {
            vm: VmId::from_bytes([1; 16]),
            vm_name: VmName::new("web").unwrap(),
            name: SnapshotName::new("one").unwrap(),
            parent: None,
            created: Timestamp::UNIX_EPOCH,
            images: Vec::new(),
            blobs: Vec::new(),
            details,
        }
    }
}

impl SnapshotRecord {
    /// Returns what the snapshot is known as everywhere.
    pub fn identity(&self, repository: RepositoryId) -> Origin {
        self.origin.unwrap_or(Origin { repository, snapshot: self.id })
    }
}

/// Where the images and blobs of a snapshot are from a move on: the same content
/// in other segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Moved {
    pub snapshot: SnapshotId,
    /// What the record says itself is version 0. The highest counts; of two the
    /// same, that of the session with the higher id.
    pub version: u32,
    pub images: Vec<NamedImage>,
    pub blobs: Vec<(String, BlobId)>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Committed(Box<SnapshotRecord>),
    /// It took no snapshot, but moved the content of some.
    Moved(Vec<Moved>),
    Aborted,
}

const COMMITTED: &str = "tintype outcome 1 committed\n";
pub(crate) const MOVED: &str = "tintype outcome 1 moved\n";
pub(crate) const ABORTED: &str = "tintype outcome 1 aborted\n";

/// Returns the object key of a session's outcome.
pub(crate) fn outcome_key(session: SnapshotId) -> String {
    format!("outcome/{session}")
}

impl Outcome {
    pub(crate) fn encode(&self, keys: &Keys, repository: RepositoryId, key: &str) -> Vec<u8> {
        let (first, content) = match self {
            Outcome::Committed(record) => (COMMITTED, Some(serde_json::to_string(record))),
            Outcome::Moved(moved) => (MOVED, Some(serde_json::to_string(moved))),
            Outcome::Aborted => (ABORTED, None),
        };
        let content = content.map(|json| json.expect("it is plain data"));
        let seal = |content: String| match keys.record_sealer(key) {
            Some(sealer) => hex(&sealer.seal_random(repository.as_bytes(), content.as_bytes())),
            None => content,
        };
        let mut text = format!("{first}{}\n", content.map(seal).unwrap_or_default());
        let tag = keys.record_tag(repository, key, text.as_bytes());
        text.push_str(&hex(&tag));
        text.push('\n');
        text.into_bytes()
    }

    pub(crate) fn decode(
        keys: &Keys,
        repository: RepositoryId,
        key: &str,
        bytes: &[u8],
    ) -> Result<Self, Error> {
        let damaged = |reason| Error::damaged(key, None, reason);
        let tag_at = bytes.len().checked_sub(65).ok_or_else(|| damaged("it ends early"))?;
        let (text, tag) = bytes.split_at(tag_at);
        let expected = format!("{}\n", hex(&keys.record_tag(repository, key, text)));
        if tag != expected.as_bytes() {
            return Err(damaged("its tag does not match"));
        }
        let text = std::str::from_utf8(text).map_err(|_| damaged("it is not text"))?;
        let open = |content: &str| match keys.record_sealer(key) {
            None => Ok(content.as_bytes().to_vec()),
            Some(sealer) => unhex_bytes(content.trim_end_matches('\n'))
                .and_then(|sealed| sealer.open_random(repository.as_bytes(), &sealed).ok())
                .ok_or_else(|| damaged("its record is not sealed with the repository's key")),
        };
        if let Some(record) = text.strip_prefix(COMMITTED) {
            let record: SnapshotRecord = serde_json::from_slice(&open(record)?)
                .map_err(|_| damaged("its record cannot be understood"))?;
            if outcome_key(record.id) != key {
                return Err(damaged("it is the outcome of another session"));
            }
            if !are_possible(&record.images) {
                return Err(damaged("its record has an impossible image"));
            }
            return Ok(Outcome::Committed(Box::new(record)));
        }
        if let Some(moved) = text.strip_prefix(MOVED) {
            let moved = decode_moved(&open(moved)?).map_err(|Malformed(reason)| damaged(reason))?;
            return Ok(Outcome::Moved(moved));
        }
        match text.strip_prefix(ABORTED) {
            Some(_) => Ok(Outcome::Aborted),
            None => Err(Error::Unsupported(format!("{key} was written by a newer version"))),
        }
    }
}

fn are_possible(images: &[NamedImage]) -> bool {
    images.iter().all(|image| image.root.is_possible())
}

/// Reads where the content of some snapshots is.
pub(crate) fn decode_moved(json: &[u8]) -> Result<Vec<Moved>, Malformed> {
    let moved: Vec<Moved> =
        serde_json::from_slice(json).map_err(|_| Malformed("its moves cannot be understood"))?;
    let mut seen = HashSet::new();
    let is_possible = |moved: &Moved| {
        moved.version > 0 && seen.insert(moved.snapshot) && are_possible(&moved.images)
    };
    if moved.iter().all(is_possible) {
        Ok(moved)
    } else {
        Err(Malformed("it moves what cannot be"))
    }
}
