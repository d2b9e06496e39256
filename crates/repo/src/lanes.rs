//! The queue between a session's callers and its workers.
//!
//! Work for the same window of the same image is done in the order in which it
//! came and by one worker at a time; everything else is done in parallel. The
//! queue is bounded in bytes, and part of the bound is kept for bursts.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::image::ImageState;
use crate::pages::Pages;

/// Blocks to store in one window of one image.
#[derive(Debug)]
pub(crate) struct Job {
    pub image: Arc<ImageState>,
    pub window: u64,
    pub pages: Pages,
}

/// An image's number in the session, and a window.
type Lane = (u64, u64);

/// The queue.
#[derive(Debug)]
pub(crate) struct Lanes {
    state: Mutex<State>,
    /// Something to do, or the end.
    work: Condvar,
    /// Something is done, or the end.
    progress: Condvar,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<Lane>,
    lanes: HashMap<Lane, VecDeque<Job>>,
    /// Jobs of an image that are queued or being done.
    unfinished: HashMap<u64, usize>,
    bytes: usize,
    limit: usize,
    reserve: usize,
    burst: bool,
    closed: bool,
    failure: Option<Arc<Error>>,
}

impl Lanes {
    /// Makes a queue of `limit` bytes and `reserve` more in a burst.
    pub(crate) fn new(limit: usize, reserve: usize) -> Self {
        let state = State {
            ready: VecDeque::new(),
            lanes: HashMap::new(),
            unfinished: HashMap::new(),
            bytes: 0,
            limit,
            reserve,
            burst: false,
            closed: false,
            failure: None,
        };
        Self { state: Mutex::new(state), work: Condvar::new(), progress: Condvar::new() }
    }

    /// Opens or closes the part of the queue that is kept for bursts.
    pub(crate) fn set_burst(&self, burst: bool) {
        self.lock().burst = burst;
        self.progress.notify_all();
    }

    /// Queues a job; waits while the queue is full.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Error> {
        let mut state = self.lock();
        let bytes = job.pages.weight();
        loop {
            state.check()?;
            let limit = state.limit + if state.burst { state.reserve } else { 0 };
            if state.bytes == 0 || state.bytes + bytes <= limit {
                break;
            }
            state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let lane = (job.image.number, job.window);
        state.bytes += bytes;
        *state.unfinished.entry(lane.0).or_default() += 1;
        match state.lanes.get_mut(&lane) {
            Some(jobs) => jobs.push_back(job),
            None => {
                state.lanes.insert(lane, VecDeque::from([job]));
                state.ready.push_back(lane);
                self.work.notify_one();
            }
        }
        Ok(())
    }

    /// Takes the next job; `None` when the session is over. The job's lane is
    /// closed to other workers until `done`.
    pub(crate) fn take(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(lane) = state.ready.pop_front() {
                let jobs = state.lanes.get_mut(&lane).expect("a ready lane has jobs");
                return Some(jobs.pop_front().expect("a ready lane has jobs"));
            }
            if state.closed {
                return None;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Says that a job from `take` is done, and how it went.
    pub(crate) fn done(&self, image: u64, window: u64, bytes: usize, result: Result<(), Error>) {
        let mut state = self.lock();
        if let Err(error) = result {
            state.fail(error);
        }
        state.bytes -= bytes;
        let lane = (image, window);
        if state.lanes.get(&lane).is_some_and(VecDeque::is_empty) {
            state.lanes.remove(&lane);
        } else {
            state.ready.push_back(lane);
            self.work.notify_one();
        }
        if let Some(unfinished) = state.unfinished.get_mut(&image) {
            *unfinished -= 1;
            if *unfinished == 0 {
                state.unfinished.remove(&image);
            }
        }
        drop(state);
        self.progress.notify_all();
    }

    /// Waits until nothing of an image is queued or being done.
    pub(crate) fn wait_idle(&self, image: u64) -> Result<(), Error> {
        let mut state = self.lock();
        while state.unfinished.contains_key(&image) {
            state = self.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.check()
    }

    /// Fails the session; the first failure counts.
    pub(crate) fn fail(&self, error: Error) {
        self.lock().fail(error);
        self.progress.notify_all();
    }

    /// Returns the failure of the session as an error.
    pub(crate) fn check(&self) -> Result<(), Error> {
        self.lock().check()
    }

    /// Ends the workers when all jobs are done, and refuses new jobs.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.work.notify_all();
        self.progress.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn fail(&mut self, error: Error) {
        self.failure.get_or_insert_with(|| Arc::new(error));
    }

    fn check(&self) -> Result<(), Error> {
        match &self.failure {
            Some(failure) => Err(Error::Session(Arc::clone(failure))),
            None if self.closed => Err(Error::Invalid("the session is over".to_owned())),
            None => Ok(()),
        }
    }
}
