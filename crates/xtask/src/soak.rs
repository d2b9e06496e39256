//! The chore `soak`: the tests of chance for as long as one likes. It is the same
//! code as in the tests; this file only asks for more of it, and for a seed by
//! which a run can be started again.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::failure::Failure;
use crate::process;

/// One line for the list of chores.
pub(crate) const ABOUT: &str =
    "runs tests of chance for long: guests, readers…; [--COUNTED N] [--seed S]";

/// Tests that are run for longer than CI has time for.
struct Soak {
    name: &'static str,
    about: &'static str,
    /// Where they are, for cargo, and what their names start with.
    package: &'static str,
    target: &'static [&'static str],
    tests: &'static [&'static str],
    /// What there is more of, and how many unless somebody asks otherwise.
    counted: &'static str,
    usual: u64,
}

/// The first is meant where none is named.
const SOAKS: &[Soak] = &[
    Soak {
        name: "guests",
        about: "takes and reverts a guest again and again, on each QEMU",
        package: "tintype",
        target: &["--test", "it"],
        tests: &["oracle::a_revert_is_of_one_instant"],
        counted: "cycles",
        usual: 1000,
    },
    Soak {
        name: "incremental",
        about: "writes, resizes, kills and reverts between takes of disks, on each QEMU",
        package: "tintype",
        target: &["--test", "it"],
        tests: &["same_as_full::"],
        counted: "steps",
        usual: 5000,
    },
    Soak {
        name: "steps",
        about: "kills, interrupts and starves takes and reverts, and QEMU, at every step",
        package: "tintype",
        target: &["--test", "it"],
        tests: &["kill::", "quiesce::whatever_happens", "qemu_death::", "interrupt::", "space::"],
        counted: "moments",
        usual: 500,
    },
    Soak {
        name: "lazy",
        about: "kills what loads memory behind running guests, on each QEMU",
        package: "tintype",
        target: &["--test", "it"],
        tests: &["lazy::whoever_loads_is_killed"],
        counted: "kills",
        usual: 100,
    },
    Soak {
        name: "disks",
        about: "kills what fills disks behind running guests, and the commands, on each QEMU",
        package: "tintype",
        target: &["--test", "it"],
        tests: &["lazy_kills::"],
        counted: "kills",
        usual: 100,
    },
    Soak {
        name: "readers",
        about: "has random repositories read by both readers",
        package: "tintype-repo",
        target: &["--test", "it"],
        tests: &["readers::"],
        counted: "repositories",
        usual: 1000,
    },
    Soak {
        name: "life",
        about: "takes, deletes, undoes, prunes, copies, collects and dies, beside a model",
        package: "tintype-engine",
        target: &["--lib"],
        tests: &["life_tests::lives"],
        counted: "lives",
        usual: 2_000,
    },
    Soak {
        name: "crash",
        about: "ends the power of a simulated disk at random",
        package: "tintype-repo",
        target: &["--lib"],
        tests: &["crash_tests::random_states"],
        counted: "states",
        usual: 10_000_000,
    },
    Soak {
        name: "sequences",
        about: "crashes, fails and starves every sequence of three operations at every step",
        package: "tintype-repo",
        target: &["--lib"],
        tests: &["crash_tests::a_", "crash_tests::an_"],
        counted: "runs",
        usual: 1,
    },
    Soak {
        name: "worlds",
        about: "lets hosts work on one bucket in simulated bad worlds",
        package: "tintype-repo",
        target: &["--lib"],
        tests: &["host_tests::"],
        counted: "worlds",
        usual: 100_000,
    },
    Soak {
        name: "bucket",
        about: "lets hosts work on one bucket and die, on moto and on a Ceph gateway",
        package: "tintype-repo",
        target: &["--test", "it"],
        tests: &["hosts::hosts_that"],
        counted: "seconds",
        usual: 300,
    },
    Soak {
        name: "power",
        about: "loses the power of real file systems, over and over",
        package: "tintype-repo",
        target: &["--test", "it"],
        tests: &["power::"],
        counted: "states",
        usual: 10_000,
    },
    Soak {
        name: "kill",
        about: "kills processes that work on a repository",
        package: "tintype-repo",
        target: &["--test", "it"],
        tests: &["died::a_killed_process"],
        counted: "kills",
        usual: 20_000,
    },
    Soak {
        name: "rewrites",
        about: "kills processes that compact, compress again and repair",
        package: "tintype-repo",
        target: &["--test", "it"],
        tests: &["died_rewriting::what_is_killed"],
        counted: "kills",
        usual: 2_000,
    },
    Soak {
        name: "copies",
        about: "copies random histories to another repository, interrupted",
        package: "tintype-repo",
        target: &["--test", "it"],
        tests: &["copy::random_histories"],
        counted: "histories",
        usual: 1000,
    },
];

/// How the last line of a test starts.
const SUMMARY: &str = "soak: ";

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    let named = arguments.first().filter(|word| !word.starts_with("--"));
    let soak = match named {
        None => &SOAKS[0],
        Some(name) => SOAKS.iter().find(|soak| soak.name == name).ok_or_else(|| unknown(name))?,
    };
    let (mut count, mut seed) = (soak.usual, seed_of_now());
    let mut words = arguments.iter().skip(usize::from(named.is_some()));
    while let Some(word) = words.next() {
        let place = match word.strip_prefix("--") {
            Some("seed") => &mut seed,
            Some(counted) if counted == soak.counted => &mut count,
            _ => return Err(unknown(word)),
        };
        *place = words
            .next()
            .and_then(|number| number.parse().ok())
            .ok_or_else(|| Failure::Other(format!("{word} needs a number")))?;
    }
    println!("cargo xtask soak {} --{} {count} --seed {seed}", soak.name, soak.counted);
    let start = Instant::now();
    let summaries = soak.run(count, seed)?;
    println!("\nafter {:.0} s:", start.elapsed().as_secs_f64());
    summaries.iter().for_each(|summary| println!("{summary}"));
    Ok(())
}

fn unknown(word: &str) -> Failure {
    let soaks = SOAKS.iter().map(|Soak { name, about, counted, usual, .. }| {
        format!("\n  soak {name:11} [--{counted} N] [--seed S]  {about}; {usual} {counted}")
    });
    Failure::Other(format!("`{word}` means nothing here:{}", soaks.collect::<String>()))
}

impl Soak {
    /// Runs the tests, one after the other, shows what they say, and returns the
    /// summaries.
    fn run(&self, count: u64, seed: u64) -> Result<Vec<String>, Failure> {
        let mut command = process::cargo();
        command
            .args(["test", "--locked", "--package", self.package])
            .args(self.target)
            .arg("--")
            .args(self.tests)
            .args(["--nocapture", "--test-threads=1"])
            .env("TINTYPE_SOAK", "1")
            .env("TINTYPE_SOAK_COUNT", count.to_string())
            .env("TINTYPE_SOAK_SEED", seed.to_string());
        let shown = process::describe(&command);
        let started = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut child =
            started.map_err(|source| Failure::Start { command: shown.clone(), source })?;
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
            return Err(Failure::Other("nothing was run: the lines above say why".to_owned()));
        }
        Ok(summaries)
    }
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |since| since.subsec_nanos().into())
}
