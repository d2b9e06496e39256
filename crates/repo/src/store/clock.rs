//! Time, as it is needed to tell who lives: to read, to wait, and to do something
//! again and again. No two hosts' times are ever compared.

use std::fmt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Error;

/// What is done again and again; whether to go on.
pub(crate) type Work = Box<dyn FnMut() -> bool + Send>;

/// A steady clock.
pub(crate) trait Clock: Send + Sync + fmt::Debug {
    /// Returns the time since a moment that stays the same.
    fn now(&self) -> Duration;

    /// Waits.
    fn sleep(&self, time: Duration);

    /// Does something each time that so long has passed, until it says no or the
    /// value is dropped. It is not being done any more when that returns.
    fn every(&self, time: Duration, work: Work) -> Result<Box<dyn Repeating>, Error>;
}

/// Something that is done again and again until this is dropped.
pub(crate) trait Repeating: Send + Sync + fmt::Debug {}

/// The clock of the system.
#[derive(Debug)]
pub(crate) struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn sleep(&self, time: Duration) {
        thread::sleep(time);
    }

    fn every(&self, time: Duration, mut work: Work) -> Result<Box<dyn Repeating>, Error> {
        let (stop, stopped) = mpsc::channel::<()>();
        let name = "repo-beat";
        let repeat =
            move || while stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout) && work() {};
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(repeat)
            .map_err(|error| Error::io("start a thread for", Path::new(name), error))?;
        Ok(Box::new(Thread { stop: Some(stop), thread: Some(thread) }))
    }
}

#[derive(Debug)]
struct Thread {
    /// Closed to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Repeating for Thread {}

impl Drop for Thread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing to report that the log has not.
            let _ = thread.join();
        }
    }
}
