//! The chore `fuzz`: any bytes for every decoder, as libFuzzer finds them by what
//! they make the code do. Needs no other compiler than the rest.
//!
//! What is kept of earlier runs is in `fuzz/corpus`; what a run finds stays under
//! `target` unless it is asked to keep it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tintype_testkit::workspace_folder;

use crate::failure::Failure;
use crate::{process, setup};

/// One line for the list of chores.
pub(crate) const ABOUT: &str = "feeds any bytes to every decoder; [TARGET]… [--seconds N] [--keep]";

/// How long a target runs unless somebody asks otherwise, and in CI.
const SECONDS: u64 = 60;
const CI_SECONDS: u64 = 10;
/// How many targets run at the same time.
const AT_ONCE: usize = 2;
/// Where the targets are compiled to.
const COMPILED: &str = "target/fuzz/x86_64-unknown-linux-gnu/release";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// What makes the compiler count which edges were taken and what was compared,
/// and what makes wrong arithmetic a finding.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                     -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares \
                     -Cdebug-assertions -Coverflow-checks";
/// One input may take so many seconds, and a target so much memory in MiB.
const LIMITS: [&str; 3] = ["-timeout=10", "-rss_limit_mb=1024", "-max_len=65536"];

/// The chore itself.
pub(crate) fn chore(arguments: &[String]) -> Result<(), Failure> {
    let (mut seconds, mut keeps, mut named) = (SECONDS, false, Vec::new());
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--keep" => keeps = true,
            "--seconds" => {
                let number = words.next().and_then(|number| number.parse().ok());
                seconds =
                    number.ok_or_else(|| Failure::Other("--seconds needs a number".into()))?;
            }
            name => named.push(name.to_owned()),
        }
    }
    run(&chosen(&named)?, seconds)?;
    if keeps { keep(&chosen(&named)?) } else { Ok(()) }
}

/// Runs all targets for as long as CI does.
pub(crate) fn all() -> Result<(), Failure> {
    run(&targets()?, CI_SECONDS)
}

/// Returns the targets with these names, all if there are none.
fn chosen(names: &[String]) -> Result<Vec<String>, Failure> {
    let all = targets()?;
    match names.iter().find(|name| !all.contains(name)) {
        Some(name) => {
            Err(Failure::Other(format!("there is no target `{name}`: {}", all.join(", "))))
        }
        None if names.is_empty() => Ok(all),
        None => Ok(names.to_vec()),
    }
}

fn targets() -> Result<Vec<String>, Failure> {
    let folder = workspace_folder().join("fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).map_err(Failure::file("read", &folder))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn run(targets: &[String], seconds: u64) -> Result<(), Failure> {
    setup::ensure_fuzzer()?;
    compile()?;
    for some in targets.chunks(AT_ONCE) {
        let started = some.iter().map(|target| Running::start(target, seconds));
        let started: Vec<_> = started.collect::<Result<_, _>>()?;
        started.into_iter().try_for_each(Running::finish)?;
    }
    Ok(())
}

fn compile() -> Result<(), Failure> {
    let mut command = process::cargo();
    command
        .args(["build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml"])
        .args(["--target", TARGET, "--target-dir", "target/fuzz"])
        .env("RUSTFLAGS", FLAGS);
    process::run(&mut command)
}

/// Returns where a run puts what it finds, and where what is kept is.
fn corpora(target: &str) -> Result<[PathBuf; 2], Failure> {
    let folders = ["target/fuzz/corpus", "fuzz/corpus"];
    let folders = folders.map(|folder| workspace_folder().join(folder).join(target));
    for folder in &folders {
        fs::create_dir_all(folder).map_err(Failure::file("make", folder))?;
    }
    Ok(folders)
}

/// A target at work.
struct Running {
    shown: String,
    target: String,
    log: PathBuf,
    child: Child,
}

impl Running {
    fn start(target: &str, seconds: u64) -> Result<Self, Failure> {
        let folder = workspace_folder().join("target/fuzz");
        let log = folder.join(format!("{target}.log"));
        let output = fs::File::create(&log).map_err(Failure::file("make", &log))?;
        let mut command = Command::new(workspace_folder().join(COMPILED).join(target));
        command
            .args(corpora(target)?)
            .args(LIMITS)
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/{target}-", folder.display()))
            .current_dir(workspace_folder())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        let shown = process::describe(&command);
        let child =
            command.spawn().map_err(|source| Failure::Start { command: shown.clone(), source })?;
        Ok(Self { shown, target: target.to_owned(), log, child })
    }

    /// Waits for its end and says how much it has tried.
    fn finish(mut self) -> Result<(), Failure> {
        let status =
            self.child.wait().map_err(Failure::file("wait for", Path::new(&self.shown)))?;
        let text = fs::read(&self.log).map_err(Failure::file("read", &self.log))?;
        let text = String::from_utf8_lossy(&text);
        if !status.success() {
            let stderr = text.lines().rev().take(40).collect::<Vec<_>>();
            let stderr = stderr.into_iter().rev().collect::<Vec<_>>().join("\n");
            return Err(Failure::Ended { command: self.shown, status, stderr });
        }
        println!("{:12} {}", self.target, text.lines().last().unwrap_or_default());
        Ok(())
    }
}

/// Adds to what is kept those finds that reach code which nothing kept reaches.
fn keep(targets: &[String]) -> Result<(), Failure> {
    for target in targets {
        let [found, kept] = corpora(target)?;
        let mut command = Command::new(workspace_folder().join(COMPILED).join(target));
        command.args(["-merge=1", "-use_counters=0"]).args(LIMITS).args([&kept, &found]);
        process::run(command.current_dir(workspace_folder()))?;
    }
    Ok(())
}
