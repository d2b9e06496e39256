//! Dirty bitmaps that are stored in qcow2 images, so that what has changed since a
//! snapshot is still known when QEMU has ended and been started again.
//!
//! ```text
//!  bitmap of QEMU's memory ──┐ merged            merged ┌── bitmap of QEMU's memory
//!                            ▼                          │
//!  in the image        [ stored: records ── on close ── on open: records ]  removed
//!                       vm stop                                  next take
//! ```
//!
//! It is the image that says so: whoever opens it for writing by QEMU's block layer
//! marks on, and the header says `in use` until it is closed well, so that after a kill
//! the bitmap is inconsistent (block/qcow2-bitmap.c). Software that does not know bitmaps
//! has to clear a bit of the header, and then there is none (docs/interop/qcow2.txt). So
//! a copy of the image that is put back has a bitmap which is true of what it holds.
//!
//! It does not say what the image is based on: [`BackingFile`] does.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tintype_types::{SnapshotId, VmId};

use crate::bitmaps::{Bitmap, GRANULARITY, begin, bitmap_name, merge, named, remove};
use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::inventory::{Disk, PREFIX, array, local_file};

/// The only format that stores bitmaps, and from which version on it can tell of
/// software that does not know them.
const FORMAT: &str = "qcow2";
const COMPAT: &str = "1.1";

/// A file that an image is based on, as it is now: if it is the same later, its bytes are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackingFile {
    /// What QEMU calls it.
    name: String,
    /// Its format.
    format: String,
    /// Which file it is, and when it was last changed.
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Tells whether a disk's image can have bitmaps, by its format.
pub fn can_store(disk: &Disk) -> bool {
    disk.format == FORMAT
}

/// Returns how the names of all bitmaps start that are stored in images of a VM.
pub fn stored_names(vm: VmId) -> String {
    format!("{PREFIX}stored-{vm}-")
}

/// Returns the name of the bitmap that is stored in the image of a disk. An image that
/// is another disk's, or of another snapshot's time, has another one.
pub fn stored_name(vm: VmId, snapshot: SnapshotId, disk: &str) -> String {
    format!("{}{disk}", stored_since(vm, snapshot))
}

fn stored_since(vm: VmId, snapshot: SnapshotId) -> String {
    format!("{}{snapshot}-", stored_names(vm))
}

impl Guest {
    /// Returns the bitmaps of a VM that are stored in its images.
    pub fn stored_bitmaps(&mut self, vm: VmId) -> Result<Vec<Bitmap>> {
        named(&mut self.qmp, &stored_names(vm))
    }

    /// Makes a bitmap that QEMU stores in the image of a disk when it closes that, of
    /// what another one marks, and that records on. It is made whole or not at all.
    pub fn store_bitmap(&mut self, disk: &Disk, vm: VmId, snapshot: SnapshotId) -> Result<()> {
        let name = stored_name(vm, snapshot, &disk.name);
        let add = json!({"type": "block-dirty-bitmap-add", "data": {
            "node": disk.node, "name": name, "granularity": GRANULARITY, "persistent": true,
        }});
        let actions = [add, merge(&disk.node, &name, &bitmap_name(vm, snapshot))];
        self.qmp.execute("transaction", json!({"actions": actions})).map(drop)
    }

    /// Makes a bitmap in QEMU's memory of what a stored one marks.
    pub fn take_over_bitmap(&mut self, disk: &Disk, vm: VmId, snapshot: SnapshotId) -> Result<()> {
        let (name, stored) = (bitmap_name(vm, snapshot), stored_name(vm, snapshot, &disk.name));
        let actions = [begin(&disk.node, &name), merge(&disk.node, &name, &stored)];
        self.qmp.execute("transaction", json!({"actions": actions})).map(drop)
    }

    /// Removes the bitmaps of a VM from its images, but for those of one snapshot. What
    /// is in an image that is open for reading alone stays there.
    pub fn forget_stored_bitmaps(&mut self, vm: VmId, keep: Option<SnapshotId>) -> Result<()> {
        let keep = keep.map(|snapshot| stored_since(vm, snapshot));
        let is_kept = |name: &str| keep.as_ref().is_some_and(|keep| name.starts_with(keep));
        let mut found = self.stored_bitmaps(vm)?;
        found.retain(|bitmap| !bitmap.is_read_only && !is_kept(&bitmap.name));
        remove(&mut self.qmp, &found)
    }

    /// Returns what the image of a disk is based on, or why no bitmap in it could tell
    /// later what has changed.
    pub fn backing_files(&mut self, disk: &Disk) -> Result<Vec<BackingFile>> {
        let cannot = |why: &str| Error::unsupported(why.to_owned());
        let drives = array(self.qmp.execute("query-block", json!({}))?)?;
        let media = drives.iter().filter_map(|drive| drive.get("inserted"));
        let medium = media.into_iter().find(|medium| medium["node-name"] == disk.node.as_str());
        let medium = medium.ok_or_else(|| cannot("it is not there any more"))?;
        let image = &medium["image"];
        if !can_store(disk) || image["format-specific"]["data"]["compat"] != COMPAT {
            return Err(cannot("its format stores no bitmaps"));
        }
        // Without flushes, a crash of the machine may lose what was written before.
        if medium["cache"]["no-flush"] != false {
            return Err(cannot("its cache is `unsafe`"));
        }
        let directory = self.command_line().directory.clone();
        backing_files(image, &directory)
            .ok_or_else(|| cannot("what it is based on are not only files of this machine"))
    }
}

/// Looks at each file below an image; `None` if not all of its bytes are in such files.
fn backing_files(top: &Value, directory: &Path) -> Option<Vec<BackingFile>> {
    let mut files = Vec::new();
    let mut image = top;
    loop {
        if image["format-specific"]["data"].get("data-file").is_some() {
            return None;
        }
        image = match image.get("backing-image") {
            Some(image) => image,
            None if image.get("backing-filename").is_some() => return None,
            None => return Some(files),
        };
        let metadata = fs::metadata(local_file(image, directory)?).ok()?;
        if !metadata.is_file() {
            return None;
        }
        files.push(BackingFile {
            name: image["filename"].as_str()?.to_owned(),
            format: image["format"].as_str()?.to_owned(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_that_are_the_same_are_a_base() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        fs::write(&base, b"one").unwrap();
        let below = json!({"filename": base, "format": "raw"});
        let look = |image: &Value| backing_files(image, folder.path());
        assert_eq!(look(&json!({})), Some(Vec::new()));
        let top = json!({"backing-image": below});
        let then = look(&top).unwrap();
        assert_eq!(look(&top), Some(then.clone()), "nothing has happened");

        let check = |image: Value| assert_eq!(look(&image), None, "{image}");
        check(json!({"backing-filename": "base"}));
        check(json!({"backing-image": {"filename": "nbd://localhost", "format": "raw"}}));
        check(json!({"backing-image": {"filename": folder.path(), "format": "raw"}}));
        check(json!({"format-specific": {"data": {"data-file": "raw"}}}));
        check(json!({"backing-image": {
            "filename": base, "format": "qcow2", "format-specific": {"data": {"data-file": "raw"}},
        }}));

        let as_qcow2 = json!({"backing-image": {"filename": base, "format": "qcow2"}});
        assert_ne!(look(&as_qcow2).unwrap(), then);
        fs::write(&base, b"longer").unwrap();
        assert_ne!(look(&top).unwrap(), then);
    }
}
