//! The tables that say where clusters are: all within the file, none in another's
//! place, and none twice where that would make a small file a large disk.

use std::collections::HashMap;

use super::header::{Header, Table};
use super::snapshots::InternalSnapshot;
use crate::claims::Claims;
use crate::error::{Error, limit, malformed, require};
use crate::source::Reader;
use crate::{MAX_RATIO, MAX_TABLES};

/// The place in an entry: bits 9 to 55.
const PLACE: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster has one user, and may be written in place.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros.
const ZERO: u64 = 1;

/// The most bytes of first-level tables, for all disks of the image together.
const MAX_L1: u64 = 128 << 20;
/// The most second-level tables, for all disks of the image together.
const MAX_L2: u64 = 1 << 18;

/// The second-level tables, by their place: which disk used each last, how much of
/// the disk is stored, and how much of it is compressed.
type SecondLevel = HashMap<u64, Counted>;

#[derive(Clone, Copy, Default)]
struct Counted {
    disk: usize,
    is_checked: bool,
    stored: u64,
    compressed: u64,
}

/// Checks all tables of an image. `snapshots_len` is the length of the table of
/// snapshots.
pub(super) fn check(
    reader: &Reader<'_>,
    header: &Header,
    snapshots: &[InternalSnapshot],
    snapshots_len: u64,
) -> Result<(), Error> {
    let cluster = header.cluster();
    let mut tables = Claims::new(reader.len(), cluster)?;
    tables.claim("the header", 0, 1)?;
    let Table { offset, entries } = header.references;
    tables.claim("the table of reference counts", offset, entries * 8)?;
    tables.claim("the table of snapshots", header.snapshots_offset, snapshots_len)?;
    let disks: Vec<Table> =
        std::iter::once(header.l1).chain(snapshots.iter().map(|snapshot| snapshot.l1)).collect();
    let l1_bytes = disks.iter().map(|disk| disk.entries * 8).sum();
    limit("the first-level tables have bytes", l1_bytes, MAX_L1)?;
    for disk in &disks {
        tables.claim("a first-level table", disk.offset, disk.entries * 8)?;
    }
    let mut second = SecondLevel::new();
    for (number, disk) in disks.iter().enumerate() {
        first_level(reader, *disk, |place| {
            require(
                place.is_multiple_of(cluster),
                "a second-level table does not start at a cluster",
            )?;
            if second.get(&place).is_some_and(|known| known.disk == number) {
                return Err(malformed("a second-level table is used twice"));
            }
            let counted = Counted { disk: number, ..Counted::default() };
            if second.insert(place, counted).is_none() {
                tables.claim("a second-level table", place, cluster)?;
                limit("second-level tables", second.len() as u64, MAX_L2)?;
            }
            Ok(())
        })?;
    }
    limit("the tables have bytes", (second.len() as u64) << header.cluster_bits, MAX_TABLES)?;
    let walk = Walk { reader, header, tables: &tables };
    let mut data = Claims::new(reader.len(), cluster)?;
    for (number, disk) in disks.iter().enumerate() {
        walk.disk(number, *disk, &mut second, &mut data)?;
    }
    Ok(())
}

/// Hands the place of each second-level table of a disk to `each`.
fn first_level(
    reader: &Reader<'_>,
    table: Table,
    mut each: impl FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    reader.entries("a first-level table", table.offset, table.entries, |_, entry| {
        let entry = u64::from_be_bytes(entry);
        require(entry & !(PLACE | COPIED) == 0, "an entry of a first-level table is not known")?;
        if entry & PLACE == 0 { Ok(()) } else { each(entry & PLACE) }
    })
}

struct Walk<'w> {
    reader: &'w Reader<'w>,
    header: &'w Header,
    tables: &'w Claims,
}

impl Walk<'_> {
    /// Checks the second-level tables of a disk, each that was not checked yet, and
    /// how much the disk has for the size of the file.
    fn disk(
        &self,
        number: usize,
        disk: Table,
        second: &mut SecondLevel,
        data: &mut Claims,
    ) -> Result<(), Error> {
        let mut total = Counted::default();
        first_level(self.reader, disk, |place| {
            let counted = second.entry(place).or_default();
            if !counted.is_checked {
                // Snapshots share clusters with the disk, and with each other.
                let data = (number == 0).then_some(&mut *data);
                *counted = self.second_level(place, data)?;
            }
            total.stored += counted.stored;
            total.compressed += counted.compressed;
            Ok(())
        })?;
        let len = self.reader.len();
        let clusters = len.div_ceil(self.header.cluster());
        limit("a disk has more clusters than the file", total.stored, clusters)?;
        let bytes = total.compressed << self.header.cluster_bits;
        limit("a disk has compressed bytes", bytes, len.saturating_mul(MAX_RATIO))
    }

    fn second_level(&self, place: u64, mut data: Option<&mut Claims>) -> Result<Counted, Error> {
        let mut counted = Counted { is_checked: true, ..Counted::default() };
        let count = self.header.l2_entries();
        let mut each = |entry: u64| {
            if entry & COMPRESSED != 0 {
                counted.compressed += 1;
                return self.compressed(entry);
            }
            let Some(cluster) = self.cluster(entry)? else { return Ok(()) };
            counted.stored += 1;
            match &mut data {
                Some(data) => data.claim("a cluster of data", cluster, 1),
                None => Ok(()),
            }
        };
        let what = "a second-level table";
        if self.header.has_subclusters {
            self.reader.entries::<16>(what, place, count, |_, entry| {
                each(u64::from_be_bytes(*entry.first_chunk().expect("it has 16 bytes")))
            })?;
        } else {
            self.reader.entries(what, place, count, |_, entry| each(u64::from_be_bytes(entry)))?;
        }
        Ok(counted)
    }

    /// Checks an entry, and returns where its cluster is, if it has one.
    fn cluster(&self, entry: u64) -> Result<Option<u64>, Error> {
        let has_zero_flag = self.header.version == 3 && !self.header.has_subclusters;
        let known = PLACE | COPIED | if has_zero_flag { ZERO } else { 0 };
        require(entry & !known == 0, "an entry of a second-level table is not known")?;
        let place = entry & PLACE;
        if place == 0 {
            return Ok(None);
        }
        require(
            place.is_multiple_of(self.header.cluster()),
            "a cluster of data does not start at one",
        )?;
        // The last cluster of a file may be cut short.
        require(place < self.reader.len(), "a cluster of data is beyond the end of the file")?;
        require(!self.tables.is_used(place), "a cluster of data is in the place of a table")?;
        Ok(Some(place))
    }

    /// Checks where a compressed cluster starts and how long it says it is: the lower
    /// bits are the place, the upper ones how many more sectors it has.
    fn compressed(&self, entry: u64) -> Result<(), Error> {
        let bits = 62 - (self.header.cluster_bits - 8);
        let place = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        let first = place - place % 512;
        require(entry & COPIED == 0, "a compressed cluster is to be written in place")?;
        let is_inside = place > 0 && place < self.reader.len();
        require(is_inside, "a compressed cluster is beyond the end of the file")?;
        // As many bytes as in a cluster, and one sector more, at most.
        let end = first + (sectors + 1) * 512;
        let last = (end - 1).min(self.reader.len() - 1);
        let is_free = !self.tables.is_used(place) && !self.tables.is_used(last);
        require(is_free, "a compressed cluster is in the place of a table")
    }
}
