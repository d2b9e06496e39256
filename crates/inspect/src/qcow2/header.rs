//! The header and its extensions.

use tintype_types::ByteCount;

use crate::error::{Error, limit, malformed, require, unsupported};
use crate::source::{Reader, be32, be64};
use crate::{Backing, MAX_SIZE};

/// `QFI\xfb`.
const MAGIC: u32 = 0x5146_49fb;
/// The length of a header of version 2.
const LEN_2: usize = 72;
/// The least length of a header of version 3.
const LEN_3: u32 = 104;
/// The most entries of a table of the first level, as in QEMU.
const MAX_L1: u64 = (32 << 20) / 8;
/// The most bytes of the table of reference counts, as in QEMU.
const MAX_REFERENCES: u64 = 8 << 20;
/// The longest name of a backing file, as in QEMU.
const MAX_NAME: u64 = 1023;

/// Incompatible features.
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
/// Those that QEMU 10 knows; bit 0 says that reference counts may be wrong, which
/// does not matter to a reader.
const KNOWN: u64 = 1 | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;

/// What the header says.
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    pub(super) size: ByteCount,
    pub(super) l1: Table,
    pub(super) references: Table,
    pub(super) snapshots: u32,
    pub(super) snapshots_offset: u64,
    pub(super) has_subclusters: bool,
    pub(super) backing: Option<Backing>,
}

/// Where a table is; entries of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) offset: u64,
    pub(super) entries: u64,
}

impl Header {
    pub(super) fn read(reader: &Reader<'_>) -> Result<Self, Error> {
        let start: [u8; LEN_2] = reader.array("the header", 0)?;
        require(be32(&start, 0) == MAGIC, "it is not qcow2: its first bytes are others")?;
        let version = be32(&start, 4);
        require(matches!(version, 2 | 3), format!("version {version} of qcow2 is not known"))?;
        let cluster_bits = be32(&start, 20);
        require((9..=21).contains(&cluster_bits), format!("clusters of 2^{cluster_bits} bytes"))?;
        if be32(&start, 32) != 0 {
            return Err(unsupported("it is encrypted"));
        }
        let size = ByteCount(be64(&start, 24));
        limit("the disk has bytes", size.get(), MAX_SIZE.get())?;
        let cluster = 1_u64 << cluster_bits;
        let references = Table {
            offset: be64(&start, 48),
            entries: u64::from(be32(&start, 56)) << (cluster_bits - 3),
        };
        let mut header = Self {
            version,
            cluster_bits,
            size,
            l1: Table { offset: be64(&start, 40), entries: be32(&start, 36).into() },
            references,
            snapshots: be32(&start, 60),
            snapshots_offset: be64(&start, 64),
            has_subclusters: false,
            backing: None,
        };
        let len = if version == 3 { header.read_version_3(reader)? } else { LEN_2 as u64 };
        header.check_table("the first-level table", header.l1, MAX_L1)?;
        header.check_table("the table of reference counts", references, MAX_REFERENCES / 8)?;
        let wanted = header.l1_entries_for(size);
        require(header.l1.entries >= wanted, "the first-level table is too short for the disk")?;
        let name = (be64(&start, 8), u64::from(be32(&start, 16)));
        header.read_names(reader, len, name, cluster)?;
        Ok(header)
    }

    /// Reads the rest of a header of version 3, and returns the header's length.
    fn read_version_3(&mut self, reader: &Reader<'_>) -> Result<u64, Error> {
        let more: [u8; 40] = reader.array("the header", 64)?;
        let incompatible = be64(&more, 8);
        let len = be32(&more, 36);
        require(be32(&more, 32) <= 6, "reference counts of more than 64 bits")?;
        let fits = len >= LEN_3 && len.is_multiple_of(8) && u64::from(len) <= self.cluster();
        require(fits, format!("a header of {len} bytes"))?;
        if incompatible & DATA_FILE != 0 {
            return Err(unsupported("its data is in another file"));
        }
        if incompatible & CORRUPT != 0 {
            return Err(Error::Unsupported {
                what: "it is marked as corrupt".to_owned(),
                hint: Some("`qemu-img check -f qcow2 -r all IMAGE` repairs a copy of it"),
            });
        }
        if incompatible & !KNOWN != 0 {
            return Err(unsupported(format!(
                "it uses features that are not known: {:#x}",
                incompatible & !KNOWN
            )));
        }
        let compression = match len > LEN_3 {
            true => reader.array::<1>("the header", LEN_3.into())?[0],
            false => 0,
        };
        require(compression <= 1, format!("compression of the unknown type {compression}"))?;
        let is_marked = incompatible & COMPRESSION != 0;
        require(is_marked == (compression != 0), "the type of compression contradicts itself")?;
        self.has_subclusters = incompatible & EXTENDED_L2 != 0;
        let is_possible = !self.has_subclusters || self.cluster_bits >= 14;
        require(is_possible, "subclusters in clusters below 16 KiB")?;
        Ok(len.into())
    }

    /// Reads the header's extensions and the name of the backing file.
    fn read_names(
        &mut self,
        reader: &Reader<'_>,
        header_len: u64,
        (name_at, name_len): (u64, u64),
        cluster: u64,
    ) -> Result<(), Error> {
        let end = if name_at == 0 { cluster.min(reader.len()) } else { name_at };
        require(end <= cluster, "the name of the backing file is not in the first cluster")?;
        let format = backing_format(reader, header_len, end)?;
        if name_at == 0 {
            return Ok(());
        }
        limit("the name of the backing file has bytes", name_len, MAX_NAME)?;
        let fits = name_at >= header_len && name_at + name_len <= cluster && name_len > 0;
        require(fits, "the name of the backing file is not in the first cluster")?;
        let mut name = vec![0; usize::try_from(name_len).expect("the limit is small")];
        reader.read("the name of the backing file", name_at, &mut name)?;
        let name = text("the name of the backing file", name)?;
        self.backing = Some(Backing { name, format });
        Ok(())
    }

    pub(super) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Returns how many bytes of a disk an entry of the first level stands for.
    pub(super) fn l1_entry_bytes(&self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// Returns how many clusters a table of the second level stands for.
    pub(super) fn l2_entries(&self) -> u64 {
        self.cluster() / if self.has_subclusters { 16 } else { 8 }
    }

    pub(super) fn l1_entries_for(&self, size: ByteCount) -> u64 {
        size.get().div_ceil(self.l1_entry_bytes())
    }

    /// Checks where a table says that it is.
    pub(super) fn check_table(
        &self,
        what: &'static str,
        table: Table,
        max: u64,
    ) -> Result<(), Error> {
        limit(what, table.entries, max)?;
        let is_aligned = table.offset.is_multiple_of(self.cluster());
        require(is_aligned, format!("{what} does not start at a cluster"))?;
        require(table.entries == 0 || table.offset > 0, format!("{what} is in the header"))
    }

    pub(super) fn check_l1(&self, table: Table) -> Result<(), Error> {
        self.check_table("a snapshot's first-level table", table, MAX_L1)
    }
}

/// Walks through the header's extensions up to `end`, and returns the format of the
/// backing file. Those that are not known mean nothing to a reader, by definition.
fn backing_format(reader: &Reader<'_>, start: u64, end: u64) -> Result<Option<String>, Error> {
    const END: u32 = 0;
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const CRYPTO: u32 = 0x0537_be77;
    const EXTERNAL_DATA: u32 = 0x4441_5441;
    let mut format = None;
    let mut at = start;
    while at + 8 <= end {
        let head: [u8; 8] = reader.array("a header extension", at)?;
        let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
        at += 8;
        if kind == END {
            break;
        }
        require(len <= end - at, "a header extension is longer than the header")?;
        match kind {
            BACKING_FORMAT => {
                limit("the backing format has bytes", len, 16)?;
                let mut name = vec![0; usize::try_from(len).expect("the limit is small")];
                reader.read("the backing format", at, &mut name)?;
                require(format.is_none(), "it names two backing formats")?;
                format = Some(text("the backing format", name)?);
            }
            EXTERNAL_DATA => return Err(unsupported("it names another file for its data")),
            CRYPTO => return Err(unsupported("it is encrypted")),
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Ok(format)
}

fn text(what: &str, bytes: Vec<u8>) -> Result<String, Error> {
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.ok_or_else(|| malformed(format!("{what} is not text")))
}
