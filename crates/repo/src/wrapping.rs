//! What wraps the master key: key files, passphrases and age.
//!
//! A key file has two lines: `tintype key 1` and 64 hexadecimal digits.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::iter;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use crate::Error;
use crate::pointer::{hex, unhex};
use crate::slots::MasterKey;

const KEY_FILE_HEAD: &str = "tintype key 1\n";
/// What a hostile slot may ask for.
const LIMIT: Cost = Cost { memory_kib: 256 << 10, passes: 16, lanes: 16 };

/// What it costs to stretch a passphrase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
    pub(crate) lanes: u32,
}

impl Cost {
    /// RFC 9106, the second recommended option.
    pub(crate) const DEFAULT: Self = Self { memory_kib: 64 << 10, passes: 3, lanes: 4 };
}

/// Returns what a key file wraps with.
pub(crate) fn of_file(file: &MasterKey) -> MasterKey {
    Zeroizing::new(blake3::derive_key("tintype 1 key file", &file[..]))
}

/// Returns what a passphrase wraps with.
pub(crate) fn of_passphrase(words: &str, salt: &[u8], cost: Cost) -> Result<MasterKey, Error> {
    let Cost { memory_kib, passes, lanes } = cost;
    let refused = |_| Error::Key("the passphrase slot has impossible parameters".to_owned());
    if memory_kib > LIMIT.memory_kib || passes > LIMIT.passes || lanes > LIMIT.lanes {
        return Err(refused(argon2::Error::MemoryTooMuch));
    }
    let params = argon2::Params::new(memory_kib, passes, lanes, Some(32)).map_err(refused)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon2.hash_password_into(words.as_bytes(), salt, &mut key[..]).map_err(refused)?;
    Ok(key)
}

/// Reads a key file, or makes it.
pub(crate) fn key_file(path: &Path) -> Result<MasterKey, Error> {
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

/// Reads a key file.
pub(crate) fn read_key_file(path: &Path) -> Result<MasterKey, Error> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read key file", path, e))?;
    let text = Zeroizing::new(text);
    text.strip_prefix(KEY_FILE_HEAD)
        .and_then(|rest| unhex(rest.trim_end()))
        .map(Zeroizing::new)
        .ok_or_else(|| Error::Key(format!("{} is not a key file", path.display())))
}

/// Encrypts the master key for a recipient, `age1…`.
pub(crate) fn for_recipient(recipient: &str, master: &MasterKey) -> Result<Vec<u8>, Error> {
    let known: age::x25519::Recipient = recipient
        .parse()
        .map_err(|error| Error::Invalid(format!("`{recipient}` is no age recipient: {error}")))?;
    age::encrypt(&known, &master[..])
        .map_err(|error| Error::Key(format!("age cannot encrypt for `{recipient}`: {error}")))
}

/// Decrypts the master key with the age identities in a file.
pub(crate) fn by_identity(path: &Path, sealed: &[u8]) -> Result<MasterKey, Error> {
    let text = fs::read(path).map_err(|error| Error::io("read age identity", path, error))?;
    let text = Zeroizing::new(text);
    let no_identity = |why: &dyn std::fmt::Display| {
        Error::Key(format!("{} holds no age identity: {why}", path.display()))
    };
    let identities = age::IdentityFile::from_buffer(&text[..])
        .map_err(|error| no_identity(&error))?
        .into_identities()
        .map_err(|error| no_identity(&error))?;
    let not_ours = || Error::Key(format!("{} does not open the slot", path.display()));
    let opened = identities.iter().find_map(|identity| open(&**identity, sealed));
    opened.ok_or_else(not_ours)
}

/// Decrypts what is a key if it is anything; reads no more than that.
fn open(identity: &dyn age::Identity, sealed: &[u8]) -> Option<MasterKey> {
    let decryptor = age::Decryptor::new_buffered(sealed).ok()?;
    let mut content = decryptor.decrypt(iter::once(identity)).ok()?;
    let mut master = MasterKey::default();
    content.read_exact(&mut master[..]).ok()?;
    (content.read(&mut [0]).ok()? == 0).then_some(master)
}
