//! A file system on a disk that remembers every write and flush, so that the
//! power can be lost at any moment of its past.
//!
//! ```text
//! ext4, XFS, btrfs ─► loop device ─► FUSE file ─► blklogwrites ─► disk
//!                                                      └────────► log
//! ```
//!
//! The log is that of Linux's dm-log-writes; `qemu-storage-daemon` writes it.
//! Needs root, loop devices and FUSE.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::Error;

/// What the disk has. Log and disk are sparse.
const SIZE: u64 = 320 << 20;
const SECTOR: u64 = 512;
/// How long the daemon may take to come and go.
const PATIENCE: Duration = Duration::from_secs(10);

/// Flags of the log's entries.
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// A kind of file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// The usual one.
    Ext4,
    /// The other usual one.
    Xfs,
    /// One that copies on write.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    fn make_on(self, device: &Path) -> Result<(), Error> {
        let options: &[&str] = match self {
            Self::Ext4 => &["-q", "-F", "-E", "nodiscard"],
            Self::Xfs | Self::Btrfs => &["-q", "-f", "-K"],
        };
        let program = format!("/usr/sbin/mkfs.{}", self.name());
        run(Command::new(program).args(options).arg(device)).map(drop)
    }
}

/// A file system in use, on a disk that remembers.
#[derive(Debug)]
pub struct LoggedDisk {
    folder: TempDir,
    mounted: Option<Mounted>,
    daemon: Child,
}

impl LoggedDisk {
    /// Makes one. The error is [`Error::NoPower`] if this machine cannot.
    pub fn start(kind: FileSystem) -> Result<Self, Error> {
        let folder = tempfile::tempdir().map_err(Error::file("make", &std::env::temp_dir()))?;
        let file = |name: &str, size| {
            let path = folder.path().join(name);
            let made = File::create(&path).and_then(|file| file.set_len(size));
            made.map(|()| path.clone()).map_err(Error::file("make", &path))
        };
        let (disk, log, seen) = (file("disk", SIZE)?, file("log", 0)?, file("seen", 0)?);
        let text = |path: &Path| path.display().to_string();
        let daemon = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,filename={}", text(&disk)))
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=log,filename={}", text(&log)))
            .args(["--blockdev", "driver=blklogwrites,node-name=both,file=disk,log=log"])
            .arg("--export")
            .arg(format!("type=fuse,id=seen,node-name=both,mountpoint={},writable=on", text(&seen)))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let daemon = daemon.map_err(|source| Error::NoPower { why: source.to_string() })?;
        let mut logged = Self { folder, mounted: None, daemon };
        logged.await_export(&seen)?;
        let device = Loop::of(&seen)?;
        kind.make_on(&device.0)?;
        logged.mounted = Some(Mounted::at(kind, device, &logged.folder.path().join("mnt"))?);
        Ok(logged)
    }

    fn await_export(&mut self, seen: &Path) -> Result<(), Error> {
        let begun = Instant::now();
        while fs::metadata(seen).map_err(Error::file("look at", seen))?.len() != SIZE {
            let ended = self.daemon.try_wait().map_err(Error::file("wait for", seen))?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                return Err(Error::NoPower { why: "QEMU exports no file by FUSE".to_owned() });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Returns the folder where the file system is.
    pub fn path(&self) -> &Path {
        &self.mounted.as_ref().expect("it is mounted until its end").path
    }

    /// Returns a moment: what has ended by now is before it.
    pub fn now(&self) -> Result<u64, Error> {
        let log = self.folder.path().join("log");
        fs::metadata(&log).map(|found| found.len()).map_err(Error::file("look at", &log))
    }

    /// Ends the use and returns its history.
    pub fn finish(mut self) -> Result<History, Error> {
        drop(self.mounted.take());
        self.end_daemon();
        let path = self.folder.path().join("log");
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        Ok(History { entries: entries(&bytes), bytes })
    }

    fn end_daemon(&mut self) {
        if let Some(process) = rustix::process::Pid::from_raw(self.daemon.id().cast_signed()) {
            // It flushes its log before it ends.
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
        let _ = self.daemon.wait();
    }
}

impl Drop for LoggedDisk {
    fn drop(&mut self) {
        drop(self.mounted.take());
        self.end_daemon();
    }
}

/// A loop device, until dropped.
#[derive(Debug)]
struct Loop(PathBuf);

impl Loop {
    fn of(file: &Path) -> Result<Self, Error> {
        let output = run(Command::new("/usr/sbin/losetup").args(["--find", "--show"]).arg(file));
        match output {
            Ok(name) => Ok(Self(PathBuf::from(name.trim()))),
            Err(error) => Err(Error::NoPower { why: error.to_string() }),
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A device that stays busy is the system's to free.
        let _ = run(Command::new("/usr/sbin/losetup").arg("--detach").arg(&self.0));
    }
}

/// A mounted file system, until dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    _device: Loop,
}

impl Mounted {
    fn at(kind: FileSystem, device: Loop, path: &Path) -> Result<Self, Error> {
        fs::create_dir_all(path).map_err(Error::file("make", path))?;
        run(Command::new("mount").args(["-t", kind.name()]).arg(&device.0).arg(path))?;
        Ok(Self { path: path.to_owned(), _device: device })
    }

    /// Mounts the file system in a file.
    pub fn of_file(kind: FileSystem, file: &Path, path: &Path) -> Result<Self, Error> {
        Self::at(kind, Loop::of(file)?, path)
    }

    /// Returns the folder where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if run(Command::new("umount").arg(&self.path)).is_err() {
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.path));
        }
    }
}

/// One write, discard or flush.
#[derive(Debug)]
struct Entry {
    /// Where its record ends in the log.
    ends_at: u64,
    flags: u64,
    offset: u64,
    /// Where its bytes are in the log, none for a flush.
    data: std::ops::Range<usize>,
    len: u64,
}

/// All that was written to a disk, in its order.
#[derive(Debug)]
pub struct History {
    entries: Vec<Entry>,
    bytes: Vec<u8>,
}

/// Reads the entries of a log, as far as they are whole.
fn entries(log: &[u8]) -> Vec<Entry> {
    let sector = usize::try_from(SECTOR).expect("a usize has at least 32 bits");
    let mut entries = Vec::new();
    let mut at = sector;
    while let Some(header) = log.get(at..at + 32) {
        let field = |number: usize| {
            let bytes = header[number * 8..number * 8 + 8].try_into().expect("it has 8 bytes");
            u64::from_le_bytes(bytes)
        };
        let (offset, len, flags) = (field(0) * SECTOR, field(1) * SECTOR, field(2));
        let stored = if flags & DISCARD == 0 { len } else { 0 };
        let start = at + sector;
        let Some(end) = usize::try_from(stored).ok().and_then(|len| start.checked_add(len)) else {
            break;
        };
        if end > log.len() {
            break;
        }
        let ends_at = u64::try_from(end).expect("a usize fits in 64 bits");
        entries.push(Entry { ends_at, flags, offset, data: start..end, len });
        at = end;
    }
    entries
}

impl History {
    /// Returns how many moments there are after one that was noted.
    pub fn moments_after(&self, noted: u64) -> std::ops::Range<usize> {
        let first = self.entries.iter().position(|entry| entry.ends_at > noted);
        first.unwrap_or(self.entries.len())..self.entries.len() + 1
    }

    /// Whether what was noted is before a moment.
    pub fn is_before(&self, noted: u64, moment: usize) -> bool {
        self.moments_after(noted).start <= moment
    }

    /// Makes the disk as it may be when the power is lost at a moment: all that
    /// was flushed is there, and of the rest whatever `keeps` says, sector by
    /// sector.
    pub fn disk_at(
        &self,
        moment: usize,
        path: &Path,
        keeps: impl FnMut() -> Kept,
    ) -> Result<(), Error> {
        let disk = OpenOptions::new().create(true).truncate(true).write(true).open(path);
        let written = disk.and_then(|disk| self.write_past(moment, &disk, keeps));
        written.map_err(Error::file("write", path))
    }

    fn write_past(
        &self,
        moment: usize,
        disk: &File,
        mut keeps: impl FnMut() -> Kept,
    ) -> io::Result<()> {
        disk.set_len(SIZE)?;
        let past = &self.entries[..moment];
        let flushed = past.iter().rposition(|entry| entry.flags & FLUSH != 0);
        let flushed = flushed.map_or(0, |last| last + 1);
        past.iter().enumerate().try_for_each(|(number, entry)| {
            let is_durable = number < flushed || entry.flags & FUA != 0;
            let kept = if is_durable { Kept::All } else { keeps() };
            self.redo(entry, disk, kept)
        })
    }

    fn redo(&self, entry: &Entry, disk: &File, kept: Kept) -> io::Result<()> {
        let zeroes;
        let bytes = match entry.flags & DISCARD {
            0 => &self.bytes[entry.data.clone()],
            // What was discarded reads as anything: here as zeroes.
            _ if entry.len <= SIZE / 4 => {
                zeroes = vec![0; usize::try_from(entry.len).map_err(io::Error::other)?];
                &zeroes[..]
            }
            _ => return Ok(()),
        };
        let sector = usize::try_from(SECTOR).expect("a usize has at least 32 bits");
        let mut offset = entry.offset;
        for (number, piece) in bytes.chunks(sector * 8).enumerate() {
            let is_kept = match kept {
                Kept::All => true,
                Kept::None => false,
                Kept::Some(mask) => mask >> (number % 64) & 1 == 1,
            };
            if is_kept {
                disk.write_all_at(piece, offset)?;
            }
            offset += u64::try_from(piece.len()).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// What is there of a write that was not flushed.
#[derive(Debug, Clone, Copy)]
pub enum Kept {
    /// All of it.
    All,
    /// Nothing.
    None,
    /// Its n-th 4 KiB if the n-th bit is set.
    Some(u64),
}

fn run(command: &mut Command) -> Result<String, Error> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(Error::file("start", Path::new(&shown)))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(Error::Ended {
            command: shown,
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }),
    }
}
