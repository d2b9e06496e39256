//! Real file systems that lose their power at any moment: what was acknowledged
//! before is there, whatever became of writes that were not flushed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tintype_repo::{GcParams, InitParams, Repository, SnapshotRecord, VerifyLevel};
use tintype_testkit::{Error as KitError, FileSystem, History, Kept, LoggedDisk, Mounted};

use crate::support::{BLOCK, Dice, content, eager, read_all, soak, take_numbered};

/// What is done before the power is lost, and how many moments in CI.
const STEPS: u64 = 40;
const STATES: u64 = 300;
/// Each so many steps, one deletes and compacts.
const COMPACT: u64 = 8;

/// Numbers of the snapshots that are there from a moment on.
struct Acknowledged {
    noted: u64,
    there: Vec<u64>,
}

/// Most of its first half all have in common, the second one is its own.
fn image(number: u64) -> Vec<u8> {
    let mut bytes = [content(1, 64 * BLOCK), content(number + 2_000, 64 * BLOCK)].concat();
    let at = Dice::new(number).pick(50) * BLOCK;
    bytes[at..at + 10 * BLOCK].copy_from_slice(&content(number + 2, 10 * BLOCK));
    bytes
}

fn number_of(record: &SnapshotRecord) -> u64 {
    record.details.read().unwrap()
}

/// Uses a repository, and notes after each step what is there.
fn work(disk: &LoggedDisk, dice: &mut Dice) -> Vec<Acknowledged> {
    let path = disk.path().join("repository");
    let repository = Repository::init(&path, InitParams::default()).unwrap();
    let (mut there, mut deleted) = (Vec::<SnapshotRecord>::new(), Vec::<SnapshotRecord>::new());
    let note = |there: &[SnapshotRecord]| Acknowledged {
        noted: disk.now().unwrap(),
        there: there.iter().map(number_of).collect(),
    };
    let mut acknowledged = vec![note(&there)];
    let mut moved = 0;
    for step in 0..STEPS {
        match dice.roll(6) {
            // What others need of the oldest is moved.
            _ if step % COMPACT == COMPACT - 1 && there.len() > 1 => {
                repository.remove(there.remove(0).id).unwrap();
                moved += repository.gc(eager(), &()).unwrap().compaction.snapshots;
                deleted.clear();
            }
            0 => {
                repository.gc(GcParams::default(), &()).unwrap();
                deleted.clear();
            }
            1 if !deleted.is_empty() => {
                let record = deleted.pop().unwrap();
                repository.undo_remove(record.id).unwrap();
                there.push(record);
            }
            2 if !there.is_empty() => {
                let record = there.remove(dice.pick(there.len()));
                repository.remove(record.id).unwrap();
                deleted.push(record);
            }
            _ => there.push(take_numbered(&repository, step, &image(step), there.last())),
        }
        acknowledged.push(note(&there));
        // Nobody has synced this: it shows that what is not synced is lost.
        fs::write(disk.path().join(format!("unsynced-{step}")), [7; 5000]).unwrap();
    }
    assert!(moved > 0, "nothing was compacted");
    acknowledged
}

/// Loses the power at a moment; returns whether something that nobody had synced
/// is not there.
fn lose(
    kind: FileSystem,
    history: &History,
    moment: usize,
    acknowledged: &[Acknowledged],
    dice: &mut Dice,
    what: &str,
) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("disk");
    let kept = || match dice.roll(4) {
        0 | 1 => Kept::All,
        2 => Kept::None,
        _ => Kept::Some(dice.roll(u64::MAX)),
    };
    history.disk_at(moment, &file, kept).unwrap();
    let mounted = Mounted::of_file(kind, &file, &folder.path().join("mnt")).unwrap();
    let step = acknowledged.iter().rposition(|a| history.is_before(a.noted, moment)).unwrap();
    check(&mounted.path().join("repository"), &acknowledged[step..], what);
    (0..step).any(|step| {
        let read = fs::read(mounted.path().join(format!("unsynced-{step}")));
        read.map_or(true, |bytes| bytes != [7; 5000])
    })
}

/// The first is what was acknowledged; the second, what may be.
fn check(path: &Path, acknowledged: &[Acknowledged], what: &str) {
    let repository = Repository::open(path).unwrap();
    let listing = repository.snapshots().unwrap();
    assert_eq!(listing.damaged, [], "{what}");
    let found: BTreeMap<u64, &SnapshotRecord> =
        listing.records.iter().map(|record| (number_of(record), record)).collect();
    let is_like = |acknowledged: &Acknowledged| {
        let mut there = acknowledged.there.clone();
        there.sort_unstable();
        there.iter().eq(found.keys())
    };
    assert!(
        acknowledged.iter().take(2).any(is_like),
        "{what}: {:?} is there and not {:?}",
        found.keys(),
        acknowledged[0].there
    );
    for (number, record) in found {
        assert!(read_all(&repository, &record.images[0].root) == image(number), "{what}");
    }
    take_numbered(&repository, 1_000, &image(1_000), listing.records.last());
    assert_eq!(repository.gc(GcParams::default(), &()).unwrap().waiting_for, 0, "{what}");
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, [], "{what}");
    assert_eq!(report.segments, repository.usage().unwrap().segments, "{what}: left over");
}

fn loses_nothing(kind: FileSystem) {
    let soak = soak("states", STATES);
    let mut dice = Dice::new(soak.seed);
    let disk = match LoggedDisk::start(kind) {
        Err(missing @ KitError::NoPower { .. }) => return eprintln!("not run: {missing}"),
        disk => disk.unwrap(),
    };
    let acknowledged = work(&disk, &mut dice);
    let history = disk.finish().unwrap();
    let moments = history.moments_after(acknowledged[0].noted);
    let share = soak.count.div_ceil(FileSystem::ALL.len() as u64);
    let mut unsynced = 0;
    for state in 0..share {
        let moment = moments.start + dice.pick(moments.len());
        let what = format!("{kind:?}, TINTYPE_SOAK_SEED={}, state {state}", soak.seed);
        unsynced += u64::from(lose(kind, &history, moment, &acknowledged, &mut dice, &what));
    }
    eprintln!(
        "soak: {kind:?}: {share} losses of power at {} moments, nothing lost but what was not synced, {unsynced} times",
        moments.len()
    );
    assert!(unsynced > 0, "the power was not really lost");
}

#[test]
fn ext4_that_loses_its_power() {
    loses_nothing(FileSystem::Ext4);
}

#[test]
fn xfs_that_loses_its_power() {
    loses_nothing(FileSystem::Xfs);
}

#[test]
fn btrfs_that_loses_its_power() {
    loses_nothing(FileSystem::Btrfs);
}
