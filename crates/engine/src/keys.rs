//! What opens the repository: the keys at hand, and the slots that they fit.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tintype_repo::{Encryption, KeySlot, Kind};

use crate::Engine;
use crate::error::{Error, Result};

/// What a new repository is encrypted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EncryptionKind {
    /// A key file, which is made if it does not exist.
    #[default]
    KeyFile,
    /// A passphrase.
    Passphrase,
    /// Nothing: whoever reads the folder reads the snapshots.
    None,
}

/// A repository that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct InitReport {
    /// Where it is.
    pub repository: PathBuf,
    /// What it is encrypted with.
    pub encryption: EncryptionKind,
    /// The key file that opens it, where one does.
    pub key_file: Option<PathBuf>,
}

impl Engine {
    /// Makes the repository.
    pub fn init(&self, kind: EncryptionKind) -> Result<InitReport> {
        let place = self.repository_place();
        let encryption = self.encryption(kind)?;
        self.make_repository(&place, &encryption)?;
        let key_file = match encryption {
            Encryption::KeyFile(path) => Some(path),
            _ => None,
        };
        Ok(InitReport { repository: place, encryption: kind, key_file })
    }

    /// Lists the key slots of the repository.
    pub fn keys(&self) -> Result<Vec<KeySlot>> {
        self.repository()?.keys().map_err(Error::step("cannot list the keys"))
    }

    /// Adds a key that opens the repository.
    pub fn add_key(&self, key: &Encryption) -> Result<KeySlot> {
        let repository = self.repository()?;
        let cannot =
            |error| Error::failed("cannot add the key").because(error).state("nothing was changed");
        let id = repository.add_key(key).map_err(cannot)?;
        self.find_key(&id)
    }

    /// Adds a passphrase that the user types.
    pub fn add_passphrase(&self) -> Result<KeySlot> {
        // It may need a passphrase too, which is asked for first.
        self.repository()?;
        self.add_key(&self.new_passphrase()?)
    }

    /// Removes the key whose slot's id starts so. The last one stays.
    pub fn remove_key(&self, id: &str) -> Result<KeySlot> {
        let slot = self.find_key(id)?;
        let removed = self.repository()?.remove_key(&slot.id);
        removed.map(|()| slot).map_err(|error| {
            let refused = error.kind() == Kind::Invalid;
            let what = format!("cannot remove the key {id}");
            let made = if refused { Error::refused(what) } else { Error::failed(what) };
            made.because(error)
                .state("nothing was changed")
                .hint("`tintype key add` adds the one that is to take its place")
        })
    }

    fn find_key(&self, id: &str) -> Result<KeySlot> {
        let mut slots = self.keys()?;
        let listed: Vec<_> = slots.iter().map(|s| format!("{} ({})", s.id, s.kind)).collect();
        slots.retain(|slot| !id.is_empty() && slot.id.starts_with(id));
        match slots.pop() {
            Some(slot) if slots.is_empty() => Ok(slot),
            found => Err(Error::invalid(match found {
                Some(_) => format!("`{id}` is the start of several keys' ids"),
                None => format!("there is no key `{id}`"),
            })
            .state("nothing was changed")
            .hint(format!("the keys are: {}", listed.join(", ")))),
        }
    }

    /// Returns the keys that may open the repository: those that were given,
    /// and the one in the home.
    pub(crate) fn keys_at_hand(&self) -> Result<Vec<Encryption>> {
        let mut keys = self.config.keys.clone();
        must_exist(&keys, "--")?;
        keys.extend(self.typed.get().cloned());
        let own = self.home.key_file();
        if own.exists() {
            keys.push(Encryption::KeyFile(own));
        }
        Ok(keys)
    }

    /// Returns what a new repository is encrypted with.
    pub(crate) fn encryption(&self, kind: EncryptionKind) -> Result<Encryption> {
        let mut keys = self.config.keys.iter();
        match kind {
            EncryptionKind::None => Ok(Encryption::None),
            EncryptionKind::KeyFile => {
                let given = keys.find(|key| matches!(key, Encryption::KeyFile(_)));
                Ok(given.cloned().unwrap_or_else(|| Encryption::KeyFile(self.home.key_file())))
            }
            EncryptionKind::Passphrase => {
                let given = keys.find(|key| matches!(key, Encryption::Passphrase(_)));
                given.cloned().map_or_else(|| self.new_passphrase(), Ok)
            }
        }
    }

    /// Asks the user for a passphrase that is to open the repository.
    fn new_passphrase(&self) -> Result<Encryption> {
        let ask = |question| {
            self.config.observer.ask_passphrase(question).filter(|words| !words.is_empty())
        };
        let missing = || {
            Error::invalid("there is no passphrase")
                .state("nothing was changed")
                .hint("--passphrase-file or TINTYPE_PASSPHRASE gives it")
        };
        let words = ask("New passphrase: ").ok_or_else(missing)?;
        let again = ask("The same again: ").ok_or_else(missing)?;
        if words != again {
            return Err(Error::invalid("the two passphrases differ")
                .state("nothing was changed")
                .hint("type the same twice"));
        }
        Ok(Encryption::Passphrase(words.to_string()))
    }

    /// Asks the user for the passphrase that opens the repository.
    pub(crate) fn ask_passphrase(&self, place: &Path) -> Option<Encryption> {
        let question = format!("Passphrase of {}: ", place.display());
        let words = self.config.observer.ask_passphrase(&question)?;
        Some(Encryption::Passphrase(words.to_string()))
    }
}

/// Fails if one of the files that were given with options is not there.
pub(crate) fn must_exist(keys: &[Encryption], options: &str) -> Result<()> {
    for key in keys {
        let (path, what, option) = match key {
            Encryption::KeyFile(path) => (path, "key file", "key-file"),
            Encryption::AgeIdentity(path) => (path, "age identity", "age-identity"),
            _ => continue,
        };
        if !path.exists() {
            let variable = option.replace('-', "_").to_uppercase();
            let to = options.trim_start_matches('-').replace('-', "_").to_uppercase();
            return Err(Error::invalid(format!("there is no {what} {}", path.display()))
                .state("nothing was changed")
                .hint(format!("{options}{option} or TINTYPE_{to}{variable} says where it is")));
        }
    }
    Ok(())
}
