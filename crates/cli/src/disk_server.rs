//! The command that serves what the disks of a running guest still lack.

use std::io::{self, Read};

use clap::{Args, ValueEnum};
use tintype_engine::{DiskServerStart, Engine, Result};
use tintype_types::VmName;

/// Whose disks to serve, and how to come to them.
#[derive(Debug, Args)]
pub(crate) struct DiskServerArguments {
    /// The VM.
    vm: VmName,
    /// How to come to it.
    start: Start,
    /// How many disk servers of this guest have been killed.
    takeovers: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Start {
    /// QEMU is there when stdin ends.
    New,
    /// The one before has ended.
    TakeOver,
    /// Wait at stdin until the one before ends.
    StandBy,
}

/// Serves disks.
pub(crate) fn run(engine: &Engine, arguments: DiskServerArguments) -> Result<()> {
    let DiskServerArguments { vm, start, takeovers } = arguments;
    let mut pipe = io::stdin();
    let start = match start {
        Start::New => DiskServerStart::New(&mut pipe as &mut dyn Read),
        Start::TakeOver => DiskServerStart::TakeOver,
        Start::StandBy => DiskServerStart::StandBy(&mut pipe as &mut dyn Read),
    };
    engine.serve_disks(&vm, start, takeovers)
}
