//! Small objects of text lines with a tag: epochs, tombstones, slots.
//!
//! ```text
//! first line   "tintype <kind> 1"
//! lines        the object's own
//! last line    the record tag of the object's key and all lines before
//! ```
//!
//! What a repository that hides its content hides is one line of JSON, sealed.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::pointer::{hex, unhex_bytes};
use crate::vault::Vault;

/// The most bytes of such an object.
const MAX: u64 = 256 << 20;

/// Makes an object of a kind out of its lines.
pub(crate) fn encode(vault: &Vault, key: &str, kind: &str, lines: &[String]) -> Vec<u8> {
    let mut text = format!("tintype {kind} 1\n");
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    let tag = vault.keys.record_tag(vault.id, key, text.as_bytes());
    text.push_str(&hex(&tag));
    text.push('\n');
    text.into_bytes()
}

/// Makes an object of a value that is nobody's business.
pub(crate) fn encode_hidden(
    vault: &Vault,
    key: &str,
    kind: &str,
    value: &impl Serialize,
) -> Vec<u8> {
    let mut line = serde_json::to_string(value).expect("our own values are plain data");
    if let Some(sealer) = vault.keys.record_sealer(key) {
        line = hex(&sealer.seal_random(vault.id.as_bytes(), line.as_bytes()));
    }
    encode(vault, key, kind, &[line])
}

/// Reads the value of such an object.
pub(crate) fn decode_hidden<T: DeserializeOwned>(
    vault: &Vault,
    key: &str,
    kind: &str,
    bytes: &[u8],
) -> Result<T, Error> {
    let damaged = |reason| Error::damaged(key, None, reason);
    let lines = decode(vault, key, kind, bytes)?;
    let [line] = lines.as_slice() else { return Err(damaged("it cannot be understood")) };
    let json = match vault.keys.record_sealer(key) {
        None => line.as_bytes().to_vec(),
        Some(sealer) => unhex_bytes(line)
            .and_then(|sealed| sealer.open_random(vault.id.as_bytes(), &sealed).ok())
            .ok_or_else(|| damaged("it is not sealed with the repository's key"))?,
    };
    serde_json::from_slice(&json).map_err(|_| damaged("it cannot be understood"))
}

/// Reads an object's lines.
pub(crate) fn read(vault: &Vault, key: &str, kind: &str) -> Result<Vec<String>, Error> {
    decode(vault, key, kind, &vault.store.get(key, MAX)?)
}

/// Reads the lines of an object that never changes, from this machine if it is
/// right there.
pub(crate) fn read_unchanging(vault: &Vault, key: &str, kind: &str) -> Result<Vec<String>, Error> {
    vault.unchanging(key, MAX, |bytes| decode(vault, key, kind, bytes))
}

fn decode(vault: &Vault, key: &str, kind: &str, bytes: &[u8]) -> Result<Vec<String>, Error> {
    let damaged = |reason| Error::damaged(key, None, reason);
    let tag_at = bytes.len().checked_sub(65).ok_or_else(|| damaged("it ends early"))?;
    let (text, tag) = bytes.split_at(tag_at);
    let expected = format!("{}\n", hex(&vault.keys.record_tag(vault.id, key, text)));
    if tag != expected.as_bytes() {
        return Err(damaged("its tag does not match"));
    }
    let text = std::str::from_utf8(text).map_err(|_| damaged("it is not text"))?;
    let mut lines = text.lines();
    if lines.next() != Some(format!("tintype {kind} 1").as_str()) {
        return Err(Error::Unsupported(format!("{key} was written by a newer version")));
    }
    Ok(lines.map(str::to_owned).collect())
}
