//! The command against real QEMU and real guests.

mod command;
mod documented;
mod revert;
mod tpm;
