//! The repository from outside, on real folders.

#![cfg(test)]
#![expect(clippy::cast_possible_truncation, reason = "tests run on 64-bit machines only")]

mod copy;
mod damage;
mod died;
mod died_rewriting;
mod full;
mod gc;
mod hosts;
mod join;
mod judge;
mod keys;
mod labels;
mod memory;
mod mend;
mod model;
mod power;
mod protocol;
mod readers;
mod recompress;
mod repair;
mod sparse;
mod support;
mod together;
