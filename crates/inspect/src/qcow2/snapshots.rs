//! The table of internal snapshots.

use tintype_types::ByteCount;

use super::header::{Header, Table};
use crate::MAX_SIZE;
use crate::error::{Error, limit, malformed, require};
use crate::source::{ReadAt, Reader, be32, be64, field};

/// The most snapshots, and the most bytes of their table.
const MAX_SNAPSHOTS: u64 = 4096;
const MAX_TABLE: u64 = 8 << 20;
/// The most bytes of what newer versions add to an entry, as in QEMU.
const MAX_EXTRA: u64 = 1024;
/// An entry without what follows it.
const ENTRY: u64 = 40;
/// How much of the header is exchanged for a snapshot's.
const HEAD: usize = 72;

/// An internal snapshot: another disk, and perhaps the memory of a VM, in the same
/// file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalSnapshot {
    /// Its id, which QEMU counts up.
    pub id: String,
    /// Its name, as somebody gave it.
    pub name: String,
    /// When it was taken, in seconds since 1970.
    pub created: u64,
    /// The size of the disk at that time.
    pub size: ByteCount,
    /// Where the state of the VM starts, beyond the end of the disk.
    pub vm_state_offset: u64,
    /// How many bytes the state of the VM has; 0 without one.
    pub vm_state_len: u64,
    /// Where its first-level table is.
    pub(super) l1: Table,
}

impl InternalSnapshot {
    /// Returns how many bytes there are with the state of the VM.
    pub fn end(&self) -> ByteCount {
        match self.vm_state_len {
            0 => self.size,
            len => ByteCount((self.vm_state_offset + len).next_multiple_of(512)),
        }
    }

    /// Returns the first bytes of the file as they would be if the snapshot were the
    /// disk, its VM's state behind it. With them, and all else as it is, the file is
    /// an image without snapshots that reads as this one.
    pub fn header(&self, source: &dyn ReadAt) -> Result<Vec<u8>, Error> {
        let mut head: [u8; HEAD] = Reader::new(source)?.array("the header", 0)?;
        let entries = u32::try_from(self.l1.entries).map_err(|_| malformed("a huge table"))?;
        head[24..32].copy_from_slice(&self.end().get().to_be_bytes());
        head[36..40].copy_from_slice(&entries.to_be_bytes());
        head[40..48].copy_from_slice(&self.l1.offset.to_be_bytes());
        // No snapshots.
        head[60..HEAD].fill(0);
        Ok(head.to_vec())
    }
}

/// Reads the table, and returns how many bytes it has.
pub(super) fn read(
    reader: &Reader<'_>,
    header: &Header,
) -> Result<(Vec<InternalSnapshot>, u64), Error> {
    let count = u64::from(header.snapshots);
    limit("it has snapshots", count, MAX_SNAPSHOTS)?;
    let start = header.snapshots_offset;
    if count == 0 {
        return Ok((Vec::new(), 0));
    }
    let is_aligned = start > 0 && start.is_multiple_of(header.cluster());
    require(is_aligned, "the table of snapshots does not start at a cluster")?;
    let mut at = start;
    let mut snapshots = Vec::new();
    for _ in 0..count {
        snapshots.push(read_one(reader, header, &mut at)?);
        limit("the table of snapshots has bytes", at - start, MAX_TABLE)?;
    }
    Ok((snapshots, at - start))
}

fn read_one(reader: &Reader<'_>, header: &Header, at: &mut u64) -> Result<InternalSnapshot, Error> {
    let what = "an entry of the table of snapshots";
    let entry: [u8; 40] = reader.array(what, *at)?;
    let extra = u64::from(be32(&entry, 36));
    limit("an entry of the table of snapshots has more bytes", extra, MAX_EXTRA)?;
    let mut large = [0; 16];
    let known = usize::try_from(extra.min(16)).expect("it is small");
    reader.read(what, *at + ENTRY, &mut large[..known])?;
    let len = |place| u64::from(u16::from_be_bytes(field(&entry, place)));
    let (id_len, name_len) = (len(12), len(14));
    let id_at = *at + ENTRY + extra;
    let id = name(reader, id_at, id_len)?;
    let own_name = name(reader, id_at + id_len, name_len)?;
    *at = (id_at + id_len + name_len).next_multiple_of(8);
    let vm_state_len = if extra >= 8 { be64(&large, 0) } else { be32(&entry, 32).into() };
    let size = if extra >= 16 { ByteCount(be64(&large, 8)) } else { header.size };
    limit("a snapshot's disk has bytes", size.get(), MAX_SIZE.get())?;
    limit("a snapshot's state has bytes", vm_state_len, MAX_SIZE.get())?;
    let l1 = Table { offset: be64(&entry, 0), entries: be32(&entry, 8).into() };
    header.check_l1(l1)?;
    let snapshot = InternalSnapshot {
        id,
        name: own_name,
        created: be32(&entry, 16).into(),
        size,
        vm_state_offset: header.l1_entries_for(size) * header.l1_entry_bytes(),
        vm_state_len,
        l1,
    };
    let wanted = header.l1_entries_for(snapshot.end());
    require(l1.entries >= wanted, "a snapshot's first-level table is too short for its disk")?;
    Ok(snapshot)
}

/// Names are text in every QEMU that people use; whatever else there is, is shown.
fn name(reader: &Reader<'_>, at: u64, len: u64) -> Result<String, Error> {
    let mut bytes = vec![0; usize::try_from(len).expect("it has 16 bits")];
    reader.read("a snapshot's name", at, &mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
