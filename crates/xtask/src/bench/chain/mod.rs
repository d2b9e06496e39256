//! What a long life costs: one guest with more and more snapshots, kept by tintype, by
//! qcow2 overlays and by qcow2's internal snapshots; the same steps for each, one after
//! the other.

mod confined;
mod io;
mod own;
mod qcow2;

use std::time::Instant;

use self::io::Speed;
use super::median;
use crate::failure::Failure;

/// Numbers of snapshots, unless others are given.
const COUNTS: [usize; 4] = [0, 10, 100, 1000];
/// How often what is quick is measured.
const ROUNDS: usize = 3;
/// So many snapshots have a middle one to delete, and a first one to go back to.
const SOME: usize = 10;
/// The disk that is written: its size, and how much of it has something on it at first.
const DISK_MIB: u32 = 256;
const FILLED_MIB: u32 = 64;

/// What was measured at one number of snapshots: milliseconds, and megabytes a second.
/// `None` where a way has nothing like it.
#[derive(Debug, Clone, Copy, Default)]
struct Figures {
    snapshots: usize,
    /// The guest's disk, written and read in blocks of 4 KiB past its cache.
    write: Option<Speed>,
    read: Option<Speed>,
    /// The same, written and read, against what it is in the same QEMU while that does not
    /// record what is written.
    recording: Option<[f64; 2]>,
    take: f64,
    /// Deletes one in the middle.
    delete: Option<f64>,
    /// Goes back to the first.
    revert: Option<f64>,
    /// Lists all.
    log: f64,
    /// Says what each takes.
    du: Option<f64>,
}

/// Measures.
pub(super) fn run(arguments: &[String]) -> Result<(), Failure> {
    let mut counts = arguments
        .iter()
        .map(|count| count.parse().map_err(|_| Failure::Other(format!("`{count}` is no number"))))
        .collect::<Result<Vec<usize>, Failure>>()?;
    if counts.is_empty() {
        counts = COUNTS.to_vec();
    }
    counts.sort_unstable();
    println!(
        "medians of {ROUNDS}; emulated guest; ms, and MB/s of blocks of 4 KiB past the guest's cache, \
         in turns with a guest without snapshots (ratio: of tintype's guest to what it was between \
         the same two QEMUs before the first snapshot, of the others' between two that have just \
         been started, which differ by a tenth without any; recording: of tintype's guest, written \
         and read, to the same QEMU while it does not record what is written); - is nothing alike, \
         or a QEMU that ended"
    );
    show("tintype", &own::measure(&counts)?);
    show("qcow2 overlays, by qemu-img", &qcow2::overlays(&counts)?);
    show("qcow2 internal snapshots, by qemu-img", &qcow2::internal(&counts)?);
    Ok(())
}

fn show(what: &str, all: &[Figures]) {
    println!("\n{what}");
    println!(
        "{:>9} {:>9} {:>6} {:>9} {:>6} {:>13} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "snapshots",
        "write",
        "ratio",
        "read",
        "ratio",
        "recording",
        "take",
        "delete",
        "revert",
        "log",
        "du"
    );
    let or_none = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1}"));
    let megabytes = |speed: Option<Speed>| or_none(speed.map(|speed| speed.megabytes));
    let ratio =
        |speed: Option<Speed>| speed.map_or_else(|| "-".to_owned(), |s| format!("{:.2}", s.ratio));
    let both =
        |r: Option<[f64; 2]>| r.map_or_else(|| "-".to_owned(), |[w, r]| format!("{w:.3}, {r:.3}"));
    for figures in all {
        println!(
            "{:>9} {:>9} {:>6} {:>9} {:>6} {:>13} {:>9.1} {:>9} {:>9} {:>9.1} {:>9}",
            figures.snapshots,
            megabytes(figures.write),
            ratio(figures.write),
            megabytes(figures.read),
            ratio(figures.read),
            both(figures.recording),
            figures.take,
            or_none(figures.delete),
            or_none(figures.revert),
            figures.log,
            or_none(figures.du)
        );
    }
}

/// Returns the median time of some rounds, in milliseconds; each is told its number.
fn rounds(mut work: impl FnMut(usize) -> Result<(), Failure>) -> Result<f64, Failure> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        work(round)?;
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(median(&times))
}
