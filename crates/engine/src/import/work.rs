//! Imports one snapshot: opens the images as it shows them, reads its disks and the state
//! of its VM, and commits it.

use std::path::Path;
use std::time::Instant;

use tintype_image::{Content, HostConfig, Image, ImageHost, ImageSpec, PullParams};
use tintype_repo::{Repository, SessionParams, SnapshotDraft};
use tintype_stream::DeviceState;
use tintype_types::{ByteCount, Extent};
use tintype_vm::{CaptureSink, Disk, DiskRead, SinkError, Way};

use super::inventory;
use super::machine::Machine;
use super::plan::{Moment, Plan};
use super::state::StateReader;
use crate::Engine;
use crate::details::{DEVICE_STATE, Details, Purpose, Snapshot};
use crate::error::{Error, Result};
use crate::observer::Step;
use crate::quiesce::Quiesced;
use crate::sink::{Collected, SessionSink};
use crate::vms::LeasedVm;

/// The image with the state of a VM that an internal snapshot holds.
const VM_STATE: &str = "vm-state";

/// How much of a VM's state is read at once.
const STATE_PIECE: usize = 4 << 20;

/// What is needed to import one snapshot after the other.
pub(super) struct Work<'w> {
    pub(super) engine: &'w Engine,
    pub(super) repository: &'w Repository,
    pub(super) program: &'w Path,
    /// The VM, if it is known.
    pub(super) machine: Option<&'w Machine>,
}

impl Work<'_> {
    /// Makes a snapshot of one moment, and the VM what it is.
    pub(super) fn import(
        &self,
        vm: &mut LeasedVm,
        moment: &Moment,
        message: &str,
    ) -> Result<Snapshot> {
        let began = Instant::now();
        self.engine.check_interruption()?;
        let parent = self.engine.parent(self.repository, vm)?;
        let session = self
            .repository
            .begin(SessionParams::default())
            .map_err(Error::step("cannot write to the repository"))?;
        let sink = SessionSink::new(&session, parent.as_ref(), &self.engine.config.observer);
        let state = self.read(moment, &sink).map_err(|error| {
            Error::failed(format!("cannot import `{}`", moment.name)).because(error)
        })?;
        let mut blobs = Vec::new();
        if let Some(state) = &state {
            let blob = session.blob(state.as_bytes());
            blobs.push((
                DEVICE_STATE.to_owned(),
                blob.map_err(Error::step("cannot keep the device state"))?,
            ));
        }
        let Collected { images, memory, disks } = sink.into_collected();
        let inventory = match self.machine {
            Some(machine) => machine.inventory.clone(),
            None => inventory(disks.iter().map(|saved| saved.disk.clone()).collect()),
        };
        let details = Details {
            purpose: Purpose::Imported,
            message: moment.message(message, self.machine.is_some()),
            tags: Vec::new(),
            way: state.as_ref().map(|_| Way::Stop),
            pause_us: 0,
            duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            was_running: state.is_some(),
            memory,
            disks,
            command_line: vm.state.command_line.clone(),
            inventory: inventory.clone(),
            files: Vec::new(),
            media: Vec::new(),
            tpms: Vec::new(),
            quiesced: Quiesced::not("it was imported"),
        };
        let draft = SnapshotDraft {
            vm: vm.state.id,
            vm_name: vm.name.clone(),
            name: moment.name.clone(),
            parent: vm.state.current,
            created: moment.created,
            images,
            blobs,
            details: serde_json::to_value(details).expect("our own values are plain data"),
        };
        self.engine.config.observer.step(Step::ImportStored);
        self.engine.check_interruption()?;
        let record = session
            .commit(draft)
            .map_err(Error::step("the repository did not keep the snapshot"))?;
        self.engine.config.observer.step(Step::ImportCommitted);
        vm.state.inventory = inventory;
        self.engine.place(vm, &record)?;
        Snapshot::read(record)
    }

    /// Opens the images as one snapshot shows them.
    fn open(&self, moment: &Moment, folder: &Path) -> Result<ImageHost> {
        let config = HostConfig::new(self.program, folder);
        let open = || -> Result<ImageHost, tintype_image::Error> {
            let mut specs = Vec::new();
            for (number, point) in moment.points.iter().enumerate() {
                let mut layers = point.layers.clone();
                if let Some(head) = &point.head {
                    let over = folder.join(format!("head-{number}"));
                    ImageHost::exchange_head(&config, &layers[0].path, head, &over)?;
                    layers[0].head = Some(over);
                }
                specs.push(ImageSpec::chain(layers));
            }
            ImageHost::open(&config, &specs)
        };
        open().map_err(Error::step("QEMU cannot open the images"))
    }

    /// Finds out whether all images can be read, before anything is made.
    pub(super) fn try_all(&self, plan: &Plan) -> Result<()> {
        let folder = self.engine.home.short_lived_folder()?;
        let Some(last) = plan.moments.last() else { return Ok(()) };
        let host = self.open(last, folder.path())?;
        host.close().map_err(Error::step("cannot close the images"))
    }

    /// Reads the disks of one snapshot, and the state of its VM if there is one; returns
    /// that of its devices if the VM is known.
    fn read(&self, moment: &Moment, sink: &SessionSink<'_>) -> Result<Option<DeviceState>> {
        let folder = self.engine.home.short_lived_folder()?;
        let host = self.open(moment, folder.path())?;
        for (image, point) in host.images().iter().zip(&moment.points) {
            let size = match point.head {
                Some(_) => ByteCount(point.size.get().next_multiple_of(512)).min(image.size()),
                None => image.size(),
            };
            if size > tintype_inspect::MAX_SIZE {
                return Err(Error::refused(format!("the disk is of {size}")));
            }
            let disk = Disk { size, ..point.disk.clone() };
            let cannot = || format!("cannot read the disk `{}`", disk.name);
            let mut into = sink.disk(&disk).map_err(Error::step(cannot()))?;
            let whole = Extent { offset: 0, len: size.get() };
            let mut read_bytes = ByteCount(0);
            self.pull(image, whole, |extent, content| match content {
                Content::Zero => into.write_zeroes(extent),
                Content::Data(bytes) => {
                    read_bytes.0 += extent.len;
                    into.write(extent.offset, bytes)
                }
            })
            .and_then(|()| into.finish(DiskRead::full("it was imported", read_bytes)))
            .map_err(|error| self.cancelled(error, cannot()))?;
        }
        let mut states = host.images().iter().zip(&moment.points);
        let mut devices = None;
        if let Some((image, state)) = states.find_map(|(image, p)| Some((image, p.state?))) {
            let read = match self.machine {
                Some(machine) => self.read_memory(image, state, sink, machine).map(Some),
                None => self.read_state(image, state, sink).map(|()| None),
            };
            devices = read.map_err(|error| {
                self.cancelled(error, "cannot read the state of the VM".to_owned())
            })?;
        }
        host.close().map_err(Error::step("cannot close the images"))?;
        Ok(devices)
    }

    /// Takes the state of a VM apart.
    fn read_memory(
        &self,
        image: &Image,
        state: Extent,
        sink: &SessionSink<'_>,
        machine: &Machine,
    ) -> Result<DeviceState, SinkError> {
        let mut reader = StateReader::new(sink);
        let mut piece = Vec::new();
        for offset in (0..state.len).step_by(STATE_PIECE) {
            let len = (state.len - offset).min(STATE_PIECE as u64);
            piece.clear();
            piece.resize(usize::try_from(len)?, 0);
            let part = Extent { offset: state.offset + offset, len };
            // What comes of a part comes in any order.
            self.pull(image, part, |extent, content| {
                if let Content::Data(bytes) = content {
                    let at = usize::try_from(extent.offset)?;
                    let place = piece.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
                    place.ok_or("more came than was asked for")?.copy_from_slice(bytes);
                }
                Ok(())
            })?;
            reader.take(&piece)?;
        }
        let devices = reader.finish()?;
        let (saved, given) = (devices.machine(), &machine.inventory.machine);
        if saved != given {
            return Err(format!(
                "it is of the machine `{saved}`, and the command line makes a `{given}`: `-machine {saved}` makes that"
            )
            .into());
        }
        Ok(devices)
    }

    /// Keeps the state of a VM, as it is.
    fn read_state(
        &self,
        image: &Image,
        state: Extent,
        sink: &SessionSink<'_>,
    ) -> Result<(), SinkError> {
        let mut writer = sink.begin(VM_STATE, ByteCount(state.len))?;
        self.pull(image, state, |extent, content| match content {
            Content::Zero => Ok(writer.write_zeroes(extent)?),
            Content::Data(bytes) => Ok(writer.write(extent.offset, bytes)?),
        })?;
        sink.add(VM_STATE.to_owned(), writer.finish()?);
        Ok(())
    }

    /// Reads a part of an image, and hands it to `into` from its start on.
    fn pull(
        &self,
        image: &Image,
        part: Extent,
        mut into: impl FnMut(Extent, Content<'_>) -> Result<(), SinkError>,
    ) -> Result<(), SinkError> {
        let cancel = &self.engine.config.cancel;
        let take = |extent: Extent, content: Content<'_>| {
            cancel.check()?;
            into(Extent { offset: extent.offset - part.offset, ..extent }, content)
        };
        image.pull([part], &PullParams::default(), take)
    }

    /// Says what failed, or that it was asked to stop.
    fn cancelled(&self, error: SinkError, what: String) -> Error {
        match self.engine.check_interruption() {
            Err(interrupted) => interrupted,
            Ok(()) => Error::step(what)(error),
        }
    }
}
