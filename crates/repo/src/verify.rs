//! Finding damage: is everything that the snapshots need there, and right?
//!
//! Quick: follows all maps and checks that every segment that they name is
//! there with the right size, header, table and trailer, and that every
//! pointer agrees with the table. With data: also decodes and hashes every
//! frame of these segments. As stored: also opens every frame, which proves it to be what
//! its writer, who has decoded it again, stored. It repairs nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tintype_types::{ByteCount, SnapshotId};

use crate::error::Damage;
use crate::frame::{FrameHeader, FrameKind, HEADER_LEN};
use crate::listing;
use crate::loss::{self, Loss};
use crate::node::{Entry, Node};
use crate::parallel;
use crate::pointer::{FramePointer, NodePointer, Place, SegmentName};
use crate::record::SnapshotRecord;
use crate::run::Change;
use crate::segment::{Table, TableEntry, index};
use crate::signed;
use crate::supervisor::Supervisor;
use crate::tree::Tree;
use crate::vault::Vault;
use crate::wire::Malformed;
use crate::{Error, blob, epoch, gone, journal, label, quarantine};

/// How many pointers wait for the tables of segments to be read: 5 MiB.
const MOST_WANTED: usize = 1 << 16;

/// How often everything is looked at if it is moved meanwhile.
const MOST_ATTEMPTS: usize = 4;

/// How much to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerifyLevel {
    /// Maps, and sizes and tables of segments.
    Quick,
    /// Every byte.
    ReadData,
    /// Every byte as it was stored, without decoding it, from this machine as far as it is
    /// kept there: what a restore reads and decodes right after.
    StoredNearby,
}

/// What verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Snapshots whose maps were followed.
    pub snapshots: u64,
    /// Those of them that are deleted and can be put back.
    pub deleted: HashSet<SnapshotId>,
    /// Segments that were checked.
    pub segments: u64,
    /// Frames that were checked: decoded, or named in a good table.
    pub frames: u64,
    /// Bytes of stored data that were read and checked.
    pub read_bytes: ByteCount,
    /// Everything that is wrong, each with the snapshots that need it.
    pub damaged: Vec<Damage>,
    /// What cannot be read because of that.
    pub losses: Vec<Loss>,
}

/// Verifies the snapshots with these ids; or all if there are none, also those that are
/// deleted and can be put back.
pub(crate) fn verify(
    vault: &Arc<Vault>,
    ids: &[SnapshotId],
    level: VerifyLevel,
    supervisor: &dyn Supervisor,
) -> Result<VerifyReport, Error> {
    let mut attempts = MOST_ATTEMPTS;
    loop {
        let (records, mut report) = verify_once(vault, ids, level, supervisor)?;
        attempts -= 1;
        // What was moved meanwhile is not where it was looked for.
        let moved = !report.damaged.is_empty() && have_moved(vault, &records, ids.is_empty())?;
        if !moved || attempts == 0 {
            report.losses = loss::losses(vault, &records, &report.damaged)?;
            return Ok(report);
        }
    }
}

fn verify_once(
    vault: &Arc<Vault>,
    ids: &[SnapshotId],
    level: VerifyLevel,
    supervisor: &dyn Supervisor,
) -> Result<(Vec<SnapshotRecord>, VerifyReport), Error> {
    let report = VerifyReport::default();
    let mut check =
        Check { vault, supervisor, report, segments: BTreeMap::new(), wanted: Vec::new() };
    let records = if ids.is_empty() {
        let (listing, deleted) = listing::list_with_trash(vault)?;
        (check.report.damaged, check.report.deleted) = (listing.damaged, deleted);
        check.signed_objects()?;
        listing.records
    } else {
        ids.iter().map(|id| listing::one(vault, *id)).collect::<Result<_, _>>()?
    };
    for record in &records {
        check.snapshot(record)?;
    }
    check.all_segments(level)?;
    Ok((records, check.report))
}

/// Whether the content of a snapshot is elsewhere now, or of all of them one is gone.
fn have_moved(vault: &Vault, records: &[SnapshotRecord], are_all: bool) -> Result<bool, Error> {
    let (now, _) = listing::list_with_trash(vault)?;
    let elsewhere = |record: &SnapshotRecord| {
        let now = now.records.iter().find(|now| now.id == record.id);
        now.map_or(are_all, |now| (&now.images, &now.blobs) != (&record.images, &record.blobs))
    };
    Ok(records.iter().any(elsewhere))
}

struct Check<'a> {
    vault: &'a Vault,
    supervisor: &'a dyn Supervisor,
    report: VerifyReport,
    segments: BTreeMap<SegmentName, Needed>,
    /// What is yet to be compared with the tables, all of one snapshot.
    wanted: Vec<Wanted>,
}

/// What the table of a segment has to name.
enum Wanted {
    /// A frame of blocks.
    Blocks(FramePointer),
    /// A node or a chunk.
    Bytes(NodePointer, FrameKind),
}

impl Wanted {
    fn place(&self) -> Place {
        match self {
            Self::Blocks(pointer) => pointer.place,
            Self::Bytes(pointer, _) => pointer.place,
        }
    }

    fn segment(&self) -> SegmentName {
        self.place().segment
    }

    fn is_in(&self, vault: &Vault, table: &Table) -> bool {
        let place = self.place();
        let Some(entry) = table.entry(place.number) else { return false };
        let is_there =
            (entry.offset, HEADER_LEN + index(entry.stored)) == (place.offset, index(place.len));
        is_there
            && match self {
                Self::Blocks(pointer) => {
                    let ids = table.block_ids(entry);
                    ids.len() == usize::from(pointer.blocks)
                        && vault.keys.frame_id(ids) == pointer.id
                }
                Self::Bytes(pointer, kind) => {
                    entry.kind == *kind && Table::node_id(entry) == Some(pointer.id)
                }
            }
    }
}

/// What is known of a segment that snapshots need.
#[derive(Default)]
struct Needed {
    table: Option<Arc<Table>>,
    snapshots: BTreeSet<SnapshotId>,
    /// Damage of the segment as a whole was reported.
    broken: bool,
}

impl Check<'_> {
    /// Reads what has a tag, also where its name alone says all.
    fn signed_objects(&mut self) -> Result<(), Error> {
        let kinds =
            [("gone/", gone::KIND), ("ep/", epoch::KIND), (quarantine::PREFIX, quarantine::KIND)];
        for (prefix, kind) in kinds {
            self.each(prefix, |vault, key| signed::read(vault, key, kind).map(drop))?;
        }
        self.each(label::PREFIX, label::check)?;
        self.each(journal::PREFIX, journal::check)
    }

    /// Reads each object of a kind, and notes those that are damaged.
    fn each(
        &mut self,
        prefix: &str,
        read: impl Fn(&Vault, &str) -> Result<(), Error>,
    ) -> Result<(), Error> {
        for listed in self.vault.store.list(prefix)? {
            match read(self.vault, &listed.key) {
                // Removed since it was listed.
                Ok(()) | Err(Error::NotFound(_)) => {}
                Err(Error::Damaged(damage)) => self.report.damaged.push(damage),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, record: &SnapshotRecord) -> Result<(), Error> {
        self.report.snapshots += 1;
        let mut seen = HashSet::new();
        for image in &record.images {
            if let Some(base) = &image.root.base {
                self.node(base, (Tree::Base, image.root.height), record.id, &mut seen)?;
            }
            for run in &image.root.runs {
                self.node(&run.root, (Tree::Run, run.height), record.id, &mut seen)?;
            }
        }
        for (_, blob) in &record.blobs {
            self.pointer(&blob.list, FrameKind::Node, record.id)?;
            match blob::chunks(self.vault, blob) {
                Ok(chunks) => {
                    for chunk in chunks {
                        self.pointer(&chunk, FrameKind::Blob, record.id)?;
                    }
                }
                Err(error) => self.damage(error, record.id)?,
            }
        }
        self.compare_with_tables(record.id)
    }

    fn node(
        &mut self,
        pointer: &NodePointer,
        (tree, level): (Tree, u8),
        snapshot: SnapshotId,
        seen: &mut HashSet<NodePointer>,
    ) -> Result<(), Error> {
        if !seen.insert(*pointer) {
            return Ok(());
        }
        self.supervisor.check()?;
        self.pointer(pointer, FrameKind::Node, snapshot)?;
        let node = match self.vault.node(pointer) {
            Ok(node) => node,
            Err(error) => return self.damage(error, snapshot),
        };
        match (tree, &*node) {
            (Tree::Base, Node::Inner(inner)) if level > 0 && inner.level == level => {
                for child in inner.children.iter().flatten() {
                    self.node(child, (tree, level - 1), snapshot, seen)?;
                }
            }
            (Tree::Base, Node::Leaf(leaf)) if level == 0 => {
                self.entries(leaf.regions.iter(), snapshot)?;
            }
            (Tree::Run, Node::RunInner(inner)) if level > 0 && inner.level == level => {
                for (_, child) in &inner.children {
                    self.node(child, (tree, level - 1), snapshot, seen)?;
                }
            }
            (Tree::Run, Node::RunLeaf(leaf)) if level == 0 => {
                for (_, change) in &leaf.changes {
                    match change {
                        Change::Whole(Some(leaf)) => {
                            self.node(leaf, (Tree::Base, 0), snapshot, seen)?;
                        }
                        Change::Whole(None) => {}
                        Change::Regions(regions) => {
                            self.entries(regions.iter().map(|(_, entry)| entry), snapshot)?;
                        }
                    }
                }
            }
            _ => self.report_at(&pointer.place, "a node is not where it belongs", snapshot),
        }
        Ok(())
    }

    fn entries<'e>(
        &mut self,
        mut entries: impl Iterator<Item = &'e Entry>,
        snapshot: SnapshotId,
    ) -> Result<(), Error> {
        entries.try_for_each(|entry| {
            entry.parts.iter().try_for_each(|part| self.frame(&part.frame, snapshot))
        })
    }

    /// Notes a pointer to a node or chunk.
    fn pointer(
        &mut self,
        pointer: &NodePointer,
        kind: FrameKind,
        snapshot: SnapshotId,
    ) -> Result<(), Error> {
        self.note(Wanted::Bytes(*pointer, kind), snapshot)
    }

    /// Notes a pointer to a frame of blocks.
    fn frame(&mut self, pointer: &FramePointer, snapshot: SnapshotId) -> Result<(), Error> {
        self.note(Wanted::Blocks(*pointer), snapshot)
    }

    fn note(&mut self, wanted: Wanted, snapshot: SnapshotId) -> Result<(), Error> {
        self.wanted.push(wanted);
        if self.wanted.len() < MOST_WANTED { Ok(()) } else { self.compare_with_tables(snapshot) }
    }

    /// Checks what was noted of a snapshot against the tables of the segments.
    fn compare_with_tables(&mut self, snapshot: SnapshotId) -> Result<(), Error> {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.sort_by_key(Wanted::segment);
        let of_segments: Vec<&[Wanted]> =
            wanted.chunk_by(|one, other| one.segment() == other.segment()).collect();
        let compared = self.vault.at_once(&of_segments, |of_segment| {
            let needed = self.segments.get(&of_segment[0].segment());
            let table = match needed {
                Some(Needed { broken: true, .. }) => return Ok(None),
                Some(Needed { table: Some(table), .. }) => Arc::clone(table),
                // Read it even if it is in memory: what counts is what is stored.
                _ => Arc::new(self.vault.read_table(of_segment[0].segment())?),
            };
            let others = of_segment.iter().filter(|wanted| !wanted.is_in(self.vault, &table));
            let others: Vec<Place> = others.map(Wanted::place).collect();
            Ok(Some((table, others)))
        });
        for (of_segment, compared) in of_segments.iter().zip(compared) {
            let needed = self.segments.entry(of_segment[0].segment()).or_default();
            needed.snapshots.insert(snapshot);
            match compared {
                Ok(None) => {}
                Ok(Some((table, others))) => {
                    needed.table = Some(table);
                    for place in others {
                        self.report_at(&place, "the table has another frame there", snapshot);
                    }
                }
                Err(error) => {
                    needed.broken = true;
                    self.damage(error, snapshot)?;
                }
            }
        }
        Ok(())
    }

    fn all_segments(&mut self, level: VerifyLevel) -> Result<(), Error> {
        let count = |len: usize| u64::try_from(len).expect("a usize fits in 64 bits");
        let tables = self.segments.iter().filter_map(|(name, n)| Some((*name, n.table.clone()?)));
        let tables: Vec<_> = tables.collect();
        self.report.segments = count(self.segments.len());
        self.report.frames = tables.iter().map(|(_, table)| count(table.entries().len())).sum();
        if level != VerifyLevel::Quick {
            let reading = Reading {
                vault: self.vault,
                level,
                supervisor: self.supervisor,
                total: tables.iter().map(|(_, table)| size_of(table)).sum(),
                done: AtomicU64::new(0),
                has_failed: AtomicBool::new(false),
            };
            for damaged in parallel::map(&tables, parallel::readers(), |(name, table)| {
                reading.next(*name, table)
            }) {
                self.report.damaged.extend(damaged?);
            }
            self.report.read_bytes = ByteCount(reading.done.into_inner());
        }
        // Damage is reported where it is met first; every snapshot that needs
        // the segment is affected.
        for damage in &mut self.report.damaged {
            if let Some(name) = SegmentName::from_key(&damage.object)
                && let Some(needed) = self.segments.get(&name)
            {
                damage.snapshots = needed.snapshots.iter().copied().collect();
            }
        }
        Ok(())
    }

    fn damage(&mut self, error: Error, snapshot: SnapshotId) -> Result<(), Error> {
        match error {
            Error::Damaged(damage) => {
                let damage = Damage { snapshots: vec![snapshot], ..damage };
                if !self
                    .report
                    .damaged
                    .iter()
                    .any(|d| d.object == damage.object && d.offset == damage.offset)
                {
                    self.report.damaged.push(damage);
                }
                Ok(())
            }
            error => Err(error),
        }
    }

    fn report_at(&mut self, place: &Place, reason: &str, snapshot: SnapshotId) {
        let mut damage = Damage::new(place.segment.key(), Some(u64::from(place.offset)), reason);
        damage.snapshots = vec![snapshot];
        self.report.damaged.push(damage);
    }
}

/// Reads segments, several at a time.
struct Reading<'a> {
    vault: &'a Vault,
    level: VerifyLevel,
    supervisor: &'a dyn Supervisor,
    total: u64,
    done: AtomicU64,
    /// What comes after an error is of no use.
    has_failed: AtomicBool,
}

impl Reading<'_> {
    fn next(&self, name: SegmentName, table: &Arc<Table>) -> Result<Vec<Damage>, Error> {
        if self.has_failed.load(Relaxed) {
            return Ok(Vec::new());
        }
        let damaged = self.supervisor.check().and_then(|()| self.segment(name, table));
        self.has_failed.fetch_or(damaged.is_err(), Relaxed);
        let size = size_of(table);
        let done = self.done.fetch_add(size, Relaxed) + size;
        self.supervisor.advance(ByteCount(done), ByteCount(self.total));
        damaged
    }

    /// Returns the damage of a segment's frames.
    fn segment(&self, name: SegmentName, table: &Table) -> Result<Vec<Damage>, Error> {
        let start = crate::segment::HEADER_LEN;
        let len = usize::try_from(size_of(table)).expect("a segment has at most 16 MiB");
        let from_store = || self.vault.range(name, start, len);
        if self.level == VerifyLevel::ReadData {
            return self.frames(name, table, from_store);
        }
        let damaged = self.frames(name, table, || self.vault.range_nearby(name, start, len))?;
        // What is kept on this machine may be what is wrong.
        if damaged.is_empty() || !self.vault.forget(name, start, len) {
            return Ok(damaged);
        }
        self.frames(name, table, from_store)
    }

    /// Checks every frame of a segment; returns the damage.
    fn frames(
        &self,
        name: SegmentName,
        table: &Table,
        read: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Vec<Damage>, Error> {
        let mut bytes = match read() {
            Ok(bytes) => bytes,
            Err(Error::Damaged(damage)) => return Ok(vec![damage]),
            Err(error) => return Err(error),
        };
        let mut damaged = Vec::new();
        for (number, entry) in (0_u16..=u16::MAX).zip(table.entries()) {
            let Range { start, end } = entry.range();
            let from = crate::segment::HEADER_LEN;
            let stored = &mut bytes[start - from..end - from];
            let checked = match self.level {
                VerifyLevel::StoredNearby => {
                    self.vault.check_frame_stored(name, stored, number, entry.kind)
                }
                _ => check_frame(self.vault, name, table, (number, entry), stored),
            };
            if let Err(Malformed(reason)) = checked {
                damaged.push(Damage::new(name.key(), Some(u64::from(entry.offset)), reason));
            }
        }
        Ok(damaged)
    }
}

/// Decodes and hashes a frame, which is given with its header and opened in place.
pub(crate) fn check_frame(
    vault: &Vault,
    name: SegmentName,
    table: &Table,
    (number, entry): (u16, &TableEntry),
    stored: &mut [u8],
) -> Result<(), Malformed> {
    FrameHeader::decode(stored)?.check(&stored[HEADER_LEN..])?;
    let raw = vault.decode_frame(name, stored, number, entry.kind)?;
    vault
        .is_content(table, entry, &raw)
        .then_some(())
        .ok_or(Malformed("the content is not what was written"))
}

/// Returns how many bytes the frames of a segment have.
fn size_of(table: &Table) -> u64 {
    let header = u64::try_from(HEADER_LEN).expect("a usize fits in 64 bits");
    table.entries().iter().map(|entry| header + u64::from(entry.stored)).sum()
}
