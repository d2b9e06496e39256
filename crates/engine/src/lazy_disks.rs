//! Which disks of a new VM are filled behind its guest, and what is made of them before.
//!
//! A raw image cannot tell what it lacks, and so is written before the guest runs;
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
    /// their images.
    pub(crate) fn choose_lazy_disks(
        &self,
        repository: &Repository,
        target: &Snapshot,
        mode: LoadMode,
    ) -> Result<Vec<String>> {
        let details = &target.details;
        let will_run = !details.memory.is_empty() || details.way.is_some();
        if mode == LoadMode::Eager || !will_run {
            return Ok(Vec::new());
        }
        if let Some(reason) = self.why_nothing_runs_behind() {
            if mode == LoadMode::Lazy {
                self.explain_written(&reason);
            }
            return Ok(Vec::new());
        }
        let can_lack = |saved: &&SavedDisk| saved.disk.format == "qcow2" && !is_flash(&saved.disk);
        let chosen: Vec<&SavedDisk> = details.disks.iter().filter(can_lack).collect();
        let images = || chosen.iter().map(|saved| &saved.image);
        if mode != LoadMode::Lazy && !has_much_data(repository, target, images(), LAZY_FROM)? {
            return Ok(Vec::new());
        }
        let raw = details.disks.iter().find(|saved| saved.disk.format == "raw");
        if let Some(raw) = raw.filter(|_| mode == LoadMode::Lazy) {
            let name = &raw.disk.name;
            self.explain_written(&format!("`{name}` is raw, which cannot tell what it lacks"));
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

fn make_durable(file: &Path) -> Result<()> {
    for path in [Some(file), file.parent()].into_iter().flatten() {
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(Error::io("make durable", path))?;
    }
    Ok(())
}
