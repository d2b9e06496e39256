//! Every sequence of up to three operations, with a fault at every operation
//! of the disk, and the power lost afterwards in different ways; and random
//! longer ones, with several crashes in a row.
//!
//! What must hold: what was acknowledged is there, bit for bit; what was under
//! way is there completely or not at all; the repository opens, verifies and
//! works on without repair.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use tintype_types::{BLOCK_SIZE, ByteCount, SnapshotId};

use crate::repository::create_in;
use crate::store::LocalStore;
use crate::store::simulated::{Dice, Fault, SimulatedDisk};
use crate::{
    CompactionParams, Due, Error, GcParams, ImageParams, InitParams, NamedImage,
    RecompressionParams, Repository, Session, SessionParams, Skipped, SnapshotDraft,
    SnapshotRecord, Unwritten, VerifyLevel,
};

/// Returns a number from the environment, for longer runs by hand:
/// `TINTYPE_CRASH_SHARE=1 TINTYPE_CRASH_STEPS=4 TINTYPE_CRASH_LOSSES=1000 cargo test -p tintype-repo crash_tests`.
fn setting(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// One in so many sequences of three operations is run in CI.
const SHARE: u64 = 27;

/// An operation, and what it does to what must hold.
struct Step {
    name: &'static str,
    perform: fn(&Repository, u64, &mut Expected) -> Result<(), Error>,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// One that changes no snapshot needs no more than a line here.
const STEPS: &[Step] = &[
    Step { name: "take", perform: take_step },
    Step { name: "delete", perform: delete_step },
    Step { name: "undo", perform: undo_step },
    Step { name: "collect", perform: collect_step },
    Step { name: "label", perform: label_step },
    Step { name: "compact", perform: compact_step },
    Step { name: "compact the trash", perform: spare_step },
    Step { name: "repair", perform: repair_step },
    Step { name: "verify", perform: |repository, _, _| verify(repository) },
];

/// The snapshots that must be there, and the one whose fate is open.
#[derive(Debug, Clone, Default)]
struct Expected {
    /// Where they are.
    disk: SimulatedDisk,
    /// A copy of all while something is damaged that a repair puts back from there.
    donor: Option<SimulatedDisk>,
    /// Seeds of the images of the snapshots that are there.
    there: BTreeMap<u64, SnapshotId>,
    /// Deleted, and not collected as far as is known.
    deleted: Vec<(u64, SnapshotId)>,
    /// Seed of a snapshot that may be there or not.
    open: Option<u64>,
    /// What was last said of each, and what may have been.
    labels: BTreeMap<u64, (Option<String>, Option<String>)>,
}

/// The images of a snapshot: a disk that all have in common, so that it stays in
/// the segments of the first, and memory that is a seed's own.
pub(crate) fn images(seed: u64) -> [(&'static str, Vec<u8>); 2] {
    let mut memory = vec![0; 4 * BLOCK_SIZE];
    for (block, bytes) in memory.chunks_mut(BLOCK_SIZE).enumerate() {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&block.to_le_bytes());
        hasher.finalize_xof().fill(&mut bytes[..64]);
    }
    [("disk", vec![7; 2 * BLOCK_SIZE]), ("ram", memory)]
}

/// Writes the images of a snapshot over those of its parent.
pub(crate) fn write_images(
    session: &Session,
    seed: u64,
    parent: Option<&SnapshotRecord>,
) -> Result<Vec<NamedImage>, Error> {
    let write = |(number, (name, content)): (usize, (&str, Vec<u8>))| {
        let parent = parent.map(|record| record.images[number].root.clone());
        let size = ByteCount(u64::try_from(content.len()).unwrap());
        let mut writer = session.image(ImageParams { size, parent, unwritten: Unwritten::Zero })?;
        writer.write(0, &content)?;
        Ok(NamedImage { name: name.to_owned(), root: writer.finish()? })
    };
    images(seed).into_iter().enumerate().map(write).collect()
}

/// Reads the images of a snapshot; whether they are those of a seed.
pub(crate) fn has_images(
    repository: &Repository,
    record: &SnapshotRecord,
    seed: u64,
) -> Result<bool, Error> {
    let mut is_right = true;
    for (image, (name, content)) in record.images.iter().zip(images(seed)) {
        let mut bytes = vec![0; content.len()];
        repository.open_image(&image.root)?.read_at(0, &mut bytes)?;
        is_right &= image.name == name && bytes == content;
    }
    Ok(is_right && record.images.len() == 2)
}

/// Moves everything that is in a segment with anything that nobody needs.
pub(crate) fn eager() -> GcParams {
    let compaction =
        CompactionParams { live_percent: 100, least_gain: None, ..CompactionParams::default() };
    GcParams { compaction: Some(compaction), ..GcParams::default() }
}

/// Compresses all again that was not yet, even if it gains nothing.
pub(crate) fn all() -> Option<RecompressionParams> {
    let (least_percent, least_gain) = (0, None);
    Some(RecompressionParams { least_percent, least_gain, ..RecompressionParams::default() })
}

pub(crate) fn open(disk: &SimulatedDisk) -> Result<Repository, Error> {
    let root = Path::new("simulated");
    Repository::open_in(Box::new(LocalStore::on(Box::new(disk.clone()), root)), None, root, &[])
}

pub(crate) fn take(repository: &Repository, seed: u64) -> Result<SnapshotRecord, Error> {
    let parent = repository.snapshots()?.records.pop();
    let params = SessionParams { threads: Some(1), ..SessionParams::default() };
    let session = repository.begin(params)?;
    let images = write_images(&session, seed, parent.as_ref())?;
    session.commit(SnapshotDraft { images, ..SnapshotDraft::plain(serde_json::json!(seed)) })
}

fn take_step(repository: &Repository, seed: u64, expected: &mut Expected) -> Result<(), Error> {
    expected.open = Some(seed);
    let record = take(repository, seed)?;
    expected.there.insert(seed, record.id);
    Ok(())
}

fn delete_step(repository: &Repository, _: u64, expected: &mut Expected) -> Result<(), Error> {
    let Some((seed, id)) = expected.there.pop_first() else { return Ok(()) };
    expected.open = Some(seed);
    expected.deleted.push((seed, id));
    repository.remove(id)
}

fn undo_step(repository: &Repository, _: u64, expected: &mut Expected) -> Result<(), Error> {
    let Some((seed, id)) = expected.deleted.last().copied() else { return Ok(()) };
    expected.open = Some(seed);
    repository.undo_remove(id)?;
    expected.deleted.pop();
    expected.there.insert(seed, id);
    Ok(())
}

fn label_step(repository: &Repository, seed: u64, expected: &mut Expected) -> Result<(), Error> {
    let Some((of, id)) = expected.there.last_key_value() else { return Ok(()) };
    let (said, open) = expected.labels.entry(*of).or_default();
    let message = Some(format!("said at {seed}"));
    open.clone_from(&message);
    repository.relabel(*id, |label| label.message.clone_from(&message))?;
    (*said, *open) = (message, None);
    Ok(())
}

fn collect_step(repository: &Repository, _: u64, expected: &mut Expected) -> Result<(), Error> {
    // If it fails, they may be collected or not, but they stay deleted.
    expected.deleted.clear();
    repository.gc(GcParams::default(), &()).map(drop)
}

fn compact_step(repository: &Repository, _: u64, expected: &mut Expected) -> Result<(), Error> {
    expected.deleted.clear();
    let report = repository.gc(eager(), &())?;
    assert_ne!(report.compaction.skipped, Some(Skipped::Damaged));
    Ok(())
}

/// Collects nothing that is deleted, compresses it again and moves it with the rest.
fn spare_step(repository: &Repository, _: u64, _: &mut Expected) -> Result<(), Error> {
    let due = Due::Only(HashSet::new());
    let report = repository.gc(GcParams { due, recompression: all(), ..eager() }, &())?;
    assert_ne!(report.recompression.skipped, Some(Skipped::Damaged));
    assert_ne!(report.compaction.skipped, Some(Skipped::Damaged));
    Ok(())
}

/// Damages what a snapshot needs, and repairs it from a copy.
fn repair_step(repository: &Repository, seed: u64, expected: &mut Expected) -> Result<(), Error> {
    let Some(record) = repository.snapshots()?.records.pop() else { return Ok(()) };
    let root = record.images[usize::from(seed.is_multiple_of(2))].root.base.unwrap();
    let (key, at) = (root.place.segment.key(), usize::try_from(root.place.offset).unwrap());
    let donor = expected.disk.copy();
    donor.end_faults();
    expected.donor = Some(donor);
    let store = &repository.vault.store;
    if seed.is_multiple_of(3) {
        store.delete(&key)?;
    } else {
        let mut bytes = store.get(&key, u64::MAX)?;
        bytes[at] ^= 1;
        store.replace(&key, &bytes)?;
    }
    repair(&expected.disk, expected)?;
    expected.donor = None;
    Ok(())
}

/// Repairs what is damaged, like a process that knows nothing of it yet.
fn repair(disk: &SimulatedDisk, expected: &Expected) -> Result<(), Error> {
    let Some(donor) = &expected.donor else { return Ok(()) };
    let report = open(disk)?.repair(Some(&open(donor)?), &())?;
    assert_eq!((report.damaged, report.quarantined), (vec![], vec![]));
    Ok(())
}

fn verify(repository: &Repository) -> Result<(), Error> {
    let report = repository.verify(&[], VerifyLevel::ReadData, &())?;
    assert_eq!(report.damaged, []);
    Ok(())
}

/// Opens the repository and does steps until one fails.
fn perform(
    disk: &SimulatedDisk,
    steps: &[&Step],
    seeds: impl Iterator<Item = u64>,
    expected: &mut Expected,
) -> Result<(), Error> {
    expected.disk = disk.clone();
    let repository = open(disk)?;
    for (step, seed) in steps.iter().zip(seeds) {
        (step.perform)(&repository, seed, expected)?;
        expected.open = None;
    }
    Ok(())
}

/// Returns a disk after the repair that follows one which has failed, if one has.
fn repaired(disk: &SimulatedDisk, expected: &Expected, what: &str) -> SimulatedDisk {
    if expected.donor.is_none() {
        return disk.clone();
    }
    let disk = disk.copy();
    repair(&disk, expected).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    disk
}

/// Checks a repository after whatever happened to it; returns what is there.
fn check(disk: &SimulatedDisk, expected: &Expected, what: &str) -> BTreeMap<u64, SnapshotId> {
    let disk = repaired(disk, expected, what);
    let repository = open(&disk).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let listing = repository.snapshots().unwrap();
    assert_eq!(listing.damaged, [], "{what}");
    let found: BTreeMap<u64, &SnapshotRecord> =
        listing.records.iter().map(|r| (r.details.read().unwrap(), r)).collect();
    for seed in expected.there.keys() {
        assert!(found.contains_key(seed), "{what}: snapshot {seed} is lost");
    }
    for (&seed, record) in &found {
        let known = expected.there.contains_key(&seed) || expected.open == Some(seed);
        assert!(known, "{what}: snapshot {seed} should not be there");
        let is_right = has_images(&repository, record, seed)
            .unwrap_or_else(|error| panic!("{what}: snapshot {seed}: {error:?}, {expected:?}"));
        assert!(is_right, "{what}: snapshot {seed} has changed");
    }
    check_labels(&repository, expected, &found, what);
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, [], "{what}");
    found.into_iter().map(|(seed, record)| (seed, record.id)).collect()
}

/// What is in the trash can be put back, bit for bit; looks at a copy.
fn check_trash(disk: &SimulatedDisk, expected: &Expected, what: &str) {
    let repository = open(&repaired(&disk.copy(), expected, what)).unwrap();
    for (seed, id) in expected.deleted.iter().filter(|(seed, _)| expected.open != Some(*seed)) {
        let record = repository
            .undo_remove(*id)
            .unwrap_or_else(|error| panic!("{what}: {seed} cannot be put back: {error:?}"));
        let is_right = has_images(&repository, &record, *seed)
            .unwrap_or_else(|error| panic!("{what}: {seed} was put back: {error:?}"));
        assert!(is_right, "{what}: snapshot {seed} has changed in the trash");
    }
}

/// What was said last of each snapshot is said, or what was being said then.
fn check_labels(
    repository: &Repository,
    expected: &Expected,
    found: &BTreeMap<u64, &SnapshotRecord>,
    what: &str,
) {
    let labels = repository.labels().unwrap();
    assert_eq!(labels.damaged, [], "{what}");
    for (seed, record) in found {
        let is = labels.of.get(&record.id).and_then(|label| label.message.clone());
        let (said, open) = expected.labels.get(seed).cloned().unwrap_or_default();
        assert!(is == said || (open.is_some() && is == open), "{what}: {seed} is {is:?}, {said:?}");
    }
}

/// Checks that the repository works on after recovery.
fn check_works(disk: &SimulatedDisk, expected: &Expected, what: &str) {
    let repository = open(&repaired(disk, expected, what)).unwrap();
    take(&repository, 99).unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let report = repository.gc(GcParams::default(), &()).unwrap();
    assert_eq!(report.waiting_for, 0, "{what}");
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, [], "{what}");
}

/// Runs a sequence with a fault at one operation; returns whether it struck.
fn run(
    start: &(SimulatedDisk, Expected),
    steps: &[&Step],
    fault: Fault,
    at: u64,
    dice: &mut Dice,
) -> bool {
    let before = dice.0;
    let losses = setting("TINTYPE_CRASH_LOSSES", 10);
    let (disk, mut expected) = (start.0.copy(), start.1.clone());
    let what = format!("{steps:?}, {fault:?} at {at}, dice {:x}", before);
    disk.fail_at(at, fault);
    let failed = perform(&disk, steps, 10.., &mut expected).err();
    let struck = disk.end_faults();
    assert!(struck || failed.is_none(), "{what}: {failed:?} without a fault");
    if fault != Fault::Crash {
        check(&disk, &expected, &what);
    }
    for loss in 0..losses {
        let mut after = disk.after_power_loss(dice);
        if loss % 2 == 1 {
            // It goes again while the repository is recovering.
            after.fail_at(1 + dice.roll(12), Fault::Crash);
            let _ = open(&after);
            after = after.after_power_loss(dice);
        }
        check(&after, &expected, &what);
        if loss == 0 {
            check_trash(&after, &expected, &what);
        }
        if loss == 0 && at.is_multiple_of(4) {
            check_works(&after, &expected, &what);
        }
    }
    struck
}

fn sequences(longest: u64) -> Vec<Vec<&'static Step>> {
    let mut all = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..longest {
        let longer = |steps: &Vec<&'static Step>, step| [steps.as_slice(), &[step]].concat();
        last = last
            .iter()
            .flat_map(|steps| STEPS.iter().map(move |step| longer(steps, step)))
            .collect();
        all.extend(last.clone());
    }
    // A label touches nothing but itself: shorter ones say as much of it.
    let labels = |steps: &[&Step]| steps.iter().filter(|step| step.name == "label").count();
    all.retain(|steps| steps.len() < 3 || labels(steps) == 0);
    all
}

/// Two snapshots, one of them deleted.
fn start() -> (SimulatedDisk, Expected) {
    let disk = SimulatedDisk::default();
    let root = Path::new("simulated");
    create_in(&LocalStore::on(Box::new(disk.clone()), root), &InitParams::default()).unwrap();
    let mut expected = Expected::default();
    perform(&disk, &[&STEPS[0], &STEPS[0], &STEPS[1]], 1.., &mut expected).unwrap();
    (disk, expected)
}

fn sweep(fault: Fault) {
    let start = start();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = setting("TINTYPE_CRASH_SEED", now.into());
    let is_soak = std::env::var_os("TINTYPE_SOAK").is_some();
    let share = setting("TINTYPE_CRASH_SHARE", if is_soak { 1 } else { SHARE });
    eprintln!("TINTYPE_CRASH_SEED={seed}, one in {share} of the longest sequences");
    let mut dice = Dice(seed);
    let mut states = 0;
    for steps in sequences(setting("TINTYPE_CRASH_STEPS", 3)) {
        if steps.len() > 2 && dice.roll(share) != 0 {
            continue;
        }
        let mut at = 1;
        while run(&start, &steps, fault, at, &mut dice) {
            at += 1;
            states += setting("TINTYPE_CRASH_LOSSES", 10);
        }
    }
    eprintln!("soak: {fault:?}: {states} states, none lost");
    assert!(states > 500);
}

#[test]
fn a_crash_at_every_operation() {
    sweep(Fault::Crash);
}

#[test]
fn an_error_at_every_operation() {
    sweep(Fault::ErrorOnce);
}

#[test]
fn a_full_disk_from_every_operation_on() {
    sweep(Fault::Full);
}

/// States of which one wandering checks several.
const RANDOM_STATES: u64 = 50_000;
/// States that are checked after each fault; with one more it goes on.
const AFTERMATHS: u64 = 7;

/// Goes from fault to fault; returns how many states were checked.
fn wander(start: &(SimulatedDisk, Expected), seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let (mut disk, mut expected) = (start.0.copy(), start.1.clone());
    let mut seeds = 10..;
    let mut states = 0;
    for round in 0..1 + dice.roll(4) {
        let steps: Vec<_> = (0..1 + dice.roll(6)).map(|_| &STEPS[dice.pick(STEPS.len())]).collect();
        let fault = [Fault::Crash, Fault::Crash, Fault::ErrorOnce, Fault::Full][dice.pick(4)];
        let at = 1 + dice.roll(90);
        let what = format!("TINTYPE_SOAK_SEED={seed}: {round}: {steps:?}, {fault:?} at {at}");
        disk.fail_at(at, fault);
        let failed = perform(&disk, &steps, seeds.by_ref(), &mut expected).err();
        let struck = disk.end_faults();
        assert!(struck || failed.is_none(), "{what}: {failed:?} without a fault");
        if fault != Fault::Crash {
            check(&disk, &expected, &what);
            states += 1;
        }
        for _ in 0..AFTERMATHS {
            check(&disk.after_power_loss(&mut dice), &expected, &what);
        }
        disk = disk.after_power_loss(&mut dice);
        while dice.roll(3) == 0 {
            // It goes again while the repository is recovering.
            disk.fail_at(1 + dice.roll(12), Fault::Crash);
            let _ = open(&disk);
            disk = disk.after_power_loss(&mut dice);
        }
        let there = check(&disk, &expected, &what);
        check_trash(&disk, &expected, &what);
        disk = repaired(&disk, &expected, &what);
        states += AFTERMATHS + 1;
        expected.deleted.retain(|(seed, _)| !there.contains_key(seed));
        let labels = open(&disk).unwrap().labels().unwrap().of;
        for (seed, id) in &there {
            let said = labels.get(id).and_then(|label| label.message.clone());
            expected.labels.insert(*seed, (said, None));
        }
        expected = Expected { there, open: None, donor: None, ..expected };
    }
    check_works(&disk, &expected, &format!("TINTYPE_SOAK_SEED={seed}"));
    states
}

#[test]
fn random_states_after_several_faults() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = setting("TINTYPE_SOAK_SEED", now.into());
    let wanted = setting("TINTYPE_SOAK_COUNT", RANDOM_STATES);
    eprintln!("{wanted} states, TINTYPE_SOAK_SEED={seed}");
    let start = start();
    let (next, states) = (AtomicU64::new(0), AtomicU64::new(0));
    let work = || {
        while states.load(Relaxed) < wanted {
            let seed = seed.wrapping_add(next.fetch_add(1, Relaxed));
            states.fetch_add(wander(&start, seed), Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().unwrap().get();
        (0..cores).for_each(|_| drop(scope.spawn(work)));
    });
    let wanderings = next.into_inner();
    eprintln!("soak: {} states in {wanderings} wanderings, none lost", states.into_inner());
}

#[test]
fn making_a_repository_is_all_or_nothing() {
    for at in 1.. {
        let disk = SimulatedDisk::default();
        disk.fail_at(at, Fault::Crash);
        let root = Path::new("simulated");
        let store = |disk: &SimulatedDisk| LocalStore::on(Box::new(disk.clone()), root);
        let made = create_in(&store(&disk), &InitParams::default());
        disk.end_faults();
        for seed in 0..8 {
            let after = disk.after_power_loss(&mut Dice(seed));
            match open(&after) {
                Ok(_) => {}
                Err(Error::NotARepository(_)) if made.is_err() => {
                    create_in(&store(&after), &InitParams::default()).unwrap();
                    open(&after).unwrap();
                }
                Err(error) => panic!("crash at {at}: {error:?}"),
            }
        }
        if made.is_ok() {
            return;
        }
    }
}
