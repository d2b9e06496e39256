//! Watches over long work on the repository, for the front end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tintype_types::ByteCount;
use tintype_vm::Cancel;

use crate::Engine;
use crate::observer::{Observer, Progress, Step};

/// Tells the front end how far the repository is, and the repository when the
/// front end wants to stop.
pub(crate) struct Supervisor<'e> {
    activity: &'static str,
    observer: &'e dyn Observer,
    cancel: &'e Cancel,
    has_told: AtomicBool,
}

impl Engine {
    /// Watches over work of this name: `verifying`.
    pub(crate) fn supervisor(&self, activity: &'static str) -> Supervisor<'_> {
        Supervisor {
            activity,
            observer: self.config.observer.as_ref(),
            cancel: &self.config.cancel,
            has_told: AtomicBool::new(false),
        }
    }
}

impl tintype_repo::Supervisor for Supervisor<'_> {
    fn advance(&self, done: ByteCount, total: ByteCount) {
        let Self { activity, observer, .. } = self;
        observer.progress(Progress { activity, done, total: Some(total) });
    }

    fn waits(&self, sessions: usize, at_most: Duration) {
        if !self.has_told.swap(true, Ordering::Relaxed) {
            self.observer.notice(&format!(
                "waiting for a sign of life of {sessions} other commands on the repository, {} s at most",
                at_most.as_secs()
            ));
        }
    }

    fn keeps_part(&self) {
        self.observer.step(Step::CopyPart);
    }

    fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}
