//! Snapshots kept by tintype, of a guest that runs.

use super::super::guest::Subject;
use super::io::{self, Speed};
use super::{DISK_MIB, FILLED_MIB, Figures, ROUNDS, SOME, median, rounds};
use crate::failure::Failure;
use tintype_testkit::{Disk, Format, GuestKind};

/// The guest's memory.
const MEMORY_MIB: u32 = 128;
/// How often both guests' disks are measured: the ratios are near 1, machines are noisy.
const TURNS: usize = 600;
/// How many places of the disk change, 64 KiB each.
const PLACES: usize = 10;

/// Boots a guest with something on its second disk.
pub(super) fn guest() -> Result<Subject, Failure> {
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Qcow2, DISK_MIB)];
    let mut subject = Subject::of(GuestKind::Tiny, MEMORY_MIB, disks)?;
    subject
        .in_guest(&format!("dd if=/dev/urandom of=/dev/vdb bs=1M count={FILLED_MIB} conv=fsync"))?;
    Ok(subject)
}

/// Measures at each number of snapshots: first what the guest lives through, with more and
/// more of them; then reverts, each of which starts another QEMU, with fewer and fewer.
pub(super) fn measure(counts: &[usize]) -> Result<Vec<Figures>, Failure> {
    let mut life = Life::start()?;
    let mut figures = Vec::new();
    for &count in counts {
        life.grow(count)?;
        figures.push(life.at(count)?);
    }
    let Life { mut subject, taken: mut left, .. } = life;
    for figures in figures.iter_mut().rev().filter(|figures| figures.snapshots >= SOME) {
        if figures.snapshots < left {
            shrink(&subject, left, figures.snapshots)?;
            left = figures.snapshots;
        }
        figures.revert = Some(reverts(&mut subject)?);
    }
    Ok(figures)
}

/// A guest with snapshots, and one beside it that does the same and has none.
struct Life {
    subject: Subject,
    plain: Subject,
    /// How their disks compared before the first snapshot, writing and reading: two QEMUs
    /// differ by up to a tenth as long as they run.
    before: [Speed; 2],
    taken: usize,
}

impl Life {
    fn start() -> Result<Self, Failure> {
        let (mut subject, mut plain) = (guest()?, guest()?);
        let before = io::speeds(&mut subject, &mut plain, TURNS)?;
        Ok(Self { subject, plain, before, taken: 0 })
    }

    /// Takes snapshots of the disk until there are so many.
    fn grow(&mut self, count: usize) -> Result<(), Failure> {
        for number in self.taken..count {
            change(&mut self.plain, number)?;
            change(&mut self.subject, number)?;
            self.subject.take(&["--no-memory", "--name", &format!("c{number}")])?;
        }
        self.taken = self.taken.max(count);
        Ok(())
    }

    fn at(&mut self, count: usize) -> Result<Figures, Failure> {
        let [write, read] = self.speeds()?.map(Some);
        let subject = &mut self.subject;
        let recording =
            if count > 0 { Some(io::recording(subject, TURNS)?.map(|s| s.ratio)) } else { None };
        let mut takes = Vec::new();
        for round in 0..ROUNDS {
            change(subject, count + round)?;
            let taken = subject.take(&["--name", &format!("m{count}-{round}")])?;
            takes.push(taken["duration_ms"].as_f64().unwrap_or(f64::NAN));
        }
        let log = rounds(|_| subject.tintype(&["log", "bench"]).map(drop))?;
        let du = Some(rounds(|_| subject.tintype(&["du", "bench"]).map(drop))?);
        let delete = if count >= SOME { Some(deletions(subject, count / 2)?) } else { None };
        let (take, revert) = (median(&takes), None);
        Ok(Figures { snapshots: count, write, read, recording, take, delete, revert, log, du })
    }

    /// Returns the speeds of the disk, and how they compare with those before.
    fn speeds(&mut self) -> Result<[Speed; 2], Failure> {
        let mut speeds = io::speeds(&mut self.subject, &mut self.plain, TURNS)?;
        for (speed, before) in speeds.iter_mut().zip(self.before) {
            speed.ratio /= before.ratio;
        }
        Ok(speeds)
    }
}

/// Changes a little of the disk. The places are few, so that a revert to the first
/// snapshot has as much to write whatever the number of snapshots.
fn change(subject: &mut Subject, number: usize) -> Result<(), Failure> {
    let place = number % PLACES;
    let written = format!("dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek={place} conv=fsync");
    subject.in_guest(&written).map(drop)
}

/// Deletes some one by one, and puts them back.
fn deletions(subject: &Subject, first: usize) -> Result<f64, Failure> {
    let name = |round: usize| format!("bench@c{}", first + round);
    let taken = rounds(|round| subject.tintype(&["rm", &name(round)]).map(drop))?;
    for _ in 0..ROUNDS {
        subject.tintype(&["undo"])?;
    }
    Ok(taken)
}

/// Deletes for good what came after the first so many.
fn shrink(subject: &Subject, from: usize, to: usize) -> Result<(), Failure> {
    let taken = (to..from).map(|number| format!("bench@c{number}"));
    let measured = (0..ROUNDS).map(|round| format!("bench@m{from}-{round}"));
    let names: Vec<String> = taken.chain(measured).collect();
    let mut delete = vec!["rm"];
    delete.extend(names.iter().map(String::as_str));
    subject.tintype(&delete)?;
    subject.tintype(&["gc", "--now"]).map(drop)
}

fn reverts(subject: &mut Subject) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        change(subject, round)?;
        let reverted = subject.revert("c0")?;
        times.push(reverted["running_ms"].as_f64().unwrap_or(f64::NAN));
    }
    Ok(median(&times))
}
