//! The command against real QEMU and real guests.

#![cfg(test)]

mod bare_vm;
mod bitmaps;
mod boot;
mod bucket;
mod budgets;
mod clones;
mod command;
mod completion;
mod concurrent;
mod copy;
mod cycles;
mod damage;
mod deletion;
mod documented;
mod excluded_disks;
mod export;
mod hardware;
mod identity;
mod import;
mod interrupt;
mod keys;
mod kill;
mod lazy;
mod operations;
mod oracle;
mod privacy;
mod prune;
mod qemu_death;
mod quiesce;
mod repeated;
mod restore;
mod same_as_full;
mod scene;
mod soak;
mod space;
mod subject;
mod switched_off;
mod tpm;
mod traces;
mod trash;
mod unlogged;
mod variants;
mod words;
mod wrong_clock;
