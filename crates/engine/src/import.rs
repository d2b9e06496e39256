//! Imports the images that people have as snapshots of a VM: each file of a backing
//! chain and each internal snapshot becomes one, with its order and name kept.
//!
//! ```text
//! inspect every file ── plan ── for each snapshot: QEMU opens what was inspected,
//!                               and nothing else ── its disks, compared with the
//!                               snapshot before ── committed ── the VM is there
//! ```
//!
//! The images are opened for reading alone. An import that was ended in the middle has
//! whole snapshots, and goes on when it is begun again.

mod chain;
mod libvirt;
mod machine;
mod plan;
mod state;
mod work;

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use tintype_inspect::ImageFormat;
use tintype_repo::Repository;
use tintype_types::{ByteCount, SnapshotId, SnapshotName, VmName};
use tintype_vm::{CommandLine, Disk, Inventory};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::operations::{Reversal, listed};
use crate::vms::{LeasedVm, VmState, find_program};

use chain::Allowed;
use machine::Machine;
use plan::{Moment, Plan};
use work::Work;

/// What to import.
#[derive(Debug, Clone)]
pub struct ImportParams {
    /// The images, one for each disk.
    pub images: Vec<PathBuf>,
    /// The VM that they become; named like the first image if there is none.
    pub vm: Option<VmName>,
    /// The format of the images; what their names end in if there is none.
    pub format: Option<String>,
    /// The folders in which backing files may be; that of each image if there is none.
    pub allowed: Vec<PathBuf>,
    /// What libvirt has noted of snapshots: files of XML, and folders of such.
    pub libvirt: Vec<PathBuf>,
    /// What whoever imports writes about it.
    pub message: String,
    /// Whether nothing is to be done but to say what would be.
    pub dry_run: bool,
    /// How the VM's QEMU is started, and in which folder; the first word is the program.
    pub qemu: Option<(Vec<String>, PathBuf)>,
}

/// What was imported, or would be.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportReport {
    /// The VM.
    pub vm: VmName,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// The snapshots, each after the one that it came from.
    pub snapshots: Vec<ImportedSnapshot>,
}

/// One snapshot of an import.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportedSnapshot {
    /// Its id; `None` in a dry run.
    pub id: Option<SnapshotId>,
    /// Its name.
    pub name: SnapshotName,
    /// When the file was last written, or the snapshot taken.
    pub created: Timestamp,
    /// The name of the one that it came from.
    pub parent: Option<SnapshotName>,
    /// The files and internal snapshots that it is of, one for each disk.
    pub from: Vec<String>,
    /// Bytes of a VM's state that are kept as they are; 0 without one.
    pub vm_state_bytes: ByteCount,
    /// Whether that is the snapshot's memory: the guest can go on from it.
    pub has_memory: bool,
    /// Whether an import that was ended had made it before.
    pub was_there: bool,
    /// Bytes that the repository grew by; `None` in a dry run.
    pub stored_bytes: Option<ByteCount>,
}

impl Engine {
    /// Imports images as snapshots of a new VM.
    pub fn import(&self, params: &ImportParams) -> Result<ImportReport> {
        let untouched = |error: Error| error.state_unless_known("nothing was imported or changed");
        let mut plan = self.plan_import(params).map_err(untouched)?;
        let machine = params.qemu.as_ref().map(|(words, directory)| {
            self.machine(words, directory, &params.images, &mut plan).map_err(untouched)
        });
        let machine = machine.transpose()?;
        let is_loadable = machine.is_some();
        if params.dry_run {
            let moments = plan.moments.iter();
            let snapshots = moments.map(|moment| moment.report(None, false, is_loadable)).collect();
            return Ok(plan.report(true, snapshots));
        }
        let repository = self.repository()?;
        let program = match &machine {
            Some(machine) => machine.line.program.clone(),
            None => find_program("qemu-system-x86_64", Path::new("/"))?,
        };
        let machine = machine.as_ref();
        let work = Work { engine: self, repository: &repository, program: &program, machine };
        work.try_all(&plan).map_err(untouched)?;
        let mut vm = self.imported_vm(&plan, &program, machine)?;
        let known = self.snapshots_of(&repository, vm.state.id)?;
        refuse_others(&plan, &known)?;
        let mut snapshots: Vec<ImportedSnapshot> = Vec::new();
        let imported: Result<()> = plan.moments.iter().try_for_each(|moment| {
            vm.state.current = moment.parent.and_then(|at| snapshots.get(at)?.id);
            if let Some(known) = known.iter().find(|known| moment.is(known)) {
                self.place(&mut vm, &known.record)?;
                snapshots.push(moment.report(Some(&known.record), true, is_loadable));
                return Ok(());
            }
            let record = work.import(&mut vm, moment, &params.message).map_err(|error| {
                let state = format!(
                    "{} of {} snapshots are there; the images are as they were",
                    snapshots.len(),
                    plan.moments.len()
                );
                if snapshots.is_empty() && known.is_empty() {
                    self.forget(&vm);
                }
                error.state_unless_known(&state).hint_if_full()
            })?;
            snapshots.push(moment.report(Some(&record.record), false, is_loadable));
            Ok(())
        });
        self.log_import(&repository, &plan.vm, &snapshots);
        imported?;
        vm.state.current = plan.current.and_then(|at| snapshots.get(at)?.id);
        self.save(&vm)?;
        Ok(plan.report(false, snapshots))
    }

    /// Notes what an import has made, also one that has failed since.
    fn log_import(&self, repository: &Repository, vm: &VmName, snapshots: &[ImportedSnapshot]) {
        let made = || snapshots.iter().filter(|snapshot| !snapshot.was_there);
        let names: Vec<_> = made().map(|snapshot| format!("{vm}@{}", snapshot.name)).collect();
        if !names.is_empty() {
            let reversal =
                Reversal::Delete { snapshots: made().filter_map(|one| one.id).collect() };
            let did = format!("imported {}", listed(&names));
            self.log_operation(repository, "import", did, Some(reversal));
        }
    }

    fn plan_import(&self, params: &ImportParams) -> Result<Plan> {
        let format = params.format.as_deref().map(str::parse::<ImageFormat>).transpose();
        let format = format.map_err(|error| {
            let format = params.format.as_deref().unwrap_or_default();
            Error::invalid(format!("`{format}` is not a format that is imported")).because(error)
        })?;
        if !params.libvirt.is_empty() {
            return self.plan_libvirt(params, format);
        }
        let mut disks = Vec::new();
        for image in &params.images {
            self.check_interruption()?;
            let allowed = Allowed::of(image, &params.allowed)?;
            disks.push(chain::resolve(image, format, &allowed)?);
        }
        plan::plan(params.vm.clone(), &disks)
    }

    /// Makes the VM, or takes up the one that an import was ended for.
    fn imported_vm(
        &self,
        plan: &Plan,
        program: &Path,
        machine: Option<&Machine>,
    ) -> Result<LeasedVm> {
        let line = match machine {
            Some(machine) => self.with_monitor(&plan.vm, &machine.line)?,
            None => CommandLine {
                program: program.to_owned(),
                arguments: Vec::new(),
                directory: self.home.vm_folder(&plan.vm),
                environment: Vec::new(),
            },
        };
        if self.home.vm_file(&plan.vm).exists() {
            let vm = self.lease(&plan.vm, "import")?;
            if !vm.is_alive() && vm.state.command_line.arguments == line.arguments {
                return Ok(vm);
            }
            drop(vm);
        }
        let lease = self
            .new_vm(&plan.vm, "import")
            .map_err(|error| error.hint("--vm NAME gives the VM that is imported another name"))?;
        let inventory = match machine {
            Some(machine) => machine.inventory.clone(),
            None => inventory(plan.moments.last().map_or_else(Vec::new, Moment::disks)),
        };
        let state = VmState::at_rest(self.home.monitor_socket(&plan.vm)?, line, inventory);
        let vm = LeasedVm { name: plan.vm.clone(), state, _lease: lease };
        // Before the first snapshot, which an import that goes on has to find.
        self.save(&vm)?;
        Ok(vm)
    }

    /// Adds a monitor of ours to a command line.
    fn with_monitor(&self, vm: &VmName, line: &CommandLine) -> Result<CommandLine> {
        let socket = self.home.monitor_socket(vm)?;
        let monitor = ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())];
        Ok(CommandLine { arguments: [&line.arguments[..], &monitor].concat(), ..line.clone() })
    }

    /// Forgets the VM of an import that has come to nothing.
    fn forget(&self, vm: &LeasedVm) {
        let folder = self.home.vm_folder(&vm.name);
        if let Err(error) = std::fs::remove_dir_all(&folder) {
            tracing::warn!(%error, folder = %folder.display(), "cannot remove");
        }
    }
}

/// Refuses to go on with an import whose images were written since it was begun.
fn refuse_others(plan: &Plan, known: &[Snapshot]) -> Result<()> {
    let is_other = |moment: &&Moment| {
        known.iter().any(|known| known.record.name == moment.name && !moment.is(known))
    };
    match plan.moments.iter().find(is_other) {
        None => Ok(()),
        Some(moment) => {
            Err(Error::refused(format!("`{}` has another snapshot `{}`", plan.vm, moment.name))
                .because("the image was written since it was imported")
                .state("nothing was imported or changed")
                .hint("--vm NAME imports it as another VM"))
        }
    }
}

/// What is known of a VM of which there are only disks.
fn inventory(disks: Vec<Disk>) -> Inventory {
    Inventory {
        qemu_version: String::new(),
        machine: String::new(),
        processor: String::new(),
        processors: 0,
        memory: ByteCount(0),
        disks,
        network_cards: Vec::new(),
        character_devices: Vec::new(),
        accelerator: String::new(),
    }
}

/// Tells whether a VM was imported: then nobody knows how QEMU was started.
pub(crate) fn is_imported(line: &CommandLine) -> bool {
    line.arguments.is_empty()
}

/// Refuses what needs a command line, of a VM that has none.
pub(crate) fn refuse_imported(line: &CommandLine, verb: &str, vm: &VmName) -> Result<()> {
    if !is_imported(line) {
        return Ok(());
    }
    Err(Error::refused(format!("cannot {verb} `{vm}`"))
        .because("it was imported, and nobody knows how its QEMU is started")
        .state("nothing was changed")
        .hint(format!(
            "`tintype export {vm}@NAME --format qcow2 --to FILE` writes a disk of it; `tintype vm run NEW -- qemu-system-x86_64 …` starts a QEMU with that"
        )))
}
