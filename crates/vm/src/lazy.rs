//! The QEMU of a guest that runs before its memory is there (postcopy): how it is
//! made to wait for pages, and how it is given another sender when one is lost.
//!
//! What a guest waits for can be what QEMU itself waits for: a thread that stands
//! at a missing page may hold the lock that every command of the monitor needs. So
//! such a QEMU gets a second monitor, a pipe on which commands past that lock
//! (`exec-oob`) were agreed upon while it started. Whoever comes later finds it
//! agreed. Its answers go nowhere; whether a command worked shows in what it does.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fd::AsFd;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::footprint::Footprint;
use crate::guest::Guest;
use crate::inventory::PREFIX;
use crate::pause::{migration_status, run_state};

/// Between two looks whether QEMU listens.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// How long one command to listen may take until QEMU does.
const LISTEN_LIMIT: Duration = Duration::from_millis(300);

/// What is on for a migration that brings pages while the guest runs.
const CAPABILITY: &str = "postcopy-ram";

/// How far a guest is that is being loaded lazily.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LazyState {
    /// Its devices are not there yet.
    Loading,
    /// Its devices are there: it can run.
    Loaded,
}

impl Guest {
    /// Makes a QEMU that was started with `-S -incoming defer` take its memory from
    /// this connection. The sender is to keep the other end.
    pub fn receive_lazily(&mut self, theirs: &UnixStream) -> Result<()> {
        Footprint::set_capabilities(&mut self.qmp, &[CAPABILITY])?;
        let name = format!("{PREFIX}load");
        self.qmp.pass_descriptor(&name, theirs.as_fd())?;
        self.qmp.execute("migrate-incoming", json!({"uri": format!("fd:{name}")})).map(drop)
    }

    /// Looks how far it is.
    pub fn lazy_state(&mut self) -> Result<LazyState> {
        if run_state(&mut self.qmp)? != "inmigrate" {
            return Ok(LazyState::Loaded);
        }
        match migration_status(&mut self.qmp)?.as_str() {
            "failed" | "cancelled" => Err(Error::Migration {
                what: "load the devices",
                description: "its log says why".to_owned(),
            }),
            _ => Ok(LazyState::Loading),
        }
    }

    /// Tells whether all of its memory is there.
    pub fn has_its_memory(&mut self) -> Result<bool> {
        let status = migration_status(&mut self.qmp)?;
        Ok(matches!(status.as_str(), "completed" | "none"))
    }
}

/// The second monitor of a QEMU that is being loaded lazily.
#[derive(Debug, Clone)]
pub struct RescuePipe {
    path: PathBuf,
}

impl RescuePipe {
    /// Names the pipe, whose folder must be private.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Makes the pipe, before QEMU is started.
    pub fn make(&self) -> Result<()> {
        self.remove();
        let cannot = || format!("make the pipe {}", self.path.display());
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, self.end("in"), FileType::Fifo, mode, 0)
            .map_err(|error| Error::system(cannot())(error.into()))?;
        symlink("/dev/null", self.end("out")).map_err(Error::system(cannot()))
    }

    /// Returns the arguments that make it a monitor, for one start.
    pub fn arguments(&self) -> [String; 4] {
        let path = self.path.display().to_string().replace(',', ",,");
        let name = format!("{PREFIX}rescue");
        [
            "-chardev".to_owned(),
            format!("pipe,id={name},path={path}"),
            "-mon".to_owned(),
            format!("chardev={name},mode=control"),
        ]
    }

    /// Agrees upon commands past QEMU's lock, while nothing holds it.
    pub fn agree(&self) -> Result<()> {
        self.send(&json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}))
    }

    /// Asks a QEMU whose sender was lost for a connection to a new one. `None` if it
    /// does not want one within `limit`.
    pub fn ask_for_connection(&self, limit: Duration) -> Result<Option<UnixStream>> {
        let deadline = Instant::now() + limit;
        let socket = self.path.clone();
        while Instant::now() < deadline {
            let _ = fs::remove_file(&socket);
            let uri = format!("unix:{}", socket.display());
            self.send(&json!({"exec-oob": "migrate-recover", "arguments": {"uri": uri}}))?;
            let until = deadline.min(Instant::now() + LISTEN_LIMIT);
            while Instant::now() < until {
                if let Ok(stream) = UnixStream::connect(&socket) {
                    let _ = fs::remove_file(&socket);
                    return Ok(Some(stream));
                }
                sleep(RETRY_INTERVAL);
            }
        }
        Ok(None)
    }

    /// Takes back what lazy loading has changed in QEMU, once all memory is there.
    pub fn settle(&self) -> Result<()> {
        let off = json!([{"capability": CAPABILITY, "state": false}]);
        let arguments = json!({"capabilities": off});
        self.send(&json!({"execute": "migrate-set-capabilities", "arguments": arguments}))
    }

    /// Removes its names; a QEMU that has it keeps it.
    pub fn remove(&self) {
        for path in [&self.path, &self.end("in"), &self.end("out")] {
            let _ = fs::remove_file(path);
        }
    }

    fn send(&self, command: &Value) -> Result<()> {
        let cannot = || format!("reach QEMU by the pipe {}", self.path.display());
        // Without a reader this fails instead of waiting for one.
        let mut pipe = OpenOptions::new()
            .write(true)
            .custom_flags(nonblocking())
            .open(self.end("in"))
            .map_err(Error::system(cannot()))?;
        pipe.write_all(format!("{command}\n").as_bytes()).map_err(Error::system(cannot()))
    }

    fn end(&self, name: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(".");
        path.push(name);
        path.into()
    }
}

fn nonblocking() -> i32 {
    i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default()
}

/// Tells whether this user's processes may serve missing pages, which QEMU does by
/// userfaultfd; if not, why, and what would change that.
pub fn can_serve_missing_pages() -> std::result::Result<(), String> {
    let setting = fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    let unprivileged = setting.is_ok_and(|value| value.trim() == "1");
    let device = OpenOptions::new().read(true).write(true).open("/dev/userfaultfd");
    if unprivileged || device.is_ok() || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let why = device.err().unwrap_or_else(|| io::Error::other("no device"));
    Err(format!(
        "this user has no userfaultfd ({why}): `sysctl vm.unprivileged_userfaultfd=1`, or rights on /dev/userfaultfd, gives it"
    ))
}
