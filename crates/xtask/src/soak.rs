//! The chore `soak`: the torn-state oracle of the end-to-end tests for as long as
//! one likes. It is the same code as in the tests; this file only asks for more
//! cycles, and for a seed by which a run can be started again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::failure::Failure;
use crate::process;

/// One line for the list of chores.
pub(crate) const ABOUT: &str =
    "takes and reverts a guest again and again; [--cycles N] for each QEMU, [--seed S]";

/// How many cycles there are on each QEMU unless somebody asks otherwise.
const CYCLES: u64 = 1000;

/// What the tests of the cycles are called, up to the QEMU.
const TESTS: &str = "oracle::a_revert_is_of_one_instant";

/// How the last line of a QEMU's cycles starts (`crates/cli/tests/it/oracle.rs`).
const SUMMARY: &str = "soak: ";

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    let (mut cycles, mut seed) = (CYCLES, seed_of_now());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        let place = match word.as_str() {
            "--cycles" => &mut cycles,
            "--seed" => &mut seed,
            _ => return Err(Failure::Other(format!("`{word}` means nothing here: {ABOUT}"))),
        };
        *place = words
            .next()
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Failure::Other(format!("{word} needs a number")))?;
    }
    println!("cargo xtask soak --cycles {cycles} --seed {seed}");
    let start = Instant::now();
    let summaries = run(cycles, seed)?;
    println!("\nafter {:.0} s:", start.elapsed().as_secs_f64());
    summaries.iter().for_each(|summary| println!("{summary}"));
    Ok(())
}

/// Runs the tests, one QEMU after the other, shows what they say, and returns the
/// summaries.
fn run(cycles: u64, seed: u64) -> Result<Vec<String>, Failure> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["test", "--locked", "--package", "tintype", "--test", "it", "--", TESTS])
        .args(["--nocapture", "--test-threads=1"])
        .env("TINTYPE_SOAK_CYCLES", cycles.to_string())
        .env("TINTYPE_SOAK_SEED", seed.to_string())
        .current_dir(tintype_testkit::workspace_folder());
    let shown = process::describe(&command);
    let started = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = started.map_err(|source| Failure::Start { command: shown.clone(), source })?;
    let output = child.stderr.take().expect("the output is piped");
    let mut summaries = Vec::new();
    for line in BufReader::new(output).lines() {
        let line = line.map_err(Failure::file("read from", Path::new(&shown)))?;
        println!("{line}");
        if let Some(at) = line.find(SUMMARY) {
            summaries.push(line[at..].to_owned());
        }
    }
    let status = child.wait().map_err(Failure::file("wait for", Path::new(&shown)))?;
    if !status.success() {
        // The tests have said what is wrong.
        return Err(Failure::Ended { command: shown, status, stderr: format!("seed {seed}") });
    }
    if summaries.is_empty() {
        return Err(Failure::Other("no cycle was run: the lines above say why".to_owned()));
    }
    Ok(summaries)
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.subsec_nanos().into())
}
