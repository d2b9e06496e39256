//! Which disks of a new VM are filled behind its guest, and what is made of them before.
//!
//! Only a qcow2 image tells what it lacks. Others are written before the guest runs, and
//! so are the firmware's variables, which are small and read whole at the start.

use std::fs::File;
use std::path::Path;

use tintype_image::Format;
use tintype_repo::Repository;
use tintype_types::VmName;

use crate::Engine;
use crate::details::{SavedDisk, Snapshot};
use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::filling::{FillingDisk, FillingState};
use crate::lazy::{LAZY_FROM, LoadMode, has_much_data};
use crate::new_disks::NewDisk;
use crate::places::is_flash;

impl Engine {
    /// Chooses the disks of a snapshot that are filled behind the guest, by the names of
    /// their images. New images get the format, or keep that of the disk.
    pub(crate) fn choose_lazy_disks(
        &self,
        repository: &Repository,
        target: &Snapshot,
        mode: LoadMode,
        format: Option<&str>,
    ) -> Result<Vec<String>> {
        let details = &target.details;
        if mode == LoadMode::Eager {
            return Ok(Vec::new());
        }
        let will_run = !details.memory.is_empty() || details.way.is_some();
        let reason = match will_run {
            true => self.why_nothing_runs_behind(),
            false => Some("the VM did not run at the snapshot's instant".to_owned()),
        };
        if let Some(reason) = reason {
            if mode == LoadMode::Lazy {
                self.explain_written(&reason);
            }
            return Ok(Vec::new());
        }
        let disks = details.disks.iter().filter(|saved| !is_flash(&saved.disk));
        let (chosen, written): (Vec<&SavedDisk>, Vec<&SavedDisk>) =
            disks.partition(|saved| format.unwrap_or(&saved.disk.format) == "qcow2");
        let images = || chosen.iter().map(|saved| &saved.image);
        if mode != LoadMode::Lazy && !has_much_data(repository, target, images(), LAZY_FROM)? {
            return Ok(Vec::new());
        }
        if mode == LoadMode::Lazy && !written.is_empty() {
            self.config.observer.notice(&written_before(&written));
        }
        Ok(images().cloned().collect())
    }

    /// Says why disks are written before the guest runs.
    pub(crate) fn explain_written(&self, reason: &str) {
        let notice = format!("disks are written before the guest runs: {reason}");
        self.config.observer.notice(&notice);
    }

    /// Makes images of which some lack everything, and fills the others. When this
    /// returns all of them are durable.
    pub(crate) fn make_disks(
        &self,
        vm: &VmName,
        host: &DiskHost<'_>,
        (repository, target): (&Repository, &Snapshot),
        mut disks: Vec<NewDisk<'_>>,
        lazy: &[String],
    ) -> Result<()> {
        let mut filling = Vec::new();
        for (disk, saved) in disks.iter_mut().zip(&target.details.disks) {
            if lazy.contains(&saved.image) {
                disk.backing = Some((self.export_of(vm, &saved.image)?, Format::raw()));
                let (image, file) = (saved.image.clone(), disk.path.clone());
                filling.push(FillingDisk { image, file });
            }
        }
        host.make(&disks)?;
        for disk in &filling {
            make_durable(&disk.file)?;
        }
        disks.retain(|disk| disk.backing.is_none());
        host.fill(repository, &disks, self.config.observer.as_ref())?;
        if filling.is_empty() {
            return Ok(());
        }
        self.note_filling(
            vm,
            &FillingState {
                repository: self.absolute_repository_place(),
                snapshot: target.record.id,
                disks: filling,
                process: None,
                refusal: None,
            },
        )
    }
}

/// Says which disks are written before the guest runs since no image of theirs could tell
/// what it lacks.
fn written_before(disks: &[&SavedDisk]) -> String {
    let names: Vec<String> = disks.iter().map(|saved| format!("`{}`", saved.disk.name)).collect();
    let are = if names.len() == 1 { "is" } else { "are" };
    format!(
        "{} {are} written before the guest runs: only qcow2 tells what it lacks, which --format qcow2 gives",
        names.join(", ")
    )
}

fn make_durable(file: &Path) -> Result<()> {
    for path in [Some(file), file.parent()].into_iter().flatten() {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("make durable", path))?;
    }
    Ok(())
}
