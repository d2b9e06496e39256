//! The command that makes new VMs of a snapshot.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use tintype_engine::{CloneParams, CloneReport, Engine, MadeVm, Result};
use tintype_types::VmName;

use crate::load::LoadArguments;
use crate::output::Output;
use crate::restore::DiskFormat;

/// What to make.
#[derive(Debug, Args)]
pub(crate) struct CloneArguments {
    /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
    snapshot: String,
    /// The name of the new VM.
    name: VmName,
    /// Make so many, whose names end in 1, 2, and so on.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    count: Option<u16>,
    /// Make the folder of each new VM in this one, not in the home.
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// The format of the disks; without it each keeps its own. Only qcow2 is filled behind
    /// a guest.
    #[arg(long, value_name = "FORMAT")]
    format: Option<DiskFormat>,
    /// Keep the memory that the new VMs have in common once, until they write to it.
    #[arg(long, conflicts_with_all = ["eager", "lazy"])]
    share_memory: bool,
    /// Go on although a CD or another read-only medium is missing or another one now.
    #[arg(long)]
    ignore_media: bool,
    /// Load all memory and write all disks before the guests run.
    #[arg(long)]
    eager: bool,
    /// Let the guests run at once, and load their memory and fill their disks behind them.
    #[arg(long, conflicts_with = "eager")]
    lazy: bool,
}

/// Makes new VMs of a snapshot.
pub(crate) fn run(engine: &Engine, arguments: CloneArguments, output: &Output) -> Result<()> {
    let load = LoadArguments { eager: arguments.eager, lazy: arguments.lazy }.mode();
    let params = CloneParams {
        snapshot: arguments.snapshot,
        name: arguments.name,
        count: arguments.count,
        folder: arguments.to,
        format: arguments.format.map(|format| format.name().to_owned()),
        share_memory: arguments.share_memory,
        load,
        ignore_media: arguments.ignore_media,
    };
    let report = engine.clone_snapshot(&params)?;
    output.result(&report, || cloned(&report));
    Ok(())
}

fn cloned(report: &CloneReport) -> String {
    let mut text = String::new();
    for vm in &report.vms {
        text.push_str(&made(&vm.made, &vm.folder));
        for port in &vm.ports {
            let _ = writeln!(text, "  {} port {} is {} here", port.protocol, port.from, port.to);
        }
    }
    text
}

/// Says what a VM of a snapshot does, and what still happens behind its guest.
pub(crate) fn made(made: &MadeVm, folder: &Path) -> String {
    let MadeVm { vm, state, lazy, filling, running_ms, .. } = made;
    let (seconds, folder) = (running_ms / 1000.0, folder.display());
    let mut text = format!("{vm} is {state} after {seconds:.1} s, in {folder}\n");
    if *lazy {
        let _ = writeln!(text, "  its memory is loaded behind it: `tintype vm show {vm}`");
    }
    if *filling {
        let _ = writeln!(text, "  its disks are filled behind it: `tintype vm show {vm}`");
    }
    text
}
