//! Images through a real QEMU.

#![cfg(test)]

mod chain;
mod content;
mod lifetime;
mod locks;
mod tools;
