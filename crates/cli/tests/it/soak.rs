//! What `cargo xtask soak` asks of a test, by the environment: more, and a seed.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells whether a test is to do all that it can, and not a share that CI has time for.
pub(crate) fn is_soak() -> bool {
    std::env::var_os("TINTYPE_SOAK").is_some()
}

/// Returns the number that a variable holds.
pub(crate) fn wanted(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {text}")))
}

/// Returns a seed that is another one in each run.
pub(crate) fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into()
}
