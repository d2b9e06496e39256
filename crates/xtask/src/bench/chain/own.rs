//! Snapshots kept by tintype, of a guest that runs.

use super::super::guest::Subject;
use super::{DISK_MIB, FILLED_MIB, Figures, ROUNDS, io, median, rounds};
use crate::failure::Failure;
use tintype_testkit::{Disk, Format, GuestKind};

/// The guest's memory.
const MEMORY_MIB: u32 = 128;
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

/// Measures at each number of snapshots.
pub(super) fn measure(counts: &[usize]) -> Result<Vec<Figures>, Failure> {
    let mut subject = guest()?;
    let mut figures = Vec::new();
    let mut taken = 0;
    for &count in counts {
        while taken < count {
            change(&mut subject, taken)?;
            subject.take(&["--no-memory", "--name", &format!("c{taken}")])?;
            taken += 1;
        }
        figures.push(at(&mut subject, count)?);
    }
    Ok(figures)
}

/// Changes a little of the disk. The places are few, so that a revert to the first
/// snapshot has as much to write whatever the number of snapshots.
fn change(subject: &mut Subject, number: usize) -> Result<(), Failure> {
    let place = number % PLACES;
    let written = format!("dd if=/dev/urandom of=/dev/vdb bs=64k count=1 seek={place} conv=fsync");
    subject.in_guest(&written).map(drop)
}

fn at(subject: &mut Subject, count: usize) -> Result<Figures, Failure> {
    let [write, read] = io::speeds(subject)?.map(Some);
    let mut takes = Vec::new();
    for round in 0..ROUNDS {
        change(subject, count + round)?;
        let taken = subject.take(&["--name", &format!("m{count}-{round}")])?;
        takes.push(taken["duration_ms"].as_f64().unwrap_or(f64::NAN));
    }
    let log = rounds(|_| subject.tintype(&["log", "bench"]).map(drop))?;
    let du = rounds(|_| subject.tintype(&["du", "bench"]).map(drop))?;
    let (mut delete, mut revert) = (None, None);
    if count >= 10 {
        let middle = |round: usize| format!("bench@c{}", count / 2 + round);
        delete = Some(rounds(|round| subject.tintype(&["rm", &middle(round)]).map(drop))?);
        for _ in 0..ROUNDS {
            subject.tintype(&["undo"])?;
        }
        let mut reverts = Vec::new();
        for round in 0..ROUNDS {
            change(subject, count + ROUNDS + round)?;
            let reverted = subject.revert("c0")?;
            reverts.push(reverted["running_ms"].as_f64().unwrap_or(f64::NAN));
        }
        revert = Some(median(&reverts));
    }
    Ok(Figures {
        snapshots: count,
        write,
        read,
        take: median(&takes),
        delete,
        revert,
        log,
        du: Some(du),
    })
}
