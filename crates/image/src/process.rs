//! A QEMU process that does not outlive ours.
//!
//! QEMU does not notice that the other end of its monitor is gone, and the
//! kernel's parent-death signal is tied to the thread that started a process and
//! needs code between fork and exec. So a shell stands between: it starts QEMU,
//! waits on a socket whose other end only our process has, and kills QEMU when the
//! socket ends, which it does however our process ends.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustix::process::{Pid, Signal, kill_process_group};

/// Runs the command after the directory with the shell's stdout as its stdin and
/// stdout, and drops that socket, so that its end means QEMU's. A line on stdin
/// says that QEMU was asked to quit, and we see to the rest; the end of stdin says
/// that we are gone.
const WATCH: &str = r#"directory=$1
shift
"$@" <&1 &
qemu=$!
exec >/dev/null 2>&1
if read -r line; then wait "$qemu"; exit; fi
kill -KILL "$qemu"
wait "$qemu"
rm -f nbd.sock stderr
cd / && rmdir "$directory"
"#;

/// The most of QEMU's standard error that is kept for a message, from its end.
const MAX_MESSAGE: u64 = 4096;

/// How long the shell may take to kill QEMU and to clean up.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells the private directories of one process apart.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running QEMU with its private directory. Dropping it kills QEMU and waits
/// until it is gone.
pub(crate) struct Process {
    shell: Child,
    /// The other end of the shell's stdin; `None` tells it that we are gone.
    owner: Option<UnixStream>,
    stderr: File,
    /// Holds the NBD socket; both are gone when QEMU is.
    directory: PathBuf,
}

impl Process {
    /// Starts QEMU with `arguments`. Returns the monitor's socket, which QEMU has as
    /// its stdin and stdout. QEMU's current directory is the private one.
    pub(crate) fn start(
        qemu: &Path,
        arguments: &[&str],
        runtime_directory: &Path,
    ) -> io::Result<(Self, UnixStream)> {
        let directory = make_private_directory(&std::path::absolute(runtime_directory)?)?;
        Self::start_in(qemu, arguments, &directory).inspect_err(|_| {
            // Only what was made for this process is in it.
            let _ = std::fs::remove_dir_all(&directory);
        })
    }

    fn start_in(
        qemu: &Path,
        arguments: &[&str],
        directory: &Path,
    ) -> io::Result<(Self, UnixStream)> {
        let (owner, shell_stdin) = UnixStream::pair()?;
        let (monitor, qemu_stdio) = UnixStream::pair()?;
        let mut open = File::options();
        let stderr = open.read(true).write(true).create_new(true).open(directory.join("stderr"))?;
        let shell = Command::new("/bin/sh")
            .args(["-c", WATCH, "tintype-image"])
            .arg(directory)
            .arg(program(qemu)?)
            .args(arguments)
            .current_dir(directory)
            // A Ctrl-C at our terminal is for us: we decide how QEMU ends.
            .process_group(0)
            .stdin(OwnedFd::from(shell_stdin))
            .stdout(OwnedFd::from(qemu_stdio))
            .stderr(stderr.try_clone()?)
            .spawn()?;
        let directory = directory.to_owned();
        Ok((Self { shell, owner: Some(owner), stderr, directory }, monitor))
    }

    /// Returns the private directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the end of what QEMU wrote to its standard error, in one line.
    pub(crate) fn message(&self) -> String {
        let mut stderr = &self.stderr;
        let mut bytes = Vec::new();
        let len = stderr.seek(SeekFrom::End(0)).unwrap_or(0);
        let read = stderr
            .seek(SeekFrom::Start(len.saturating_sub(MAX_MESSAGE)))
            .and_then(|_| stderr.take(MAX_MESSAGE).read_to_end(&mut bytes));
        match read {
            Ok(0) | Err(_) => "it said nothing".to_owned(),
            Ok(_) => String::from_utf8_lossy(&bytes).trim().replace('\n', "; "),
        }
    }

    /// Waits for the end of a QEMU that was asked to quit. Returns whether it ended
    /// in time and without an error.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        if let Some(owner) = &self.owner {
            send(owner, b"quit\n", SendFlags::NOSIGNAL)?;
        }
        Ok(self.wait_for_shell(timeout)?.is_some_and(|status| status.success()))
    }

    fn wait_for_shell(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + timeout;
        loop {
            let status = self.shell.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn kill_all(&mut self) {
        let group = i32::try_from(self.shell.id()).ok().and_then(Pid::from_raw);
        let killed = group.map(|group| kill_process_group(group, Signal::KILL));
        tracing::warn!(pid = self.shell.id(), ?killed, "QEMU did not end in time");
        let _ = self.shell.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The shell kills QEMU and waits for it, so the images are free after this.
        drop(self.owner.take());
        if !matches!(self.wait_for_shell(END_TIMEOUT), Ok(Some(_))) {
            self.kill_all();
        }
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, directory = %self.directory.display(), "cannot remove");
            }
            _ => {}
        }
    }
}

/// Makes a path independent of the current directory; a bare name is looked up in
/// `PATH` by the shell.
fn program(qemu: &Path) -> io::Result<PathBuf> {
    if qemu.components().count() == 1 { Ok(qemu.to_owned()) } else { std::path::absolute(qemu) }
}

fn make_private_directory(parent: &Path) -> io::Result<PathBuf> {
    let process = std::process::id();
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("image-{process}-{number}"));
        match DirBuilder::new().mode(0o700).create(&path) {
            // Left over from a process that had our number before.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            created => return created.map(|()| path),
        }
    }
}
