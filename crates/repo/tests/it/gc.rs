//! Deletion, undo, collection, compaction and pins on a real folder.

use std::collections::HashSet;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use jiff::Timestamp;
use proptest::prelude::*;
use tintype_repo::{
    CompactionReport, Due, Error, GcParams, ImageParams, Kind, Repository, SnapshotRecord,
    Supervisor, Unwritten, VerifyLevel,
};
use tintype_types::ByteCount;

use crate::support::{BLOCK, begin, content, draft, eager, files, new_repository, read_all, take};

fn collect(repository: &Repository) -> tintype_repo::GcReport {
    repository.gc(GcParams::default(), &()).unwrap()
}

fn chain(repository: &Repository, count: u64) -> (Vec<SnapshotRecord>, Vec<Vec<u8>>) {
    let mut records: Vec<SnapshotRecord> = Vec::new();
    let mut images = Vec::new();
    let mut image = content(1, 300 * BLOCK);
    for seed in 0..count {
        let at = usize::try_from(seed).unwrap() * 10 * BLOCK;
        image[at..at + 10 * BLOCK].copy_from_slice(&content(seed + 2, 10 * BLOCK));
        records.push(take(repository, &image, records.last()));
        images.push(image.clone());
    }
    (records, images)
}

fn check_good(repository: &Repository, records: &[SnapshotRecord], images: &[Vec<u8>]) {
    let listed = repository.snapshots().unwrap();
    assert!(listed.damaged.is_empty());
    assert!(listed.records == records);
    for (record, image) in records.iter().zip(images) {
        assert!(read_all(repository, &record.images[0].root) == *image);
    }
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
}

#[test]
fn deleting_all_gives_all_space_back() {
    let (_folder, repository) = new_repository();
    let (records, _) = chain(&repository, 3);
    assert_eq!(collect(&repository).segments, 0);
    for record in &records {
        repository.remove(record.id).unwrap();
    }
    let mut params = GcParams::default();
    params.dry_run = true;
    let would = repository.gc(params, &());
    let report = collect(&repository);
    assert_eq!(would.unwrap(), report);
    assert!(report.segments >= 6 && report.freed_bytes.get() > 0, "{report:?}");
    assert_eq!(repository.usage().unwrap().segments, 0);
    assert_eq!(files(&repository.path().join("outcome")), Vec::<std::path::PathBuf>::new());
    assert_eq!(files(&repository.path().join("gone")), Vec::<std::path::PathBuf>::new());
    assert_eq!(collect(&repository), tintype_repo::GcReport::default());
}

#[test]
fn an_undone_deletion_never_was() {
    let (_folder, repository) = new_repository();
    let (records, images) = chain(&repository, 2);
    for _ in 0..3 {
        repository.remove(records[0].id).unwrap();
        assert_eq!(repository.snapshot(records[0].id).map_err(|e| e.kind()), Err(Kind::NotFound));
        assert!(repository.undo_remove(records[0].id).unwrap() == records[0]);
    }
    collect(&repository);
    check_good(&repository, &records, &images);
    repository.remove(records[1].id).unwrap();
    collect(&repository);
    let undone = repository.undo_remove(records[1].id).map_err(|error| error.kind());
    assert_eq!(undone, Err(Kind::NotFound));
    check_good(&repository, &records[..1], &images[..1]);
}

#[test]
fn a_pinned_snapshot_can_be_read_after_its_deletion() {
    let (_folder, repository) = new_repository();
    let (records, images) = chain(&repository, 2);
    let pin = repository.pin(records[0].id).unwrap();
    repository.remove(records[0].id).unwrap();
    assert_eq!(repository.pin(records[0].id).map_err(|e| e.kind()).unwrap_err(), Kind::NotFound);
    collect(&repository);
    collect(&repository);
    let other = Repository::open(repository.path()).unwrap();
    assert!(read_all(&other, &pin.record().images[0].root) == images[0]);
    drop(pin);
    collect(&repository);
    assert!(!repository.path().join(format!("outcome/{}", records[0].id)).exists());
    check_good(&repository, &records[1..], &images[1..]);
}

#[test]
fn collection_waits_for_a_session_and_spares_what_it_commits() {
    let (_folder, repository) = new_repository();
    let (records, images) = chain(&repository, 2);
    let session = begin(&repository);
    let parent = Some(records[1].images[0].root.clone());
    let size = ByteCount(images[1].len() as u64);
    let params = ImageParams { size, parent, unwritten: Unwritten::Parent };
    let root = session.image(params).unwrap().finish().unwrap();
    for record in &records {
        repository.remove(record.id).unwrap();
    }
    let other = Repository::open(repository.path()).unwrap();
    assert_eq!(collect(&other).waiting_for, 1);
    assert_eq!(collect(&other).waiting_for, 1);
    let record = session.commit(draft(vec![("ram", root)])).unwrap();
    assert_eq!(collect(&other).waiting_for, 0);
    check_good(&other, &[record], &images[1..]);
}

#[test]
fn a_collection_is_of_all_that_was_deleted_before_it() {
    let (_folder, repository) = new_repository();
    let (records, images) = chain(&repository, 3);
    let session = begin(&repository);
    repository.remove(records[0].id).unwrap();
    assert_eq!(collect(&repository).waiting_for, 1, "an epoch has begun");
    drop(session);
    repository.remove(records[1].id).unwrap();
    collect(&repository);
    check_good(&repository, &records[2..], &images[2..]);
    assert_eq!(collect(&repository), tintype_repo::GcReport::default());
}

/// Cancels after some looks.
struct Limited(AtomicU64);

impl Supervisor for Limited {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

#[test]
fn what_was_cancelled_anywhere_goes_on() {
    let (_folder, repository) = new_repository();
    let (mut records, mut images) = chain(&repository, 20);
    let cancelled = |result: Result<(), Error>| match result {
        Ok(()) => false,
        Err(error) => {
            assert_eq!(error.kind(), Kind::Interrupted);
            true
        }
    };
    for looks in 0.. {
        let limited = Limited(AtomicU64::new(looks));
        let result = repository.verify(&[], VerifyLevel::ReadData, &limited);
        if !cancelled(result.map(drop)) {
            assert!(looks > 10);
            break;
        }
    }
    for looks in 0..4 {
        repository.remove(records.remove(0).id).unwrap();
        images.remove(0);
        let limited = Limited(AtomicU64::new(looks));
        let result = repository.gc(GcParams::default(), &limited);
        assert!(cancelled(result.map(drop)) || looks > 1, "{looks}");
        check_good(&repository, &records, &images);
    }
    collect(&repository);
    check_good(&repository, &records, &images);
    assert_eq!(collect(&repository), tintype_repo::GcReport::default());
}

#[test]
fn a_root_that_was_collected_is_no_parent() {
    let (_folder, repository) = new_repository();
    let (records, images) = chain(&repository, 1);
    repository.remove(records[0].id).unwrap();
    collect(&repository);
    let session = begin(&repository);
    let size = ByteCount(images[0].len() as u64);
    let parent = Some(records[0].images[0].root.clone());
    let params = ImageParams { size, parent: parent.clone(), unwritten: Unwritten::Parent };
    assert_eq!(session.image(params).map_err(|e| e.kind()).unwrap_err(), Kind::NotFound);
    let stale = draft(vec![("ram", parent.clone().unwrap())]);
    let params = ImageParams { size, parent, unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    writer.write(0, &images[0]).unwrap();
    let root = writer.finish().unwrap();
    let record = session.commit(draft(vec![("ram", root)])).unwrap();
    check_good(&Repository::open(repository.path()).unwrap(), &[record], &images);
    assert_eq!(begin(&repository).commit(stale).map_err(|e| e.kind()), Err(Kind::NotFound));
}

#[test]
fn damage_stops_collection() {
    let (_folder, repository) = new_repository();
    let (records, _) = chain(&repository, 3);
    repository.remove(records[0].id).unwrap();
    let path = repository.path().join(format!("outcome/{}", records[1].id));
    fs::write(&path, "damaged").unwrap();
    let before = repository.usage().unwrap();
    assert_eq!(repository.gc(GcParams::default(), &()).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(repository.usage().unwrap(), before);
    // A damaged snapshot can be given up, and then collection goes on.
    repository.remove(records[1].id).unwrap();
    collect(&repository);
    let listed = repository.snapshots().unwrap();
    assert_eq!((listed.records.len(), listed.damaged.len()), (1, 0));
}

#[test]
fn shares_are_exact() {
    let (_folder, repository) = new_repository();
    let (records, _) = chain(&repository, 3);
    let shares = repository.shares().unwrap();
    for (index, share) in shares.snapshots.iter().enumerate() {
        assert_eq!(share.id, records[index].id);
        repository.remove(share.id).unwrap();
        let without = repository.shares().unwrap();
        let freed = shares.referenced_bytes.get() - without.referenced_bytes.get();
        assert_eq!(share.exclusive_bytes.get(), freed);
        repository.undo_remove(share.id).unwrap();
    }
    assert_eq!(repository.shares().unwrap(), shares);
    for share in &shares.vms {
        let of_vm = records.iter().filter(|record| record.vm == share.vm);
        let ids: Vec<_> = of_vm.map(|record| record.id).collect();
        let together = repository.shares_of(&ids).unwrap().together;
        assert_eq!(share.referenced_bytes, together.referenced_bytes);
    }
    let pair = [records[0].id, records[2].id];
    let together = repository.shares_of(&pair).unwrap().together;
    repository.remove_all(&pair, Timestamp::now()).unwrap();
    let without = repository.shares_of(&pair).unwrap();
    assert_eq!(without.together, tintype_repo::SetShare::default());
    let freed = shares.referenced_bytes.get() - without.referenced_bytes.get();
    assert_eq!(together.exclusive_bytes.get(), freed);
    let deleted = repository.deleted().unwrap();
    assert_eq!((deleted.len(), deleted[0].at), (2, deleted[1].at), "they are one act");
    deleted.iter().for_each(|one| drop(repository.undo_remove(one.id).unwrap()));
    assert_eq!(repository.shares().unwrap(), shares);
}

/// Two snapshots of which the second has a third of the first, and the first is
/// deleted and collected.
fn mostly_garbage(repository: &Repository) -> (SnapshotRecord, Vec<u8>) {
    let first = content(1, 96 * BLOCK);
    let mut second = content(2, 96 * BLOCK);
    second[..32 * BLOCK].copy_from_slice(&first[..32 * BLOCK]);
    let record = take(repository, &first, None);
    let kept = take(repository, &second, Some(&record));
    repository.remove(record.id).unwrap();
    let mut plain = GcParams::default();
    plain.compaction = None;
    repository.gc(plain, &()).unwrap();
    (kept, second)
}

#[test]
fn what_is_left_of_a_segment_is_moved() {
    let (_folder, repository) = new_repository();
    let (record, image) = mostly_garbage(&repository);
    let before = repository.usage().unwrap();
    assert_eq!(collect(&repository), tintype_repo::GcReport::default(), "it does not pay");
    let mut would = eager();
    would.dry_run = true;
    let would = repository.gc(would, &()).unwrap().compaction;
    let report = repository.gc(eager(), &()).unwrap();
    let CompactionReport { segments, snapshots, .. } = report.compaction;
    assert_eq!((segments, snapshots), (would.segments, 1));
    assert_eq!(report.compaction.skipped, None);
    let moved = repository.snapshot(record.id).unwrap();
    assert_ne!(moved.images, record.images);
    assert_eq!(SnapshotRecord { images: record.images.clone(), ..moved.clone() }, record);
    let after = repository.usage().unwrap();
    assert!(after.segment_bytes < before.segment_bytes, "{before:?} {after:?}");
    assert_eq!(repository.shares().unwrap().snapshots.len(), 1);
    check_good(&Repository::open(repository.path()).unwrap(), &[moved], &[image]);
    // Once more: the first move is forgotten.
    repository.gc(eager(), &()).unwrap();
    repository.remove(record.id).unwrap();
    collect(&repository);
    assert_eq!(repository.usage().unwrap().segments, 0);
    for folder in ["outcome", "gone"] {
        assert_eq!(files(&repository.path().join(folder)), Vec::<std::path::PathBuf>::new());
    }
}

#[test]
fn what_is_read_stays_where_it_is() {
    let (_folder, repository) = new_repository();
    let (record, image) = mostly_garbage(&repository);
    let pin = repository.pin(record.id).unwrap();
    let other = Repository::open(repository.path()).unwrap();
    assert_eq!(other.gc(eager(), &()).unwrap().compaction, CompactionReport::default());
    drop(pin);
    // One that began to read before it was moved.
    let pin = repository.pin(record.id).unwrap();
    assert_eq!(*pin.record(), record);
    drop(pin);
    assert_eq!(other.gc(eager(), &()).unwrap().compaction.snapshots, 1);
    assert!(read_all(&other, &other.snapshot(record.id).unwrap().images[0].root) == image);
}

#[test]
fn a_parent_that_was_moved_is_found() {
    let (_folder, repository) = new_repository();
    let (record, image) = mostly_garbage(&repository);
    let old = record.images[0].root.clone();
    let size = ByteCount(image.len() as u64);
    let params = ImageParams { size, parent: Some(old.clone()), unwritten: Unwritten::Parent };
    // This one began when it was where it was, and needs it there.
    let early = begin(&repository);
    let early_root = early.image(params.clone()).unwrap().finish().unwrap();
    let other = Repository::open(repository.path()).unwrap();
    let report = other.gc(eager(), &()).unwrap();
    assert_eq!((report.compaction.snapshots, report.waiting_for), (1, 1), "{report:?}");
    let first = early.commit(draft(vec![("ram", early_root)])).unwrap();
    collect(&other);
    // This one only knows where it was.
    let late = begin(&repository);
    let root = late.image(params).unwrap().finish().unwrap();
    assert_ne!(root, old);
    let second = late.commit(draft(vec![("ram", root), ("same", old)])).unwrap();
    assert_eq!(second.images[0].root, second.images[1].root);
    let moved = other.snapshot(record.id).unwrap();
    collect(&other);
    let records = [moved, first, second];
    check_good(&Repository::open(repository.path()).unwrap(), &records, &vec![image; 3]);
}

#[test]
fn little_more_is_kept_than_is_needed() {
    let (_folder, repository) = new_repository();
    let mut image = content(1, 4_000 * BLOCK);
    let mut records: Vec<SnapshotRecord> = Vec::new();
    for seed in 2..20_u64 {
        for place in 0..12 {
            let at = usize::try_from((seed * 331 + place * 317) % 3_960).unwrap() * BLOCK;
            image[at..at + 32 * BLOCK].copy_from_slice(&content(seed * 100 + place, 32 * BLOCK));
        }
        records.push(take(&repository, &image, records.last()));
    }
    for record in &records[..17] {
        repository.remove(record.id).unwrap();
    }
    let mut plain = GcParams::default();
    plain.compaction = None;
    repository.gc(plain, &()).unwrap();
    let before = repository.usage().unwrap();
    let report = collect(&repository);
    let after = repository.usage().unwrap();
    let needed = repository.shares().unwrap().referenced_bytes;
    eprintln!("{before:?} {report:?} {after:?} {needed:?}");
    let freed = report.freed_bytes.get() - report.compaction.written_bytes.get();
    assert!(freed > 1 << 20, "{report:?}");
    assert!(after.repository_bytes.get() * 10 < needed.get() * 12, "{after:?} for {needed:?}");
    let moved = repository.snapshot(records[17].id).unwrap();
    check_good(&Repository::open(repository.path()).unwrap(), &[moved], &[image]);
    assert_eq!(collect(&repository), tintype_repo::GcReport::default());
}

#[derive(Debug, Clone)]
enum Step {
    Take(bool),
    Remove(usize),
    Undo(usize),
    Collect,
    Compact,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Take),
        3 => (0..20_usize).prop_map(Step::Remove),
        2 => (0..20_usize).prop_map(Step::Undo),
        1 => Just(Step::Collect),
        2 => Just(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn snapshots_are_deleted_in_any_order(steps in prop::collection::vec(step(), 1..25)) {
        let (_folder, mut repository) = new_repository();
        // Record, image, whether it is deleted, whether it was collected.
        let mut all: Vec<(SnapshotRecord, Vec<u8>, bool, bool)> = Vec::new();
        for (number, step) in steps.iter().enumerate() {
            match step {
                Step::Take(from_deleted) => {
                    let mut live = all.iter().rev().filter(|s| s.2 == *from_deleted);
                    let parent = live.next();
                    let mut image = parent.map_or_else(|| content(1, 200 * BLOCK), |p| p.1.clone());
                    let at = number * 7 % 190 * BLOCK;
                    image[at..at + 5 * BLOCK].copy_from_slice(&content(number as u64, 5 * BLOCK));
                    let record = take(&repository, &image, parent.map(|p| &p.0));
                    all.push((record, image, false, false));
                }
                Step::Remove(index) => {
                    let count = all.len().max(1);
                    if let Some(snapshot) = all.get_mut(index % count) {
                        let removed = repository.remove(snapshot.0.id).is_ok();
                        prop_assert_eq!(removed, !snapshot.2);
                        snapshot.2 = true;
                    }
                }
                Step::Undo(index) => {
                    let count = all.len().max(1);
                    if let Some(snapshot) = all.get_mut(index % count) {
                        let undone = repository.undo_remove(snapshot.0.id).is_ok();
                        prop_assert_eq!(undone, !snapshot.3);
                        snapshot.2 &= !undone;
                    }
                }
                Step::Collect => {
                    prop_assert_eq!(collect(&repository).waiting_for, 0);
                    all.iter_mut().for_each(|snapshot| snapshot.3 |= snapshot.2);
                }
                Step::Compact => {
                    // The records that it has go on to say where all was before.
                    prop_assert_eq!(repository.gc(eager(), &()).unwrap().waiting_for, 0);
                    all.iter_mut().for_each(|snapshot| snapshot.3 |= snapshot.2);
                }
                Step::Reopen => repository = Repository::open(repository.path()).unwrap(),
            }
        }
        let (records, images): (Vec<_>, Vec<_>) =
            all.into_iter().filter(|s| !s.2).map(|s| (s.0, s.1)).unzip();
        let moved: Vec<_> = records.iter().map(|r| repository.snapshot(r.id).unwrap()).collect();
        let without_places =
            |r: &SnapshotRecord| SnapshotRecord { images: Vec::new(), ..r.clone() };
        prop_assert!(moved.iter().map(without_places).eq(records.iter().map(without_places)));
        let records = moved;
        check_good(&Repository::open(repository.path()).unwrap(), &records, &images);
    }
}

#[test]
fn what_a_damaged_deleted_snapshot_may_need_stays_and_the_rest_goes() {
    let (_folder, repository) = new_repository();
    let images: Vec<_> = (1..5).map(|seed| content(seed, 100 * BLOCK)).collect();
    let records: Vec<_> = images.iter().map(|image| take(&repository, image, None)).collect();
    for record in &records[..3] {
        repository.remove(record.id).unwrap();
    }
    let own = |record: &SnapshotRecord| {
        let mut own = files(&repository.path().join("seg"));
        own.retain(|path| path.to_string_lossy().contains(&record.id.to_string()));
        own
    };
    // In the header, 1 is data and 2 is maps.
    let of_kind = |kind: u8| {
        let mut own = own(&records[1]).into_iter();
        own.find(|path| fs::read(path).unwrap()[10] == kind).unwrap()
    };
    let due: HashSet<_> = repository.deleted().unwrap().iter().map(|d| (d.id, d.number)).collect();
    let due = |not: &[usize]| {
        let is_due = |id| !not.iter().any(|at| records[*at].id == id);
        Due::Only(due.iter().copied().filter(|(id, _)| is_due(*id)).collect())
    };
    let collect = |due: Due, dry_run| {
        let mut params = GcParams::default();
        (params.due, params.dry_run) = (due, dry_run);
        Repository::open(repository.path()).unwrap().gc(params, &()).unwrap()
    };
    // That data is missing says nothing about what else is needed.
    let (data, map) = (of_kind(1), of_kind(2));
    let (good_data, good_map) = (fs::read(&data).unwrap(), fs::read(&map).unwrap());
    fs::remove_file(&data).unwrap();
    assert_eq!(collect(due(&[0, 1, 2]), false), tintype_repo::GcReport::default());

    let mut bad = good_map.clone();
    bad[100] ^= 1;
    fs::write(&map, bad).unwrap();
    let would = collect(due(&[1]), true);
    let report = collect(due(&[1]), false);
    assert_eq!((&would, report.damaged_deleted), (&report, 1));
    assert!(report.segments > 0 && own(&records[2]).is_empty(), "what came later: {report:?}");
    assert_eq!(own(&records[0]).len(), 2, "what it may need");
    assert!(map.exists(), "what it needs");
    let opened = Repository::open(repository.path()).unwrap();
    assert!(read_all(&opened, &records[3].images[0].root) == images[3]);

    fs::write(&data, good_data).unwrap();
    fs::write(&map, good_map).unwrap();
    let opened = Repository::open(repository.path()).unwrap();
    opened.undo_remove(records[1].id).unwrap();
    assert!(read_all(&opened, &records[1].images[0].root) == images[1]);
    let report = collect(Due::All, false);
    assert_eq!((report.damaged_deleted, own(&records[0]).len()), (0, 0));
    check_good(
        &opened,
        &[records[1].clone(), records[3].clone()],
        &[images[1].clone(), images[3].clone()],
    );
}
