//! The QEMU of a guest that runs before its disks are filled: its images have what
//! is missing as a backing file, an export that somebody serves, and a job copies
//! that into them behind the guest.
//!
//! The header of such an image names the export, with its format, until all is there:
//! whoever opens it finds what is missing, or nothing. The job is finished by hand:
//! QEMU takes the name out of the header without a flush (`stream_prepare` in
//! block/stream.c), and tables that it still has in its memory would be lost with it.
//!
//! Such a QEMU gets a second monitor, so that nobody has to wait for the first one,
//! and stops its guest at errors of disks: what cannot be read now may be later.

use std::path::Path;

use serde_json::{Value, json};
use tintype_types::ByteCount;

use crate::error::{Error, Result};
use crate::guest::Guest;
use crate::inventory::{PREFIX, array, device_path, local_file, text};
use crate::pause::{run_state, start_running};
use crate::qmp::Qmp;

/// The most that is copied in a second, so that others get to their disks, too.
const SPEED: u64 = 256 << 20;

/// How long QEMU lets the guest wait for an export that is away, in seconds. Then it
/// stops the guest.
const RECONNECT_DELAY: u64 = 5;

/// The devices that stop their guest at an error if they are told to.
const DEVICES: [&str; 3] = ["virtio-blk-device", "scsi-hd", "ide-hd"];

/// An image that is being filled.
#[derive(Debug, Clone, Copy)]
pub struct FillImage<'i> {
    /// Tells it apart from the others.
    pub number: usize,
    /// Its file.
    pub file: &'i Path,
}

/// How far the filling of an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FillState {
    /// The guest is not there yet.
    NotYet,
    /// So many bytes were looked at and, where they were missing, are there.
    Filling(ByteCount),
    /// It stands at what cannot be read, or written.
    Stuck {
        /// Whether there is no room for it.
        no_space: bool,
    },
    /// All is there, and the image needs nobody.
    Whole,
}

/// Names an export on a unix socket for the header of an image.
pub fn export_name(socket: &Path, export: &str) -> String {
    let nbd = json!({
        "driver": "nbd",
        "server": {"type": "unix", "path": socket},
        "export": export,
        "reconnect-delay": RECONNECT_DELAY,
    });
    format!("json:{}", json!({"driver": "raw", "file": nbd}))
}

/// Returns the arguments for one start of a QEMU whose disks are being filled.
pub fn fill_arguments(monitor: &Path) -> Vec<String> {
    let path = monitor.display().to_string().replace(',', ",,");
    let name = format!("{PREFIX}fill");
    let mut arguments = vec![
        "-chardev".to_owned(),
        format!("socket,id={name},path={path},server=on,wait=off"),
        "-mon".to_owned(),
        format!("chardev={name},mode=control"),
    ];
    for (device, policy) in
        DEVICES.iter().flat_map(|device| [(device, "rerror"), (device, "werror")])
    {
        arguments.extend(["-global".to_owned(), format!("{device}.{policy}=stop")]);
    }
    arguments
}

impl Guest {
    /// Refuses a QEMU that would show its guest other bytes than those of the exports
    /// on a socket, or an error where it could wait.
    pub fn check_filling<'i>(
        &mut self,
        images: impl IntoIterator<Item = FillImage<'i>>,
        socket: &Path,
    ) -> Result<()> {
        let directory = self.command_line().directory.clone();
        for image in images {
            let cannot = |why: &str| {
                Error::unsupported(format!("the disk in {} {why}", image.file.display()))
            };
            let drive = drive_of(&mut self.qmp, image.file, &directory)?;
            let below = drive["inserted"]["backing_file"].as_str().unwrap_or_default();
            if !below.starts_with("nbd") || !below.contains(&socket.display().to_string()) {
                return Err(cannot("is opened without what its header names"));
            }
            let device = device_path(&drive).unwrap_or_default();
            for policy in ["rerror", "werror"] {
                let get = json!({"path": device, "property": policy});
                let is_stop = match self.qmp.execute("qom-get", get) {
                    Ok(value) => value == "stop",
                    Err(Error::Refused { .. }) => false,
                    Err(error) => return Err(error),
                };
                if !is_stop {
                    return Err(cannot("is of a device that does not stop its guest at errors"));
                }
            }
        }
        Ok(())
    }
}

/// The second monitor of a QEMU whose disks are being filled.
pub struct Filler {
    qmp: Qmp,
}

impl Filler {
    /// Connects to it.
    pub fn connect(socket: &Path) -> Result<Self> {
        Ok(Self { qmp: Qmp::connect(socket)? })
    }

    /// Goes on with an image, one step, and says how far it is. Images are filled one
    /// after another, each from when it is asked for.
    pub fn advance(&mut self, image: FillImage<'_>) -> Result<FillState> {
        let id = job_id(image.number);
        let jobs = array(self.qmp.execute("query-block-jobs", json!({}))?)?;
        let Some(job) = jobs.iter().find(|job| job["device"] == *id) else {
            return self.begin(image, &id);
        };
        let offset = ByteCount(job["offset"].as_u64().unwrap_or_default());
        match text(job, "status")? {
            "pending" => {
                self.flush(image.file)?;
                self.qmp.execute("job-finalize", json!({"id": id}))?;
            }
            "concluded" => {
                self.qmp.execute("job-dismiss", json!({"id": id}))?;
                if let Some(error) = job["error"].as_str() {
                    return Err(Error::unsupported(format!("QEMU cannot fill a disk: {error}")));
                }
            }
            // A guest that is told to go on takes the error from the job, and not the pause
            // (`qmp_cont` in monitor/qmp-cmds.c).
            "paused" => {
                return Ok(FillState::Stuck { no_space: job["io-status"] == "nospace" });
            }
            _ => {}
        }
        Ok(FillState::Filling(offset))
    }

    fn begin(&mut self, image: FillImage<'_>, id: &str) -> Result<FillState> {
        match run_state(&mut self.qmp)?.as_str() {
            "inmigrate" => return Ok(FillState::NotYet),
            "running" => {}
            // A guest that was paused at its instant has not got its disks from the
            // migration yet. QEMU before 10.0 gives them to it at once.
            _ => match self.qmp.execute("blockdev-set-active", json!({"active": true})) {
                Ok(_) | Err(Error::Refused { .. }) => {}
                Err(error) => return Err(error),
            },
        }
        let drive = drive_of(&mut self.qmp, image.file, Path::new("/"))?;
        let medium = &drive["inserted"];
        if medium["image"]["backing-filename"].is_null() {
            return Ok(FillState::Whole);
        }
        let stream = json!({
            "job-id": id,
            "device": text(medium, "node-name")?,
            "speed": SPEED,
            "on-error": "stop",
            "auto-finalize": false,
            "auto-dismiss": false,
        });
        self.qmp.execute("block-stream", stream)?;
        Ok(FillState::Filling(ByteCount(0)))
    }

    /// Tries again what could not be read or written. Nothing happens if that is done.
    pub fn resume(&mut self, image: FillImage<'_>) -> Result<()> {
        let resume = json!({"device": job_id(image.number)});
        match self.qmp.execute("block-job-resume", resume) {
            Ok(_) | Err(Error::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tells whether an error of a disk has stopped the guest.
    pub fn is_stopped_by_error(&mut self) -> Result<bool> {
        Ok(run_state(&mut self.qmp)? == "io-error")
    }

    /// Lets a guest go on that an error of a disk has stopped: the device asks again.
    pub fn go_on(&mut self) -> Result<()> {
        start_running(&mut self.qmp)
    }

    /// Makes durable what was copied. No other command flushes a node that is in use.
    fn flush(&mut self, file: &Path) -> Result<()> {
        let drive = drive_of(&mut self.qmp, file, Path::new("/"))?;
        let node = text(&drive["inserted"], "node-name")?;
        let line = json!({"command-line": format!("qemu-io {node} flush")});
        let said = self.qmp.execute("human-monitor-command", line)?;
        match said.as_str().map(str::trim) {
            Some("") => Ok(()),
            said => Err(Error::unsupported(format!("QEMU cannot flush a disk: {said:?}"))),
        }
    }
}

/// Finds the drive whose image is in a file, which has an absolute path.
fn drive_of(qmp: &mut Qmp, file: &Path, directory: &Path) -> Result<Value> {
    let drives = array(qmp.execute("query-block", json!({}))?)?;
    let is_it = |drive: &Value| {
        local_file(&drive["inserted"]["image"], directory).is_some_and(|path| path == file)
    };
    drives
        .into_iter()
        .find(is_it)
        .ok_or_else(|| Error::unsupported(format!("no drive has the image {}", file.display())))
}

fn job_id(number: usize) -> String {
    format!("{PREFIX}fill-{number}")
}
