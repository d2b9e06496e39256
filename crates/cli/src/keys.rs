//! The commands about keys, and where keys come from: files, the environment and the terminal.

use std::path::{Path, PathBuf};

use serde_json::json;
use tintype_engine::{Encryption, EncryptionKind, Engine, Error, InitReport, Result};

use crate::arguments::{self, Globals, KeyCommand, NewKey};
use crate::output::Output;

/// Files with keys of one repository.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) passphrase_file: Option<PathBuf>,
    pub(crate) age_identity: Option<PathBuf>,
}

/// Returns the keys that the command line and the environment give.
pub(crate) fn at_hand(globals: &Globals) -> Result<Vec<Encryption>> {
    let files = Files {
        key_file: globals.key_file.clone(),
        passphrase_file: globals.passphrase_file.clone(),
        age_identity: globals.age_identity.clone(),
    };
    given(&files, "TINTYPE_PASSPHRASE")
}

/// Returns the keys that files and a variable with a passphrase give.
pub(crate) fn given(files: &Files, variable: &str) -> Result<Vec<Encryption>> {
    let mut keys: Vec<_> = files.key_file.iter().cloned().map(Encryption::KeyFile).collect();
    if let Some(file) = &files.passphrase_file {
        keys.push(passphrase_in(file)?);
    }
    keys.extend(files.age_identity.iter().cloned().map(Encryption::AgeIdentity));
    keys.extend(std::env::var(variable).ok().map(Encryption::Passphrase));
    Ok(keys)
}

fn passphrase_in(file: &Path) -> Result<Encryption> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        Error::invalid(format!("cannot read the passphrase in {}", file.display()))
            .because(error)
            .state("nothing was changed")
    })?;
    match text.lines().next() {
        Some(words) if !words.is_empty() => Ok(Encryption::Passphrase(words.to_owned())),
        _ => Err(Error::invalid(format!("the first line of {} is empty", file.display()))
            .state("nothing was changed")
            .hint("write the passphrase there")),
    }
}

/// Makes the repository.
pub(crate) fn init(engine: &Engine, kind: arguments::Encryption, output: &Output) -> Result<()> {
    let kind = match kind {
        arguments::Encryption::KeyFile => EncryptionKind::KeyFile,
        arguments::Encryption::Passphrase => EncryptionKind::Passphrase,
        arguments::Encryption::None => EncryptionKind::None,
    };
    let report = engine.init(kind)?;
    output.result(&report, || made(&report));
    Ok(())
}

fn made(report: &InitReport) -> String {
    let place = report.repository.display();
    match (&report.encryption, &report.key_file) {
        (EncryptionKind::None, _) => {
            format!("made the repository {place}; it is not encrypted: who reads it, reads memory")
        }
        (_, Some(key)) => format!(
            "made the repository {place}, encrypted\nits key is {}: keep a copy elsewhere, for without it no snapshot can be read",
            key.display()
        ),
        (_, None) => format!(
            "made the repository {place}, encrypted\nkeep the passphrase: without it no snapshot can be read"
        ),
    }
}

/// Adds, lists or removes keys.
pub(crate) fn key(engine: &Engine, command: KeyCommand, output: &Output) -> Result<()> {
    match command {
        KeyCommand::Add(new) => {
            let slot = match new_key(new)? {
                Some(key) => engine.add_key(&key)?,
                None => engine.add_passphrase()?,
            };
            output.result(&slot, || format!("added the key {} ({})", slot.id, slot.kind));
        }
        KeyCommand::List => {
            for slot in engine.keys()? {
                output.result(&slot, || format!("{}  {}", slot.id, slot.kind));
            }
        }
        KeyCommand::Remove { id } => {
            let slot = engine.remove_key(&id)?;
            output.result(&json!({"removed": slot.id}), || {
                format!(
                    "removed the key {} ({}); who has used it may still know the master key",
                    slot.id, slot.kind
                )
            });
        }
    }
    Ok(())
}

/// Returns the key to add, unless it is to be typed.
fn new_key(new: NewKey) -> Result<Option<Encryption>> {
    let passphrase = new.new_passphrase_file.map(|file| passphrase_in(&file)).transpose()?;
    let file = new.new_key_file.map(Encryption::KeyFile);
    Ok(file.or(passphrase).or(new.new_age_recipient.map(Encryption::AgeRecipient)))
}
