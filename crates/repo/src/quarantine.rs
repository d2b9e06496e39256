//! Segments with damage that nothing could repair: no new snapshot refers to
//! them, so what is still in the guest is stored again.
//!
//! ```text
//! quarantine/<session>-<number>   what was wrong with the segment, a line each
//! ```

use crate::Error;
use crate::epoch::Segments;
use crate::pointer::SegmentName;
use crate::signed;
use crate::vault::Vault;

/// What its objects are signed as.
pub(crate) const KIND: &str = "quarantine";
/// Where they are.
pub(crate) const PREFIX: &str = "quarantine/";

/// Returns the segments that are marked.
pub(crate) fn read(vault: &Vault) -> Result<Segments, Error> {
    let listed = vault.store.list(PREFIX)?;
    Ok(listed.iter().filter_map(|listed| segment(&listed.key)).collect())
}

/// Marks a segment; marking it twice is marking it once.
pub(crate) fn mark(vault: &Vault, segment: SegmentName, reasons: &[String]) -> Result<(), Error> {
    let key = key(segment);
    vault.store.put_if_absent(&key, &signed::encode(vault, &key, KIND, reasons)).map(drop)
}

/// Takes the mark away from a segment that is good, or gone.
pub(crate) fn release(vault: &Vault, segment: SegmentName) -> Result<(), Error> {
    vault.store.delete(&key(segment))
}

fn key(segment: SegmentName) -> String {
    let name = segment.key();
    format!("{PREFIX}{}", name.rsplit('/').next().unwrap_or_default())
}

/// Reads the segment of a mark's key.
pub(crate) fn segment(key: &str) -> Option<SegmentName> {
    let name = key.strip_prefix(PREFIX)?;
    SegmentName::from_key(&format!("seg/{}/{name}", name.get(..2)?))
}
