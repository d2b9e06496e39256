//! Key slots: the master key as it is stored, once for each way to open the
//! repository.
//!
//! ```text
//! keys/<id>     JSON: kind "none": key
//!                     kind "keyfile": sealed
//!                     kind "passphrase": salt, memory_kib, passes, lanes, sealed
//!                     kind "age": recipient, sealed
//! removal/<id>  empty: somebody is about to remove that slot
//! ```
//!
//! `sealed` is the master key under AES-256-GCM with a random nonce in front;
//! the key is derived from the key file, or by argon2id from the passphrase.
//! That of `age` is an age file.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tintype_types::{RepositoryId, SnapshotId};
use zeroize::Zeroizing;

use crate::Error;
use crate::pointer::{hex, unhex, unhex_bytes};
use crate::seal::Sealer;
use crate::store::{Put, Store};
use crate::wrapping::{self, Cost};

/// A way to open a repository.
#[derive(Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Encryption {
    /// Nothing is hidden; whoever reads the folder reads the snapshots.
    #[default]
    None,
    /// A file with a random key. It is made, for the owner only, if it does
    /// not exist. Without it the repository cannot be read.
    KeyFile(PathBuf),
    /// Words that a person knows.
    Passphrase(String),
    /// The public half of an age key, `age1…`: for a new slot. It opens nothing.
    AgeRecipient(String),
    /// A file with the secret half of age keys: it opens slots, and makes none.
    AgeIdentity(PathBuf),
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Encryption::None => f.write_str("None"),
            Encryption::KeyFile(path) => f.debug_tuple("KeyFile").field(path).finish(),
            Encryption::Passphrase(_) => f.write_str("Passphrase(…)"),
            Encryption::AgeRecipient(key) => f.debug_tuple("AgeRecipient").field(key).finish(),
            Encryption::AgeIdentity(path) => f.debug_tuple("AgeIdentity").field(path).finish(),
        }
    }
}

/// One way that opens a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeySlot {
    /// The id, by which it can be removed.
    pub id: String,
    /// `none`, `keyfile`, `passphrase` or `age`.
    pub kind: String,
}

pub(crate) type MasterKey = Zeroizing<[u8; 32]>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum StoredSlot {
    None { key: String },
    KeyFile { sealed: String },
    Passphrase { salt: String, memory_kib: u32, passes: u32, lanes: u32, sealed: String },
    Age { recipient: String, sealed: String },
}

const PREFIX: &str = "keys/";
const MAX_SLOT: u64 = 16 << 10;
const REMOVAL: &str = "removal/";

/// Stores the master key so that `way` opens it; returns the slot's id.
pub(crate) fn add(
    store: &dyn Store,
    repository: RepositoryId,
    master: &MasterKey,
    way: &Encryption,
) -> Result<String, Error> {
    let id = SnapshotId::random().to_string();
    let key = format!("{PREFIX}{id}");
    let seal = |wrapping: &MasterKey| {
        hex(&Sealer::new(wrapping).seal_random(&bound(repository, &key), &master[..]))
    };
    let slot = match way {
        Encryption::None => StoredSlot::None { key: hex(&master[..]) },
        Encryption::KeyFile(path) => {
            StoredSlot::KeyFile { sealed: seal(&wrapping::of_file(&wrapping::key_file(path)?)) }
        }
        Encryption::Passphrase(words) => {
            let mut salt = [0; 16];
            getrandom::fill(&mut salt).expect("the kernel always has random bytes");
            let Cost { memory_kib, passes, lanes } = Cost::DEFAULT;
            let sealed = seal(&wrapping::of_passphrase(words, &salt, Cost::DEFAULT)?);
            StoredSlot::Passphrase { salt: hex(&salt), memory_kib, passes, lanes, sealed }
        }
        Encryption::AgeRecipient(recipient) => {
            let sealed = hex(&wrapping::for_recipient(recipient, master)?);
            StoredSlot::Age { recipient: recipient.clone(), sealed }
        }
        Encryption::AgeIdentity(path) => {
            return Err(Error::Invalid(format!(
                "{} opens slots; a new one needs its recipient, `age1…`",
                path.display()
            )));
        }
    };
    let mut text = serde_json::to_string(&slot).expect("it is plain data");
    text.push('\n');
    match store.put_if_absent(&key, text.as_bytes())? {
        Put::Created => Ok(id),
        Put::Existed => Err(Error::Invalid(format!("{key} exists already"))),
    }
}

/// Returns the master key that `is_right`, by any slot and any way.
pub(crate) fn open(
    store: &dyn Store,
    repository: RepositoryId,
    ways: &[Encryption],
    is_right: &dyn Fn(&MasterKey) -> bool,
) -> Result<MasterKey, Error> {
    let mut slots = Vec::new();
    let mut unreadable = None;
    for listed in store.list(PREFIX)? {
        let slot = match read(store, &listed.key) {
            Ok(slot) => slot,
            Err(error) => {
                unreadable.get_or_insert(error);
                continue;
            }
        };
        let id = listed.key[PREFIX.len()..].to_owned();
        slots.push(KeySlot { id, kind: slot.kind().to_owned() });
        if let Some(master) = slot.open(&bound(repository, &listed.key), ways)
            && is_right(&master)
        {
            return Ok(master);
        }
    }
    match unreadable {
        Some(error) => Err(error),
        None if slots.iter().all(|slot| slot.kind == "none") => {
            Err(Error::damaged("keys", None, "no slot there holds the key that `config` names"))
        }
        None => Err(Error::NoKeyFits { slots }),
    }
}

/// Lists the slots.
pub(crate) fn list(store: &dyn Store) -> Result<Vec<KeySlot>, Error> {
    let slots = store.list(PREFIX)?.into_iter().map(|listed| {
        let kind = read(store, &listed.key)?.kind().to_owned();
        Ok(KeySlot { id: listed.key[PREFIX.len()..].to_owned(), kind })
    });
    slots.collect()
}

/// Removes a slot, but not the last one.
///
/// Who removes a slot marks it first, and keeps it unless another one is
/// unmarked: two who remove the last two at once both keep theirs. The marks
/// are read before the slots: a slot that is seen without its mark was not about
/// to be removed when this one was marked.
pub(crate) fn remove(store: &dyn Store, id: &str) -> Result<(), Error> {
    let slot = format!("{PREFIX}{id}");
    if !store.list(PREFIX)?.iter().any(|listed| listed.key == slot) {
        return Err(Error::NotFound(format!("key {id}")));
    }
    let mark = format!("{REMOVAL}{id}");
    // Whoever was killed in a removal has left the mark: it is finished now.
    store.put_if_absent(&mark, &[])?;
    let marked: BTreeSet<_> = ids(store, REMOVAL)?;
    let removed = if ids(store, PREFIX)?.is_subset(&marked) {
        Err(Error::Invalid("the last key of a repository cannot be removed".to_owned()))
    } else {
        store.delete(&slot)
    };
    store.delete(&mark)?;
    removed
}

fn ids(store: &dyn Store, prefix: &str) -> Result<BTreeSet<String>, Error> {
    let listed = store.list(prefix)?.into_iter();
    Ok(listed.map(|listed| listed.key[prefix.len()..].to_owned()).collect())
}

impl StoredSlot {
    fn kind(&self) -> &'static str {
        match self {
            StoredSlot::None { .. } => "none",
            StoredSlot::KeyFile { .. } => "keyfile",
            StoredSlot::Passphrase { .. } => "passphrase",
            StoredSlot::Age { .. } => "age",
        }
    }

    /// Returns what the slot holds, if one of the ways fits.
    fn open(&self, bound: &[u8], ways: &[Encryption]) -> Option<MasterKey> {
        let unseal = |sealed: &str, wrapping: &MasterKey| {
            let sealed: [u8; 60] = unhex(sealed)?;
            let opened = Zeroizing::new(Sealer::new(wrapping).open_random(bound, &sealed).ok()?);
            Some(Zeroizing::new(opened.as_slice().try_into().ok()?))
        };
        match self {
            StoredSlot::None { key } => unhex(key).map(Zeroizing::new),
            StoredSlot::KeyFile { sealed } => ways.iter().find_map(|way| match way {
                Encryption::KeyFile(path) => {
                    unseal(sealed, &wrapping::of_file(&wrapping::read_key_file(path).ok()?))
                }
                _ => None,
            }),
            StoredSlot::Passphrase { salt, memory_kib, passes, lanes, sealed } => {
                let salt: [u8; 16] = unhex(salt)?;
                let cost = Cost { memory_kib: *memory_kib, passes: *passes, lanes: *lanes };
                ways.iter().find_map(|way| match way {
                    Encryption::Passphrase(words) => {
                        unseal(sealed, &wrapping::of_passphrase(words, &salt, cost).ok()?)
                    }
                    _ => None,
                })
            }
            StoredSlot::Age { sealed, .. } => {
                let sealed = unhex_bytes(sealed)?;
                ways.iter().find_map(|way| match way {
                    Encryption::AgeIdentity(path) => wrapping::by_identity(path, &sealed).ok(),
                    _ => None,
                })
            }
        }
    }
}

fn read(store: &dyn Store, key: &str) -> Result<StoredSlot, Error> {
    let bytes = store.get(key, MAX_SLOT)?;
    serde_json::from_slice(&bytes).map_err(|_| Error::damaged(key, None, "it cannot be understood"))
}

/// What a sealed master key is bound to: it opens in this slot only.
fn bound(repository: RepositoryId, key: &str) -> Vec<u8> {
    [repository.as_bytes(), key.as_bytes()].concat()
}
