//! Measures the repository on two states of a guest, and the machine's own limits
//! in the same run. Prints one JSON object a line; `cargo xtask bench repo` makes
//! the states, runs the peers and shows it all.
//!
//! Arguments: the folder with `memory-1`, `disk-1`, `memory-2` and `disk-2`, an
//! empty folder to work in, the number of rounds, and a seed.
#![expect(clippy::print_stdout, reason = "what it prints is its result")]

mod limits;
mod room;
mod states;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::states::State;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    // `cargo bench` adds options of its own.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [states, work, rounds, seed] = &arguments[..] else {
        // `cargo test --benches` has no states: nothing to measure.
        return Ok(());
    };
    let (states, work) = (PathBuf::from(states), PathBuf::from(work));
    let (rounds, seed): (u32, u64) = (rounds.parse()?, seed.parse()?);
    let [first, second] = [1, 2].map(|moment| State::open(&states, moment));
    let (first, second) = (first?, second?);
    for round in 0..rounds {
        limits::measure(&first, &second)?;
        let folder = work.join(format!("round-{round}"));
        // It takes minutes, and keeps the same each time.
        let recompress = round == 0;
        room::measure(&first, &second, &folder, (seed, recompress))?;
    }
    Ok(())
}

/// Does something once, and prints how long it took and how much processor time.
/// The work says how many bytes it was about.
fn timed<T>(name: &str, work: impl FnOnce() -> Outcome<(u64, T)>) -> Outcome<T> {
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let (bytes, result) = work()?;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    println!("{}", json!({"name": name, "bytes": bytes, "seconds": seconds, "cpu": cpu}));
    Ok(result)
}

/// Prints a value that is no time.
fn said(name: &str, value: f64) {
    println!("{}", json!({"name": name, "value": value}));
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "a benchmark does not run for 2^52 ns")]
    let (whole, part) = (time.tv_sec as f64, time.tv_nsec as f64);
    whole + part / 1e9
}
