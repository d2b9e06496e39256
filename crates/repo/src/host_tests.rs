//! Hosts that take, delete, undo, read, collect, compact and mend in one bucket at once, in a
//! simulated world where everything goes wrong that may: seed after seed.
//!
//! What must hold: what was acknowledged is there, bit for bit, until somebody
//! deletes it; what was deleted stays so until somebody undoes that; a reader
//! gets the right bytes or, if it was suspended, an error; and when the last has
//! gone, one collection leaves nothing that nobody needs.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tintype_types::SnapshotId;

use crate::crash_tests::{self, all, eager, has_images, write_images};
use crate::donor::Donor;
use crate::error::Damage;
use crate::repository::create_in;
use crate::store::simulated::Dice;
use crate::store::world::{Line, Odds, World};
use crate::store::{Budget, Memory, Pulse, Retry, Shared};
use crate::{
    Due, Error, GcParams, InitParams, Kind, Repository, SessionParams, SnapshotDraft,
    SnapshotRecord, VerifyLevel, copy_tests, gone, graft,
};

/// Hosts; one that was killed does not come back.
const LIVES: usize = 4;
/// What a host does in its life.
const STEPS: u64 = 20;
/// Seeds in CI.
const SEEDS: u64 = 700;
const ODDS: Odds = Odds {
    lost_request: 40,
    lost_answer: 40,
    late_effect: 60,
    short_listing: 20,
    kill: 500,
    suspension: 150,
};
const PULSE: Pulse = Pulse { beat: Duration::from_secs(10), patience: Duration::from_secs(180) };
/// Attempts cost no real time.
const BUDGET: Budget = Budget {
    total: Duration::from_secs(600),
    first: Duration::from_nanos(1),
    longest: Duration::from_nanos(1),
};

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// What is known of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    There,
    Deleted,
    /// Hosts were at it at the same time, or did not hear how it ended.
    Open,
}

#[derive(Debug)]
struct Known {
    id: SnapshotId,
    fate: Fate,
    /// Hosts that delete it or undo that; one that failed for ever, since what
    /// it wanted may come about late.
    busy: u32,
    /// What was said of it, each with a tag of its own.
    tags: Vec<String>,
}

impl Known {
    fn new(id: SnapshotId, fate: Fate) -> Self {
        Self { id, fate, busy: 0, tags: Vec::new() }
    }
}

/// What is known of all snapshots, by the numbers that their contents are made of.
#[derive(Debug, Default)]
struct Fates(BTreeMap<u64, Known>);

impl Fates {
    fn begin(&mut self, number: u64, id: SnapshotId) {
        let known = self.0.entry(number).or_insert_with(|| Known::new(id, Fate::Open));
        known.busy += 1;
        known.fate = Fate::Open;
    }

    fn end(&mut self, number: u64, fate: Fate) {
        let known = self.0.get_mut(&number).expect("it was begun");
        // What it meets, it may have been overtaken by.
        known.busy -= u32::from(known.busy == 1);
        if known.busy == 0 {
            known.fate = fate;
        }
    }

    fn deleted(&self) -> Vec<(u64, SnapshotId)> {
        let deleted = self.0.iter().filter(|(_, known)| known.fate == Fate::Deleted);
        deleted.map(|(number, known)| (*number, known.id)).collect()
    }
}

fn open(line: &Line) -> Result<Repository, Error> {
    let clock = Arc::new(line.clone());
    let store = Shared::by(clock, Retry::new(line.clone(), BUDGET), PULSE);
    Repository::open_in(Box::new(store), None, Path::new("s3://simulated"), &[])
}

fn number_of(record: &SnapshotRecord) -> u64 {
    record.details.read().expect("it was taken here")
}

/// A host in one of its lives.
struct Host {
    line: Line,
    /// By how much its calendar is off, in seconds.
    skew: i64,
    /// Whether nobody ends a deletion in this world.
    keeps_trash: bool,
    fates: Arc<Mutex<Fates>>,
}

impl Host {
    fn pick<T>(&self, items: &[T]) -> Option<usize> {
        let sides = u64::try_from(items.len()).unwrap();
        (sides > 0).then(|| usize::try_from(self.line.world.roll(sides)).unwrap())
    }

    fn fates(&self) -> MutexGuard<'_, Fates> {
        self.fates.lock().unwrap()
    }

    /// Does one thing.
    fn step(&self, repository: &Repository, number: u64) -> Result<(), Error> {
        match self.line.world.roll(12) {
            0..=2 => self.take(repository, number),
            3 | 4 => self.delete(repository),
            5 => self.undo(repository),
            6 | 7 => self.read(repository),
            8 => self.label(repository, number),
            9 => self.mend(repository),
            10 => {
                let due = self.due(repository)?;
                let recompression = all().filter(|_| self.line.world.roll(4) == 0);
                let report = repository.gc(GcParams { due, recompression, ..eager() }, &())?;
                if report.recompression.snapshots > 0 {
                    self.line.world.note("recompression");
                }
                if report.compaction.snapshots > 0 {
                    self.line.world.note("compaction");
                }
                Ok(())
            }
            _ => {
                let due = self.due(repository)?;
                let report = repository.gc(GcParams { due, ..GcParams::default() }, &())?;
                self.line.world.note(if report.segments > 0 { "collection" } else { "no garbage" });
                Ok(())
            }
        }
    }

    /// Chooses the deletions that a collection is to end: all, some or none.
    fn due(&self, repository: &Repository) -> Result<Due, Error> {
        if self.keeps_trash {
            return Ok(Due::Only(HashSet::new()));
        }
        if self.line.world.roll(2) == 0 {
            return Ok(Due::All);
        }
        let deleted = repository.deleted()?.into_iter();
        let some = deleted.filter(|_| self.line.world.roll(2) == 0);
        Ok(Due::Only(some.map(|one| (one.id, one.number)).collect()))
    }

    fn take(&self, repository: &Repository, number: u64) -> Result<(), Error> {
        let records = repository.snapshots()?.records;
        let parent = self.pick(&records).map(|at| &records[at]);
        let params = SessionParams { threads: Some(1), ..SessionParams::default() };
        let session = repository.begin(params)?;
        let images = write_images(&session, number, parent)?;
        let record = session.commit(SnapshotDraft {
            created: Timestamp::from_second(1_800_000_000 + self.skew).unwrap(),
            images,
            ..SnapshotDraft::plain(serde_json::json!(number))
        })?;
        self.line.world.note("take");
        // Others may have seen and deleted it already.
        self.fates().0.entry(number).or_insert_with(|| Known::new(record.id, Fate::There));
        Ok(())
    }

    fn delete(&self, repository: &Repository) -> Result<(), Error> {
        let records = repository.snapshots()?.records;
        let Some(at) = self.pick(&records) else { return Ok(()) };
        let (number, id) = (number_of(&records[at]), records[at].id);
        self.fates().begin(number, id);
        let now = Timestamp::from_second(1_800_000_000 + self.skew).unwrap();
        gone::delete(&repository.vault, &[id], now)?;
        self.fates().end(number, Fate::Deleted);
        self.line.world.note("deletion");
        Ok(())
    }

    fn undo(&self, repository: &Repository) -> Result<(), Error> {
        let deleted = self.fates().deleted();
        let Some(at) = self.pick(&deleted) else { return Ok(()) };
        let (number, id) = deleted[at];
        self.fates().begin(number, id);
        match repository.undo_remove(id) {
            Ok(record) => {
                assert_eq!(number_of(&record), number);
                self.fates().end(number, Fate::There);
                self.line.world.note("undo");
                Ok(())
            }
            // It was collected, and nobody can undo that.
            Err(error) if error.kind() == Kind::NotFound => {
                self.fates().end(number, Fate::Deleted);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Adds a tag; those of others stay.
    fn label(&self, repository: &Repository, number: u64) -> Result<(), Error> {
        let records = repository.snapshots()?.records;
        let Some(at) = self.pick(&records) else { return Ok(()) };
        let (of, id, tag) = (number_of(&records[at]), records[at].id, number.to_string());
        repository.relabel(id, |label| {
            let tags = label.tags.get_or_insert_default();
            if !tags.iter().any(|(key, _)| *key == tag) {
                tags.push((tag.clone(), String::new()));
            }
        })?;
        self.line.world.note("label");
        let mut fates = self.fates();
        let known = fates.0.entry(of).or_insert_with(|| Known::new(id, Fate::There));
        known.tags.push(tag);
        Ok(())
    }

    /// Moves everything out of a segment, as a repair does if it is damaged.
    fn mend(&self, repository: &Repository) -> Result<(), Error> {
        let segments = repository.vault.store.list("seg/")?;
        let Some(at) = self.pick(&segments) else { return Ok(()) };
        let damage = Damage::new(&*segments[at].key, None, "so it is said");
        let stranger = crash_tests::open(&copy_tests::new_disk())?;
        let donor = Donor::new(&stranger, repository.id())?;
        let grafted = graft::graft(&repository.vault, &donor, &[damage], &())?;
        if !grafted.mended.is_empty() {
            self.line.world.note("mending");
        }
        Ok(())
    }

    fn read(&self, repository: &Repository) -> Result<(), Error> {
        let records = repository.snapshots()?.records;
        let Some(at) = self.pick(&records) else { return Ok(()) };
        let pin = repository.pin(records[at].id)?;
        let read = has_images(repository, pin.record(), number_of(&records[at]));
        let is_trusted = !self.line.world.was_suspended(self.line.host);
        match read {
            Ok(is_right) => {
                assert!(is_right, "wrong bytes");
                self.line.world.note("reading");
            }
            Err(error) => {
                let lost = matches!(error.kind(), Kind::Damaged | Kind::NotFound);
                assert!(!(lost && is_trusted), "a pinned snapshot cannot be read: {error:?}");
            }
        }
        Ok(())
    }

    /// Lives until all is done or it is killed.
    fn live(&self, life: usize) {
        self.line.world.enter(self.line.host);
        if let Ok(repository) = open(&self.line) {
            for step in 0..STEPS {
                let number = u64::try_from(life).unwrap() * 1_000 + step;
                if let Err(error) = self.step(&repository, number)
                    && !self.line.world.is_dead(self.line.host)
                {
                    self.must_be_expected(&error);
                }
                if self.line.world.is_dead(self.line.host) {
                    break;
                }
            }
        }
        self.line.world.leave(self.line.host);
    }

    /// Who was suspended may be told that its session was ended, who pins that it
    /// is too late; a short listing stops a collection.
    fn must_be_expected(&self, error: &Error) {
        let was_suspended = self.line.world.was_suspended(self.line.host);
        match error.kind() {
            Kind::Fenced | Kind::NotFound | Kind::Io => {}
            Kind::Damaged => {
                let is_short = error.to_string().contains("it is missing");
                assert!(is_short || was_suspended, "{error:?}");
            }
            _ => panic!("{error:?}"),
        }
    }
}

/// Whether nobody ends a deletion in a world.
fn keeps_trash(seed: u64) -> bool {
    seed.is_multiple_of(4)
}

/// Lets a world run; returns what has happened in it.
fn run(seed: u64) -> BTreeMap<&'static str, u64> {
    let objects = Memory::default();
    create_in(&Shared::new(objects.clone(), PULSE), &InitParams::default()).unwrap();
    let world = World::new(objects.clone(), LIVES, ODDS, seed);
    let fates = Arc::new(Mutex::new(Fates::default()));
    thread::scope(|scope| {
        let mut lives = Dice(seed ^ 0x5eed);
        for host in 0..LIVES {
            let host = Host {
                line: Line { world: world.clone(), host },
                keeps_trash: keeps_trash(seed),
                skew: i64::try_from(lives.roll(20 * 31_557_600)).unwrap() - 10 * 31_557_600,
                fates: Arc::clone(&fates),
            };
            scope.spawn(move || host.live(host.line.host));
        }
        world.begin();
    });
    world.settle();
    check(objects, &fates.lock().unwrap(), seed);
    world.counts()
}

/// Looks at what is left, as a host that comes when all others have gone.
fn check(objects: Memory, fates: &Fates, seed: u64) {
    let calm = Odds {
        lost_request: 0,
        lost_answer: 0,
        late_effect: 0,
        short_listing: 0,
        kill: 0,
        suspension: 0,
    };
    let line = Line { world: World::new(objects, 1, calm, seed), host: 0 };
    line.world.begin();
    line.world.enter(0);
    let repository = open(&line).unwrap();
    let found = |repository: &Repository| {
        let listing = repository.snapshots().unwrap();
        assert_eq!(listing.damaged, [], "seed {seed}");
        let found = listing.records.into_iter().map(|record| (number_of(&record), record));
        found.collect::<BTreeMap<_, _>>()
    };
    let before = found(&repository);
    for (number, known) in &fates.0 {
        let is_there = before.contains_key(number);
        match known.fate {
            Fate::There => assert!(is_there, "seed {seed}: snapshot {number} is lost"),
            Fate::Deleted => assert!(!is_there, "seed {seed}: snapshot {number} came back"),
            Fate::Open => {}
        }
    }
    let before = if keeps_trash(seed) {
        put_back(&repository, fates, seed);
        found(&repository)
    } else {
        before
    };
    assert_eq!(repository.gc(GcParams::default(), &()).unwrap().waiting_for, 0, "seed {seed}");
    let after = found(&repository);
    assert!(after == before, "seed {seed}: a collection has changed what is there");
    let labels = repository.labels().unwrap();
    assert_eq!(labels.damaged, [], "seed {seed}");
    assert!(labels.of.keys().all(|id| after.values().any(|r| r.id == *id)), "seed {seed}: left");
    for (number, record) in &after {
        let said =
            labels.of.get(&record.id).and_then(|label| label.tags.clone()).unwrap_or_default();
        for tag in fates.0.get(number).iter().flat_map(|known| &known.tags) {
            assert!(said.iter().any(|(key, _)| key == tag), "seed {seed}: {number} lost {tag}");
        }
        assert!(has_images(&repository, record, *number).unwrap(), "seed {seed}: {number}");
    }
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, [], "seed {seed}");
    assert_eq!(report.segments, repository.usage().unwrap().segments, "seed {seed}: left over");
    line.world.leave(0);
}

/// Puts back all that is deleted, where nobody has ended a deletion. What is there
/// afterwards is read like all else.
fn put_back(repository: &Repository, fates: &Fates, seed: u64) {
    for (number, id) in fates.deleted() {
        let record = repository.undo_remove(id);
        let record = record.unwrap_or_else(|e| panic!("seed {seed}: {number} is lost: {e:?}"));
        assert_eq!(number_of(&record), number);
    }
}

#[test]
fn hosts_in_a_bad_world_lose_nothing() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let first = setting("TINTYPE_SOAK_SEED").unwrap_or_else(|| now() * 10_000);
    let count = setting("TINTYPE_SOAK_COUNT").unwrap_or(SEEDS);
    eprintln!("{count} seeds, TINTYPE_SOAK_SEED={first}");
    let counts = Mutex::new(BTreeMap::new());
    let workers = u64::try_from(thread::available_parallelism().map_or(2, usize::from)).unwrap();
    thread::scope(|scope| {
        for worker in 0..workers {
            let counts = &counts;
            scope.spawn(move || {
                for seed in (first..first + count).filter(|seed| seed % workers == worker) {
                    let happened = run(seed);
                    let mut counts = counts.lock().unwrap();
                    for (what, times) in happened {
                        *counts.entry(what).or_insert(0) += times;
                    }
                }
            });
        }
    });
    let counts = counts.into_inner().unwrap();
    eprintln!("soak: {count} worlds, seed {first}, nothing lost; {counts:?}");
    assert!(counts.len() == 16 || count < 100, "everything has happened: {counts:?}");
}
