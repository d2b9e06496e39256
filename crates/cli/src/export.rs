//! The command that writes a snapshot for other tools.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tintype_engine::{Engine, ExportFormat, ExportParams, Result};

use crate::output::Output;

/// What to export, and where.
#[derive(Debug, Args)]
pub(crate) struct ExportArguments {
    /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
    snapshot: String,
    /// As what.
    #[arg(long, value_name = "FORMAT")]
    format: Format,
    /// A file, or with --chain a folder, that does not exist; - for stdout with tar.
    #[arg(long, value_name = "PATH")]
    to: PathBuf,
    /// The disk, by its name in `show`, if there are several.
    #[arg(long, value_name = "DISK")]
    disk: Option<String>,
    /// Write the snapshots that it comes from too, as the backing files.
    #[arg(long)]
    chain: bool,
}

/// As what a snapshot is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A disk, as QEMU's own format.
    Qcow2,
    /// A disk, byte by byte, with holes.
    Raw,
    /// Disks, memory, devices and settings, as an archive.
    Tar,
    /// The memory with the registers, as gdb, crash and Volatility open it.
    ElfCore,
}

/// Exports a snapshot.
pub(crate) fn run(engine: &Engine, arguments: ExportArguments, output: &Output) -> Result<()> {
    let format = match arguments.format {
        Format::Qcow2 => ExportFormat::Qcow2,
        Format::Raw => ExportFormat::Raw,
        Format::Tar => ExportFormat::Tar,
        Format::ElfCore => ExportFormat::ElfCore,
    };
    let mut stdout = std::io::stdout();
    let streams = arguments.to == Path::new("-") && format == ExportFormat::Tar;
    let report = engine.export(ExportParams {
        snapshot: arguments.snapshot,
        format,
        to: arguments.to,
        stream: streams.then_some(&mut stdout as &mut dyn Write),
        disk: arguments.disk,
        chain: arguments.chain,
    })?;
    if streams {
        return Ok(());
    }
    output.result(&report, || {
        let files: Vec<_> = report.files.iter().map(|file| file.display().to_string()).collect();
        format!("exported to {}", files.join(", "))
    });
    Ok(())
}
