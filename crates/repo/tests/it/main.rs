//! The repository from outside, on real folders.

#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that meets the unexpected fails"
)]

mod damage;
mod died;
mod full;
mod gc;
mod keys;
mod model;
mod protocol;
mod sparse;
mod support;
mod together;
