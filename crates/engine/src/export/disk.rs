//! Writes a disk of a snapshot to an image, or those of its ancestors to a chain.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

use tintype_image::{
    Access, CreateParams, Format, HostConfig, ImageHost, ImageSpec, LayerSpec, WritePipeline,
};
use tintype_repo::{ImageReader, ImageRoot, Repository};
use tintype_types::{ByteCount, Extent};
use tintype_vm::SinkError;

use super::target::Target;
use super::{file_name, folder_of};
use crate::Engine;
use crate::details::Snapshot;
use crate::disks::runs;
use crate::error::{Error, Result};
use crate::observer::Progress;
use crate::snapshots::hold;
use crate::vms::find_program;

/// How much is read at once.
const PIECE: u64 = 1 << 20;
/// Writes in flight.
const WINDOW: usize = 8;

/// A disk to write.
pub(super) struct DiskExport<'e> {
    pub(super) engine: &'e Engine,
    pub(super) repository: &'e Repository,
    pub(super) disk: &'e str,
}

impl DiskExport<'_> {
    /// Writes the disk byte by byte; zeros become holes.
    pub(super) fn raw(&self, root: &ImageRoot, file: &File) -> Result<()> {
        let write = || -> Result<(), SinkError> {
            file.set_len(root.size().get())?;
            for piece in self.reader(root)?.sequence() {
                let (offset, bytes) = piece?;
                self.tell(offset, root.size())?;
                let whole = Extent { offset, len: bytes.len() as u64 };
                for (extent, bytes) in runs(whole, &bytes) {
                    if let Some(bytes) = bytes {
                        file.write_all_at(bytes, extent.offset)?;
                    }
                }
            }
            Ok(())
        };
        write().map_err(|error| self.failed(error))
    }

    /// Writes the disk to a new qcow2.
    pub(super) fn qcow2(&self, root: &ImageRoot, path: &Path) -> Result<()> {
        let size = root.size();
        let create = self.create(path, size, None);
        self.fill(create, vec![layer(path)], |writes| {
            for piece in self.reader(root)?.sequence() {
                let (offset, bytes) = piece?;
                self.tell(offset, size)?;
                writes.write_at(offset, &bytes)?;
            }
            Ok(())
        })
    }

    /// Writes the disk of a snapshot and of all that it comes from to a folder, each
    /// over the one before.
    pub(super) fn chain(&self, last: &Snapshot, to: &Path) -> Result<Vec<PathBuf>> {
        let mut line = self.engine.lineage(self.repository, last)?;
        let _held = line
            .iter_mut()
            .map(|snapshot| hold(self.repository, snapshot))
            .collect::<Result<Vec<_>>>()?;
        // What is before a snapshot without the disk is of another disk, perhaps.
        let with_disk = line.iter().rev().map_while(|s| Some((s, self.root(s)?)));
        let mut roots: Vec<(&Snapshot, &ImageRoot)> = with_disk.collect();
        roots.reverse();
        let target = Target::of(to)?;
        let folder = target.partial();
        DirBuilder::new().mode(0o700).create(folder).map_err(Error::io("make", folder))?;
        let mut names: Vec<String> = Vec::new();
        let mut below: Option<&ImageRoot> = None;
        for (number, (snapshot, root)) in roots.into_iter().enumerate() {
            let own = file_name(snapshot.record.name.as_str());
            let name = format!("{:02}-{own}.qcow2", number + 1);
            match below {
                None => self.qcow2(root, &folder.join(&name))?,
                Some(below) => self.overlay(folder, &names, &name, (below, root))?,
            }
            names.push(name);
            below = Some(root);
        }
        let path = target.finish()?;
        Ok(names.iter().map(|name| path.join(name)).collect())
    }

    /// Writes what differs between two disks over the files of the first.
    fn overlay(
        &self,
        folder: &Path,
        names: &[String],
        name: &str,
        (below, root): (&ImageRoot, &ImageRoot),
    ) -> Result<()> {
        let extents = self
            .repository
            .diff(below, root)
            .map_err(Error::step("cannot compare two snapshots"))?;
        let create = self.create(&folder.join(name), root.size(), names.last().cloned());
        let above = std::iter::once(name).chain(names.iter().rev().map(String::as_str));
        let layers = above.map(|name| layer(&folder.join(name))).collect();
        self.fill(create, layers, |writes| {
            let reader = self.reader(root)?;
            let size = root.size();
            for piece in extents.iter().flat_map(|extent| extent.pieces(PIECE)) {
                // The disk below may be larger.
                let end = piece.end().min(size.get());
                let Some(len) = end.checked_sub(piece.offset).filter(|len| *len > 0) else {
                    break;
                };
                self.tell(piece.offset, size)?;
                let mut bytes = vec![0; usize::try_from(len)?];
                reader.read_at(piece.offset, &mut bytes)?;
                for (extent, bytes) in runs(Extent { offset: piece.offset, len }, &bytes) {
                    match bytes {
                        Some(bytes) => writes.write_at(extent.offset, bytes)?,
                        None => writes.write_zeroes(extent)?,
                    }
                }
            }
            Ok(())
        })
    }

    /// Makes an image, opens it over the files below it, and lets it be written.
    fn fill(
        &self,
        create: CreateParams,
        layers: Vec<LayerSpec>,
        write: impl FnOnce(&mut WritePipeline<'_>) -> Result<(), SinkError>,
    ) -> Result<()> {
        let program = find_program("qemu-system-x86_64", folder_of(&create.path))?;
        let short_lived = self.engine.home.short_lived_folder()?;
        let config = HostConfig::new(&program, short_lived.path());
        let fill = || -> Result<(), SinkError> {
            ImageHost::create(&config, &create)?;
            let spec = ImageSpec { access: Access::ReadWrite, ..ImageSpec::chain(layers) };
            let host = ImageHost::open(&config, &[spec])?;
            let mut failed = None;
            host.image(0).push(WINDOW, |writes| {
                failed = write(writes).err();
                Ok(())
            })?;
            failed.map_or(Ok(()), Err)?;
            Ok(host.close()?)
        };
        fill().map_err(|error| self.failed(error))
    }

    fn create(&self, path: &Path, size: ByteCount, below: Option<String>) -> CreateParams {
        let backing = below.map(|name| (name, Format::qcow2()));
        CreateParams { path: path.to_owned(), format: Format::qcow2(), size, mode: 0o600, backing }
    }

    fn root<'s>(&self, snapshot: &'s Snapshot) -> Option<&'s ImageRoot> {
        let saved = snapshot.details.disks.iter().find(|saved| saved.disk.name == self.disk)?;
        snapshot.image(&saved.image)
    }

    fn reader(&self, root: &ImageRoot) -> Result<ImageReader, SinkError> {
        Ok(self.repository.open_image(root)?)
    }

    fn tell(&self, done: u64, total: ByteCount) -> Result<(), SinkError> {
        let (done, total) = (ByteCount(done), Some(total));
        self.engine.config.observer.progress(Progress { activity: "writing disks", done, total });
        Ok(self.engine.config.cancel.check()?)
    }

    fn failed(&self, error: SinkError) -> Error {
        match self.engine.check_interruption() {
            Err(interrupted) => interrupted,
            Ok(()) => Error::step(format!("cannot write the disk `{}`", self.disk))(error),
        }
    }
}

fn layer(path: &Path) -> LayerSpec {
    LayerSpec { path: path.to_owned(), format: Format::qcow2(), head: None }
}
