//! A snapshot that is restored to a folder and runs from there at once, as a VM of this
//! home: a clone that keeps the VM's own addresses and ports, and a script that starts it
//! without tintype when its disks are whole.

use std::path::Path;
use std::time::Instant;

use tintype_types::VmName;
use tintype_vm::CommandLine;

use crate::Engine;
use crate::clone::{CloneWork, NewVm, remove_folder};
use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::lazy::LoadMode;
use crate::places::{Places, is_flash};
use crate::restore::{RestoreReport, Restoring, would_not_run};
use crate::start_script::{START, ScriptParams, script};

/// How a restored guest runs.
#[derive(Debug, Clone)]
pub struct RunParams {
    /// What its VM is called.
    pub name: VmName,
    /// When it runs: before or after its memory and its disks are there.
    pub load: LoadMode,
}

impl Engine {
    /// Makes a folder from which the guest runs.
    pub(crate) fn restore_running(
        &self,
        restoring: Restoring<'_>,
        run: &RunParams,
        began: Instant,
    ) -> Result<RestoreReport> {
        let Restoring { repository, target, folder, format, id } = restoring;
        let (name, format) = (&run.name, Some(format));
        let lease = self.new_vm(name, "restore")?;
        self.refuse_used(folder)?;
        let places = restoring.places(folder)?;
        let line = restoring.command_line(&places, folder)?;
        let lazy = self.is_lazy(repository, target, run.load)?;
        let lazy_disks = self.choose_lazy_disks(repository, target, run.load, format)?;
        self.refuse_unfit(repository, target, "restore", lazy || !lazy_disks.is_empty())?;
        if self.writes_much_before(restoring, &lazy_disks) {
            self.try_out_alone(restoring, &line, &places)?;
        }
        let text = self.script_of(restoring, name, &lazy_disks)?;
        let work = CloneWork {
            engine: self,
            repository,
            target,
            format,
            script: Some(&text),
            shared: None,
            lazy,
            lazy_disks: &lazy_disks,
            began,
        };
        let environment = self.config.environment.clone();
        let own = CommandLine { environment, ..line.clone() };
        let new = NewVm { name: name.clone(), id, line: own, lease };
        let made = work.make_vm(new, (folder, &places));
        let running = made.map_err(|error| {
            let what = format!("cannot restore `{}` to {}", target.record.name, folder.display());
            match has_not_started(&error) {
                true => would_not_run(&line).because(error),
                false => {
                    Error::new(error.kind(), what).because(error).state("nothing was restored")
                }
            }
        })?;
        Ok(RestoreReport {
            snapshot: target.record.id,
            start: folder.join(START),
            disks: places.new_disks(target, folder)?.into_iter().map(|disk| disk.path).collect(),
            program: line.program,
            folder: folder.to_owned(),
            running: Some(running),
        })
    }

    /// Tells whether so much is written before QEMU starts that a dry run comes first. If
    /// not, its start tells as soon whether the VM runs here.
    fn writes_much_before(&self, restoring: Restoring<'_>, lazy_disks: &[String]) -> bool {
        let mut disks = restoring.target.details.disks.iter();
        disks.any(|saved| !is_flash(&saved.disk) && !lazy_disks.contains(&saved.image))
    }

    /// Tries whether the VM runs here, and leaves nothing.
    fn try_out_alone(
        &self,
        restoring: Restoring<'_>,
        line: &CommandLine,
        places: &Places,
    ) -> Result<()> {
        let short_lived = self.home.short_lived_folder()?;
        let host = DiskHost { program: &line.program, folder: short_lived.path() };
        restoring.try_out(line, places, &host)?;
        remove_folder(restoring.folder)
    }

    /// Returns the script, in which all paths start from the folder.
    fn script_of(
        &self,
        restoring: Restoring<'_>,
        vm: &VmName,
        lazy_disks: &[String],
    ) -> Result<String> {
        let within = restoring.places(Path::new(""))?;
        let line = restoring.command_line(&within, Path::new(""))?;
        let details = &restoring.target.details;
        let disks = details.disks.iter().zip(&within.all);
        let filled = disks.filter(|(saved, _)| lazy_disks.contains(&saved.image));
        let filled = filled.map(|(_, place)| place.to.display().to_string()).collect();
        Ok(script(&ScriptParams {
            line: &line,
            has_memory: !details.memory.is_empty(),
            thaw: false,
            filled: Some((vm, filled)),
        }))
    }
}

/// Tells whether QEMU ended before it did anything.
fn has_not_started(error: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(tintype_vm::Error::NotStarted { .. }) = error.downcast_ref() {
            return true;
        }
        cause = error.source();
    }
    false
}
