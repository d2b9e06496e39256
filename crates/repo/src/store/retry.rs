//! Trying again what failed for now, within a budget of time.
//!
//! Each pause is twice as long as the one before, less a random part, so that
//! hosts that failed together do not come back together.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use super::{Listed, Objects, Put};
use crate::Error;

/// How long to go on trying.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    /// No attempt begins later than this after the first one.
    pub total: Duration,
    /// The pause after the first attempt.
    pub first: Duration,
    /// The longest pause.
    pub longest: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(90),
            first: Duration::from_millis(100),
            longest: Duration::from_secs(10),
        }
    }
}

/// Objects that are asked again when they fail for now.
#[derive(Debug)]
pub(crate) struct Retry<O> {
    objects: O,
    budget: Budget,
}

impl<O: Objects> Retry<O> {
    pub(crate) fn new(objects: O, budget: Budget) -> Self {
        Self { objects, budget }
    }

    fn attempt<T>(&self, mut work: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
        let begun = Instant::now();
        let mut pause = self.budget.first;
        loop {
            let error = match work() {
                Err(error) if is_passing(&error) => error,
                result => return result,
            };
            let pause_now = jittered(pause);
            if begun.elapsed() + pause_now > self.budget.total {
                return Err(error);
            }
            tracing::debug!(%error, ?pause_now, "trying again");
            std::thread::sleep(pause_now);
            pause = (pause * 2).min(self.budget.longest);
        }
    }
}

/// Whether another attempt may end otherwise.
fn is_passing(error: &Error) -> bool {
    use ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
        Interrupted, NetworkUnreachable, ResourceBusy, TimedOut,
    };
    let Error::Io { source, .. } = error else { return false };
    matches!(
        source.kind(),
        BrokenPipe
            | ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkUnreachable
            | ResourceBusy
            | TimedOut
    )
}

/// Returns between a half and the whole of a pause.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0];
    getrandom::fill(&mut random).expect("the kernel always has random bytes");
    pause.mul_f64(0.5 + f64::from(random[0]) / 510.0)
}

impl<O: Objects> Objects for Retry<O> {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        let mut is_open = false;
        self.attempt(|| {
            let put = self.objects.put_if_absent(key, bytes);
            match put {
                // It may be the object of an earlier attempt whose answer was
                // lost. Who puts the same bytes has put this object.
                Ok(Put::Existed) if is_open => {
                    let max = u64::try_from(bytes.len()).expect("a usize fits in 64 bits");
                    match self.objects.get(key, max) {
                        Ok(there) if there == bytes => Ok(Put::Created),
                        Ok(_) | Err(Error::Damaged(_) | Error::NotFound(_)) => Ok(Put::Existed),
                        Err(error) => Err(error),
                    }
                }
                result => {
                    is_open |= result.is_err();
                    result
                }
            }
        })
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        self.attempt(|| self.objects.get(key, max))
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.attempt(|| self.objects.get_range(key, offset, len))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        self.attempt(|| self.objects.size(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.attempt(|| self.objects.list(prefix))
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.attempt(|| self.objects.replace(key, bytes))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.attempt(|| self.objects.delete(key))
    }
}
