//! A copy, kept in several parts, with a fault of the target at every operation
//! of its disk, and the power lost afterwards. What was there stays, a copy is
//! there completely or not at all, and the same copy again completes it.

use std::path::Path;

use tintype_types::{BLOCK_SIZE, ByteCount, SnapshotId};

use crate::crash_tests::{open, take};
use crate::repository::create_in;
use crate::store::LocalStore;
use crate::store::simulated::{Dice, Fault, SimulatedDisk};
use crate::{
    Copier, CopyError, CopyParams, GcParams, ImageParams, InitParams, NamedImage, Repository,
    SessionParams, SnapshotDraft, Unwritten, VerifyLevel,
};

const BLOCKS: usize = 12;

/// A disk with an empty repository.
pub(crate) fn new_disk() -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    let store = LocalStore::on(Box::new(disk.clone()), Path::new("simulated"));
    create_in(&store, &InitParams::default()).unwrap();
    disk
}

/// Every second block has data, so that each is a piece of its own.
fn content(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; BLOCKS * BLOCK_SIZE];
    for (block, bytes) in (0..).zip(bytes.chunks_mut(2 * BLOCK_SIZE)) {
        // The later ones are those of each seed.
        let seed = if block < 3 { 0 } else { seed };
        bytes[..64].copy_from_slice(&[[seed, block], [7, seed]].concat().repeat(16));
    }
    bytes
}

/// A repository with two snapshots.
fn source() -> (Repository, [SnapshotId; 2]) {
    let repository = open(&new_disk()).unwrap();
    let ids = [1, 2].map(|seed| {
        let session = repository.begin(SessionParams::default()).unwrap();
        let bytes = content(seed);
        let size = ByteCount(u64::try_from(bytes.len()).unwrap());
        let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
        let mut writer = session.image(params).unwrap();
        writer.write(0, &bytes).unwrap();
        let image = NamedImage { name: "ram".to_owned(), root: writer.finish().unwrap() };
        let draft = SnapshotDraft {
            images: vec![image],
            blobs: vec![("state".to_owned(), session.blob(&bytes[..100]).unwrap())],
            ..SnapshotDraft::plain(serde_json::json!(seed))
        };
        session.commit(draft).unwrap().id
    });
    (repository, ids)
}

fn copy_all(
    source: &(Repository, [SnapshotId; 2]),
    disk: &SimulatedDisk,
    done: &mut Vec<SnapshotId>,
) -> Result<(), CopyError> {
    let target = open(disk).map_err(CopyError::Target)?;
    let session = SessionParams { threads: Some(1), ..SessionParams::default() };
    let params = CopyParams { part: Some(ByteCount(2 * 4096)), session };
    let mut copier = Copier::new(&source.0, &target, params)?;
    for id in source.1 {
        copier.copy(id, &())?;
        done.push(id);
    }
    Ok(())
}

/// Checks what is there: all that was reported, and all of it good.
fn check(
    source: &(Repository, [SnapshotId; 2]),
    disk: &SimulatedDisk,
    done: &[SnapshotId],
    what: &str,
) {
    let target = open(disk).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let listing = target.snapshots().unwrap();
    assert_eq!(listing.damaged, [], "{what}");
    let origin = |record: &crate::SnapshotRecord| record.origin.map(|origin| origin.snapshot);
    let there: Vec<_> = listing.records.iter().filter_map(origin).collect();
    assert!(done.iter().all(|id| there.contains(id)), "{what}: a copy is lost");
    assert_eq!(listing.records.len(), there.len() + 1, "{what}: the one of before, and copies");
    for record in &listing.records {
        let Some(id) = origin(record) else { continue };
        let seed =
            1 + u8::try_from(source.1.iter().position(|known| *known == id).unwrap()).unwrap();
        let mut bytes = vec![0; BLOCKS * BLOCK_SIZE];
        let reader = target.open_image(&record.images[0].root).unwrap();
        reader.read_at(0, &mut bytes).unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(bytes == content(seed), "{what}: the copy of {seed} differs");
        assert_eq!(target.read_blob(&record.blobs[0].1).unwrap(), bytes[..100], "{what}");
    }
    let report = target.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, [], "{what}");
    assert_eq!(target.deleted().unwrap(), [], "{what}: a part shows");
}

fn sweep(fault: Fault) {
    let source = source();
    let start = new_disk();
    take(&open(&start).unwrap(), 9).unwrap();
    let mut dice = Dice(11);
    for at in 1.. {
        let (disk, mut done) = (start.copy(), Vec::new());
        let what = format!("{fault:?} at {at}");
        disk.fail_at(at, fault);
        let failed = copy_all(&source, &disk, &mut done).err();
        let struck = disk.end_faults();
        assert!(struck || failed.is_none(), "{what}: {failed:?} without a fault");
        if fault != Fault::Crash {
            check(&source, &disk, &done, &what);
        }
        for loss in 0..3 {
            let after = disk.after_power_loss(&mut dice);
            check(&source, &after, &done, &what);
            if loss == 0 {
                let mut all = Vec::new();
                copy_all(&source, &after, &mut all).unwrap_or_else(|e| panic!("{what}: {e:?}"));
                let target = open(&after).unwrap();
                assert_eq!(target.gc(GcParams::default(), &()).unwrap().waiting_for, 0, "{what}");
                check(&source, &after, &all, &what);
            }
        }
        if !struck {
            assert!(at > 100, "there are parts: {at} operations");
            return;
        }
    }
}

#[test]
fn the_power_goes_at_every_operation() {
    sweep(Fault::Crash);
}

#[test]
fn an_error_at_every_operation() {
    sweep(Fault::ErrorOnce);
}

#[test]
fn the_target_is_full_from_every_operation_on() {
    sweep(Fault::Full);
}
