//! A QEMU under test, and as much of its monitor protocol as the tests need.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = "qemu-system-x86_64";
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts in every page from 128 KiB to 576 KiB of memory, page by page, for
/// ever: at any instant no two counters differ by more than one.
const BOOT_CODE: [u8; 20] = [
    0x31, 0xdb, // xor bx, bx
    0xb8, 0x00, 0x20, // round: mov ax, 0x2000
    0x8e, 0xd8, // page: mov ds, ax
    0x66, 0xff, 0x07, // inc dword [bx]
    0x05, 0x00, 0x01, // add ax, 0x100
    0x3d, 0x00, 0x90, // cmp ax, 0x9000
    0x72, 0xf3, // jb page
    0xeb, 0xee, // jmp round
];
pub(crate) const COUNTERS: std::ops::Range<usize> = 0x20..0x90;

pub(crate) struct Qemu {
    process: Child,
    monitor: BufReader<UnixStream>,
    directory: TempDir,
}

/// Says on stderr when there is no QEMU, since then a test cannot run.
pub(crate) fn is_installed() -> bool {
    let found = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        eprintln!("not run: {PROGRAM} is not installed");
    }
    found
}

impl Qemu {
    /// Starts a small VM that boots from a disk with [`BOOT_CODE`], and has more.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let disk = directory.path().join("disk.raw");
        let mut sector = [0_u8; 512];
        sector[..BOOT_CODE.len()].copy_from_slice(&BOOT_CODE);
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
        // The BIOS counts in cylinders and reads none of a smaller disk.
        let mut contents = vec![0; 2 << 20];
        contents[..512].copy_from_slice(&sector);
        std::fs::write(&disk, contents).unwrap();
        let socket = directory.path().join("qmp");
        let mut command = Command::new(PROGRAM);
        command
            .args(["-accel", "tcg", "-m", "16", "-nodefaults", "-no-user-config"])
            .args(["-display", "none", "-monitor", "none", "-serial", "none"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", socket.display()))
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,file={}", disk.display()))
            .args(["-device", "virtio-blk-pci,drive=disk,bootindex=0"])
            .args(arguments)
            .stdin(Stdio::null());
        let process = command.spawn().unwrap();
        let monitor = BufReader::new(retry(|| UnixStream::connect(&socket).ok()));
        let mut qemu = Self { process, monitor, directory };
        qemu.line();
        qemu.ask("qmp_capabilities", json!({}));
        qemu
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn ask(&mut self, name: &str, arguments: Value) -> Value {
        let request = json!({ "execute": name, "arguments": arguments });
        writeln!(self.monitor.get_mut(), "{request}").unwrap();
        loop {
            let answer = self.line();
            if let Some(result) = answer.get("return") {
                return result.clone();
            }
            assert!(answer.get("error").is_none(), "{name}: {answer}");
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}"))
    }

    pub(crate) fn set_capabilities(&mut self, capabilities: &[&str]) {
        let on = |name: &&str| json!({ "capability": name, "state": true });
        let list: Vec<_> = capabilities.iter().map(on).collect();
        self.ask("migrate-set-capabilities", json!({ "capabilities": list }));
    }

    /// Reads the stream of a migration until QEMU closes it.
    pub(crate) fn capture(&mut self) -> Vec<u8> {
        let path = self.path("capture");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        self.ask("migrate-set-parameters", json!({ "max-bandwidth": 0, "downtime-limit": 300 }));
        self.ask("migrate", json!({ "uri": format!("unix:{}", path.display()) }));
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        self.wait_for_migration("completed");
        bytes
    }

    /// Makes a VM that waits for a stream read it, and waits until it is loaded.
    pub(crate) fn load(&mut self, stream: &[u8]) {
        self.receive("migrate-incoming").write_all(stream).unwrap();
        self.wait_for_migration("completed");
    }

    /// Makes a VM listen by this command, and connects to it.
    pub(crate) fn receive(&mut self, command: &str) -> UnixStream {
        let path = self.path(command);
        self.ask(command, json!({ "uri": format!("unix:{}", path.display()) }));
        retry(|| UnixStream::connect(&path).ok())
    }

    pub(crate) fn wait_for_migration(&mut self, wanted: &str) {
        retry(|| {
            let status = self.ask("query-migrate", json!({}))["status"].clone();
            assert_ne!(status, "failed");
            (status == wanted).then_some(())
        });
    }

    pub(crate) fn status(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// Returns guest-physical memory from 0 to `len`.
    pub(crate) fn memory(&mut self, len: usize) -> Vec<u8> {
        let path = self.path("memory");
        self.ask("pmemsave", json!({ "val": 0, "size": len, "filename": path }));
        let mut bytes = Vec::new();
        File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    /// Waits until the boot code counts.
    pub(crate) fn wait_for_guest(&mut self) {
        retry(|| {
            let counters = counters(&self.memory(0x90 << 12));
            (counters[0] > 3 && counters[counters.len() - 1] > 2).then_some(())
        });
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the counters of the boot code from memory that starts at 0.
pub(crate) fn counters(memory: &[u8]) -> Vec<u32> {
    let counter = |page: usize| u32::from_le_bytes(*memory[page << 12..].first_chunk().unwrap());
    COUNTERS.map(counter).collect()
}

/// Checks that the counters are those of one instant.
pub(crate) fn assert_one_instant(counters: &[u32]) {
    let (first, last) = (counters[0], counters[counters.len() - 1]);
    assert!(counters.is_sorted_by(|a, b| a >= b), "{counters:?}");
    assert!(first - last <= 1, "{counters:?}");
}

fn retry<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "QEMU takes too long");
        std::thread::sleep(Duration::from_millis(5));
    }
}
