//! When a guest runs: before or after its memory and disks are there.

use clap::Args;
use tintype_engine::LoadMode;

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
