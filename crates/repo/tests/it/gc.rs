//! Deletion, undo, collection and pins on a real folder.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;
use tintype_repo::{
    Error, GcParams, ImageParams, Kind, Repository, SnapshotRecord, Supervisor, Unwritten,
    VerifyLevel,
};
use tintype_types::ByteCount;

use crate::support::{BLOCK, begin, content, draft, files, new_repository, read_all, take};

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
    std::fs::write(&path, "damaged").unwrap();
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
    let pair = [records[0].id, records[2].id];
    let together = repository.shares_of(&pair).unwrap().together;
    repository.remove_all(&pair).unwrap();
    let without = repository.shares_of(&pair).unwrap();
    assert_eq!(without.together, tintype_repo::SetShare::default());
    let freed = shares.referenced_bytes.get() - without.referenced_bytes.get();
    assert_eq!(together.exclusive_bytes.get(), freed);
    assert_eq!(repository.undo_last_removal().unwrap().len(), 2);
    assert_eq!(repository.shares().unwrap(), shares);
}

#[derive(Debug, Clone)]
enum Step {
    Take(bool),
    Remove(usize),
    Undo(usize),
    Collect,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(Step::Take),
        3 => (0..20_usize).prop_map(Step::Remove),
        2 => (0..20_usize).prop_map(Step::Undo),
        2 => Just(Step::Collect),
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
                Step::Reopen => repository = Repository::open(repository.path()).unwrap(),
            }
        }
        let (records, images): (Vec<_>, Vec<_>) =
            all.into_iter().filter(|s| !s.2).map(|s| (s.0, s.1)).unzip();
        check_good(&Repository::open(repository.path()).unwrap(), &records, &images);
    }
}
