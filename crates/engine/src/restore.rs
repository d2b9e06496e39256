//! A snapshot as a folder that runs by itself, on a machine that has never seen
//! the VM: disks, small files, memory, and a script that starts QEMU.
//!
//! ```text
//! verify ─ empty folder, marked ─ files, empty disks ─ dry run of QEMU
//!                                  disks, memory, script ─ mark removed ─┘
//! ```
//!
//! A guest that runs from its folder at once is in `restored_vm.rs`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use tintype_repo::Repository;
use tintype_types::{SnapshotId, VmId};
use tintype_vm::{CommandLine, LaunchParams, RelocateParams, launch, relocate, with_machine_type};

use crate::Engine;
use crate::clone::{MadeVm, remove_folder};
use crate::details::Snapshot;
use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::home::{make_folder, remove_durably, write_durably};
use crate::intent::Intent;
use crate::memory;
use crate::new_disks::NewDisk;
use crate::places::Places;
use crate::restored_vm::RunParams;
use crate::snapshots::hold;
use crate::start_script::{self, MEMORY, START, ScriptParams, script};
use crate::vms::find_program;

/// Says that a folder is not finished.
const UNFINISHED: &str = "UNFINISHED";

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct RestoreParams {
    /// The snapshot.
    pub snapshot: String,
    /// The folder, which is empty or does not exist.
    pub folder: PathBuf,
    /// The format of the disks: `qcow2` or `raw`.
    pub format: String,
    /// Whether media that are missing or others now do not matter.
    pub ignore_media: bool,
    /// How its guest runs from there, if it is to run at once.
    pub run: Option<RunParams>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreReport {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The folder.
    pub folder: PathBuf,
    /// The script that starts QEMU.
    pub start: PathBuf,
    /// The images of the disks.
    pub disks: Vec<PathBuf>,
    /// The QEMU that the dry run was made with, or that runs.
    pub program: PathBuf,
    /// The VM that runs from there, if one does.
    pub running: Option<MadeVm>,
}

/// What goes where.
#[derive(Clone, Copy)]
pub(crate) struct Restoring<'r> {
    pub(crate) repository: &'r Repository,
    pub(crate) target: &'r Snapshot,
    /// The folder, as an absolute path.
    pub(crate) folder: &'r Path,
    pub(crate) format: &'r str,
    /// What new hardware addresses and ids are made of.
    pub(crate) id: VmId,
}

impl Engine {
    /// Restores a snapshot to a folder.
    pub fn restore(&self, params: &RestoreParams) -> Result<RestoreReport> {
        let began = Instant::now();
        let repository = self.repository()?;
        let mut target = self.find_snapshot(&repository, &params.snapshot, None)?;
        let _held = hold(&repository, &mut target)?;
        self.see_to_media(&mut target, params.ignore_media)?;
        let folder =
            std::path::absolute(&params.folder).map_err(Error::io("find", &params.folder))?;
        let (repository, target, format) = (&repository, &target, params.format.as_str());
        let restoring =
            Restoring { repository, target, folder: &folder, format, id: VmId::random() };
        match &params.run {
            None => self.restore_at_rest(restoring),
            Some(run) => self.restore_running(restoring, run, began),
        }
    }

    /// Makes a folder in which nothing runs.
    fn restore_at_rest(&self, restoring: Restoring<'_>) -> Result<RestoreReport> {
        let Restoring { repository, target, folder, .. } = restoring;
        self.refuse_unfit(repository, target, "restore", false)?;
        let places = restoring.places(Path::new(""))?;
        let line = restoring.command_line(&places, Path::new(""))?;
        self.refuse_used(folder)?;
        let short_lived = self.home.short_lived_folder()?;
        let host = DiskHost { program: &line.program, folder: short_lived.path() };
        let disks = restoring.try_out(&line, &places, &host)?;
        host.fill(repository, &disks, self.config.observer.as_ref())?;
        let has_memory = !target.details.memory.is_empty();
        if has_memory {
            let path = folder.join(MEMORY);
            let state = target.device_state(repository)?;
            let mut file = File::create_new(&path).map_err(Error::io("make", &path))?;
            memory::write(repository, target, &state, &mut file)?;
            file.sync_all().map_err(Error::io("write", &path))?;
        }
        let thaw = has_memory && target.details.quiesced.needs_thaw();
        let params = ScriptParams { line: &line, has_memory, thaw, filled: None };
        start_script::write(folder, &script(&params))?;
        remove_durably(&folder.join(UNFINISHED))?;
        Ok(RestoreReport {
            snapshot: target.record.id,
            start: folder.join(START),
            disks: disks.into_iter().map(|disk| disk.path).collect(),
            program: line.program,
            folder: folder.to_owned(),
            running: None,
        })
    }

    /// Refuses a folder that has something in it. What an interrupted command has left
    /// there of a VM is removed first: later it would be taken for that.
    pub(crate) fn refuse_used(&self, folder: &Path) -> Result<()> {
        let refused = |why: String| Error::refused(format!("{} {why}", folder.display()));
        for name in self.home.vm_names()? {
            let is_claimed = || -> Result<bool> {
                let intent = self.intent(&name)?;
                Ok(matches!(intent, Some(Intent::Clone { folder: of }) if of == folder))
            };
            if !is_claimed()? {
                continue;
            }
            let _ = self.lease(&name, "restore");
            if is_claimed()? {
                let why = format!("is where another command makes the VM `{name}`");
                return Err(refused(why).state("nothing was changed"));
            }
        }
        if folder.join(UNFINISHED).exists() {
            return Err(refused("is of a restore that was interrupted".to_owned())
                .hint("remove it, and restore again"));
        }
        let is_used = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
        if is_used { Err(refused("is not empty".to_owned())) } else { Ok(()) }
    }
}

impl<'r> Restoring<'r> {
    /// Chooses places from a folder on, or without one within the folder.
    pub(crate) fn places(&self, from: &Path) -> Result<Places> {
        Places::choose(self.target, from, Some(self.format))
    }

    /// Returns how QEMU is started in the folder; sockets and logs are in `from`, where
    /// the places are, too.
    pub(crate) fn command_line(&self, places: &Places, from: &Path) -> Result<CommandLine> {
        let details = &self.target.details;
        let line = &details.command_line;
        let refused = |why: tintype_vm::Error| {
            Error::refused(format!("cannot restore `{}`", self.target.record.name))
                .because(why)
                .state("nothing was changed")
        };
        if let Some(tpm) = details.tpms.first() {
            return Err(refused(tintype_vm::Error::unsupported(format!(
                "the VM has a software TPM, at {}, that QEMU would look for there",
                tpm.socket.display()
            ))));
        }
        let seed = *self.id.as_bytes();
        let params = RelocateParams { files: &places.all, folder: from, seed, free_port: None };
        let relocated = relocate(line, &params).map_err(refused)?;
        let program = match line.program.exists() {
            true => line.program.clone(),
            false => {
                let name = line.program.file_name().unwrap_or_default().to_string_lossy();
                find_program(&name, self.folder)?
            }
        };
        Ok(CommandLine {
            program,
            arguments: with_machine_type(&relocated.arguments, &details.inventory.machine),
            directory: self.folder.to_owned(),
            environment: Vec::new(),
        })
    }

    /// Makes the folder with its small files and empty disks, and starts this machine's
    /// QEMU on them with all of the VM's hardware. If that fails, nothing is left.
    pub(crate) fn try_out(
        &self,
        line: &CommandLine,
        places: &Places,
        host: &DiskHost<'_>,
    ) -> Result<Vec<NewDisk<'r>>> {
        let Self { repository, target, folder, .. } = *self;
        make_folder(folder)?;
        write_durably(&folder.join(UNFINISHED), b"tintype restore has not finished this folder\n")?;
        places.write_files(repository, target, folder)?;
        let disks = places.new_disks(target, folder)?;
        host.make(&disks)?;
        match dry_run(line, host.folder) {
            Ok(()) => Ok(disks),
            Err(error) => {
                remove_folder(folder)?;
                Err(would_not_run(line).because(error))
            }
        }
    }
}

/// Starts this machine's QEMU with all of the VM's hardware, and ends it.
fn dry_run(line: &CommandLine, short_lived: &Path) -> Result<(), tintype_vm::Error> {
    let socket = short_lived.join("qmp");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let params = LaunchParams {
        command_line: line,
        extra: &["-S", "-incoming", "defer", "-qmp", &monitor],
        socket: &socket,
        log: &short_lived.join("log"),
    };
    launch(&params).and_then(tintype_vm::Guest::quit)
}

pub(crate) fn would_not_run(line: &CommandLine) -> Error {
    Error::refused(format!("the VM would not run here, with {}", line.program.display()))
        .state("nothing was restored")
        .hint("QEMU says what it misses: a newer QEMU, a processor, a file, or a free port")
}
