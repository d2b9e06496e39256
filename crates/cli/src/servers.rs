//! The commands that serve a guest behind the one that started it: `page-server` loads
//! its memory, `disk-server` fills its disks.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use clap::{Args, ValueEnum};
use tintype_engine::{DiskServerStart, Engine, Error, PageServerStart, Result};
use tintype_types::VmName;

/// Which guest to serve, and how to come to it.
#[derive(Debug, Args)]
pub(crate) struct ServerArguments {
    /// The VM.
    vm: VmName,
    /// How to come to it.
    start: Start,
    /// How many such servers of this guest have been killed.
    takeovers: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Start {
    /// QEMU is new: for memory the connection to it is stdin, for disks it is there when
    /// stdin ends.
    New,
    /// The one before has ended.
    TakeOver,
    /// Wait at stdin until the one before ends.
    StandBy,
}

/// Loads memory.
pub(crate) fn serve_pages(engine: &Engine, arguments: ServerArguments) -> Result<()> {
    let ServerArguments { vm, start, takeovers } = arguments;
    let mut pipe = io::stdin();
    let start = match start {
        Start::New => {
            let descriptor = pipe.as_fd().try_clone_to_owned().map_err(|error| {
                Error::failed("the connection to QEMU is not there").because(error)
            })?;
            PageServerStart::New(UnixStream::from(descriptor))
        }
        Start::TakeOver => PageServerStart::TakeOver,
        Start::StandBy => PageServerStart::StandBy(&mut pipe as &mut dyn Read),
    };
    engine.serve_pages(&vm, start, takeovers)
}

/// Fills disks.
pub(crate) fn serve_disks(engine: &Engine, arguments: ServerArguments) -> Result<()> {
    let ServerArguments { vm, start, takeovers } = arguments;
    let mut pipe = io::stdin();
    let start = match start {
        Start::New => DiskServerStart::New(&mut pipe as &mut dyn Read),
        Start::TakeOver => DiskServerStart::TakeOver,
        Start::StandBy => DiskServerStart::StandBy(&mut pipe as &mut dyn Read),
    };
    engine.serve_disks(&vm, start, takeovers)
}
