//! The deduplication index: where blocks with the same content may be.
//!
//! It is advisory. One block id in 256 is a hook; each session leaves the hooks
//! of its blocks in `idx/<session>`. A writer that meets a hook reads the table
//! of the segment, which finds the blocks around it too, see `join`.
//!
//! ```text
//! idx/<session>   "TINTYIDX", version u32 = 1, count u32, then per hook the
//!                 first 8 bytes of the block id and the segment's number u32,
//!                 ascending; then the BLAKE3 (no key) of all before
//! ```

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError, RwLock};

use tintype_types::SnapshotId;

use crate::Error;
use crate::listing;
use crate::pointer::{BlockId, SegmentName};
use crate::segment::index32;
use crate::vault::Vault;
use crate::wire::{Fields, Malformed};

const MAGIC: [u8; 8] = *b"TINTYIDX";
const VERSION: u32 = 1;
/// The most hooks of a session, those of about 4 TiB of new content: what has
/// more is deduplicated less.
const MAX_HOOKS: usize = 4 << 20;
/// The most bytes of a session's hooks.
const MAX: u64 = 64 << 20;

/// The hooks of a repository that this process knows.
#[derive(Debug, Default)]
pub(crate) struct Index {
    hooks: RwLock<HashMap<[u8; 8], SegmentName>>,
    loaded: Mutex<HashSet<SnapshotId>>,
}

/// The hooks of one session's own blocks.
pub(crate) type Hooks = Vec<([u8; 8], u32)>;

/// Returns the hook of a block id, if it is one.
pub(crate) fn hook(id: &BlockId) -> Option<[u8; 8]> {
    let [first, ..] = id.0;
    (first == 0).then(|| *id.0.first_chunk().expect("an id has 20 bytes"))
}

/// Returns the object key of a session's hooks.
pub(crate) fn key(session: SnapshotId) -> String {
    format!("idx/{session}")
}

/// Stores a session's hooks.
pub(crate) fn store(vault: &Vault, session: SnapshotId, mut hooks: Hooks) -> Result<(), Error> {
    if hooks.is_empty() {
        return Ok(());
    }
    hooks.truncate(MAX_HOOKS);
    hooks.sort_unstable();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&index32(hooks.len()).to_le_bytes());
    for (prefix, segment) in hooks {
        out.extend_from_slice(&prefix);
        out.extend_from_slice(&segment.to_le_bytes());
    }
    let checksum = blake3::hash(&out);
    out.extend_from_slice(checksum.as_bytes());
    vault.store.put_if_absent(&key(session), &out).map(drop)
}

/// Decodes hooks of untrusted bytes.
pub(crate) fn decode(bytes: &[u8]) -> Result<Hooks, Malformed> {
    let (content, checksum) = bytes.split_last_chunk::<32>().ok_or(Malformed("it ends early"))?;
    if blake3::hash(content).as_bytes() != checksum {
        return Err(Malformed("its checksum does not match"));
    }
    let mut fields = Fields::new(content);
    if fields.array()? != MAGIC || fields.u32()? != VERSION {
        return Err(Malformed("it is no index of this version"));
    }
    let count = fields.u32()?;
    if u64::from(count) * 12 != u64::try_from(content.len()).unwrap_or(0).saturating_sub(16) {
        return Err(Malformed("it has the wrong length"));
    }
    let hooks = (0..count).map(|_| Ok((fields.array()?, fields.u32()?))).collect();
    fields.end().and(hooks)
}

impl Index {
    /// Reads the hooks of sessions that were committed since the last call.
    pub(crate) fn refresh(&self, vault: &Vault) -> Result<(), Error> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let listed = vault.store.list("idx/")?.into_iter();
        let sessions = listed.filter_map(|listed| listed.key["idx/".len()..].parse().ok());
        let mut sessions: Vec<SnapshotId> = sessions.filter(|id| !loaded.contains(id)).collect();
        if sessions.is_empty() {
            return Ok(());
        }
        // Hooks of a session that may yet be given up are not followed.
        let committed = listing::committed(vault)?;
        sessions.retain(|session| committed.contains(session));
        let read = vault.at_once(&sessions, |session| {
            vault.unchanging(&key(*session), MAX, |bytes| {
                decode(bytes)
                    .map_err(|Malformed(reason)| Error::damaged(key(*session), None, reason))
            })
        });
        for (session, hooks) in sessions.into_iter().zip(read) {
            loaded.insert(session);
            match hooks {
                Ok(hooks) => {
                    let mut known = self.hooks.write().unwrap_or_else(PoisonError::into_inner);
                    let name = |number| SegmentName { session, number };
                    known.extend(hooks.into_iter().map(|(hook, number)| (hook, name(number))));
                }
                // A lost index costs space and nothing else.
                Err(error) => tracing::warn!(key = key(session), %error),
            }
        }
        Ok(())
    }

    /// Returns a segment that may have a block with this id.
    pub(crate) fn segment(&self, id: &BlockId) -> Option<SegmentName> {
        self.hooks.read().unwrap_or_else(PoisonError::into_inner).get(&hook(id)?).copied()
    }
}
