//! The command against real QEMU and real guests.

mod command;
mod revert;
mod tpm;
