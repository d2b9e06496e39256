//! Real file systems that lose their power at any moment: what was acknowledged
//! before is there, whatever became of writes that were not flushed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tintype_repo::{GcParams, InitParams, Repository, SnapshotRecord, VerifyLevel};
use tintype_testkit::{Error as KitError, FileSystem, History, Kept, LoggedDisk, Mounted};

use crate::support::{
    BLOCK, Dice, content, copy_tree, eager, eager_and_strong, files, read_all, soak, take_numbered,
};

/// What is done before the power is lost, and how many moments in CI.
const STEPS: u64 = 40;
const STATES: u64 = 300;
/// Each so many steps, one deletes and compacts, every second time compressed again; and
/// one damages something and repairs it.
const COMPACT: u64 = 8;
const REPAIR: u64 = 10;

/// What is there from a moment on.
struct Acknowledged {
    noted: u64,
    /// The numbers of the snapshots.
    there: Vec<u64>,
    /// From where it is repaired, while something is damaged.
    donor: Option<PathBuf>,
    /// How many files that nobody syncs have been written.
    unsynced: u64,
}

/// What is done to a repository.
struct Work<'w> {
    disk: &'w LoggedDisk,
    repository: Repository,
    there: Vec<SnapshotRecord>,
    deleted: Vec<SnapshotRecord>,
    acknowledged: Vec<Acknowledged>,
    /// Copies for repairs, elsewhere.
    copies: &'w TempDir,
    unsynced: u64,
    /// How many snapshots were moved, how many were compressed again, and how many
    /// objects were repaired.
    moved: [u64; 3],
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

impl<'w> Work<'w> {
    fn new(disk: &'w LoggedDisk, copies: &'w TempDir) -> Self {
        let path = disk.path().join("repository");
        let repository = Repository::init(&path, InitParams::default()).unwrap();
        let (there, deleted, acknowledged) = (Vec::new(), Vec::new(), Vec::new());
        Self { disk, repository, there, deleted, acknowledged, copies, unsynced: 0, moved: [0; 3] }
    }

    /// Notes what is there from now on.
    fn note(&mut self, donor: Option<&Path>) {
        self.acknowledged.push(Acknowledged {
            noted: self.disk.now().unwrap(),
            there: self.there.iter().map(number_of).collect(),
            donor: donor.map(Path::to_owned),
            unsynced: self.unsynced,
        });
    }

    fn collect(&mut self, params: GcParams) {
        let report = self.repository.gc(params, &()).unwrap();
        self.moved[0] += report.compaction.snapshots;
        self.moved[1] += report.recompression.snapshots;
        self.deleted.clear();
    }

    /// Damages a segment, notes that, and repairs it. All of them are needed: what is
    /// deleted is collected before.
    fn repair(&mut self, dice: &mut Dice) {
        self.collect(GcParams::default());
        self.note(None);
        let copy = self.copies.path().join(self.acknowledged.len().to_string());
        copy_tree(self.repository.path(), &copy);
        let segments = files(&self.repository.path().join("seg"));
        let Some(segment) = segments.get(dice.pick(segments.len())) else { return };
        // From here on it needs the repair; what is lost of the damage does no harm.
        self.note(Some(&copy));
        fs::remove_file(segment).unwrap();
        let from = Repository::open(&copy).unwrap();
        self.repository = Repository::open(self.repository.path()).unwrap();
        let report = self.repository.repair(Some(&from), &()).unwrap();
        assert_eq!(report.damaged, []);
        self.moved[2] += report.repaired.len() as u64;
    }

    fn step(&mut self, step: u64, dice: &mut Dice) {
        match dice.roll(6) {
            // What others need of the oldest is moved.
            _ if step % COMPACT == COMPACT - 1 && self.there.len() > 1 => {
                self.repository.remove(self.there.remove(0).id).unwrap();
                let is_strong = step % (2 * COMPACT) == COMPACT - 1;
                self.collect(if is_strong { eager_and_strong() } else { eager() });
            }
            _ if step % REPAIR == REPAIR - 1 => self.repair(dice),
            0 => self.collect(GcParams::default()),
            1 if !self.deleted.is_empty() => {
                let record = self.deleted.pop().unwrap();
                self.repository.undo_remove(record.id).unwrap();
                self.there.push(record);
            }
            2 if !self.there.is_empty() => {
                let record = self.there.remove(dice.pick(self.there.len()));
                self.repository.remove(record.id).unwrap();
                self.deleted.push(record);
            }
            _ => {
                let parent = self.there.last();
                let record = take_numbered(&self.repository, step, &image(step), parent);
                self.there.push(record);
            }
        }
    }
}

/// Uses a repository, and notes after each step what is there.
fn work(disk: &LoggedDisk, copies: &TempDir, dice: &mut Dice) -> Vec<Acknowledged> {
    let mut work = Work::new(disk, copies);
    work.note(None);
    for step in 0..STEPS {
        work.step(step, dice);
        work.note(None);
        // Nobody has synced this: it shows that what is not synced is lost.
        fs::write(disk.path().join(format!("unsynced-{step}")), [7; 5000]).unwrap();
        work.unsynced += 1;
    }
    let moved = work.moved;
    assert!(moved.iter().all(|moved| *moved > 0), "nothing was moved or repaired: {moved:?}");
    work.acknowledged
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
    (0..acknowledged[step].unsynced).any(|file| {
        let read = fs::read(mounted.path().join(format!("unsynced-{file}")));
        read.map_or(true, |bytes| bytes != [7; 5000])
    })
}

/// The first is what was acknowledged; the second, what may be.
fn check(path: &Path, acknowledged: &[Acknowledged], what: &str) {
    let repository = Repository::open(path).unwrap();
    if let Some(donor) = acknowledged.iter().take(2).find_map(|a| a.donor.as_ref()) {
        let report = repository.repair(Some(&Repository::open(donor).unwrap()), &()).unwrap();
        assert_eq!(report.damaged, [], "{what}");
    }
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
    let copies = tempfile::tempdir().unwrap();
    let acknowledged = work(&disk, &copies, &mut dice);
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
