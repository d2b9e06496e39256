//! A damaged repository is mended from another one, which has keys, ids and places
//! of its own and copies of the snapshots.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tempfile::TempDir;
use tintype_repo::{
    Copier, CopyParams, Encryption, GcParams, ImageParams, NamedImage, RepairReport, Repository,
    SnapshotDraft, SnapshotRecord, Supervisor, Unwritten, VerifyLevel,
};
use tintype_types::{ByteCount, SnapshotId};

use crate::support::{BLOCK, Dice, begin, content, copy_tree, draft, eager, files, init, soak};

/// Leaves of the large image: so many that scattered changes become a run.
const LEAVES: u64 = 24;
const LEAF: u64 = 16 << 20;

/// The blocks of an image that are not zero.
type Blocks = BTreeMap<u64, Vec<u8>>;
/// What a snapshot holds: its images and its blob.
type Held = (Vec<(String, Blocks)>, Vec<u8>);

/// A repository with a key, and another one with another key that has all.
struct Pair {
    folder: TempDir,
    key: Encryption,
    other: Repository,
    /// The snapshots of the first, oldest first.
    records: Vec<SnapshotRecord>,
    held: BTreeMap<SnapshotId, Held>,
}

fn held(repository: &Repository, record: &SnapshotRecord) -> Held {
    let images = record.images.iter().map(|image| {
        let reader = repository.open_image(&image.root).unwrap();
        let mut blocks = Blocks::new();
        for piece in reader.sequence() {
            let (offset, bytes) = piece.unwrap();
            for (number, block) in (0..).zip(bytes.chunks(BLOCK)) {
                if block.iter().any(|byte| *byte != 0) {
                    blocks.insert(offset + number * BLOCK as u64, block.to_vec());
                }
            }
        }
        (image.name.clone(), blocks)
    });
    let images = images.collect();
    let blobs = record.blobs.iter().flat_map(|(_, blob)| repository.read_blob(blob).unwrap());
    (images, blobs.collect())
}

/// Takes a snapshot whose first image is given, and whose second one differs from
/// that of the one before in a block of each 16 MiB.
fn take(
    repository: &Repository,
    seed: u64,
    ram: &[u8],
    parent: Option<&SnapshotRecord>,
) -> SnapshotRecord {
    let session = begin(repository);
    let root = |at: usize| parent.map(|record| record.images[at].root.clone());
    let size = ByteCount(ram.len() as u64);
    let params = ImageParams { size, parent: root(0), unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    writer.write(0, ram).unwrap();
    let first = NamedImage { name: "ram".to_owned(), root: writer.finish().unwrap() };
    let size = ByteCount(LEAVES * LEAF - 1_000);
    let unwritten = if parent.is_some() { Unwritten::Parent } else { Unwritten::Zero };
    let mut writer = session.image(ImageParams { size, parent: root(1), unwritten }).unwrap();
    for leaf in 0..LEAVES {
        writer
            .write(leaf * LEAF + seed % 7 * 65_536, &content(seed * 100 + leaf, 2 * BLOCK))
            .unwrap();
    }
    let second = NamedImage { name: "disk/vda".to_owned(), root: writer.finish().unwrap() };
    let blob = session.blob(&content(seed, 300_000)).unwrap();
    let draft = SnapshotDraft {
        parent: parent.map(|record| record.id),
        created: format!("2026-11-22T10:00:{seed:02}Z").parse().unwrap(),
        images: vec![first, second],
        blobs: vec![("state".to_owned(), blob)],
        details: serde_json::json!(seed),
        ..draft(Vec::new())
    };
    session.commit(draft).unwrap()
}

fn copy_all(from: &Repository, to: &Repository, records: &[SnapshotRecord]) {
    let mut copier = Copier::new(from, to, CopyParams::default()).unwrap();
    for record in records {
        copier.copy(record.id, &()).unwrap();
    }
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = |name: &str| Encryption::KeyFile(folder.path().join(name));
        let (key, other_key) = (key("key"), key("other.key"));
        let repository = init(&folder.path().join("here"), &key);
        let other = init(&folder.path().join("other"), &other_key);
        let mut ram = content(1, 150 * BLOCK);
        let mut records: Vec<SnapshotRecord> = Vec::new();
        for seed in 1..4_usize {
            ram[seed * 20 * BLOCK..][..9 * BLOCK]
                .copy_from_slice(&content(50, 9 * BLOCK * seed)[9 * BLOCK * (seed - 1)..]);
            records.push(take(&repository, seed as u64, &ram, records.last()));
        }
        copy_all(&repository, &other, &records);
        let held = records.iter().map(|record| (record.id, held(&repository, record))).collect();
        let pair = Self { folder, key, other, records, held };
        copy_tree(&pair.here(), &pair.folder.path().join("good"));
        pair
    }

    fn here(&self) -> PathBuf {
        self.folder.path().join("here")
    }

    /// Opens it like a process that knows nothing of it.
    fn open(&self) -> Repository {
        Repository::open_with(&self.here(), std::slice::from_ref(&self.key)).unwrap()
    }

    /// Makes it as it was before it was damaged.
    fn reset(&self) {
        fs::remove_dir_all(self.here()).unwrap();
        copy_tree(&self.folder.path().join("good"), &self.here());
    }

    fn repair(&self) -> RepairReport {
        self.open().repair(Some(&self.other), &()).unwrap()
    }

    /// Asserts that everything is there as it was, and works on.
    fn is_whole(&self, what: &str) {
        let repository = self.open();
        let listing = repository.snapshots().unwrap();
        assert_eq!(listing.damaged, [], "{what}");
        let ids: Vec<_> = listing.records.iter().map(|record| record.id).collect();
        assert_eq!(ids, self.records.iter().map(|r| r.id).collect::<Vec<_>>(), "{what}");
        for (record, before) in listing.records.iter().zip(&self.records) {
            assert!(held(&repository, record) == self.held[&record.id], "{what}: other bytes");
            let told = |r: &SnapshotRecord| {
                (r.vm, r.name.clone(), r.parent, r.created, r.details.clone(), r.origin)
            };
            assert_eq!(told(record), told(before), "{what}");
        }
        let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        assert_eq!(report.damaged, [], "{what}");
    }
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, to: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..to]).unwrap();
}

/// Damages an object in one of several ways.
fn damage(path: &Path, way: u64, dice: &mut Dice) {
    let len = fs::metadata(path).unwrap().len() as usize;
    match way {
        0 => fs::remove_file(path).unwrap(),
        1 => cut(path, 0),
        2 => cut(path, len / 2),
        // What describes it or the tag, with what would prove what it was, and anywhere.
        3 => [9, len - 30].into_iter().for_each(|at| flip(path, at)),
        4 => [len - 70, len - 30].into_iter().for_each(|at| flip(path, at)),
        _ => flip(path, dice.pick(len)),
    }
}

#[test]
fn every_object_is_mended_whatever_is_wrong_with_it() {
    let pair = Pair::new();
    let mut dice = Dice::new(soak("", 0).seed);
    let objects = files(&pair.here());
    let kind = |path: &Path| {
        let key = path.strip_prefix(pair.here()).unwrap();
        key.iter().next().unwrap().to_str().unwrap().to_owned()
    };
    let mut cases = 0;
    for path in objects.iter().filter(|path| ["seg", "outcome"].contains(&&*kind(path))) {
        for way in 0..7 {
            if way == 0 && kind(path) == "outcome" {
                // What is not there is not missed.
                continue;
            }
            damage(path, way, &mut dice);
            let what = format!("{} damaged in way {way}", path.display());
            let report = pair.repair();
            assert_eq!((report.damaged, report.losses), (vec![], vec![]), "{what}");
            assert_eq!((report.mismatches, report.quarantined), (vec![], vec![]), "{what}");
            if !report.found.is_empty() {
                assert!(!report.mended.is_empty() || !report.repaired.is_empty(), "{what}");
                cases += 1;
            }
            pair.is_whole(&what);
            pair.reset();
        }
    }
    assert!(cases > 40, "{cases}");
}

#[test]
fn all_that_was_lost_at_once_comes_back_and_what_is_left_is_collected() {
    let pair = Pair::new();
    for path in files(&pair.here().join("seg")) {
        fs::remove_file(path).unwrap();
    }
    for path in files(&pair.here().join("outcome")) {
        flip(&path, 100);
    }
    let report = pair.repair();
    assert_eq!((report.damaged, report.losses), (vec![], vec![]));
    assert_eq!(report.mended.len(), pair.records.len());
    assert!(report.mended.iter().all(|mended| mended.unproved_bytes.get() > 0));
    pair.is_whole("all");
    let again = pair.repair();
    assert_eq!((again.found, again.mended), (vec![], vec![]), "there is nothing left to do");
    // What is changed afterwards relies on none of it.
    let repository = pair.open();
    let latest = repository.snapshots().unwrap().records.pop().unwrap();
    let next = take(&repository, 9, &content(77, 150 * BLOCK), Some(&latest));
    repository.remove(next.id).unwrap();
    repository.gc(eager(), &()).unwrap();
    pair.is_whole("collected");
}

#[test]
fn what_a_good_map_proves_is_proved() {
    let pair = Pair::new();
    let repository = pair.open();
    let seg = pair.here().join("seg");
    let largest = files(&seg).into_iter().max_by_key(|p| fs::metadata(p).unwrap().len()).unwrap();
    for at in (1_000..fs::metadata(&largest).unwrap().len() as usize - 20_000).step_by(50_000) {
        flip(&largest, at);
    }
    let key = largest.strip_prefix(pair.here()).unwrap().to_str().unwrap().to_owned();
    let report = pair.repair();
    assert!(!report.found.is_empty());
    assert_eq!(report.emptied, [key]);
    assert!(report.mended.iter().all(|mended| mended.unproved_bytes == ByteCount(0)));
    assert!(report.fetched_bytes.get() > 0);
    let same: Vec<_> = report.mended.iter().filter_map(|mended| mended.same).collect();
    let there = pair.other.snapshots().unwrap().records;
    assert!(!same.is_empty() && same.iter().all(|id| there.iter().any(|r| r.id == *id)));
    pair.is_whole("proved");
    drop(repository);
    // Nothing needs the damaged one, so it goes.
    let repository = pair.open();
    repository.gc(GcParams::default(), &()).unwrap();
    assert!(!largest.exists());
    assert_eq!(repository.repair(None, &()).unwrap().released.len(), 1);
}

#[test]
fn what_the_other_one_lacks_stays_lost_and_is_named() {
    let pair = Pair::new();
    let repository = pair.open();
    // Not copied, and with content of its own.
    let alone = take(&repository, 5, &content(99, 150 * BLOCK), None);
    let seg = files(&pair.here().join("seg")).into_iter();
    let of = |id: SnapshotId| {
        let own = seg.clone().filter(move |path| path.to_string_lossy().contains(&id.to_string()));
        own.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    };
    for id in [alone.id, pair.records[0].id] {
        flip(&of(id), 70_000);
    }
    let report = pair.repair();
    assert_eq!(report.quarantined.len(), 1, "{report:?}");
    assert_eq!(report.emptied.len(), 1);
    assert!(!report.damaged.is_empty());
    assert!(report.losses.iter().all(|loss| loss.snapshot == alone.id), "{:?}", report.losses);
    for record in &pair.records {
        let now = pair.open().snapshot(record.id).unwrap();
        assert!(held(&pair.open(), &now) == pair.held[&record.id]);
    }
    // It is of no use again, and says the same.
    let again = pair.repair();
    assert_eq!((again.mended, again.damaged), (vec![], report.damaged));
}

#[test]
fn a_copy_is_mended_from_what_it_is_a_copy_of() {
    let pair = Pair::new();
    let copies = files(&pair.other.path().join("seg"));
    let key = Encryption::KeyFile(pair.folder.path().join("other.key"));
    let mut emptied = 0;
    for path in &copies {
        flip(path, 200);
        let other = Repository::open_with(pair.other.path(), std::slice::from_ref(&key)).unwrap();
        let report = other.repair(Some(&pair.open()), &()).unwrap();
        assert_eq!(report.damaged, []);
        emptied += report.emptied.len();
    }
    assert!(emptied > 1, "{emptied}");
    let other = Repository::open_with(pair.other.path(), &[key]).unwrap();
    for copy in other.snapshots().unwrap().records {
        assert!(held(&other, &copy) == pair.held[&copy.origin.unwrap().snapshot]);
    }
}

/// Ends a repair when it was asked so often.
struct Impatient(AtomicU64, u64);

impl Supervisor for Impatient {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_add(1, Relaxed) >= self.1
    }
}

#[test]
fn a_repair_that_is_ended_goes_on_and_does_nothing_twice() {
    let pair = Pair::new();
    for path in files(&pair.here().join("seg")) {
        flip(&path, 300);
    }
    flip(&pair.here().join(format!("outcome/{}", pair.records[1].id)), 99);
    let mut interrupted = 0;
    for limit in (1..).step_by(29) {
        let supervisor = Impatient(AtomicU64::new(0), limit);
        match pair.open().repair(Some(&pair.other), &supervisor) {
            Ok(report) => {
                assert_eq!(report.damaged, []);
                break;
            }
            Err(error) => {
                assert_eq!(error.kind(), tintype_repo::Kind::Interrupted);
                interrupted += 1;
            }
        }
    }
    assert!(interrupted > 3, "{interrupted}");
    pair.is_whole("ended");
}

#[test]
fn what_is_in_the_trash_is_checked_and_mended_too() {
    let pair = Pair::new();
    let (deleted, kept) = (pair.records[1].id, pair.records[2].id);
    pair.open().remove(deleted).unwrap();
    let own = |kind: &str| {
        let mut own = files(&pair.here().join(kind));
        own.retain(|path| path.to_string_lossy().contains(&deleted.to_string()));
        own
    };
    // Its record, what only it needs, and what the next one needs too.
    for path in [own("seg"), own("outcome")].concat() {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let report = pair.open().verify(&[], VerifyLevel::ReadData, &()).unwrap();
    let is_record = |object: &str| object == format!("outcome/{deleted}");
    assert!(report.damaged.iter().any(|damage| is_record(&damage.object)), "{report:?}");
    let report = pair.repair();
    assert_eq!(report.damaged, [], "{report:?}");
    assert!(report.mended.iter().any(|mended| mended.snapshot == deleted), "{report:?}");
    let repository = pair.open();
    let there: Vec<_> = repository.snapshots().unwrap().records.iter().map(|r| r.id).collect();
    assert_eq!(there, [pair.records[0].id, kept], "it stays deleted");
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!((report.snapshots, report.deleted), (3, [deleted].into()));
    repository.undo_remove(deleted).unwrap();
    pair.is_whole("what was put back from the trash");

    // Without a record nobody knows what it had; with it, its content is mended alone.
    repository.remove(deleted).unwrap();
    let mut segments = files(&pair.here().join("seg"));
    segments.retain(|path| fs::metadata(path).unwrap().len() > 200_000);
    for path in segments {
        let mut bytes = fs::read(&path).unwrap();
        bytes[5_000] ^= 1;
        fs::write(&path, bytes).unwrap();
    }
    let report = pair.repair();
    assert_eq!(report.damaged, [], "{report:?}");
    pair.open().undo_remove(deleted).unwrap();
    pair.is_whole("what was mended in the trash");
}
