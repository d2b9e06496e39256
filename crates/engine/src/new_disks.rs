//! New disk images with what is in a snapshot: for a VM that has none yet.

use std::path::PathBuf;

use tintype_image::{CreateParams, Format, HostConfig, ImageHost, ImageSpec};
use tintype_repo::{ImageRoot, Repository};
use tintype_types::ByteCount;

use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::observer::{Observer, Progress};

/// Writes in flight.
const WINDOW: usize = 8;

/// An image to make.
pub(crate) struct NewDisk<'d> {
    /// What the disk is called.
    pub(crate) name: &'d str,
    /// What is in it.
    pub(crate) root: &'d ImageRoot,
    /// Where; nothing may be there.
    pub(crate) path: PathBuf,
    /// Its format.
    pub(crate) format: Format,
    /// Where what it lacks is, with its format, if it is not filled here.
    pub(crate) backing: Option<(String, Format)>,
}

impl DiskHost<'_> {
    /// Makes images in which there is nothing yet.
    pub(crate) fn make(&self, disks: &[NewDisk<'_>]) -> Result<()> {
        let config = HostConfig::new(self.program, self.folder);
        for disk in disks {
            let params = CreateParams {
                path: disk.path.clone(),
                format: disk.format.clone(),
                size: disk.root.size(),
                mode: 0o600,
                backing: disk.backing.clone(),
            };
            ImageHost::create(&config, &params)
                .map_err(Error::step(format!("cannot make the disk `{}`", disk.name)))?;
        }
        Ok(())
    }

    /// Fills images that were just made. When this returns they are durable.
    pub(crate) fn fill(
        &self,
        repository: &Repository,
        disks: &[NewDisk<'_>],
        observer: &dyn Observer,
    ) -> Result<()> {
        if disks.is_empty() {
            return Ok(());
        }
        let config = HostConfig::new(self.program, self.folder);
        let specs: Vec<ImageSpec> =
            disks.iter().map(|disk| ImageSpec::writable(&disk.path, disk.format.clone())).collect();
        let host =
            ImageHost::open(&config, &specs).map_err(Error::step("cannot open the new disks"))?;
        for (number, disk) in disks.iter().enumerate() {
            fill_one(repository, &host, number, disk, observer)?;
        }
        host.close().map_err(Error::step("cannot close the new disks"))
    }
}

/// Writes what is in the snapshot; the rest of a new image reads as zeros.
fn fill_one(
    repository: &Repository,
    host: &ImageHost,
    number: usize,
    disk: &NewDisk<'_>,
    observer: &dyn Observer,
) -> Result<()> {
    let cannot = || format!("cannot fill the disk `{}`", disk.name);
    let reader = repository.open_image(disk.root).map_err(Error::step(cannot()))?;
    let total = Some(ByteCount(disk.root.size().get()));
    let mut unreadable = None;
    let pushed = host.image(number).push(WINDOW, |writes| {
        for piece in reader.sequence() {
            let (offset, bytes) = match piece {
                Ok(piece) => piece,
                Err(error) => {
                    unreadable = Some(error);
                    return Ok(());
                }
            };
            writes.write_at(offset, &bytes)?;
            let done = ByteCount(offset);
            observer.progress(Progress { activity: "writing disks", done, total });
        }
        Ok(())
    });
    pushed.map_err(Error::step(cannot()))?;
    unreadable.map_or(Ok(()), |error| Err(Error::step(cannot())(error)))
}
