//! Where the disks and small files of a snapshot go in the folder of a new VM.

use std::path::Path;

use tintype_repo::Repository;
use tintype_vm::{Disk, Inventory, MovedFile};

use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::files::contents;
use crate::home::write_durably;
use crate::new_disks::NewDisk;

/// A place for each disk, and then for each file, of a snapshot.
pub(crate) struct Places {
    /// In the snapshot's order; a relative place is one within the VM's folder.
    pub(crate) all: Vec<MovedFile>,
}

impl Places {
    /// Chooses places in `folder`. Disks get the format, or keep their own; the
    /// firmware's variables always do.
    pub(crate) fn choose(target: &Snapshot, folder: &Path, format: Option<&str>) -> Result<Self> {
        let mut all = Vec::new();
        for (number, saved) in target.details.disks.iter().enumerate() {
            let disk = &saved.disk;
            let from = disk.file.clone().ok_or_else(|| {
                Error::refused(format!("the disk `{}` is not a file of a machine", disk.name))
            })?;
            let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
            let name = match disk.name.chars().all(plain) {
                true => disk.name.clone(),
                false => format!("disk-{number}"),
            };
            let format = format.filter(|_| !is_flash(disk)).unwrap_or(&disk.format);
            let to = folder.join(format!("{name}.{format}"));
            all.push(MovedFile { from, to, format: Some(format.to_owned()) });
        }
        for (number, file) in target.details.files.iter().enumerate() {
            let name = file.path.file_name().unwrap_or_default().to_string_lossy();
            let to = folder.join(format!("file-{number}-{name}"));
            all.push(MovedFile { from: file.path.clone(), to, format: None });
        }
        Ok(Self { all })
    }

    /// Returns an inventory with its disks where they are now: of a VM that has not run
    /// yet, nobody else can tell.
    pub(crate) fn moved(&self, inventory: &Inventory) -> Inventory {
        let mut moved = inventory.clone();
        for disk in &mut moved.disks {
            let place = self.all.iter().find(|place| disk.file.as_ref() == Some(&place.from));
            if let Some(MovedFile { to, format: Some(format), .. }) = place {
                (disk.file, disk.format) = (Some(to.clone()), format.clone());
            }
        }
        moved
    }

    /// Writes the small files, durably.
    pub(crate) fn write_files(
        &self,
        repository: &Repository,
        target: &Snapshot,
        folder: &Path,
    ) -> Result<()> {
        let places = &self.all[target.details.disks.len()..];
        for (file, place) in target.details.files.iter().zip(places) {
            write_durably(&folder.join(&place.to), &contents(repository, target, file)?)?;
        }
        Ok(())
    }

    /// Returns the images that are to be made.
    pub(crate) fn new_disks<'d>(
        &self,
        target: &'d Snapshot,
        folder: &Path,
    ) -> Result<Vec<NewDisk<'d>>> {
        let mut disks = Vec::new();
        for (saved, place) in target.details.disks.iter().zip(&self.all) {
            let name = saved.disk.name.as_str();
            let format = place.format.as_deref().unwrap_or_default().parse();
            disks.push(NewDisk {
                name,
                root: target.promised_image(&saved.image)?,
                backing: None,
                path: folder.join(&place.to),
                format: format.map_err(Error::step(format!("cannot make the disk `{name}`")))?,
            });
        }
        Ok(disks)
    }
}

/// Tells whether a disk holds the variables of the firmware.
pub(crate) fn is_flash(disk: &Disk) -> bool {
    disk.device.starts_with("/machine/system.flash")
}
