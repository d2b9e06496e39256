//! Where objects are kept: write-once, put-if-absent; only repair replaces.
//!
//! ```text
//! Objects   keys and bytes: what an S3 bucket can do
//!    Bucket ◄─ Throttle ◄─ Retry
//! Store     and who is at work: what a repository needs
//!    LocalStore (locks of the kernel)   Shared<Objects> (heartbeats)
//! ```
//!
//! A store knows keys and bytes; it knows no format and decides nothing.

mod bucket;
mod clock;
#[cfg(test)]
mod conformance_tests;
mod disk;
#[cfg(test)]
mod faulty;
mod local;
#[cfg(test)]
mod memory;
mod probe;
mod retry;
mod shared;
#[cfg(test)]
pub(crate) mod simulated;
mod throttle;
#[cfg(test)]
pub(crate) mod world;

use std::fmt;
use std::time::Duration;

use crate::Error;

pub(crate) use bucket::Bucket;
pub(crate) use local::LocalStore;
#[cfg(test)]
pub(crate) use memory::Memory;
pub(crate) use probe::{Verdict, probe};
pub(crate) use retry::{Budget, Retry};
pub(crate) use shared::{Pulse, Shared};
pub(crate) use throttle::Throttle;

/// What became of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The object is there now, durably.
    Created,
    /// Another object was there before and still is.
    Existed,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    pub key: String,
    pub size: u64,
}

/// Whether the process that put a held object still runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// It runs, or may run.
    Alive,
    /// It has ended or let go, or has been silent for so long that it is taken
    /// for dead. Where [`Store::has_late_writes`], that may be wrong.
    Gone,
    /// It has not been watched for long enough.
    Unsure {
        /// The answer may be another one after this time.
        look_again: Duration,
        /// It is another one after this time.
        at_most: Duration,
    },
}

/// Keeps an object held until dropped.
pub(crate) trait Hold: Send + Sync + fmt::Debug {}

/// Write-once objects under short keys of `a-z 0-9 . / -`.
///
/// All operations may be called by several threads, processes and hosts at once.
pub(crate) trait Objects: Send + Sync + fmt::Debug {
    /// Puts an object unless the key is taken. When this returns `Created`, the
    /// object survives power loss and was read back.
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error>;

    /// Returns a whole object of at most `max` bytes, or `NotFound`.
    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error>;

    /// Returns exactly `len` bytes from `offset`, or an error.
    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error>;

    /// Returns the object's size, or `None` if it does not exist.
    fn size(&self, key: &str) -> Result<Option<u64>, Error>;

    /// Lists all objects whose key starts with `prefix`, sorted by key.
    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error>;

    /// Puts an object durably in place of the one that is there, if one is: who
    /// reads gets the one or the other. Only for bytes that mean the same.
    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error>;

    /// Removes an object durably; one that is not there is no error.
    fn delete(&self, key: &str) -> Result<(), Error>;
}

/// Objects, and who is at work on them.
pub(crate) trait Store: Objects {
    /// Puts an object like `put_if_absent` and holds it until the value is
    /// dropped or the process ends. `None` if the key is taken.
    fn put_held(&self, key: &str, bytes: &[u8]) -> Result<Option<Box<dyn Hold>>, Error>;

    /// Says whether a held object's holder still runs.
    fn holder(&self, key: &str) -> Result<Holder, Error>;

    /// Waits, by the clock that tells who lives.
    fn wait(&self, time: Duration);

    /// Whether a put may still take effect when its caller has given it up, or
    /// is taken for dead.
    fn has_late_writes(&self) -> bool;

    /// Sets space aside for deletions, where that makes sense and is possible.
    fn keep_reserve(&self);

    /// Gives up the space that was set aside; whether there was any.
    fn use_reserve(&self) -> Result<bool, Error>;

    /// Makes sure that what is gone from the folders in a folder stays away, even
    /// if whoever removed it could not.
    fn settle(&self, folder: &str) -> Result<(), Error>;

    /// Removes what interrupted operations left outside the key space.
    fn sweep(&self) -> Result<(), Error>;
}

/// Whether a text can be a key.
fn is_key(key: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"./-".contains(&c);
    key.bytes().all(allowed) && !key.contains("..")
}
