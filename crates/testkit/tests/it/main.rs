//! The guests come up and do what tests expect of them, on real QEMU.
//!
//! Needs the guests that `cargo xtask guests` builds, and says so if they are missing.
#![expect(clippy::print_stderr, reason = "a test that cannot run says why")]

mod debian;
mod tear;
mod tiny;

use tintype_testkit::GuestKind;

/// Says whether the guest is there; if not, the test that asks cannot run.
fn is_built(kind: GuestKind) -> bool {
    let built = kind.is_built();
    if !built {
        eprintln!("skipped: no {} guest; `cargo xtask guests` builds it", kind.name());
    }
    built
}
