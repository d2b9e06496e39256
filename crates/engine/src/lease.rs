//! One command at a time works on a VM: it holds a lock that belongs to its open
//! file (flock(2)), which the kernel drops when the process ends, however it ends.
//! (A POSIX record lock would be dropped when any descriptor of the file closes.)

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tintype_types::VmName;
use tintype_vm::Cancel;

use crate::error::{Error, ErrorKind, Result};
use crate::observer::Observer;

/// How often a waiting command tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The right to work on a VM; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Lease {
    _file: File,
}

impl Lease {
    /// Takes the lease. Waits while another command holds it, and says who.
    pub(crate) fn take(
        path: &Path,
        vm: &VmName,
        purpose: &str,
        patience: Duration,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<Self> {
        let deadline = Instant::now() + patience;
        let mut announced = false;
        loop {
            if let Some(lease) = Self::try_take(path, purpose)? {
                return Ok(lease);
            }
            let holder = holder(path);
            if Instant::now() >= deadline {
                return Err(Error::refused(format!("the VM `{vm}` is in use: {holder}"))
                    .state("nothing was changed")
                    .hint("wait for that command to end, then try again"));
            }
            if !announced {
                observer.notice(&format!("waiting for the VM `{vm}`, which is in use: {holder}"));
                announced = true;
            }
            if cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Interrupted, "interrupted while waiting"));
            }
            sleep(RETRY_INTERVAL);
        }
    }

    /// Takes the lease if nobody holds it.
    pub(crate) fn try_take(path: &Path, purpose: &str) -> Result<Option<Self>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(Error::io("open", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(Error::io("lock", path)(error)),
        }
        let line = format!("`{purpose}` (process {})\n", std::process::id());
        let noted = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(line.as_bytes()));
        noted.map_err(Error::io("write", path))?;
        Ok(Some(Self { _file: file }))
    }
}

fn holder(path: &Path) -> String {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(200).read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), holder) if !holder.is_empty() => holder.to_owned(),
        _ => "another command".to_owned(),
    }
}
