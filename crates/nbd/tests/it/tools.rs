//! QEMU's tools as peers, and small helpers.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tintype_nbd::{Client, ConnectParams, Export, Server, ServerConfig};

/// Says why a test cannot run, unless the program is there.
pub(crate) fn have(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs a tool, which must succeed, and returns what it wrote to stdout.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns all that a tool wrote.
pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A `qemu-nbd` that ends with its scope.
pub(crate) struct QemuNbd {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl QemuNbd {
    pub(crate) fn serve(directory: &Path, image: &Path, format: &str, more: &[&str]) -> Self {
        let arguments = [&["--format", format], more, &[image.to_str().unwrap()]].concat();
        Self::start(directory, &arguments)
    }

    pub(crate) fn start(directory: &Path, arguments: &[&str]) -> Self {
        let socket = directory.join("qemu-nbd.sock");
        let child = Command::new("qemu-nbd")
            .args(["--persistent", "--shared=8", "--export-name=disk", "--socket"])
            .arg(&socket)
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "qemu-nbd does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, socket }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket, &ConnectParams::new("disk")).unwrap()
    }

    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Our server with one export, in a directory of its own.
pub(crate) struct Served {
    pub(crate) server: Option<Server>,
    pub(crate) socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    pub(crate) fn new(export: Arc<dyn Export>) -> Self {
        Self::with(export, &ServerConfig::default())
    }

    pub(crate) fn with(export: Arc<dyn Export>, config: &ServerConfig) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("ours.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = Server::start(listener, [("disk".to_owned(), export)], config).unwrap();
        Self { server: Some(server), socket, _directory: directory }
    }

    pub(crate) fn url(&self) -> String {
        format!("nbd+unix:///disk?socket={}", self.socket.display())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket, &ConnectParams::new("disk")).unwrap()
    }
}

/// Numbers that look random and are the same in each run.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(len).collect()
    }
}
