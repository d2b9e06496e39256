//! The codec against real QEMU, and against input made to break it.

#![cfg(test)]

mod faults;
mod hostile;
mod judge;
mod lazy;
mod memory;
mod qemu;
mod round_trip;
mod speed;
mod synthetic;
