//! Processes that are killed at random moments of whatever they do: what was
//! acknowledged is there, and what was under way is there or not.

use std::collections::BTreeMap;
use std::env;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tintype_repo::{GcParams, Repository, SnapshotRecord, VerifyLevel};
use tintype_types::SnapshotId;

use crate::support::{
    BLOCK, Dice, begin, content, eager, files, new_repository, on_all_cores, read_all, soak,
    take_numbered, write_image,
};

const WORKER: &str = "TINTYPE_REPO_TEST_WORKER";
/// How often the worker of one repository is killed.
const KILLS: u64 = 50;
/// With more snapshots than this the worker deletes.
const MANY: usize = 6;

/// Not a test of its own: the process that is killed. It works on and on, and
/// says before and after each step what it does.
#[test]
fn child_that_works() {
    let Ok(task) = env::var(WORKER) else { return };
    let (seed, path) = task.split_once(' ').unwrap();
    let seed: u64 = seed.parse().unwrap();
    let mut dice = Dice::new(seed);
    let repository = Repository::open(Path::new(path)).unwrap();
    let mut there = repository.snapshots().unwrap().records;
    let mut deleted: Vec<SnapshotRecord> = Vec::new();
    // The test runner has begun a line.
    println!();
    for number in (seed << 16).. {
        match dice.roll(6) {
            0 => {
                println!("begin gc");
                repository.gc(eager(), &()).unwrap();
                deleted.clear();
                println!("done gc");
            }
            1 if !deleted.is_empty() => {
                let record = deleted.pop().unwrap();
                println!("begin undo {}", record.details);
                repository.undo_remove(record.id).unwrap();
                println!("done undo {}", record.details);
                there.push(record);
            }
            kind if there.len() > MANY || (kind == 2 && !there.is_empty()) => {
                let record = there.remove(dice.pick(there.len()));
                println!("begin delete {}", record.details);
                repository.remove(record.id).unwrap();
                println!("done delete {}", record.details);
                deleted.push(record);
            }
            _ => {
                println!("begin take {number}");
                there.push(take_numbered(&repository, number, &image(number), there.last()));
                println!("done take {number}");
            }
        }
    }
}

fn image(number: u64) -> Vec<u8> {
    let mut bytes = content(1, 60 * BLOCK);
    let changed = content(number + 2, 10 * BLOCK);
    let at = Dice::new(number).pick(50) * BLOCK;
    bytes[at..at + changed.len()].copy_from_slice(&changed);
    bytes
}

fn start_worker(path: &Path, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["died::child_that_works", "--exact", "--nocapture", "--test-threads=1"])
        .env(WORKER, format!("{seed} {}", path.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What must be there, by what the worker has said.
#[derive(Debug, Default)]
struct Acknowledged {
    there: BTreeMap<u64, SnapshotId>,
    /// What became known only by looking has no id yet.
    new: Vec<u64>,
    open: Option<u64>,
    steps: u64,
}

impl Acknowledged {
    fn hear(&mut self, text: &str) {
        for line in text.lines() {
            let words: Vec<_> = line.split(' ').collect();
            let number = words.get(2).and_then(|number| number.parse().ok());
            match (words[0], words.get(1).copied()) {
                ("begin", _) => self.open = number,
                ("done", Some(step)) => {
                    self.open = None;
                    self.steps += 1;
                    match (step, number) {
                        ("take" | "undo", Some(number)) => self.new.push(number),
                        ("delete", Some(number)) => {
                            self.there.remove(&number);
                            self.new.retain(|new| *new != number);
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }

    /// Compares with what is there, and goes on from that.
    fn check(&mut self, repository: &Repository, what: &str) {
        let listing = repository.snapshots().unwrap();
        assert_eq!(listing.damaged, [], "{what}");
        let number = |record: &SnapshotRecord| record.details.read().unwrap();
        let found: BTreeMap<_, _> = listing.records.iter().map(|r| (number(r), r.id)).collect();
        for number in self.there.keys().chain(&self.new) {
            let known = found.contains_key(number) || self.open == Some(*number);
            assert!(known, "{what}: acknowledged snapshot {number} is lost");
        }
        for record in &listing.records {
            let number = number(record);
            let known = self.there.contains_key(&number) || self.new.contains(&number);
            assert!(known || self.open == Some(number), "{what}: {number} should not be there");
            assert!(read_all(repository, &record.images[0].root) == image(number), "{what}");
        }
        (self.there, self.new, self.open) = (found, Vec::new(), None);
    }
}

#[test]
fn a_killed_process_loses_nothing_that_was_acknowledged() {
    let soak = soak("kills", 2000);
    let chains: Vec<u64> = (0..soak.count.div_ceil(KILLS)).collect();
    let steps = on_all_cores(&chains, |chain| {
        let kills = KILLS.min(soak.count - chain * KILLS);
        kill_again_and_again(soak.seed.wrapping_add(*chain), kills)
    });
    let steps: u64 = steps.iter().sum();
    assert!(steps > soak.count / 4, "the workers got through {steps} steps only");
    eprintln!("soak: {} kills after {steps} acknowledged steps, none lost", soak.count);
}

/// Kills the workers of one repository; returns how many steps they did.
fn kill_again_and_again(seed: u64, kills: u64) -> u64 {
    let (_folder, repository) = new_repository();
    let path = repository.path();
    let mut dice = Dice::new(seed);
    let mut acknowledged = Acknowledged::default();
    for kill in 0..kills {
        let what = format!("TINTYPE_SOAK_SEED={seed}, kill {kill}");
        let mut child = start_worker(path, seed % (1 << 32) * KILLS + kill);
        std::thread::sleep(Duration::from_micros(3000 + dice.roll(60_000)));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        acknowledged.hear(&text);
        let repository = Repository::open(path).unwrap();
        acknowledged.check(&repository, &what);
        // Opening it has ended what died.
        for folder in ["tmp", "slot"].map(|folder| path.join(folder)) {
            let left = if folder.exists() { files(&folder) } else { Vec::new() };
            assert_eq!(left, Vec::<PathBuf>::new(), "{what}");
        }
        if kill % 10 == 9 {
            let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
            assert_eq!(report.damaged, [], "{what}");
        }
    }
    // Nothing is left of the sessions that died, nor of the collections.
    repository.gc(GcParams::default(), &()).unwrap();
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.segments, repository.usage().unwrap().segments, "TINTYPE_SOAK_SEED={seed}");
    acknowledged.steps
}

#[test]
fn a_session_that_is_given_up_leaves_nothing() {
    let (_folder, repository) = new_repository();
    let before = files(repository.path());
    let session = begin(&repository);
    write_image(&session, &content(1, 2000 * BLOCK), None);
    // A live session is not taken for a dead one.
    Repository::open(repository.path()).unwrap();
    assert_ne!(files(repository.path()), before);
    drop(session);
    assert_eq!(files(repository.path()), before);
}
