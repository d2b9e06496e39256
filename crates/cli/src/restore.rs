//! The command that makes a folder of a snapshot, which runs by itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use tintype_engine::{Engine, RestoreParams, Result};

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
    /// Go on although a CD or another read-only medium is missing or another one now.
    #[arg(long)]
    ignore_media: bool,
}

/// The format of a disk.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum DiskFormat {
    /// QEMU's own, as small as what is in it.
    Qcow2,
    /// Byte by byte, with holes.
    Raw,
}

/// Restores a snapshot.
pub(crate) fn run(engine: &Engine, arguments: RestoreArguments, output: &Output) -> Result<()> {
    let format = match arguments.format {
        DiskFormat::Qcow2 => "qcow2",
        DiskFormat::Raw => "raw",
    };
    let report = engine.restore(&RestoreParams {
        snapshot: arguments.snapshot,
        folder: arguments.to,
        format: format.to_owned(),
        ignore_media: arguments.ignore_media,
    })?;
    output.result(&report, || {
        format!(
            "restored to {}; {} lets the guest run on from the instant",
            report.folder.display(),
            report.start.display()
        )
    });
    Ok(())
}
