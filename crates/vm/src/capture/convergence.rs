//! When to give up hope that passes over memory catch up with the guest: a pure
//! decision over QEMU's own numbers.

use std::time::Duration;

/// What QEMU says of a migration under way (`query-migrate`, member `ram`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    /// Passes over memory that have begun.
    pub(super) passes: u64,
    /// Bytes sent so far.
    pub(super) transferred: u64,
    /// Bytes that are to be sent again.
    pub(super) remaining: u64,
    /// Bytes of memory.
    pub(super) total: u64,
    /// Bytes per second, of late; 0 if not known yet.
    pub(super) bytes_per_second: u64,
}

/// What to do about a migration under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The passes get shorter, or may yet.
    GoOn,
    /// Allow a pause of this length: it ends the passes, and is still shorter
    /// than that of a copy-on-write capture.
    AllowPause(Duration),
    /// The guest is faster than we are.
    GiveUp,
}

/// The passes that a guest may take before a longer pause is considered.
const PATIENT_PASSES: u64 = 3;
/// The passes after which a guest counts as too busy.
const MAX_PASSES: u64 = 8;
/// The bytes after which a guest counts as too busy: twice its memory, and this.
const SPARE_BYTES: u64 = 256 << 20;

/// The pause that a copy-on-write capture of this much memory costs: it reads
/// every page once (measured: 10 to 30 ms a GiB, and 10 ms for the rest).
pub(super) fn copy_on_write_pause(total: u64) -> Duration {
    const US_PER_MIB: u64 = 15;
    Duration::from_millis(10) + Duration::from_micros((total >> 20) * US_PER_MIB)
}

/// Judges.
pub(super) fn judge(progress: &Progress) -> Verdict {
    if progress.passes <= PATIENT_PASSES {
        return Verdict::GoOn;
    }
    let bound = copy_on_write_pause(progress.total);
    let pause = progress
        .remaining
        .saturating_mul(1000)
        .checked_div(progress.bytes_per_second)
        .map(Duration::from_millis);
    if pause.is_some_and(|pause| pause <= bound) {
        return Verdict::AllowPause(bound);
    }
    let too_much = progress.total.saturating_mul(2).saturating_add(SPARE_BYTES);
    if progress.passes > MAX_PASSES || progress.transferred > too_much {
        return Verdict::GiveUp;
    }
    Verdict::GoOn
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn check(passes: u64, transferred: u64, remaining: u64, expected: Verdict) {
        let progress =
            Progress { passes, transferred, remaining, total: 4 * GIB, bytes_per_second: GIB };
        assert_eq!(judge(&progress), expected, "{progress:?}");
    }

    #[test]
    fn patience_has_bounds() {
        check(1, GIB, 3 * GIB, Verdict::GoOn);
        check(3, 5 * GIB, GIB, Verdict::GoOn);
        check(4, 5 * GIB, GIB, Verdict::GoOn);
        check(9, 6 * GIB, GIB, Verdict::GiveUp);
        check(5, 9 * GIB, GIB, Verdict::GiveUp);
        check(5, 5 * GIB, 40 << 20, Verdict::AllowPause(copy_on_write_pause(4 * GIB)));
        check(9, 9 * GIB, 40 << 20, Verdict::AllowPause(copy_on_write_pause(4 * GIB)));
    }

    #[test]
    fn an_unknown_speed_allows_nothing() {
        let progress =
            Progress { passes: 5, transferred: 0, remaining: 0, total: GIB, bytes_per_second: 0 };
        assert_eq!(judge(&progress), Verdict::GoOn);
    }
}
