//! Shows what goes on, and lets a test hold or kill the process at a step.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;
use tintype_engine::{Observer, Progress, Step};
use zeroize::Zeroizing;

use crate::output::Output;

/// How often a line of progress is redrawn, or an event printed.
const INTERVAL: Duration = Duration::from_millis(100);

/// How often a held process looks whether it may go on.
const HOLD_INTERVAL: Duration = Duration::from_millis(5);

/// What a fault test wants to happen when a step is reached for the first time.
#[derive(Debug)]
pub(crate) struct Fault {
    step: String,
    /// The process is killed, unless it is held by this file: it goes on when the
    /// file is gone.
    held_by: Option<PathBuf>,
    struck: AtomicBool,
}

impl Fault {
    /// Reads `STEP`, which kills the process there, or `STEP:FILE`, which makes
    /// FILE there and waits until it is gone.
    pub(crate) fn parse(text: &str) -> Self {
        let (step, held_by) = match text.split_once(':') {
            Some((step, file)) => (step, Some(file.into())),
            None => (text, None),
        };
        Self { step: step.to_owned(), held_by, struck: AtomicBool::new(false) }
    }

    fn strike(&self) {
        let Some(file) = &self.held_by else {
            let _ = kill_process(getpid(), Signal::KILL);
            return;
        };
        let made = std::fs::write(file, b"");
        while made.is_ok() && file.exists() {
            std::thread::sleep(HOLD_INTERVAL);
        }
    }
}

/// Prints notices and progress.
pub(crate) struct Show {
    output: Output,
    fault: Option<Fault>,
    drawn: Mutex<Option<Instant>>,
}

impl Show {
    pub(crate) fn new(output: Output, fault: Option<Fault>) -> Self {
        Self { output, fault, drawn: Mutex::new(None) }
    }

    /// Clears the line of progress.
    pub(crate) fn finish(&self) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.take().is_some() && self.output.is_live() {
            self.output.redraw("");
        }
    }
}

impl Observer for Show {
    fn step(&self, step: Step) {
        tracing::info!(step = step.name(), "reached");
        if let Some(fault) = &self.fault
            && fault.step == step.name()
            && !fault.struck.swap(true, Ordering::Relaxed)
        {
            fault.strike();
        }
    }

    fn notice(&self, sentence: &str) {
        self.finish();
        self.output.notice(sentence);
    }

    fn ask_passphrase(&self, question: &str) -> Option<Zeroizing<String>> {
        if !io::stdin().is_terminal() || self.output.is_json() {
            return None;
        }
        self.finish();
        rpassword::prompt_password(question).ok().map(Zeroizing::new)
    }

    fn progress(&self, progress: Progress) {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        if drawn.is_some_and(|at| at.elapsed() < INTERVAL) {
            return;
        }
        *drawn = Some(Instant::now());
        let Progress { activity, done, total } = progress;
        if self.output.is_json() {
            self.output.event(&json!({
                "event": "progress", "activity": activity, "done": done, "total": total,
            }));
        } else if self.output.is_live() {
            self.output.redraw(&match total {
                Some(total) => format!("{activity}: {done} of {total}"),
                None => format!("{activity}: {done}"),
            });
        }
    }
}
