//! Lives at random: takes, deletions, prunes, undos, pins, renames, copies, collections,
//! compactions and days that pass, and processes that are killed in the middle of one,
//! beside a simple model. After each step every snapshot and all that is in the trash
//! reads bit for bit, what `du` says is what deleting frees, and the log of operations
//! takes back what it should.
//!
//! A life that goes wrong is made shorter as long as it still does, and printed.

mod acts;

use std::collections::{BTreeSet, HashMap};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::mem::{Discriminant, discriminant};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use tempfile::TempDir;
use tintype_repo::{Encryption, GcParams, InitParams, Repository};
use tintype_types::{ByteCount, SnapshotId};

use self::acts::{Act, Checked, Dice, Told, changed, engine, perform, read};
use crate::Engine;
use crate::operations::Operation;
use crate::trash::CollectionParams;
use crate::undo::UndoReport;

const VMS: [&str; 2] = ["web", "mail"];
const DAY: i64 = 86_400;
/// Steps of a life.
const STEPS: u64 = 30;
/// Lives in CI, each time others.
const LIVES: u64 = 20;
/// What a process that is to be killed is told to do.
const TASK: &str = "TINTYPE_TEST_LIFE";
/// What it says when it begins; the harness has begun the line.
const BEGUN: &str = "begun";
/// How long an act takes, before one of its kind was seen.
const USUAL: Duration = Duration::from_millis(5);

/// Fails with what was expected.
macro_rules! ensure {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

/// What was found in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    There,
    Trash,
    Gone,
}

/// What is known of a snapshot.
#[derive(Debug, Clone)]
struct Known {
    id: SnapshotId,
    vm: String,
    content: Vec<u8>,
    fate: Fate,
    deleted: i64,
    name: String,
    pinned: bool,
}

/// An operation that was logged, as far as it says what an undo does.
#[derive(Debug, Clone)]
struct Logged {
    number: u64,
    verb: String,
    /// What it is about: `undo` is possible if one of them is in this state.
    ids: Vec<SnapshotId>,
    wants: Fate,
    /// Name and pin before it, of its only snapshot.
    before: Option<(String, bool)>,
    undone: bool,
}

/// A life, and what should be there.
struct Life {
    folder: TempDir,
    now: i64,
    all: Vec<Known>,
    log: Vec<Logged>,
    /// How long the last act of each kind took.
    took: HashMap<Discriminant<Act>, Duration>,
    /// What was done, to be printed.
    told: Vec<String>,
    kills: u64,
}

impl Life {
    fn begin() -> Self {
        let memory = Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let folder = folder.unwrap();
        for name in ["repository", "other"] {
            let mut params = InitParams::default();
            params.encryption = Encryption::None;
            Repository::init(&folder.path().join(name), params).unwrap();
        }
        let (all, log, told) = (Vec::new(), Vec::new(), Vec::new());
        let took = HashMap::new();
        Self { folder, now: 1_800_000_000, all, log, took, told, kills: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn engine(&self) -> Engine {
        engine(&self.path("home"), &self.path("repository"), self.now)
    }

    fn ids(&self, fate: Fate) -> Vec<SnapshotId> {
        self.all.iter().filter(|known| known.fate == fate).map(|known| known.id).collect()
    }

    fn known(&mut self, id: SnapshotId) -> &mut Known {
        self.all.iter_mut().find(|known| known.id == id).unwrap()
    }

    /// Chooses what to do; `None` if only time passes.
    fn choose(&mut self, dice: &mut Dice) -> Option<Act> {
        let there = self.ids(Fate::There);
        let vm = dice.pick(&VMS).unwrap().to_owned();
        let seed = dice.roll(1 << 40);
        match dice.roll(24) {
            0..=5 => {
                let mut parents: Vec<Option<SnapshotId>> = vec![None];
                let of_vm = self.all.iter().filter(|k| k.vm == vm && k.fate == Fate::There);
                parents.extend(of_vm.flat_map(|known| [Some(known.id), Some(known.id)]));
                Some(Act::Take { vm, parent: dice.pick(&parents)?, seed })
            }
            6..=8 => {
                let mut ids: BTreeSet<SnapshotId> = BTreeSet::new();
                ids.extend((0..=dice.roll(3)).filter_map(|_| dice.pick(&there)));
                (!ids.is_empty()).then(|| Act::Remove { ids: ids.into_iter().collect() })
            }
            9..=11 => Some(Act::Undo),
            12 => Some(Act::Undelete { id: dice.pick(&self.ids(Fate::Trash))? }),
            13 => {
                let is_there = self.all.iter().any(|k| k.vm == vm && k.fate == Fate::There);
                let keep_last = u32::try_from(1 + dice.roll(3)).unwrap();
                is_there.then_some(Act::Prune { vm, keep_last })
            }
            14 => Some(Act::Pin { id: dice.pick(&there)?, pinned: dice.roll(2) == 0 }),
            15 => Some(Act::Rename { id: dice.pick(&there)?, name: format!("r{seed}") }),
            16 => Some(Act::Gc { now: true }),
            17 | 18 => Some(Act::Gc { now: false }),
            19 | 20 => Some(Act::Compact),
            21 => Some(Act::Copy),
            _ => {
                let days = 1 + i64::try_from(dice.roll(5)).unwrap();
                self.now += days * DAY;
                self.told.push(format!("{days} days pass"));
                None
            }
        }
    }

    /// Does a step, perhaps in a process that is killed, and looks at everything.
    fn step(&mut self, seed: u64) -> Checked {
        let mut dice = Dice(seed);
        self.now += 60;
        let Some(act) = self.choose(&mut dice) else { return Ok(()) };
        let before = self.all.clone();
        let is_killed = dice.roll(5) == 0;
        if is_killed {
            let when = self.kill(&act, &mut dice);
            self.told.push(format!("{act:?}, killed {when:?} after its begin"));
        } else {
            self.told.push(format!("{act:?}"));
            let began = Instant::now();
            let told = perform(&self.engine(), &self.path("other"), &act);
            self.took.insert(discriminant(&act), began.elapsed());
            self.judge(&act, &told)?;
        }
        self.look(&act, &before, is_killed)?;
        self.hear(&act, &before)?;
        if dice.roll(3) == 0 {
            self.measure(&mut dice)?;
        }
        Ok(())
    }
}

/// Looking at what an act has done.
impl Life {
    /// Lets a process do it, and kills that at some moment, which no seed can fix;
    /// returns how long after it had begun.
    fn kill(&mut self, act: &Act, dice: &mut Dice) -> Duration {
        let task = serde_json::to_string(&(self.folder.path(), self.now, act)).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["life_tests::a_process_that_is_killed", "--exact", "--test-threads=1"])
            .env(TASK, task)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.ends_with(BEGUN)), "it has not begun");
        let usual = self.took.get(&discriminant(act)).copied().unwrap_or(USUAL);
        let when = usual * u32::try_from(dice.roll(120)).unwrap() / 100;
        std::thread::sleep(when);
        let has_ended = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        self.kills += u64::from(!has_ended);
        when
    }

    fn is_possible(&self, logged: &Logged) -> bool {
        let wanted = |known: &&Known| logged.ids.contains(&known.id) && known.fate == logged.wants;
        logged.verb != "undo" && !logged.undone && self.all.iter().any(|known| wanted(&known))
    }

    /// Checks what an act that ended has told; of an undo, also notes what it did.
    fn judge(&self, act: &Act, told: &Told) -> Checked {
        match (act, &told.error) {
            (Act::Undo, _) => self.judge_undo(told),
            (_, None) => Ok(()),
            (Act::Remove { ids }, Some(error)) => {
                let is_pinned = |known: &Known| ids.contains(&known.id) && known.pinned;
                ensure!(self.all.iter().any(is_pinned), "not deleted: {}", error.with_causes());
                Ok(())
            }
            (_, Some(error)) => Err(format!("it failed: {}", error.with_causes())),
        }
    }

    fn judge_undo(&self, told: &Told) -> Checked {
        let expected = self.log.iter().rev().find(|logged| self.is_possible(logged));
        let noted = |id: &SnapshotId| {
            let of = |logged: &&Logged| logged.wants == Fate::Trash && !logged.undone;
            self.log.iter().filter(of).any(|logged| logged.ids.contains(id))
        };
        let unlogged = self.ids(Fate::Trash).iter().any(|id| !noted(id));
        match (&told.error, &told.undone) {
            (Some(error), _) => {
                let why = error.with_causes();
                let protects = why.contains("again since") || why.contains("is pinned");
                let nothing = expected.is_none() && !unlogged;
                ensure!(nothing || protects, "nothing was undone: {why}");
            }
            (None, Some(UndoReport { operation: Some(number), .. })) => {
                let expected = expected.map(|logged| logged.number);
                ensure!(Some(*number) == expected, "{number} was undone, not {expected:?}");
            }
            (None, Some(_)) => ensure!(unlogged, "what no log has was undone, and nothing was"),
            (None, None) => unreachable!("an undo fails or reports"),
        }
        Ok(())
    }

    /// Returns the fate that a snapshot has when an act is done; several if that is open.
    fn expected(&self, act: &Act, of: &Known, before: &[Known]) -> Vec<Fate> {
        let newer = |known: &&Known| {
            let same = known.vm == of.vm && known.fate == Fate::There && !known.pinned;
            same && before.iter().skip_while(|k| k.id != of.id).skip(1).any(|k| k.id == known.id)
        };
        let is_pinned = |id: &SnapshotId| before.iter().any(|k| k.id == *id && k.pinned);
        match (act, of.fate) {
            (Act::Remove { ids }, Fate::There) if ids.contains(&of.id) => {
                vec![if ids.iter().any(is_pinned) { Fate::There } else { Fate::Trash }]
            }
            (Act::Undelete { id }, Fate::Trash) if *id == of.id => vec![Fate::There],
            (Act::Prune { vm, keep_last }, Fate::There) if *vm == of.vm => {
                let newer = u32::try_from(before.iter().filter(newer).count()).unwrap();
                vec![if of.pinned || newer < *keep_last { Fate::There } else { Fate::Trash }]
            }
            (Act::Gc { now: true }, Fate::Trash) => vec![Fate::Gone],
            (Act::Gc { now: false }, Fate::Trash) if of.deleted + 7 * DAY <= self.now => {
                vec![Fate::Trash, Fate::Gone]
            }
            (Act::Undo, Fate::There | Fate::Trash) => vec![Fate::There, Fate::Trash],
            (_, fate) => vec![fate],
        }
    }

    /// Compares with what is there, and goes on from that.
    fn look(&mut self, act: &Act, before: &[Known], is_killed: bool) -> Checked {
        let engine = self.engine();
        let repository = engine.repository().map_err(|e| e.with_causes())?;
        let listing = repository.snapshots().map_err(|e| format!("{e:?}"))?;
        ensure!(listing.damaged.is_empty(), "damaged: {:?}", listing.damaged);
        let deleted = repository.deleted().map_err(|e| format!("{e:?}"))?;
        for record in &listing.records {
            if self.all.iter().any(|known| known.id == record.id) {
                continue;
            }
            let Act::Take { vm, parent, seed } = act else {
                return Err(format!("{} came from nowhere", record.id));
            };
            let base = parent.map(|id| self.known(id).content.clone());
            let (id, vm, name) = (record.id, vm.clone(), format!("s{seed}"));
            let (content, fate) = (changed(base.as_deref(), *seed), Fate::There);
            self.all.push(Known { id, vm, content, fate, deleted: 0, name, pinned: false });
        }
        let taken = self.all.len() - before.len();
        let wanted = usize::from(matches!(act, Act::Take { .. }));
        ensure!(taken == wanted || (is_killed && taken == 0), "{taken} were taken");
        for of in before {
            let is = if listing.records.iter().any(|record| record.id == of.id) {
                Fate::There
            } else if deleted.iter().any(|one| one.id == of.id) {
                Fate::Trash
            } else {
                Fate::Gone
            };
            let allowed = self.expected(act, of, before);
            let is_right = allowed.contains(&is) || (is_killed && is == of.fate);
            ensure!(is_right, "{} is {is:?}, and not {allowed:?}", of.id);
            let now = self.now;
            let known = self.known(of.id);
            known.fate = is;
            if of.fate == Fate::There && is == Fate::Trash {
                known.deleted = now;
            }
        }
        for record in &listing.records {
            let content = read(&repository, record)?;
            ensure!(content == self.known(record.id).content, "{} has changed", record.id);
        }
        self.look_at_labels(&engine, act)
    }

    fn look_at_labels(&mut self, engine: &Engine, act: &Act) -> Checked {
        for snapshot in engine.log(None).map_err(|e| e.with_causes())? {
            let record = &snapshot.record;
            let known = self.known(record.id);
            let is = (record.name.as_str().to_owned(), snapshot.pinned);
            let was = (known.name.clone(), known.pinned);
            let to = match act {
                Act::Rename { id, name } if *id == record.id => (name.clone(), was.1),
                Act::Pin { id, pinned } if *id == record.id => (was.0.clone(), *pinned),
                // Judged by what was said before the operation.
                Act::Undo => is.clone(),
                _ => was.clone(),
            };
            ensure!(is == to || is == was, "{} is {is:?}, and not {to:?}", record.id);
            (known.name, known.pinned) = is;
        }
        Ok(())
    }

    /// Reads what is new in the log of operations, and checks what an undo has changed.
    fn hear(&mut self, act: &Act, before: &[Known]) -> Checked {
        let operations = self.engine().operations(10).map_err(|e| e.with_causes())?;
        let last = self.log.last().map_or(0, |logged| logged.number);
        let news: Vec<_> = operations.into_iter().rev().filter(|op| op.number > last).collect();
        // A collection tells what it has kept, and what it has freed.
        let most = if matches!(act, Act::Gc { .. }) { 2 } else { 1 };
        ensure!(news.len() <= most, "one act was logged as several: {news:?}");
        news.into_iter().try_for_each(|operation| self.note(operation, act, before))
    }

    /// Notes an operation.
    fn note(&mut self, operation: Operation, act: &Act, before: &[Known]) -> Checked {
        let went = |from: Fate, to: Fate| -> Vec<SnapshotId> {
            let pairs = before.iter().zip(&self.all);
            let such = pairs.filter(|(was, is)| (was.fate, is.fate) == (from, to));
            such.map(|(was, _)| was.id).collect()
        };
        let (lost, back) = (went(Fate::There, Fate::Trash), went(Fate::Trash, Fate::There));
        let label = |id: &SnapshotId| {
            let of = before.iter().find(|known| known.id == *id);
            of.map(|known| (known.name.clone(), known.pinned))
        };
        let (ids, wants, said) = match act {
            Act::Take { .. } => (vec![self.all[self.all.len() - 1].id], Fate::There, None),
            Act::Remove { .. } | Act::Prune { .. } => (lost.clone(), Fate::Trash, None),
            Act::Pin { id, .. } | Act::Rename { id, .. } => (vec![*id], Fate::There, label(id)),
            Act::Undelete { .. } => (back.clone(), Fate::There, None),
            Act::Undo if lost.is_empty() => (back.clone(), Fate::There, None),
            Act::Undo => (lost.clone(), Fate::Trash, None),
            // Nothing here takes these back.
            Act::Gc { .. } | Act::Copy => (Vec::new(), Fate::Gone, None),
            Act::Compact => return Err(format!("it was logged: {operation:?}")),
        };
        if let Some(number) = operation.undoes {
            let undone = self.log.iter_mut().find(|logged| logged.number == number).unwrap();
            undone.undone = true;
            let (verb, of, said) = (undone.verb.clone(), undone.ids.clone(), undone.before.clone());
            match verb.as_str() {
                "take" => ensure!(lost == of && back.is_empty(), "not the take was undone"),
                "rm" | "prune" => {
                    let all = back.iter().all(|id| of.contains(id));
                    ensure!(all && lost.is_empty() && !back.is_empty(), "not that was undone");
                }
                _ => {
                    let known = self.known(of[0]);
                    let (name, pinned) = said.unwrap();
                    let is =
                        if verb == "rename" { known.name == name } else { known.pinned == pinned };
                    ensure!(is, "what was said before is not said again");
                }
            }
        }
        let (number, verb) = (operation.number, operation.verb);
        self.log.push(Logged { number, verb, ids, wants, before: said, undone: false });
        Ok(())
    }

    /// Looks at a copy of the repository: what is in the trash is whole, and deleting
    /// frees what was said.
    fn measure(&mut self, dice: &mut Dice) -> Checked {
        let failed = |error: tintype_repo::Error| format!("{error:?}");
        let space = self.engine().space(&[]).map_err(|e| e.with_causes())?;
        let looked_at = self.path("looked-at");
        let copy =
            Command::new("cp").arg("-r").arg(self.path("repository")).arg(&looked_at).status();
        ensure!(copy.unwrap().success(), "cannot copy");
        let repository = Repository::open(&looked_at).map_err(failed)?;
        let needed = || repository.shares().map(|s| s.referenced_bytes.get()).map_err(failed);
        let live = needed()?;
        ensure!(live == space.referenced_bytes.get(), "{live} are needed, and not {space:?}");
        let there: Vec<SnapshotId> = self.ids(Fate::There);
        let some: Vec<_> = there.iter().copied().filter(|_| dice.roll(2) == 0).collect();
        let said = repository.shares_of(&some).map_err(failed)?.together.exclusive_bytes.get();
        repository.remove_all(&some, Timestamp::UNIX_EPOCH).map_err(failed)?;
        let freed = live - needed()?;
        ensure!(freed == said, "{some:?} freed {freed}, and {said} was said");
        for id in some.iter().copied().chain(self.ids(Fate::Trash)) {
            let record = repository.undo_remove(id).map_err(|e| format!("{id} is lost: {e:?}"))?;
            ensure!(read(&repository, &record)? == self.known(id).content, "{id} has changed");
        }
        let trash = space.trash.bytes.map(ByteCount::get);
        let kept = needed()? - live;
        ensure!(trash == Some(kept), "the trash holds {kept}, and {trash:?} was said");
        ensure!(space.trash.snapshots == self.ids(Fate::Trash).len(), "not all are counted");
        let mut gone = self.ids(Fate::Trash);
        gone.extend(&some);
        repository.remove_all(&gone, Timestamp::UNIX_EPOCH).map_err(failed)?;
        let before = repository.usage().map_err(failed)?.segment_bytes;
        let report = repository.gc(GcParams::default(), &()).map_err(failed)?;
        let after = repository.usage().map_err(failed)?.segment_bytes;
        ensure!(report.waiting_for == 0 && after <= before, "{report:?}: {before} {after}");
        let rest = there.into_iter().filter(|id| !some.contains(id));
        for id in rest {
            let record = repository.snapshot(id).map_err(failed)?;
            ensure!(read(&repository, &record)? == self.known(id).content, "{id} has changed");
        }
        std::fs::remove_dir_all(&looked_at).unwrap();
        self.look_at_copies()
    }

    /// What was copied is as it was when it was.
    fn look_at_copies(&mut self) -> Checked {
        let other = Repository::open(&self.path("other")).map_err(|e| format!("{e:?}"))?;
        for record in other.snapshots().map_err(|e| format!("{e:?}"))?.records {
            let origin = record.origin.as_ref().expect("all were copied").snapshot;
            let content = read(&other, &record)?;
            ensure!(content == self.known(origin).content, "the copy of {origin} has changed");
        }
        Ok(())
    }

    /// What is deleted goes in the end, and with all that is deleted all space.
    fn end(&mut self) -> Checked {
        let failed = |error: tintype_repo::Error| format!("{error:?}");
        for _ in 0..30 {
            self.now += DAY;
            let collected = self.engine().collect_garbage(CollectionParams::default());
            collected.map_err(|e| e.with_causes())?;
        }
        let repository = Repository::open(&self.path("repository")).map_err(failed)?;
        ensure!(repository.deleted().map_err(failed)?.is_empty(), "the trash is not emptied");
        let there = self.ids(Fate::There);
        for id in &there {
            let record = repository.snapshot(*id).map_err(failed)?;
            ensure!(read(&repository, &record)? == self.known(*id).content, "{id} has changed");
        }
        repository.remove_all(&there, Timestamp::UNIX_EPOCH).map_err(failed)?;
        repository.gc(GcParams::default(), &()).map_err(failed)?;
        let left = repository.usage().map_err(failed)?.segments;
        ensure!(left == 0, "{left} segments are left");
        Ok(())
    }
}

/// Lives through some steps; returns what was done, how many processes were killed, and
/// how it went.
fn live(steps: &[u64]) -> (Vec<String>, u64, Checked) {
    let mut life = Life::begin();
    let mut went = Ok(());
    for seed in steps {
        went = went.and_then(|()| life.step(*seed));
    }
    let went = went.and_then(|()| life.end());
    (life.told, life.kills, went)
}

/// Leaves out of a life that went wrong what it goes wrong without, and prints it.
fn shorten(mut steps: Vec<u64>) -> String {
    let mut at = steps.len();
    while at > 0 {
        at -= 1;
        let mut fewer = steps.clone();
        fewer.remove(at);
        if live(&fewer).2.is_err() {
            steps = fewer;
        }
    }
    let (told, _, went) = live(&steps);
    format!("{}\n{went:?}, after {} steps", told.join("\n"), steps.len())
}

#[test]
fn a_process_that_is_killed() {
    let Ok(task) = env::var(TASK) else { return };
    let (folder, now, act): (PathBuf, i64, Act) = serde_json::from_str(&task).unwrap();
    let engine = engine(&folder.join("home"), &folder.join("repository"), now);
    let mut output = std::io::stdout();
    writeln!(output, "{BEGUN}").and_then(|()| output.flush()).unwrap();
    perform(&engine, &folder.join("other"), &act);
}

#[test]
fn lives_at_random_are_as_a_simple_model_says() {
    let setting = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let first: u64 = setting("TINTYPE_SOAK_SEED").unwrap_or_else(|| now() * 10_000);
    let count: u64 = setting("TINTYPE_SOAK_COUNT").unwrap_or(LIVES);
    eprintln!("{count} lives, TINTYPE_SOAK_SEED={first}");
    let mut killed = 0;
    for seed in first..first + count {
        let mut dice = Dice(seed);
        let steps: Vec<u64> = (0..STEPS).map(|_| dice.roll(u64::MAX)).collect();
        let (told, kills, went) = live(&steps);
        killed += kills;
        if let Err(why) = went {
            let (told, shorter) = (told.join("\n"), shorten(steps));
            panic!("TINTYPE_SOAK_SEED={seed}:\n{told}\n{why}\n\nshorter:\n{shorter}");
        }
    }
    eprintln!(
        "soak: {count} lives of {STEPS} steps, seed {first}, {killed} processes killed, none differs"
    );
}
