//! The chore `test`: everything that has to be true of a commit, in one go. It is
//! what CI runs, on a fresh clone as anywhere else.
//!
//! The first step that fails ends it. Nothing is installed but what the chore
//! `setup` installs; cargo-nextest runs the tests where there is one.

mod tally;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tally::{Listener, Tally};

use crate::failure::Failure;
use crate::setup::{self, Consent};
use crate::{fuzz, guests, process, tidy};

/// One line for the list of chores.
pub(crate) const ABOUT: &str = "runs all that CI runs; with names of steps, only those";

/// The profile of nextest, in `.config/nextest.toml`, and the report it writes.
const PROFILE: &str = "xtask";
const REPORT: &str = "target/nextest/xtask/junit.xml";

/// A part of the whole.
struct Step {
    name: &'static str,
    run: fn(&mut Run) -> Result<(), Failure>,
}

const STEPS: &[Step] = &[
    Step { name: "setup", run: |run| setup::ensure(run.consent) },
    Step { name: "tools", run: |_| setup::ensure_for_tests() },
    Step { name: "guests", run: |run| guests::ensure(run.consent) },
    Step { name: "fmt", run: |_| succeed(&mut cargo("fmt", &["--all", "--check"])) },
    Step { name: "clippy", run: |_| clippy() },
    Step { name: "tidy", run: |_| tidy::check() },
    Step { name: "build", run: |_| build() },
    Step { name: "tests", run: Run::tests },
    Step { name: "examples", run: Run::examples },
    Step { name: "docs", run: |_| docs() },
    Step { name: "fuzz", run: |_| fuzz::all() },
];

/// One run of the chore.
struct Run {
    consent: Consent,
    tally: Option<Tally>,
}

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    let names: Vec<&str> =
        arguments.iter().map(String::as_str).filter(|name| !name.starts_with("--")).collect();
    if let Some(name) = names.iter().find(|name| !STEPS.iter().any(|step| step.name == **name)) {
        let all: Vec<&str> = STEPS.iter().map(|step| step.name).collect();
        return Err(Failure::Other(format!("there is no step `{name}`: {}", all.join(", "))));
    }
    let mut run = Run { consent: Consent::of(arguments), tally: None };
    let mut times = Vec::new();
    let mut result = Ok(());
    for step in STEPS.iter().filter(|step| names.is_empty() || names.contains(&step.name)) {
        println!("\n==> {}", step.name);
        let start = Instant::now();
        result = (step.run)(&mut run);
        times.push((step.name, result.is_ok(), start.elapsed()));
        if result.is_err() {
            break;
        }
    }
    print_summary(&times, run.tally.as_ref());
    result
}

fn print_summary(times: &[(&str, bool, Duration)], tally: Option<&Tally>) {
    println!();
    for (name, is_ok, time) in times {
        let word = if *is_ok { "ok" } else { "FAILED" };
        println!("{name:10} {word:8} {:7.1} s", time.as_secs_f64());
    }
    let total: Duration = times.iter().map(|(_, _, time)| *time).sum();
    println!("{:19} {:7.1} s\n", "all", total.as_secs_f64());
    if let Some(tally) = tally {
        tally.skipped.iter().for_each(|test| println!("skipped {test}"));
        println!("{tally}");
    }
}

fn clippy() -> Result<(), Failure> {
    let mut command = cargo("clippy", &["--locked", "--workspace", "--all-targets"]);
    succeed(command.args(["--", "--deny", "warnings"]))
}

/// Compiles tests and programs, so that the times of the tests are those of tests.
fn build() -> Result<(), Failure> {
    succeed(&mut cargo("build", &["--locked", "--workspace", "--bins", "--tests"]))
}

fn docs() -> Result<(), Failure> {
    let mut command = cargo("doc", &["--locked", "--workspace", "--no-deps"]);
    succeed(command.env("RUSTDOCFLAGS", "--deny warnings"))
}

impl Run {
    /// Runs all tests except the examples in the documentation.
    fn tests(&mut self) -> Result<(), Failure> {
        if process::is_installed("cargo-nextest") {
            return self.nextest();
        }
        let mut command = cargo("test", &["--locked", "--workspace", "--lib", "--bins", "--tests"]);
        command.args(["--no-fail-fast", "--", "--show-output"]);
        command.arg(format!("--test-threads={}", threads()));
        self.listen(command)
    }

    /// Runs the examples in the documentation, which nextest does not know.
    fn examples(&mut self) -> Result<(), Failure> {
        self.listen(cargo("test", &["--locked", "--workspace", "--doc", "--no-fail-fast"]))
    }

    fn nextest(&mut self) -> Result<(), Failure> {
        let report = tintype_testkit::workspace_folder().join(REPORT);
        forget(&report)?;
        let mut command = cargo("nextest", &["run", "--locked", "--workspace"]);
        let outcome = succeed(command.args(["--profile", PROFILE]));
        match fs::read_to_string(&report) {
            Ok(text) => self.count(Tally::of_junit(&text)),
            Err(error) => {
                outcome?;
                return Err(Failure::file("read", &report)(error));
            }
        }
        outcome
    }

    /// Runs `cargo test`, shows what it prints and counts.
    fn listen(&mut self, mut command: Command) -> Result<(), Failure> {
        let shown = process::describe(&command);
        let started = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child =
            started.map_err(|source| Failure::Start { command: shown.clone(), source })?;
        let mut listener = Listener::default();
        let output = child.stdout.take().expect("the output is piped");
        for line in BufReader::new(output).split(b'\n') {
            let line = line.map_err(Failure::file("read from", Path::new(&shown)))?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            listener.hear(&line);
        }
        let status = child.wait().map_err(Failure::file("wait for", Path::new(&shown)))?;
        self.count(listener.finish());
        judge(shown, status)
    }

    fn count(&mut self, tally: Tally) {
        self.tally.get_or_insert_default().add(tally);
    }
}

/// Returns how many tests run at once: one more than there are processors, since many wait
/// for a guest.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) + 1
}

/// Removes an earlier run's report, if there is one.
fn forget(report: &Path) -> Result<(), Failure> {
    match fs::remove_file(report) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::file("remove", report)(error))
        }
        _ => Ok(()),
    }
}

fn cargo(subcommand: &str, arguments: &[&str]) -> Command {
    let mut command = process::cargo();
    command.arg(subcommand).args(arguments);
    command
}

/// Runs a program to its end and lets it print.
fn succeed(command: &mut Command) -> Result<(), Failure> {
    let shown = process::describe(command);
    let status = command.stdin(Stdio::null()).status();
    let status = status.map_err(|source| Failure::Start { command: shown.clone(), source })?;
    judge(shown, status)
}

fn judge(command: String, status: ExitStatus) -> Result<(), Failure> {
    // It has printed what is wrong.
    let stderr = String::new();
    if status.success() { Ok(()) } else { Err(Failure::Ended { command, status, stderr }) }
}
