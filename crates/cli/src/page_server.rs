//! When a guest runs, before or after its memory is loaded, and the command that
//! loads what is missing behind it.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use clap::{Args, ValueEnum};
use tintype_engine::{Engine, Error, LoadMode, PageServerStart, Result};
use tintype_types::VmName;

/// When the guest runs; without either, whichever is better for the snapshot.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct LoadArguments {
    /// Load all memory before the guest runs.
    #[arg(long)]
    pub(crate) eager: bool,
    /// Let the guest run at once, and load its memory behind it.
    #[arg(long, conflicts_with = "eager")]
    pub(crate) lazy: bool,
}

impl LoadArguments {
    pub(crate) fn mode(self) -> LoadMode {
        match self {
            Self { eager: true, .. } => LoadMode::Eager,
            Self { lazy: true, .. } => LoadMode::Lazy,
            Self { .. } => LoadMode::Auto,
        }
    }
}

/// Whose memory to load, and how to come to it.
#[derive(Debug, Args)]
pub(crate) struct PageServerArguments {
    /// The VM.
    vm: VmName,
    /// How to come to it.
    start: Start,
    /// How many page servers of this guest have been killed.
    takeovers: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Start {
    /// The connection to a new QEMU is stdin.
    New,
    /// The one before has ended.
    TakeOver,
    /// Wait at stdin until the one before ends.
    StandBy,
}

/// Loads memory.
pub(crate) fn run(engine: &Engine, arguments: PageServerArguments) -> Result<()> {
    let PageServerArguments { vm, start, takeovers } = arguments;
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
