//! Key slots: the master key as it is stored, once for each way to open the
//! repository.
//!
//! ```text
//! keys/<id>   JSON: kind "none": key
//!                   kind "keyfile": sealed
//!                   kind "passphrase": salt, memory_kib, passes, lanes, sealed
//! ```
//!
//! `sealed` is the master key under AES-256-GCM with a random nonce in front;
//! the key is derived from the key file, or by argon2id from the passphrase.
//! A key file has two lines: `tintype key 1` and 64 hexadecimal digits.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tintype_types::{RepositoryId, SnapshotId};
use zeroize::Zeroizing;

use crate::Error;
use crate::pointer::{hex, unhex};
use crate::seal::Sealer;
use crate::store::{Put, Store};

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
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Encryption::None => f.write_str("None"),
            Encryption::KeyFile(path) => f.debug_tuple("KeyFile").field(path).finish(),
            Encryption::Passphrase(_) => f.write_str("Passphrase(…)"),
        }
    }
}

/// One way that opens a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeySlot {
    /// The id, by which it can be removed.
    pub id: String,
    /// `none`, `keyfile` or `passphrase`.
    pub kind: String,
}

pub(crate) type MasterKey = Zeroizing<[u8; 32]>;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum StoredSlot {
    None { key: String },
    KeyFile { sealed: String },
    Passphrase { salt: String, memory_kib: u32, passes: u32, lanes: u32, sealed: String },
}

const PREFIX: &str = "keys/";
const MAX_SLOT: u64 = 16 << 10;
const KEY_FILE_HEAD: &str = "tintype key 1\n";
/// RFC 9106, the second recommended option.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// What a hostile slot may ask for.
const MAX_MEMORY_KIB: u32 = 256 << 10;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 16;

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
            StoredSlot::KeyFile { sealed: seal(&wrapping_key(&key_file(path)?)) }
        }
        Encryption::Passphrase(words) => {
            let mut salt = [0; 16];
            getrandom::fill(&mut salt).expect("the kernel always has random bytes");
            let stretched = stretch(words, &salt, (MEMORY_KIB, PASSES, LANES))?;
            StoredSlot::Passphrase {
                salt: hex(&salt),
                memory_kib: MEMORY_KIB,
                passes: PASSES,
                lanes: LANES,
                sealed: seal(&stretched),
            }
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
        slots.push((listed.key[PREFIX.len()..].to_owned(), slot.kind()));
        if let Some(master) = slot.open(&bound(repository, &listed.key), ways)
            && is_right(&master)
        {
            return Ok(master);
        }
    }
    match unreadable {
        Some(error) => Err(error),
        None if slots.iter().all(|(_, kind)| *kind == "none") => {
            Err(Error::damaged("keys", None, "no slot there holds the key that `config` names"))
        }
        None => Err(Error::Key(format!(
            "none of the keys at hand opens the repository; those that do are {}",
            slots.iter().map(|(id, kind)| format!("{id} ({kind})")).collect::<Vec<_>>().join(", ")
        ))),
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
pub(crate) fn remove(store: &dyn Store, id: &str) -> Result<(), Error> {
    let slots = list(store)?;
    if !slots.iter().any(|slot| slot.id == id) {
        return Err(Error::NotFound(format!("key {id}")));
    }
    if slots.len() == 1 {
        return Err(Error::Invalid("the last key of a repository cannot be removed".to_owned()));
    }
    store.delete(&format!("{PREFIX}{id}"))
}

impl StoredSlot {
    fn kind(&self) -> &'static str {
        match self {
            StoredSlot::None { .. } => "none",
            StoredSlot::KeyFile { .. } => "keyfile",
            StoredSlot::Passphrase { .. } => "passphrase",
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
                    unseal(sealed, &wrapping_key(&read_key_file(path).ok()?))
                }
                _ => None,
            }),
            StoredSlot::Passphrase { salt, memory_kib, passes, lanes, sealed } => {
                let salt: [u8; 16] = unhex(salt)?;
                let cost = (*memory_kib, *passes, *lanes);
                ways.iter().find_map(|way| match way {
                    Encryption::Passphrase(words) => {
                        unseal(sealed, &stretch(words, &salt, cost).ok()?)
                    }
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

fn wrapping_key(file: &MasterKey) -> MasterKey {
    Zeroizing::new(blake3::derive_key("tintype 1 key file", &file[..]))
}

fn stretch(words: &str, salt: &[u8], cost: (u32, u32, u32)) -> Result<MasterKey, Error> {
    let (memory_kib, passes, lanes) = cost;
    let refused = |_| Error::Key("the passphrase slot has impossible parameters".to_owned());
    if memory_kib > MAX_MEMORY_KIB || passes > MAX_PASSES || lanes > MAX_LANES {
        return Err(refused(argon2::Error::MemoryTooMuch));
    }
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(refused)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon2.hash_password_into(words.as_bytes(), salt, &mut key[..]).map_err(refused)?;
    Ok(key)
}

/// Reads a key file, or makes it.
fn key_file(path: &Path) -> Result<MasterKey, Error> {
    match read_key_file(path) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        result => return result,
    }
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut key[..]).expect("the kernel always has random bytes");
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(|e| Error::io("create key file", path, e))?;
    let text = Zeroizing::new(format!("{KEY_FILE_HEAD}{}\n", *Zeroizing::new(hex(&key[..]))));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all())
        .map_err(|error| Error::io("write key file", path, error))?;
    Ok(key)
}

fn read_key_file(path: &Path) -> Result<MasterKey, Error> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read key file", path, e))?;
    let text = Zeroizing::new(text);
    text.strip_prefix(KEY_FILE_HEAD)
        .and_then(|rest| unhex(rest.trim_end()))
        .map(Zeroizing::new)
        .ok_or_else(|| Error::Key(format!("{} is not a key file", path.display())))
}
