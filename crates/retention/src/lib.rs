//! Retention: which snapshots of one VM a policy keeps, which it lets go, and why.
//!
//! The rules are those of restic's `forget`, whose users know them, with guards that
//! no policy overrules and a look at whether the clock can be believed. Plain functions
//! over values: nothing here reads a clock, opens a file or removes anything.

mod decide;
mod doubt;
mod effective;
mod period;
mod policy;
mod reason;
mod scale;

pub use decide::{Candidate, Decision, Guard, Kind, decide};
pub use doubt::{Doubt, doubt};
pub use period::{Period, PeriodError};
pub use policy::{Count, CountError, Policy, TagError, TagSet};
pub use reason::{Reason, Rule};
pub use scale::Scale;
