//! Mending from another repository: one that lies gives nothing where our own ids
//! can tell, and a fault at any operation leaves what the next repair completes.

use tintype_types::{BLOCK_SIZE, ByteCount};

use crate::commit::Provenance;
use crate::copy_tests::new_disk;
use crate::crash_tests::open;
use crate::record::Origin;
use crate::store::simulated::{Dice, Fault, SimulatedDisk};
use crate::{
    Copier, CopyParams, GcParams, ImageParams, NamedImage, RepairReport, Repository, SessionParams,
    SnapshotDraft, SnapshotRecord, Unwritten, VerifyLevel,
};

const BLOCKS: usize = 40;

/// Blocks that do not compress, so that each byte of a segment is of one of them.
fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; BLOCKS * BLOCK_SIZE];
    blake3::Hasher::new_derive_key("content").update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Takes a snapshot of an image and a blob that are of a seed, as a copy if it is one.
fn take(repository: &Repository, seed: u8, origin: Option<Origin>) -> SnapshotRecord {
    let params = SessionParams { threads: Some(1), ..SessionParams::default() };
    let session = repository.begin(params).unwrap();
    let bytes = content(seed);
    let size = ByteCount(u64::try_from(bytes.len()).unwrap());
    let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    writer.write(0, &bytes).unwrap();
    let draft = SnapshotDraft {
        images: vec![NamedImage { name: "ram".to_owned(), root: writer.finish().unwrap() }],
        blobs: vec![("state".to_owned(), session.blob(&bytes[..100]).unwrap())],
        ..SnapshotDraft::plain(serde_json::json!(seed))
    };
    session.commit_copy(draft, Provenance { origin, ..Provenance::default() }).unwrap()
}

/// Returns the segments, those of content first.
fn segments(disk: &SimulatedDisk) -> Vec<(String, u64)> {
    let listed = open(disk).unwrap().vault.store.list("seg/").unwrap();
    let mut segments: Vec<_> = listed.into_iter().map(|l| (l.key, l.size)).collect();
    segments.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
    segments
}

/// Flips a bit of an object.
fn flip(disk: &SimulatedDisk, key: &str, at: usize) {
    let store = &open(disk).unwrap().vault.store;
    let mut bytes = store.get(key, 1 << 30).unwrap();
    bytes[at] ^= 1;
    store.replace(key, &bytes).unwrap();
}

fn has(repository: &Repository, seed: u8) -> bool {
    let records = repository.snapshots().unwrap().records;
    let record =
        records.iter().find(|record| record.details.read::<u8>().unwrap() == seed).unwrap();
    let mut bytes = vec![0; BLOCKS * BLOCK_SIZE];
    let reader = repository.open_image(&record.images[0].root).unwrap();
    let blob = repository.read_blob(&record.blobs[0].1);
    reader.read_at(0, &mut bytes).is_ok()
        && bytes == content(seed)
        && blob.is_ok_and(|blob| blob == bytes[..100])
}

/// A repository that says that its snapshot is a copy, and has another content.
fn liar(of: &Repository, record: &SnapshotRecord) -> Repository {
    let other = open(&new_disk()).unwrap();
    take(&other, 99, Some(Origin { repository: of.id(), snapshot: record.id }));
    other
}

#[test]
fn a_repository_that_lies_gives_nothing_that_is_not_proved() {
    let disk = new_disk();
    let record = take(&open(&disk).unwrap(), 1, None);
    let (data, size) = segments(&disk).remove(0);
    flip(&disk, &data, 10_000);
    // The chunk of the blob comes last.
    flip(&disk, &data, usize::try_from(size).unwrap() - 64 - 40 * 16 - 3 * 32 - 60);
    let repository = open(&disk).unwrap();
    let report = repository.repair(Some(&liar(&repository, &record)), &()).unwrap();
    assert_eq!(report.fetched_bytes, ByteCount(0), "{report:?}");
    assert_eq!(report.mismatches.len(), 2, "{report:?}");
    assert!(report.losses.iter().any(|loss| loss.part == "ram"));
    assert!(report.losses.iter().any(|loss| loss.part == "state"));
    assert_eq!(report.quarantined, [data]);
    // What is good of it has been moved, and is what it was.
    let now = repository.snapshots().unwrap().records.remove(0);
    let reader = repository.open_image(&now.images[0].root).unwrap();
    let mut last = vec![0; BLOCK_SIZE];
    reader.read_at(u64::try_from((BLOCKS - 1) * BLOCK_SIZE).unwrap(), &mut last).unwrap();
    assert_eq!(last, content(1)[(BLOCKS - 1) * BLOCK_SIZE..]);
}

#[test]
fn a_lie_about_a_whole_frame_is_found_by_the_id_of_the_frame() {
    let disk = new_disk();
    let record = take(&open(&disk).unwrap(), 1, None);
    let data = segments(&disk).remove(0).0;
    open(&disk).unwrap().vault.store.delete(&data).unwrap();
    let repository = open(&disk).unwrap();
    let report = repository.repair(Some(&liar(&repository, &record)), &()).unwrap();
    assert_eq!(report.fetched_bytes, ByteCount(0), "{report:?}");
    assert_eq!(report.mismatches.len(), 2, "{report:?}");
    assert_eq!(report.mended, []);
}

#[test]
fn a_lie_about_an_image_is_found_where_its_map_is_good() {
    // A sparse image of two leaves; the map of the second is lost.
    let disk = new_disk();
    let leaf = crate::tree::LEAF_SIZE;
    let take_two = |repository: &Repository, seeds: [u8; 2], origin| {
        let session = repository.begin(SessionParams::default()).unwrap();
        let size = ByteCount(2 * leaf);
        let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
        let mut writer = session.image(params).unwrap();
        for (number, seed) in (0..).zip(seeds) {
            writer.write(number * leaf, &content(seed)).unwrap();
        }
        let draft = SnapshotDraft {
            images: vec![NamedImage { name: "ram".to_owned(), root: writer.finish().unwrap() }],
            ..SnapshotDraft::plain(serde_json::json!(1))
        };
        session.commit_copy(draft, Provenance { origin, ..Provenance::default() }).unwrap()
    };
    let record = take_two(&open(&disk).unwrap(), [1, 2], None);
    let repository = open(&disk).unwrap();
    let second = repository.vault.subtree(&record.images[0].root, 0, 1).unwrap().unwrap();
    let at = usize::try_from(second.place.offset).unwrap() + 30;
    flip(&disk, &second.place.segment.key(), at);
    let origin = Some(Origin { repository: repository.id(), snapshot: record.id });
    for (seeds, is_found) in [([3, 2], true), ([1, 3], false), ([1, 2], false)] {
        let disk = disk.copy();
        let other = open(&new_disk()).unwrap();
        take_two(&other, seeds, origin);
        let repository = open(&disk).unwrap();
        let report = repository.repair(Some(&other), &()).unwrap();
        assert_eq!(
            report.mismatches.iter().map(|m| m.offset).collect::<Vec<_>>(),
            match is_found {
                true => vec![Some(0)],
                false => vec![],
            }
        );
        // Of what nothing proves it says how much that is.
        let unproved: u64 = report.mended.iter().map(|m| m.unproved_bytes.get()).sum();
        let expected = if is_found { 0 } else { u64::try_from(BLOCKS * BLOCK_SIZE).unwrap() };
        assert_eq!(unproved, expected);
        assert_eq!(report.damaged.is_empty(), !is_found);
    }
}

/// Two snapshots with damage of every kind, and a repository that has both.
fn damaged() -> (SimulatedDisk, Repository) {
    let disk = new_disk();
    let other = open(&new_disk()).unwrap();
    let repository = open(&disk).unwrap();
    let ids = [1, 2, 3].map(|seed| take(&repository, seed, None).id);
    let mut copier = Copier::new(&repository, &other, CopyParams::default()).unwrap();
    ids.iter().for_each(|id| _ = copier.copy(*id, &()).unwrap());
    let of = |id: tintype_types::SnapshotId| {
        let all = segments(&disk);
        all.into_iter().filter(move |(key, _)| key.contains(&id.to_string())).map(|(key, _)| key)
    };
    flip(&disk, &of(ids[0]).next().unwrap(), 10_000);
    flip(&disk, &of(ids[1]).next_back().unwrap(), 100);
    flip(&disk, &crate::record::outcome_key(ids[2]), 200);
    (disk, other)
}

fn repair(disk: &SimulatedDisk, other: &Repository) -> Result<RepairReport, crate::Error> {
    open(disk)?.repair(Some(other), &())
}

fn sweep(fault: Fault) {
    let (start, other) = damaged();
    let mut dice = Dice(12);
    for at in 1.. {
        let disk = start.copy();
        let what = format!("{fault:?} at {at}");
        disk.fail_at(at, fault);
        let failed = repair(&disk, &other).err();
        let struck = disk.end_faults();
        assert!(struck || failed.is_none(), "{what}: {failed:?} without a fault");
        let after = disk.after_power_loss(&mut dice);
        let report = repair(&after, &other).unwrap_or_else(|e| panic!("{what}: {e:?}"));
        assert_eq!((report.damaged, report.mismatches), (vec![], vec![]), "{what}");
        let repository = open(&after).unwrap();
        [1, 2, 3].iter().for_each(|seed| assert!(has(&repository, *seed), "{what}: {seed}"));
        assert_eq!(repository.gc(GcParams::default(), &()).unwrap().waiting_for, 0, "{what}");
        let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        assert_eq!(report.damaged, [], "{what}");
        assert_eq!(report.segments, repository.usage().unwrap().segments, "{what}: left over");
        [1, 2, 3].iter().for_each(|seed| assert!(has(&repository, *seed), "{what}: {seed}"));
        if !struck {
            assert!(at > 100, "it writes: {at} operations");
            return;
        }
    }
}

#[test]
fn the_power_goes_at_every_operation_of_a_repair() {
    sweep(Fault::Crash);
}

#[test]
fn an_error_at_every_operation_of_a_repair() {
    sweep(Fault::ErrorOnce);
}
