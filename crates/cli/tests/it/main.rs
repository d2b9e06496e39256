//! The command against real QEMU and real guests.

#![cfg(test)]

mod command;
mod documented;
mod revert;
mod tpm;
