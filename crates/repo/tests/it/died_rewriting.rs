//! Processes that are killed at random moments while they move, compress again or repair
//! what is there: nothing is lost, and the next one finishes.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tintype_repo::{
    Copier, CopyParams, Due, Encryption, GcParams, InitParams, Repository, SnapshotRecord,
    VerifyLevel,
};
use tintype_types::SnapshotId;

use crate::support::{
    BLOCK, Dice, content, copy_tree, eager, eager_and_strong, files, on_all_cores, read_all, soak,
    take_numbered,
};

const WORKER: &str = "TINTYPE_REPO_TEST_REWRITER";
/// How many kills CI has time for.
const KILLS: u64 = 60;
/// How many of them one ground sees.
const KILLS_OF_A_GROUND: u64 = 10;
const SNAPSHOTS: u64 = 6;

/// What is being done when the process is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// What is deleted is collected, and the rest moved.
    Compact,
    /// The same, compressed again before.
    Recompress,
    /// Compressed again and moved while what is deleted stays in the trash.
    Spare,
    /// Repaired from a copy, byte for byte.
    Repair,
    /// Repaired from a repository with another key.
    Mend,
}

const ACTS: [Act; 5] = [Act::Compact, Act::Recompress, Act::Spare, Act::Repair, Act::Mend];

impl Act {
    fn is_repair(self) -> bool {
        matches!(self, Self::Repair | Self::Mend)
    }

    /// Does it, like a process that knows nothing of the repository yet.
    fn perform(self, folder: &Path) {
        let repository = open(folder, "here");
        let gc = |params: GcParams| {
            let report = repository.gc(params, &()).unwrap();
            assert_eq!(report.waiting_for, 0);
        };
        let repair = |from: &Repository| {
            let report = repository.repair(Some(from), &()).unwrap();
            assert_eq!((report.damaged, report.mismatches), (vec![], vec![]));
        };
        match self {
            Self::Compact => gc(eager()),
            Self::Recompress => gc(eager_and_strong()),
            Self::Spare => {
                let mut params = eager_and_strong();
                params.due = Due::Only(std::collections::HashSet::new());
                gc(params);
            }
            Self::Repair => repair(&open(folder, "whole")),
            Self::Mend => repair(&open(folder, "other")),
        }
    }
}

/// Not a test of its own: the process that is killed.
#[test]
fn child_that_rewrites() {
    let Ok(task) = env::var(WORKER) else { return };
    let (act, folder) = task.split_once(' ').unwrap();
    ACTS[act.parse::<usize>().unwrap()].perform(Path::new(folder));
}

fn key(folder: &Path, of: &str) -> Encryption {
    Encryption::KeyFile(folder.join(if of == "other" { "other.key" } else { "key" }))
}

fn open(folder: &Path, name: &str) -> Repository {
    Repository::open_with(&folder.join(name), &[key(folder, name)]).unwrap()
}

/// Parts that all have in common, that some have, and that are of one alone.
fn image(number: u64) -> Vec<u8> {
    let common = content(1, 60 * BLOCK);
    [common, content(2 + number / 2, 40 * BLOCK), content(100 + number, 40 * BLOCK)].concat()
}

/// A repository that is damaged and rewritten again and again, as `here`; what it was
/// before, with something in the trash as `full` and without as `whole`; and `other`,
/// which has copies of its snapshots.
struct Ground {
    folder: TempDir,
    there: Vec<SnapshotRecord>,
    deleted: SnapshotId,
    /// How long each act takes that nobody kills.
    usual: Vec<Duration>,
}

impl Ground {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let init = |name: &str| {
            let mut params = InitParams::default();
            params.encryption = key(path, name);
            Repository::init(&path.join(name), params).unwrap()
        };
        let (full, other) = (init("full"), init("other"));
        let mut there: Vec<SnapshotRecord> = Vec::new();
        for number in 0..SNAPSHOTS {
            there.push(take_numbered(&full, number, &image(number), there.last()));
        }
        let deleted = there.remove(1).id;
        full.remove(deleted).unwrap();
        copy_tree(&path.join("full"), &path.join("whole"));
        open(path, "whole").gc(GcParams::default(), &()).unwrap();
        let mut copier = Copier::new(&full, &other, CopyParams::default()).unwrap();
        there.iter().for_each(|record| _ = copier.copy(record.id, &()).unwrap());
        let mut ground = Self { folder, there, deleted, usual: Vec::new() };
        for (number, act) in ACTS.into_iter().enumerate() {
            ground.reset(act, &mut Dice::new(0));
            let began = Instant::now();
            ground.finish(number);
            ground.usual.push(began.elapsed());
            ground.check(act, "without a kill");
        }
        ground
    }

    fn here(&self) -> PathBuf {
        self.folder.path().join("here")
    }

    /// Makes what the act is to be done to.
    fn reset(&self, act: Act, dice: &mut Dice) {
        if self.here().exists() {
            fs::remove_dir_all(self.here()).unwrap();
        }
        let name = if act.is_repair() { "whole" } else { "full" };
        copy_tree(&self.folder.path().join(name), &self.here());
        if act.is_repair() {
            let segments = files(&self.here().join("seg"));
            for _ in 0..1 + dice.roll(3) {
                damage(&segments[dice.pick(segments.len())], dice);
            }
        }
    }

    fn start(&self, act: usize) -> Child {
        Command::new(env::current_exe().unwrap())
            .args(["died_rewriting::child_that_rewrites", "--exact", "--nocapture"])
            .env(WORKER, format!("{act} {}", self.folder.path().display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Does it to the end.
    fn finish(&self, act: usize) {
        assert!(self.start(act).wait().unwrap().success(), "{:?} fails", ACTS[act]);
    }

    /// Kills it at some moment. Tells whether it was not done yet.
    fn kill(&self, act: usize, dice: &mut Dice) -> bool {
        let usual = u64::try_from(self.usual[act].as_micros()).unwrap();
        let mut child = self.start(act);
        std::thread::sleep(Duration::from_micros(dice.roll(usual)));
        child.kill().unwrap();
        !child.wait().unwrap().success()
    }

    /// What is there is what was there.
    fn must_be_there(&self, what: &str) {
        let repository = open(self.folder.path(), "here");
        let listing = repository.snapshots().unwrap();
        assert_eq!(listing.damaged, [], "{what}");
        let ids: Vec<_> = listing.records.iter().map(|record| record.id).collect();
        assert_eq!(ids, self.there.iter().map(|record| record.id).collect::<Vec<_>>(), "{what}");
        for record in &listing.records {
            let number: u64 = record.details.read().unwrap();
            assert!(read_all(&repository, &record.images[0].root) == image(number), "{what}");
        }
        let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        assert_eq!(report.damaged, [], "{what}");
    }

    /// All is there, what is in the trash can be put back, and nothing is left over.
    fn check(&self, act: Act, what: &str) {
        self.must_be_there(what);
        let repository = open(self.folder.path(), "here");
        if act == Act::Spare {
            let record = repository.undo_remove(self.deleted).unwrap();
            assert!(read_all(&repository, &record.images[0].root) == image(1), "{what}");
            repository.remove(self.deleted).unwrap();
        }
        repository.gc(GcParams::default(), &()).unwrap();
        self.must_be_there(what);
        let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        assert_eq!(report.segments, repository.usage().unwrap().segments, "{what}: left over");
        for folder in ["tmp", "slot"].map(|folder| self.here().join(folder)) {
            let left = if folder.exists() { files(&folder) } else { Vec::new() };
            assert_eq!(left, Vec::<PathBuf>::new(), "{what}");
        }
    }
}

/// Damages a segment, if it is there.
fn damage(path: &Path, dice: &mut Dice) {
    let Ok(mut bytes) = fs::read(path) else { return };
    match dice.roll(3) {
        0 => return fs::remove_file(path).unwrap(),
        1 => bytes.truncate(dice.pick(bytes.len())),
        _ => {
            let at = dice.pick(bytes.len());
            bytes[at] ^= 0x10;
        }
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_killed_while_it_rewrites_loses_nothing_and_the_next_one_finishes() {
    let soak = soak("kills", KILLS);
    let grounds: Vec<u64> = (0..soak.count.div_ceil(KILLS_OF_A_GROUND)).collect();
    let in_time = on_all_cores(&grounds, |number| {
        let first = number * KILLS_OF_A_GROUND;
        let kills = KILLS_OF_A_GROUND.min(soak.count - first);
        rewrite_and_kill(soak.seed.wrapping_add(*number), first..first + kills)
    });
    let in_time: u64 = in_time.iter().sum();
    assert!(in_time > soak.count / 4, "only {in_time} kills came in time");
    eprintln!(
        "soak: {in_time} of {} kills came while something was moved, compressed again or repaired, nothing lost",
        soak.count
    );
}

/// Returns how many of the kills came before all was done.
fn rewrite_and_kill(seed: u64, kills: std::ops::Range<u64>) -> u64 {
    let ground = Ground::new();
    let mut dice = Dice::new(seed);
    let mut in_time = 0;
    for kill in kills {
        let act = usize::try_from(kill).unwrap() % ACTS.len();
        let what = format!("TINTYPE_SOAK_SEED={seed}, kill {kill}, {:?}", ACTS[act]);
        ground.reset(ACTS[act], &mut dice);
        in_time += u64::from(ground.kill(act, &mut dice));
        while dice.roll(3) == 0 {
            // The one that would finish is killed, too.
            ground.kill(act, &mut dice);
        }
        if !ACTS[act].is_repair() {
            ground.must_be_there(&what);
        }
        ground.finish(act);
        ground.check(ACTS[act], &what);
    }
    in_time
}
