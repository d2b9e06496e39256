//! What the workers of a process know, and the socket by which `query` asks.
//!
//! An answer is about now: a worker that compares is asked to go through all it has
//! once more before the answer is given, since right after a revert it may not have
//! looked at everything yet. One line for each worker:
//!
//! ```text
//! ok <worker> <count>         it compared everything after the question came
//! TORN <worker> <details>     the first thing that was wrong; the worker has stopped
//! FAILED <worker> <details>   a disk refused something; the worker has stopped
//! late <worker> <count>       it did not come around in a minute
//! ```

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Where processes can be asked; in memory, so that a question changes no disk.
const FOLDER: &str = "/run/witness";

/// How long a worker has to come around.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a worker stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Things from different moments were found together.
    Torn(String),
    /// A disk refused something.
    Failed(String),
    /// It did all it was asked for.
    Finished,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Torn(details) => write!(f, "TORN {details}"),
            Self::Failed(details) => write!(f, "FAILED {details}"),
            Self::Finished => f.write_str("finished"),
        }
    }
}

/// What one worker knows.
pub(crate) struct Report {
    worker: String,
    /// How often it was seen to be well.
    compares: AtomicU64,
    /// How many compares make a full round; none if it compares nothing.
    round: u64,
    count: AtomicU64,
    /// The first trouble. Nothing clears it.
    trouble: Mutex<Option<Trouble>>,
}

impl Report {
    /// Notes a compare that went well, and where the counter stands.
    pub(crate) fn compared(&self, count: u64) {
        self.count.store(count, Ordering::Release);
        self.compares.fetch_add(1, Ordering::AcqRel);
    }

    fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until everything was compared since now, and says how it is.
    fn line(&self, patience: Duration) -> String {
        // The compare that runs now may have begun before the question, and so may the round.
        let enough = match self.round {
            0 => 0,
            round => self.compares.load(Ordering::Acquire).saturating_add(round).saturating_add(1),
        };
        let start = Instant::now();
        let worker = &self.worker;
        loop {
            let count = self.count.load(Ordering::Acquire);
            match self.trouble() {
                Some(Trouble::Torn(details)) => return format!("TORN {worker} {details}"),
                Some(Trouble::Failed(details)) => return format!("FAILED {worker} {details}"),
                Some(Trouble::Finished) => return format!("ok {worker} {count}"),
                None if self.compares.load(Ordering::Acquire) >= enough => {
                    return format!("ok {worker} {count}");
                }
                None if start.elapsed() > patience => return format!("late {worker} {count}"),
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// The reports of a process.
pub(crate) struct Reports {
    name: String,
    reports: Vec<Arc<Report>>,
}

impl Reports {
    /// Starts with no worker; the process goes by that name.
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), reports: Vec::new() }
    }

    /// Adds a worker; `round` says how many of its compares look at everything it
    /// has, and is 0 if it compares nothing.
    pub(crate) fn add(&mut self, worker: &str, round: u64) -> Arc<Report> {
        let report = Arc::new(Report {
            worker: worker.to_owned(),
            compares: AtomicU64::new(0),
            round,
            count: AtomicU64::new(0),
            trouble: Mutex::new(None),
        });
        self.reports.push(Arc::clone(&report));
        report
    }

    /// Answers questions for ever.
    pub(crate) fn serve(self) -> Result<ExitCode, String> {
        let folder = PathBuf::from(FOLDER);
        let path = folder.join(&self.name);
        fs::create_dir_all(&folder).map_err(|error| format!("cannot make {FOLDER}: {error}"))?;
        // A socket that nobody answers any more is in the way.
        if UnixStream::connect(&path).is_ok() {
            return Err(format!("another witness is called `{}` already", self.name));
        }
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path)
            .map_err(|error| format!("cannot listen at {}: {error}", path.display()))?;
        for mut stream in listener.incoming().flatten() {
            let lines: String =
                self.reports.iter().map(|report| report.line(PATIENCE) + "\n").collect();
            // Whoever asked may have gone.
            let _ = stream.write_all(lines.as_bytes());
        }
        Err("the socket was closed".to_owned())
    }
}

/// Runs a worker's steps in a thread of its own, until one says that there is trouble.
pub(crate) fn work(
    report: Arc<Report>,
    mut step: impl FnMut(&Report) -> Result<(), Trouble> + Send + 'static,
) {
    thread::spawn(move || {
        let trouble = loop {
            if let Err(trouble) = step(&report) {
                break trouble;
            }
        };
        eprintln!("{}: {trouble}", report.worker);
        *report.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    });
}

/// Asks processes by name, or all there are, and prints what they say. Succeeds
/// only if somebody answered and everybody is well.
pub(crate) fn query(names: &[String]) -> ExitCode {
    let names = if names.is_empty() { everybody() } else { names.to_vec() };
    let mut well = !names.is_empty();
    for name in names {
        let answer =
            ask(&name).unwrap_or_else(|error| format!("FAILED {name} does not answer: {error}\n"));
        print!("{answer}");
        well &= !answer.is_empty() && answer.lines().all(|line| line.starts_with("ok "));
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn everybody() -> Vec<String> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn ask(name: &str) -> std::io::Result<String> {
    let mut answer = String::new();
    UnixStream::connect(PathBuf::from(FOLDER).join(name))?.read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(round: u64) -> Arc<Report> {
        Reports::new("test").add("test", round)
    }

    #[test]
    fn an_answer_is_about_the_time_after_the_question() {
        let stuck = report(1);
        stuck.compared(7);
        assert_eq!(stuck.line(Duration::ZERO), "late test 7");
        let idle = report(0);
        assert_eq!(idle.line(Duration::ZERO), "ok test 0");
        let busy = report(3);
        work(Arc::clone(&busy), |report| {
            report.compared(9);
            thread::sleep(Duration::from_millis(1));
            Ok(())
        });
        assert_eq!(busy.line(PATIENCE), "ok test 9");
    }

    #[test]
    fn the_first_trouble_stays() {
        let report = report(1);
        let mut steps = 0;
        work(Arc::clone(&report), move |_| {
            steps += 1;
            if steps < 3 { Ok(()) } else { Err(Trouble::Torn(format!("step {steps}"))) }
        });
        assert_eq!(report.line(PATIENCE), "TORN test step 3");
        assert_eq!(report.line(PATIENCE), "TORN test step 3");
    }
}
