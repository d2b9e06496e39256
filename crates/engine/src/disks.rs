//! The disk images of a VM that does not run: read into a snapshot, or written
//! back from one. QEMU's own block layer opens them, format given, never probed.

use std::path::Path;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;
use tintype_image::{Content, Format, HostConfig, IdleHost, ImageHost, ImageSpec, PullParams};
use tintype_repo::{ImageReader, ImageRoot, Repository};
use tintype_types::{BLOCK_SIZE, ByteCount, Extent, VmId};
use tintype_vm::{Disk, DiskRead, DiskSink, SinkError, stored_names};

use crate::details::{SavedDisk, Snapshot};
use crate::differences::write_differences;
use crate::error::{Error, Result};
use crate::observer::{Observer, Progress, Step};

/// How much is compared or copied at once.
const PIECE: u64 = 1 << 20;

/// Writes in flight.
const WINDOW: usize = 8;

/// Opens disk images with the QEMU of the VM.
pub(crate) struct DiskHost<'h> {
    pub(crate) program: &'h Path,
    pub(crate) folder: &'h Path,
}

type Started = std::result::Result<IdleHost, tintype_image::Error>;

/// A QEMU that starts while other work is done. It opens nothing before it is asked to,
/// and is gone when this is dropped.
pub(crate) struct EarlyHost {
    starting: Option<JoinHandle<Started>>,
    _folder: TempDir,
}

impl EarlyHost {
    /// Begins to start it; its folder is to be its own.
    pub(crate) fn start(program: &Path, folder: TempDir) -> Self {
        let config = HostConfig::new(program, folder.path());
        let starting = thread::spawn(move || IdleHost::start(&config));
        Self { starting: Some(starting), _folder: folder }
    }

    /// Returns it when it has started; `None` if it has not.
    fn take(&mut self) -> Option<IdleHost> {
        self.starting.take()?.join().ok()?.ok()
    }
}

impl Drop for EarlyHost {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl DiskHost<'_> {
    fn open(&self, disks: &[&Disk], writable: bool) -> Result<ImageHost> {
        self.open_in(disks, writable, IdleHost::start)
    }

    fn open_in(
        &self,
        disks: &[&Disk],
        writable: bool,
        start: impl FnOnce(&HostConfig) -> Started,
    ) -> Result<ImageHost> {
        let specs = disks
            .iter()
            .map(|disk| {
                let format: Format = disk
                    .format
                    .parse()
                    .map_err(Error::step(format!("cannot open the disk `{}`", disk.name)))?;
                let path = disk.file.as_deref().ok_or_else(|| {
                    Error::refused(format!(
                        "the disk `{}` is not a file of this machine",
                        disk.name
                    ))
                })?;
                Ok(if writable {
                    ImageSpec::writable(path, format)
                } else {
                    ImageSpec::read_only(path, format)
                })
            })
            .collect::<Result<Vec<_>>>()?;
        start(&HostConfig::new(self.program, self.folder))
            .and_then(|idle| idle.open(&specs))
            .map_err(Error::step("cannot open the disk images"))
    }

    /// Reads whole disks, in the size that they have now.
    pub(crate) fn read(
        &self,
        disks: &[&Disk],
        begin: impl Fn(&Disk) -> Result<Box<dyn DiskSink>, SinkError>,
    ) -> Result<()> {
        let host = self.open(disks, false)?;
        for (image, disk) in host.images().iter().zip(disks) {
            let now = Disk { size: image.size(), ..Disk::clone(disk) };
            let mut sink = begin(&now).map_err(Error::step("cannot write to the repository"))?;
            let whole = Extent { offset: 0, len: image.size().get() };
            let mut read_bytes = ByteCount(0);
            let take = |extent: Extent, content: Content<'_>| match content {
                Content::Zero => sink.write_zeroes(extent),
                Content::Data(bytes) => {
                    read_bytes.0 += extent.len;
                    sink.write(extent.offset, bytes)
                }
            };
            image
                .pull([whole], &PullParams::default(), take)
                .and_then(|()| sink.finish(DiskRead::full("QEMU did not run", read_bytes)))
                .map_err(Error::step(format!("cannot read the disk `{}`", disk.name)))?;
        }
        host.close().map_err(Error::step("cannot close the disk images"))
    }

    /// Removes the bitmaps of a VM from the image of a disk.
    pub(crate) fn remove_bitmaps(&self, disk: &Disk, vm: VmId) -> Result<()> {
        let mut host = self.open(&[disk], true)?;
        host.remove_bitmaps(0, &stored_names(vm)).map_err(cannot_remove(disk))?;
        host.close().map_err(Error::step("cannot close the disk images"))
    }

    /// Opens the disks of a snapshot to be written, and gives them its sizes.
    pub(crate) fn open_target(
        &self,
        mut early: Option<EarlyHost>,
        target: &Snapshot,
    ) -> Result<Option<TargetDisks>> {
        let saved = &target.details.disks;
        if saved.is_empty() {
            return Ok(None);
        }
        let disks: Vec<&Disk> = saved.iter().map(|saved| &saved.disk).collect();
        let idle = early.as_mut().and_then(EarlyHost::take);
        let start = |config: &HostConfig| idle.map_or_else(|| IdleHost::start(config), Ok);
        let mut host = self.open_in(&disks, true, start)?;
        let mut resized = Vec::with_capacity(saved.len());
        for (number, saved) in saved.iter().enumerate() {
            let size = target.promised_image(&saved.image)?.size();
            // One that is inconsistent would not let the image be resized.
            host.remove_bitmaps(number, &stored_names(target.record.vm))
                .map_err(cannot_remove(&saved.disk))?;
            resized.push(host.image(number).size() != size);
            if host.image(number).size() != size {
                host.resize(number, size).map_err(Error::step(format!(
                    "cannot resize the disk `{}`",
                    saved.disk.name
                )))?;
            }
        }
        Ok(Some(TargetDisks { host, resized, _early: early }))
    }
}

/// The disks of a snapshot, open to be written.
pub(crate) struct TargetDisks {
    host: ImageHost,
    /// Of each, whether it had another size.
    resized: Vec<bool>,
    /// Has the folder of the host.
    _early: Option<EarlyHost>,
}

impl TargetDisks {
    /// Makes them what they were in the snapshot. Where they are known to be those of
    /// `base`, only the blocks that differ are read and written; otherwise all are
    /// compared. Returns how many bytes were written; they are durable.
    pub(crate) fn write(
        self,
        (repository, target): (&Repository, &Snapshot),
        base: Option<&Snapshot>,
        observer: &dyn Observer,
    ) -> Result<u64> {
        let mut written = 0;
        for (number, (saved, resized)) in target.details.disks.iter().zip(self.resized).enumerate()
        {
            let root = target.promised_image(&saved.image)?;
            let known = base.filter(|_| !resized).and_then(|base| same_disk(base, saved));
            let work = DiskWork { repository, root, name: &saved.disk.name, observer };
            written += match known {
                Some(known) => work.write_difference(&self.host, number, known)?,
                None => work.write_all_that_differs(&self.host, number)?,
            };
        }
        observer.step(Step::RevertBlocks);
        self.host.close().map_err(Error::step("cannot close the disk images"))?;
        Ok(written)
    }
}

fn cannot_remove(disk: &Disk) -> impl FnOnce(tintype_image::Error) -> Error + use<> {
    Error::step(format!("cannot remove the bitmap from the image of the disk `{}`", disk.name))
}

/// Returns the image in `base` of the disk that is in the same file.
fn same_disk<'b>(base: &'b Snapshot, saved: &SavedDisk) -> Option<&'b ImageRoot> {
    let same = |other: &&SavedDisk| other.disk.file == saved.disk.file;
    base.image(&base.details.disks.iter().find(same)?.image)
}

/// One disk that is being written back.
struct DiskWork<'w> {
    repository: &'w Repository,
    root: &'w ImageRoot,
    name: &'w str,
    observer: &'w dyn Observer,
}

impl DiskWork<'_> {
    fn write_difference(&self, host: &ImageHost, number: usize, known: &ImageRoot) -> Result<u64> {
        let reader = self.reader()?;
        let extents = self
            .repository
            .diff(known, self.root)
            .map_err(Error::step("cannot compare two snapshots"))?;
        let total = ByteCount(extents.iter().map(|extent| extent.len).sum());
        let mut done = 0;
        let mut unreadable = None;
        let pushed = host.image(number).push(WINDOW, |writes| {
            for piece in extents.into_iter().flat_map(|extent| extent.pieces(PIECE)) {
                let bytes = match read(&reader, piece) {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        unreadable = Some(error);
                        return Ok(());
                    }
                };
                for (extent, bytes) in runs(piece, &bytes) {
                    match bytes {
                        Some(bytes) => writes.write_at(extent.offset, bytes)?,
                        None => writes.write_zeroes(extent)?,
                    }
                }
                done += piece.len;
                self.tell(done, total);
            }
            Ok(())
        });
        let written = pushed.map_err(SinkError::from).and_then(|()| unreadable.map_or(Ok(()), Err));
        written.map_err(Error::step(format!("cannot write the disk `{}`", self.name)))?;
        Ok(total.get())
    }

    fn write_all_that_differs(&self, host: &ImageHost, number: usize) -> Result<u64> {
        let size = self.root.size();
        let advance = |done| self.tell(done, size);
        write_differences(host.image(number), &self.reader()?, advance).map_err(|error| {
            Error::failed(format!("cannot write the disk `{}`", self.name)).because(error)
        })
    }

    fn reader(&self) -> Result<ImageReader> {
        self.repository
            .open_image(self.root)
            .map_err(Error::step(format!("cannot open the disk `{}` of the snapshot", self.name)))
    }

    fn tell(&self, done: u64, total: ByteCount) {
        let done = ByteCount(done);
        self.observer.progress(Progress { activity: "writing disks", done, total: Some(total) });
    }
}

fn read(reader: &ImageReader, extent: Extent) -> Result<Vec<u8>, SinkError> {
    let mut bytes = vec![0; usize::try_from(extent.len)?];
    reader.read_at(extent.offset, &mut bytes)?;
    Ok(bytes)
}

/// Splits bytes into runs of blocks with data and runs of zero blocks.
pub(crate) fn runs(whole: Extent, bytes: &[u8]) -> Vec<(Extent, Option<&[u8]>)> {
    let mut runs: Vec<(Extent, Option<&[u8]>)> = Vec::new();
    let mut from = 0;
    while from < bytes.len() {
        let zero = |block: &[u8]| block.iter().all(|&byte| byte == 0);
        let kind = zero(&bytes[from..bytes.len().min(from + BLOCK_SIZE)]);
        let len: usize = bytes[from..]
            .chunks(BLOCK_SIZE)
            .take_while(|block| zero(block) == kind)
            .map(<[u8]>::len)
            .sum();
        let extent = Extent { offset: whole.offset + from as u64, len: len as u64 };
        runs.push((extent, (!kind).then(|| &bytes[from..from + len])));
        from += len;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_part_data_from_zeros() {
        let mut bytes = vec![0; 4 * BLOCK_SIZE + 100];
        bytes[BLOCK_SIZE] = 1;
        bytes[3 * BLOCK_SIZE - 1] = 1;
        let whole = Extent { offset: 8192, len: bytes.len() as u64 };
        let found: Vec<_> = runs(whole, &bytes)
            .into_iter()
            .map(|(extent, bytes)| (extent.offset, extent.len, bytes.is_some()))
            .collect();
        assert_eq!(found, [(8192, 4096, false), (12288, 8192, true), (20480, 4196, false)]);
    }
}
