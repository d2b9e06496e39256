//! The inspector over images that QEMU has made, and over what becomes of them.

#![cfg(test)]

mod accepted;
mod attacks;
mod judge;
mod mutants;
mod tools;
