//! Keeps disks at an instant while the guest writes on, and reads them from there.
//!
//! ```text
//!             guest writes                          tintype reads
//!                  │                                     │ NBD
//!                  ▼                                     ▼
//!        copy-before-write ◀───────────────────── snapshot-access
//!             │        │ old bytes, before they are overwritten
//!             ▼        ▼ NBD
//!         the image   tintype
//! ```
//!
//! A `blockdev-backup` job would fail the *guest's* write when its target fails
//! (QEMU `block/copy-before-write.c`: a job's filter always breaks the guest's
//! write), and a killed or stopped tintype is a failed target. So the filter is
//! put in by hand with `on-cbw-error=break-snapshot` and a timeout: whatever
//! becomes of us, the guest's write goes through, and the snapshot breaks.
//!
//! The filter goes under the device by setting its property `drive`
//! (`hw/core/qdev-properties-system.c`, `set_drive_helper`), which works for
//! every device with a drive: virtio, SCSI, IDE, NVMe and flash chips, with an
//! I/O thread or without.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fd::AsFd;
use serde_json::{Value, json};
use tintype_nbd::{Content, Export, Payload, Server, ServerConfig};
use tintype_types::Extent;

use super::coverage::Covered;
use super::sink::{CaptureSink, DiskRead, DiskSink, Earlier, SinkError};
use crate::bitmaps;
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::inventory::{Disk, PREFIX};
use crate::qmp::Qmp;

/// How long a guest's write may wait for the old bytes to be taken, in seconds.
/// Then the snapshot breaks, and the write goes through.
const GUEST_WRITE_WAIT_S: u32 = 5;

/// The disks of one capture.
pub(super) struct DiskCapture {
    disks: Vec<Arc<KeptDisk>>,
    server: Option<Server>,
    listener_path: std::path::PathBuf,
    /// Where QEMU serves the disks as they were at the instant.
    export_path: std::path::PathBuf,
}

/// One disk at its instant.
pub(super) struct KeptDisk {
    pub(super) disk: Disk,
    pub(super) number: usize,
    pub(super) state: Mutex<KeptState>,
    pub(super) arrived: AtomicU64,
    /// The state since which a bitmap has recorded all writes, or why all of the disk is
    /// read.
    pub(super) earlier: Result<Earlier, String>,
}

pub(super) struct KeptState {
    /// What the guest has overwritten since: it came here first.
    pub(super) saved: Covered,
    /// What was read at the instant. What comes of it later changes nothing.
    pulled: Covered,
    sink: Option<Box<dyn DiskSink>>,
    /// How the disk was read, when it has been.
    read: Option<DiskRead>,
    /// Why the sink failed: QEMU can only be told that it did.
    failure: Option<SinkError>,
}

impl DiskCapture {
    /// Starts to listen for old bytes. `folder` is private and short-lived.
    pub(super) fn prepare(disks: &[Disk], sink: &dyn CaptureSink, folder: &Path) -> Result<Self> {
        let kept: Vec<_> = disks
            .iter()
            .enumerate()
            .map(|(number, disk)| {
                let mut sink = sink.disk(disk).map_err(Error::Sink)?;
                let earlier = sink.earlier();
                let state = KeptState {
                    saved: Covered::default(),
                    pulled: Covered::default(),
                    sink: Some(sink),
                    read: None,
                    failure: None,
                };
                Ok(Arc::new(KeptDisk {
                    disk: disk.clone(),
                    number,
                    state: Mutex::new(state),
                    arrived: AtomicU64::new(0),
                    earlier,
                }))
            })
            .collect::<Result<_>>()?;
        let listener_path = folder.join("old");
        let listener = UnixListener::bind(&listener_path)
            .map_err(Error::system(format!("listen on {}", listener_path.display())))?;
        let exports = kept.iter().map(|disk| {
            (disk.number.to_string(), Arc::new(OldBytes(Arc::clone(disk))) as Arc<dyn Export>)
        });
        let config = ServerConfig { max_connections: kept.len() + 1, ..ServerConfig::default() };
        let server = Server::start(listener, exports, &config).map_err(|error| Error::Disk {
            disk: "all".to_owned(),
            reason: "cannot listen for old bytes".to_owned(),
            source: Some(Box::new(error)),
        })?;
        Ok(Self {
            disks: kept,
            server: Some(server),
            listener_path,
            export_path: folder.join("instant"),
        })
    }

    /// Hands QEMU the other ends of our sockets. The guest runs.
    pub(super) fn pass_sockets(&self, qmp: &mut Qmp) -> Result<()> {
        for disk in &self.disks {
            let end = UnixStream::connect(&self.listener_path)
                .map_err(Error::system("connect to our own socket"))?;
            qmp.pass_descriptor(&disk.socket_name(), end.as_fd())?;
        }
        Ok(())
    }

    /// The commands that make the nodes which take old bytes. QEMU greets our
    /// server meanwhile, so this belongs before the pause where it can be there.
    pub(super) fn target_commands(&self) -> Vec<(&'static str, Value)> {
        self.disks
            .iter()
            .map(|disk| {
                let node = json!({
                    "driver": "nbd", "node-name": disk.node("old"),
                    "server": {"type": "fd", "str": disk.socket_name()},
                    "export": disk.number.to_string(),
                });
                ("blockdev-add", node)
            })
            .collect()
    }

    /// The commands that take disks back from a finished migration, on a QEMU
    /// without `blockdev-set-active`: to export a node activates it
    /// (`block/export/export.c`).
    pub(super) fn activate_commands(&self) -> Vec<(&'static str, Value)> {
        self.disks
            .iter()
            .flat_map(|disk| {
                let id = disk.node("activate");
                let add = json!({"type": "nbd", "id": id, "node-name": disk.disk.node, "name": id});
                [("block-export-add", add), ("block-export-del", json!({"id": id}))]
            })
            .collect()
    }

    /// The commands that fix the instant of all disks, and make a bitmap record from
    /// there on. The guest stands still.
    pub(super) fn instant_commands(&self, record: Option<&str>) -> Vec<(&'static str, Value)> {
        let bitmaps = self.bitmap_actions(record);
        let bitmaps = (!bitmaps.is_empty()).then(|| ("transaction", json!({"actions": bitmaps})));
        let filters = self.disks.iter().map(|disk| {
            let node = json!({
                "driver": "copy-before-write", "node-name": disk.node("filter"),
                "file": disk.disk.node, "target": disk.node("old"),
                "on-cbw-error": "break-snapshot", "cbw-timeout": GUEST_WRITE_WAIT_S,
            });
            ("blockdev-add", node)
        });
        let insertions = self.disks.iter().map(|disk| {
            let drive =
                json!({"path": disk.disk.device, "property": "drive", "value": disk.node("filter")});
            ("qom-set", drive)
        });
        bitmaps.into_iter().chain(filters).chain(insertions).collect()
    }

    fn bitmap_actions(&self, record: Option<&str>) -> Vec<Value> {
        let mut actions = Vec::new();
        for disk in &self.disks {
            let node = &disk.disk.node;
            if let Ok(earlier) = &disk.earlier {
                actions.extend(bitmaps::freeze(node, &earlier.bitmap, &disk.frozen()));
            }
            actions.extend(record.map(|name| bitmaps::begin(node, name)));
        }
        actions
    }

    /// Makes QEMU listen on a socket of ours. Does nothing else yet.
    pub(super) fn start_server(&self, qmp: &mut Qmp) -> Result<()> {
        let listener = UnixListener::bind(&self.export_path)
            .map_err(Error::system(format!("listen on {}", self.export_path.display())))?;
        let name = format!("{PREFIX}instant");
        qmp.pass_descriptor(&name, listener.as_fd())?;
        let address = json!({"addr": {"type": "fd", "data": {"str": name}}});
        qmp.execute("nbd-server-start", address).map(drop).map_err(|error| match error {
            Error::Refused { description, .. } if description.contains("already running") => {
                Error::unsupported(
                    "QEMU's NBD server is in use by another program; a take needs it for its time",
                )
            }
            other => other,
        })
    }

    /// Makes the disks readable as they were at the instant.
    pub(super) fn open(&self, qmp: &mut Qmp) -> Result<()> {
        for disk in &self.disks {
            let node = json!({
                "driver": "snapshot-access", "node-name": disk.node("instant"),
                "file": disk.node("filter"),
            });
            qmp.execute("blockdev-add", node)?;
            let frozen =
                disk.earlier.iter().map(|_| json!({"node": disk.disk.node, "name": disk.frozen()}));
            let export = json!({
                "type": "nbd", "id": disk.node("export"), "node-name": disk.node("instant"),
                "name": disk.number.to_string(), "bitmaps": frozen.collect::<Vec<_>>(),
            });
            qmp.execute("block-export-add", export)?;
        }
        Ok(())
    }

    /// Reads all disks to their ends, one after the other: they share the
    /// machine's storage with the guest.
    /// `seed` chooses what is read of what is not known to have changed.
    pub(super) fn pull(&self, cancel: &Cancel, seed: u64) -> Result<()> {
        for disk in &self.disks {
            let read = disk.pull(&self.export_path, cancel, seed)?;
            disk.state.lock().unwrap_or_else(PoisonError::into_inner).read = Some(read);
        }
        Ok(())
    }

    /// Says that all is read. Returns the bytes that came, zeros not counted.
    pub(super) fn finish(mut self) -> Result<u64> {
        if let Some(server) = self.server.take() {
            server.stop();
        }
        let mut bytes = 0;
        for disk in &self.disks {
            let mut state = disk.state.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(failure) = state.failure.take() {
                return Err(Error::Sink(failure));
            }
            let sink =
                state.sink.take().ok_or_else(|| Error::protocol("a disk that ended twice"))?;
            let read = state.read.take();
            let read = read.ok_or_else(|| Error::protocol("a disk that was not read"))?;
            sink.finish(read).map_err(Error::Sink)?;
            bytes += disk.arrived.load(Ordering::Relaxed);
        }
        Ok(bytes)
    }
}

impl KeptDisk {
    fn node(&self, role: &str) -> String {
        format!("{PREFIX}{role}-{}", self.number)
    }

    fn socket_name(&self) -> String {
        self.node("socket")
    }

    /// The copy of the bitmap as it was at the instant.
    fn frozen(&self) -> String {
        bitmaps::frozen_name(&self.number.to_string())
    }

    /// What NBD calls that copy.
    pub(super) fn context(&self) -> String {
        format!("qemu:dirty-bitmap:{}", self.frozen())
    }

    /// Gives the sink what was read at the instant, but for what the guest has
    /// overwritten: of that the old bytes came before, and this is not they.
    pub(super) fn keep(&self, extent: Extent, content: Content<'_>) -> Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for part in state.saved.missing(extent) {
            let Some(sink) = state.sink.as_mut() else { return Ok(()) };
            match content {
                Content::Zero => sink.write_zeroes(part).map_err(Error::Sink)?,
                Content::Data(bytes) => {
                    let bytes = &bytes[within(extent, part)];
                    self.arrived.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    sink.write(part.offset, bytes).map_err(Error::Sink)?;
                }
            }
        }
        state.pulled.add(extent);
        Ok(())
    }

    /// Takes old bytes that the guest is about to overwrite.
    fn save(&self, extent: Extent, bytes: Option<&[u8]>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for part in state.pulled.missing(extent) {
            let Some(sink) = state.sink.as_mut() else { break };
            let kept = match bytes {
                Some(bytes) => {
                    let bytes = &bytes[within(extent, part)];
                    self.arrived.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    sink.write(part.offset, bytes)
                }
                None => sink.write_zeroes(part),
            };
            if let Err(failure) = kept {
                state.failure = Some(failure);
                return Err(io::Error::other("the old bytes could not be kept"));
            }
        }
        state.saved.add(extent);
        Ok(())
    }
}

/// The place of a part in a buffer that holds the whole.
pub(super) fn within(whole: Extent, part: Extent) -> std::ops::Range<usize> {
    let at = |offset: u64| usize::try_from(offset - whole.offset).expect("the buffer is in memory");
    at(part.offset)..at(part.end())
}

/// The target of a filter: takes old bytes, gives none back. QEMU may read here
/// for us what it has written here; [`KeptDisk::keep`] leaves that out.
struct OldBytes(Arc<KeptDisk>);

impl Export for OldBytes {
    fn size(&self) -> u64 {
        self.0.disk.size.get()
    }

    fn read(&self, _offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, data: Payload) -> io::Result<()> {
        self.0.save(Extent { offset, len: data.len() as u64 }, Some(&data))
    }

    fn write_zeroes(&self, extent: Extent) -> io::Result<()> {
        self.0.save(extent, None)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
