//! The command against real QEMU and real guests.

#![cfg(test)]

mod command;
mod concurrent;
mod documented;
mod interrupt;
mod kill;
mod privacy;
mod qemu_death;
mod revert;
mod scene;
mod space;
mod tpm;
mod words;
