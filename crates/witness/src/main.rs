//! The program that runs inside guests and notices when memory and disks are not
//! from the same instant, or not all of the memory is.
//!
//! It keeps counters in memory and on disks in a fixed order, so that at every
//! instant each says what the others may be, and compares them at every step:
//! whatever a revert puts together wrongly is found by the next step. It knows
//! nothing of snapshots, and never repairs: the first thing it finds stays.
//!
//! | Mode | What it does |
//! |---|---|
//! | `pair` | counters in memory and on raw disks, see [`pair`] |
//! | `sweep` | generations of pages through a large array, see [`sweep`] |
//! | `dirty` | writes to memory at random and at full speed |
//! | `count` | counts ten times a second, to be seen to go on |
//! | `query` | asks the others in this guest what they know, see [`report`] |
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "people and tests read its output")]

mod arguments;
mod block;
mod load;
mod pair;
mod report;
mod store;
mod sweep;

use std::process::ExitCode;
use std::time::Duration;

use arguments::Arguments;
use pair::Pair;
use report::{Reports, Trouble};
use store::Disk;
use sweep::Sweep;

const USAGE: &str = "\
usage: witness pair  --disk DEVICE [--disk DEVICE]… [--slot N] [--workers K] [--interval-us U] [--count N]
       witness sweep --bytes B [--rewrites N] [--interval-us U] [--disk DEVICE]… [--slot N] [--every PAGES]
       witness dirty --bytes B
       witness count
       witness query [NAME]…
every mode but query: [--name NAME], by which query finds it; its own name unless given";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let mode = words.next().unwrap_or_default();
    let result = Arguments::parse(words).and_then(|arguments| match mode.as_str() {
        "pair" => pair_mode(&arguments),
        "sweep" => sweep_mode(&arguments),
        "dirty" => dirty_mode(&arguments),
        "count" => count_mode(&arguments),
        "query" => Ok(report::query(arguments.words())),
        _ => Err(USAGE.to_owned()),
    });
    result.unwrap_or_else(|message| {
        eprintln!("{message}");
        ExitCode::from(2)
    })
}

fn pair_mode(arguments: &Arguments) -> Result<ExitCode, String> {
    arguments.allow(&["disk", "slot", "workers", "interval-us", "count", "name"])?;
    let pause = Duration::from_micros(arguments.number("interval-us", 1000)?);
    let (first, workers) = (arguments.number("slot", 0)?, arguments.number("workers", 1)?);
    let rounds = arguments.number("count", u64::MAX)?;
    let name = arguments.name("pair");
    let mut reports = Reports::new(&name);
    for slot in first..first.saturating_add(workers) {
        let mut pair =
            Pair::start(slot, disks(arguments)?).map_err(|trouble| trouble.to_string())?;
        let report = reports.add(&format!("{name}/{slot}"), 1);
        report::work(report, move |report| {
            if pair.count() > rounds {
                return Err(Trouble::Finished);
            }
            pair.round()?;
            report.compared(pair.count());
            pause_for(pause);
            Ok(())
        });
    }
    reports.serve()
}

fn sweep_mode(arguments: &Arguments) -> Result<ExitCode, String> {
    arguments.allow(&["bytes", "rewrites", "interval-us", "disk", "slot", "every", "name"])?;
    let pause = Duration::from_micros(arguments.number("interval-us", 0)?);
    let mut sweep = Sweep::start(arguments.pages()?, arguments.number("rewrites", 0)?);
    let every = arguments.number("every", sweep.page_count())?.max(1);
    let disks = disks(arguments)?;
    let mut pair = (!disks.is_empty())
        .then(|| Pair::start(arguments.number("slot", 63)?, disks).map_err(|t| t.to_string()))
        .transpose()?;
    let name = arguments.name("sweep");
    let mut reports = Reports::new(&name);
    let report = reports.add(&name, sweep.page_count());
    let mut done = 0_u64;
    report::work(report, move |report| {
        sweep.advance()?;
        report.compared(sweep.generation());
        done = done.wrapping_add(1);
        if let Some(pair) = pair.as_mut().filter(|_| done.is_multiple_of(every)) {
            pair.round()?;
        }
        if done.is_multiple_of(64) {
            pause_for(pause);
        }
        Ok(())
    });
    reports.serve()
}

fn dirty_mode(arguments: &Arguments) -> Result<ExitCode, String> {
    arguments.allow(&["bytes", "name"])?;
    let mut dirty = load::Dirty::start(arguments.pages()?);
    let name = arguments.name("dirty");
    let mut reports = Reports::new(&name);
    let report = reports.add(&name, 0);
    report::work(report, move |report| {
        report.compared(dirty.advance());
        Ok(())
    });
    reports.serve()
}

fn count_mode(arguments: &Arguments) -> Result<ExitCode, String> {
    arguments.allow(&["name"])?;
    let name = arguments.name("count");
    let mut reports = Reports::new(&name);
    let report = reports.add(&name, 0);
    let mut count = 0_u64;
    report::work(report, move |report| {
        count += 1;
        report.compared(count);
        pause_for(Duration::from_millis(100));
        Ok(())
    });
    reports.serve()
}

fn disks(arguments: &Arguments) -> Result<Vec<Disk>, String> {
    arguments.all("disk").map(Disk::open).collect()
}

fn pause_for(pause: Duration) {
    if !pause.is_zero() {
        std::thread::sleep(pause);
    }
}
