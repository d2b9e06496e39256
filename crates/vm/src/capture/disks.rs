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
use std::time::Duration;

use rustix::fd::AsFd;
use serde_json::{Value, json};
use tintype_nbd::codec::StatusFlags;
use tintype_nbd::{
    Client, ConnectParams, Content, Export, Payload, PullParams, Server, ServerConfig,
};
use tintype_types::Extent;

use super::coverage::Covered;
use super::sink::{CaptureSink, DiskSink, SinkError};
use crate::cancel::Cancel;
use crate::error::{Error, Result};
use crate::inventory::{Disk, PREFIX};
use crate::qmp::Qmp;

/// How long a guest's write may wait for the old bytes to be taken, in seconds.
/// Then the snapshot breaks, and the write goes through.
const GUEST_WRITE_WAIT_S: u32 = 5;

/// How much is asked of QEMU at once about where a disk has data.
const STATUS_SPAN: u64 = 1 << 30;

/// The disks of one capture.
pub(super) struct DiskCapture {
    disks: Vec<Arc<KeptDisk>>,
    server: Option<Server>,
    listener_path: std::path::PathBuf,
    /// Where QEMU serves the disks as they were at the instant.
    export_path: std::path::PathBuf,
}

/// One disk at its instant.
struct KeptDisk {
    disk: Disk,
    number: usize,
    state: Mutex<KeptState>,
    arrived: AtomicU64,
}

struct KeptState {
    /// What the guest has overwritten since: it came here first.
    saved: Covered,
    /// What was read at the instant. What comes of it later changes nothing.
    pulled: Covered,
    sink: Option<Box<dyn DiskSink>>,
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
                let sink = Some(sink.disk(disk).map_err(Error::Sink)?);
                let state = KeptState {
                    saved: Covered::default(),
                    pulled: Covered::default(),
                    sink,
                    failure: None,
                };
                Ok(Arc::new(KeptDisk {
                    disk: disk.clone(),
                    number,
                    state: Mutex::new(state),
                    arrived: AtomicU64::new(0),
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

    /// The commands that fix the instant of all disks. The guest stands still.
    pub(super) fn instant_commands(&self) -> Vec<(&'static str, Value)> {
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
        filters.chain(insertions).collect()
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
            let export = json!({
                "type": "nbd", "id": disk.node("export"), "node-name": disk.node("instant"),
                "name": disk.number.to_string(),
            });
            qmp.execute("block-export-add", export)?;
        }
        Ok(())
    }

    /// Reads all disks to their ends, one after the other: they share the
    /// machine's storage with the guest.
    pub(super) fn pull(&self, cancel: &Cancel) -> Result<()> {
        self.disks.iter().try_for_each(|disk| disk.pull(&self.export_path, cancel))
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
            sink.finish().map_err(Error::Sink)?;
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

    fn pull(&self, socket: &Path, cancel: &Cancel) -> Result<()> {
        let fail = |error: tintype_nbd::Error| Error::Disk {
            disk: self.disk.name.clone(),
            reason: "QEMU could not read it as it was".to_owned(),
            source: Some(Box::new(error)),
        };
        let mut params = ConnectParams::new(&self.number.to_string());
        params.timeout = Duration::from_secs(60);
        let mut client = Client::connect(socket, &params).map_err(fail)?;
        let size = client.size().get();
        if size != self.disk.size.get() {
            return Err(
                self.broken(format!("its size is {size} B and was {} B", self.disk.size.get()))
            );
        }
        for span in (Extent { offset: 0, len: size }).pieces(STATUS_SPAN) {
            cancel.check()?;
            let (zeros, data): (Vec<_>, Vec<_>) = client
                .block_status(span)
                .map_err(fail)?
                .into_iter()
                .partition(|status| status.flags.has(StatusFlags::ZERO));
            for status in zeros {
                self.keep(status.extent, Content::Zero)?;
            }
            let data = data.into_iter().map(|status| status.extent);
            client
                .pull(data, &PullParams::default(), |extent, content| {
                    cancel.check().map_err(PullError::Ours)?;
                    self.keep(extent, content).map_err(PullError::Ours)
                })
                .map_err(|error| match error {
                    PullError::Ours(error) => error,
                    PullError::Nbd(error) => fail(error),
                })?;
        }
        // A write of the guest that waited too long has broken the snapshot, and
        // its old bytes may have come too late to be old. Reading tells.
        let probe = size.min(512);
        client
            .read_at(0, &mut vec![0; usize::try_from(probe).expect("it is at most 512")])
            .map_err(fail)
    }

    /// Gives the sink what was read at the instant, but for what the guest has
    /// overwritten: of that the old bytes came before, and this is not they.
    fn keep(&self, extent: Extent, content: Content<'_>) -> Result<()> {
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

    fn broken(&self, reason: String) -> Error {
        Error::Disk { disk: self.disk.name.clone(), reason, source: None }
    }
}

/// The place of a part in a buffer that holds the whole.
fn within(whole: Extent, part: Extent) -> std::ops::Range<usize> {
    let at = |offset: u64| usize::try_from(offset - whole.offset).expect("the buffer is in memory");
    at(part.offset)..at(part.end())
}

enum PullError {
    Ours(Error),
    Nbd(tintype_nbd::Error),
}

impl From<tintype_nbd::Error> for PullError {
    fn from(error: tintype_nbd::Error) -> Self {
        Self::Nbd(error)
    }
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
