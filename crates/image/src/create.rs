//! Makes new images.

use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_types::ByteCount;

use crate::error::Error;
use crate::host::{ImageHost, Monitor};
use crate::spec::{Format, HostConfig};

/// How to make an image.
#[derive(Debug, Clone)]
pub struct CreateParams {
    /// Where; nothing may be there.
    pub path: PathBuf,
    /// The format.
    pub format: Format,
    /// The size of the disk.
    pub size: ByteCount,
    /// The file's permission bits, less those of the process's umask.
    pub mode: u32,
    /// The name and format of the file below it, as the header is to have them. It is
    /// not opened, and only qcow2 has one here.
    pub backing: Option<(String, Format)>,
}

impl ImageHost {
    /// Makes a new, empty image with the defaults of QEMU's `blockdev-create`. A file
    /// that is already there is left alone and an error; after any other error
    /// nothing is left. The new file and its name are not flushed.
    pub fn create(config: &HostConfig, params: &CreateParams) -> Result<(), Error> {
        let failed = |source| Error::Create { path: params.path.clone(), source };
        let mut open = std::fs::File::options();
        let file = open.write(true).create_new(true).mode(params.mode).open(&params.path);
        let file = file.map_err(failed)?;
        let made = if params.format.is_raw() {
            file.set_len(params.size.get()).map_err(failed)
        } else {
            format(config, params)
        };
        if made.is_err()
            && let Err(error) = std::fs::remove_file(&params.path)
        {
            tracing::warn!(%error, path = %params.path.display(), "cannot remove a failed image");
        }
        made
    }
}

fn format(config: &HostConfig, params: &CreateParams) -> Result<(), Error> {
    let bad = |reason| Error::Path { path: params.path.clone(), reason };
    let path = std::path::absolute(&params.path).map_err(|_| bad("it cannot be made absolute"))?;
    let path = path.to_str().ok_or_else(|| bad("its path is not UTF-8"))?;
    let mut monitor = Monitor::start(config)?;
    let file = json!({ "driver": "file", "node-name": "file", "filename": path });
    monitor.call("blockdev-add", &file)?;
    let driver = params.format.as_str();
    let mut options = json!({ "driver": driver, "file": "file", "size": params.size.get() });
    if let Some((name, format)) = &params.backing {
        options["backing-file"] = json!(name);
        options["backing-fmt"] = json!(format.as_str());
    }
    let job = json!({ "job-id": "create", "options": options });
    monitor.call("blockdev-create", &job)?;
    wait_for_job(&mut monitor, config.timeout)?;
    monitor.quit()
}

/// Waits until the only job has ended, and returns its error.
fn wait_for_job(monitor: &mut Monitor, timeout: Duration) -> Result<(), Error> {
    let command = || "blockdev-create".to_owned();
    let deadline = Instant::now() + timeout;
    loop {
        let jobs = monitor.call("query-jobs", &json!({}))?;
        let job = &jobs[0];
        if job["status"] == "concluded" {
            let message = job["error"].as_str().map(str::to_owned);
            monitor.call("job-dismiss", &json!({ "id": "create" }))?;
            return match message {
                Some(message) => Err(Error::Refused { command: command(), message }),
                None => Ok(()),
            };
        }
        if *job == Value::Null {
            return Err(Error::Nonsense { command: command(), reason: "the job is gone" });
        }
        if Instant::now() >= deadline {
            return Err(Error::TimedOut { command: command() });
        }
        thread::sleep(Duration::from_millis(2));
    }
}
