//! The command that makes a folder of a snapshot, which runs by itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tintype_engine::{Engine, RestoreParams, RestoreReport, Result, RunParams};
use tintype_types::VmName;

use crate::clone::made;
use crate::load::LoadArguments;
use crate::output::Output;

/// What to restore, and where.
#[derive(Debug, Args)]
pub(crate) struct RestoreArguments {
    /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
    snapshot: String,
    /// A folder that is empty or does not exist.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// The format of the disks.
    #[arg(long, value_name = "FORMAT", default_value = "qcow2")]
    format: DiskFormat,
    /// Let the guest run from the folder at once, as the VM of this name.
    #[arg(long, value_name = "NAME")]
    run: Option<VmName>,
    /// Load all memory and write all disks before the guest runs.
    #[arg(long, requires = "run")]
    eager: bool,
    /// Let the guest run before its memory and its disks are there, and fill them behind it.
    #[arg(long, conflicts_with = "eager", requires = "run")]
    lazy: bool,
    /// Go on although a CD or another read-only medium is missing or another one now.
    #[arg(long)]
    ignore_media: bool,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum DiskFormat {
    /// QEMU's own, as small as what is in it.
    Qcow2,
    /// Byte by byte, with holes.
    Raw,
}

impl DiskFormat {
    /// Returns QEMU's name for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// Restores a snapshot.
pub(crate) fn run(engine: &Engine, arguments: RestoreArguments, output: &Output) -> Result<()> {
    let load = LoadArguments { eager: arguments.eager, lazy: arguments.lazy }.mode();
    let report = engine.restore(&RestoreParams {
        snapshot: arguments.snapshot,
        folder: arguments.to,
        format: arguments.format.name().to_owned(),
        ignore_media: arguments.ignore_media,
        run: arguments.run.map(|name| RunParams { name, load }),
    })?;
    output.result(&report, || restored(&report));
    Ok(())
}

fn restored(report: &RestoreReport) -> String {
    match &report.running {
        Some(vm) => made(vm, &report.folder),
        None => {
            let (folder, start) = (report.folder.display(), report.start.display());
            format!("restored to {folder}; {start} lets the guest run on from the instant")
        }
    }
}
