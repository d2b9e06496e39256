//! The times that rules count with. The order of snapshots is that of the repository,
//! which no clock can change; their times follow it, or are not known.

use jiff::{SignedDuration, Timestamp};

/// How far the clocks of hosts may be apart.
pub(crate) const TOLERANCE: SignedDuration = SignedDuration::from_hours(1);

/// Whether a snapshot is of a time that has not come yet.
pub(crate) fn is_future(created: Timestamp, now: Timestamp) -> bool {
    now.saturating_add(TOLERANCE).is_ok_and(|latest| created > latest)
}

/// Returns the time of each snapshot, oldest first: one that was taken while a clock was
/// slow is as old as the one before it. `None` for those of the future.
pub(crate) fn times(created: &[Timestamp], now: Timestamp) -> Vec<Option<Timestamp>> {
    let mut latest = Timestamp::MIN;
    let time = |created: &Timestamp| {
        if is_future(*created, now) {
            return None;
        }
        latest = latest.max(*created);
        Some(latest)
    };
    created.iter().map(time).collect()
}
