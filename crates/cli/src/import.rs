//! The command that makes snapshots of images that people have.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use tintype_engine::{Engine, Error, ImportParams, ImportReport, Result};
use tintype_types::VmName;

use crate::output::Output;
use crate::text::counted;

/// What to import.
#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// The images, one for each disk of the VM.
    #[arg(required_unless_present = "libvirt")]
    images: Vec<PathBuf>,
    /// What libvirt has noted of its snapshots: a folder such as
    /// /var/lib/libvirt/qemu/snapshot/VM, or a file that `virsh snapshot-dumpxml` has
    /// written; can be given several times. Names, order, times and descriptions are from
    /// there, and disks only from where they may be, as with --allow-backing.
    #[arg(long, value_name = "XML")]
    libvirt: Vec<PathBuf>,
    /// The VM that they become. By default it is called like the first image.
    #[arg(long, value_name = "NAME")]
    vm: Option<VmName>,
    /// The format: raw, qcow2, vmdk, vhd or vhdx. By default what the name ends in.
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// A folder in which backing files may be; can be given several times. By default
    /// they may be beside the image.
    #[arg(long = "allow-backing", value_name = "DIR")]
    allowed: Vec<PathBuf>,
    /// What the snapshots are good for, in your words.
    #[arg(short, long, default_value = "")]
    message: String,
    /// Only inspect the images, and say what would be imported.
    #[arg(long)]
    dry_run: bool,
    /// Say after `--` how the VM's QEMU is started. Then it can be started, and put back
    /// to snapshots with their memory.
    #[arg(long, requires = "line")]
    qemu: bool,
    /// The command line, QEMU first.
    #[arg(last = true, value_name = "QEMU", requires = "qemu")]
    line: Vec<String>,
}

/// Imports images.
pub(crate) fn run(engine: &Engine, arguments: ImportArguments, output: &Output) -> Result<()> {
    let here = std::env::current_dir()
        .map_err(|error| Error::failed("cannot tell the current folder").because(error))?;
    let report = engine.import(&ImportParams {
        qemu: arguments.qemu.then_some((arguments.line, here)),
        images: arguments.images,
        vm: arguments.vm,
        format: arguments.format,
        allowed: arguments.allowed,
        libvirt: arguments.libvirt,
        message: arguments.message,
        dry_run: arguments.dry_run,
    })?;
    output.result(&report, || text(&report));
    Ok(())
}

fn text(report: &ImportReport) -> String {
    let done = if report.dry_run { "would import" } else { "imported" };
    let snapshots = counted(report.snapshots.len(), "snapshot");
    let mut text = format!("{done} {snapshots} of {}\n", report.vm);
    for snapshot in &report.snapshots {
        let name = format!("{}@{}", report.vm, snapshot.name);
        let _ = write!(text, "  {name} from {}", snapshot.from.join(", "));
        if let Some(stored) = snapshot.stored_bytes.filter(|_| !snapshot.was_there) {
            let _ = write!(text, ", stored {stored}");
        }
        if snapshot.was_there {
            text.push_str(", which was there");
        }
        if snapshot.has_memory {
            text.push_str(", with its memory");
        } else if snapshot.vm_state_bytes.get() > 0 {
            let _ = write!(
                text,
                "; the {} of its VM's state are kept as they are, and cannot be loaded",
                snapshot.vm_state_bytes
            );
        }
        text.push('\n');
    }
    text
}
