//! What QEMU's tools make of our server.

use std::io::{BufRead, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tintype_nbd::{ErrorKind, Export, MemoryExport, Payload};
use tintype_types::Extent;

use crate::tools::{Numbers, Served, have, run, text};

#[test]
fn qemu_img_converts_compares_and_maps() {
    if !have("qemu-img") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.raw");
    let mut bytes = Numbers(11).bytes((6 << 20) + 512);
    bytes[1 << 20..3 << 20].fill(0);
    std::fs::write(&image, &bytes).unwrap();
    let path = image.to_str().unwrap();
    let export = Arc::new(MemoryExport::new(vec![0; bytes.len()]));
    let served = Served::new(export.clone());
    let url = served.url();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path, &url]);
    assert!(export.bytes() == bytes);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", path, &url]);
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &url]);
    assert!(map.contains(r#""start": 1048576, "length": 2097152"#), "{map}");
    assert!(map.contains(r#""zero": true"#), "{map}");
    let copy = directory.path().join("copy.qcow2");
    let copy = copy.to_str().unwrap();
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &url, copy]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", path, copy]);
}

#[test]
fn qemu_io_writes_zeroes_trims_and_flushes() {
    if !have("qemu-io") {
        return;
    }
    let export = Arc::new(MemoryExport::new(vec![1; 1 << 20]));
    let served = Served::new(export.clone());
    let commands = [
        "write -P 7 1000 3000",
        "write -f -P 8 64k 64k",
        "write -z 128k 64k",
        "write -z -u 256k 64k",
        "discard 512k 64k",
        "flush",
        "aio_write -P 9 768k 64k",
        "aio_write -P 10 832k 64k",
        "aio_flush",
        "read -P 7 1000 3000",
        "read -P 0 128k 64k",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    let url = served.url();
    arguments.push(&url);
    let output = run("qemu-io", &arguments);
    assert!(!output.contains("failed"), "{output}");
    let bytes = export.bytes();
    assert_eq!((bytes[999], bytes[1000], bytes[3999], bytes[4000]), (1, 7, 7, 1));
    assert_eq!((bytes[64 << 10], bytes[128 << 10], bytes[256 << 10]), (8, 0, 0));
    assert_eq!((bytes[768 << 10], bytes[832 << 10]), (9, 10));
}

#[test]
fn a_read_only_export_refuses_writes() {
    if !have("qemu-io") {
        return;
    }
    let served = Served::new(Arc::new(MemoryExport::read_only(vec![1; 4096])));
    let url = served.url();
    let output =
        Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &url]).output().unwrap();
    assert!(!output.status.success());
    assert!(text(&output).contains("Permission denied"), "{}", text(&output));
    run("qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 4096", &url]);
}

/// An export that fails all and keeps its peer waiting. It tells no block status.
struct Failing(Duration);

impl Export for Failing {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn tells_block_status(&self) -> bool {
        false
    }

    fn read(&self, _offset: u64, _buffer: &mut [u8]) -> std::io::Result<()> {
        std::thread::sleep(self.0);
        Err(std::io::ErrorKind::Other.into())
    }

    fn write(&self, _offset: u64, _data: Payload) -> std::io::Result<()> {
        std::thread::sleep(self.0);
        Err(std::io::ErrorKind::StorageFull.into())
    }

    fn write_zeroes(&self, _extent: Extent) -> std::io::Result<()> {
        panic!("zeroes");
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn errors_of_the_export_reach_the_peer() {
    let served = Served::new(Arc::new(Failing(Duration::ZERO)));
    let mut client = served.client();
    let error = client.write_at(0, &[1]).unwrap_err();
    assert!(error.to_string().contains("errno 28"), "{error}");
    let error = client.read_at(5, &mut [1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Remote);
    assert!(error.to_string().contains("read of 1 bytes at offset 5"), "{error}");
    client.flush().unwrap();
    assert!(!client.has_context("base:allocation"));
    assert!(MemoryExport::new(vec![0; 512]).tells_block_status());
    let error = client.write_zeroes(Extent { offset: 0, len: 512 }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disconnected, "a panic ends the connection");
    served.client().flush().unwrap();
}

#[test]
fn stopping_is_clean_under_load() {
    let export = Arc::new(MemoryExport::new(vec![0; 8 << 20]));
    let mut served = Served::new(export.clone());
    let clients: Vec<_> = (0..4_u8).map(|number| (number, served.client())).collect();
    let threads: Vec<_> = clients
        .into_iter()
        .map(|(number, mut client)| {
            std::thread::spawn(move || {
                let mut written = 0;
                let base = u64::from(number) << 21;
                let error = loop {
                    let mut pipeline = client.pipeline(4);
                    let outcome = (0..8).try_for_each(|piece| {
                        pipeline.write_at(base + (piece << 16), &vec![number + 1; 64 << 10])
                    });
                    match outcome.and_then(|()| pipeline.finish()) {
                        Ok(()) => written += 1,
                        Err(error) => break error,
                    }
                };
                (written, error)
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    served.server.take().unwrap().stop();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    for thread in threads {
        let (written, error) = thread.join().unwrap();
        assert!(written > 0);
        assert_eq!(error.kind(), ErrorKind::Disconnected, "{error}");
    }
    assert_eq!(Arc::strong_count(&export), 1, "no thread holds the export");
    let error =
        tintype_nbd::Client::connect(&served.socket, &tintype_nbd::ConnectParams::new("disk"));
    assert_eq!(error.err().unwrap().kind(), ErrorKind::Connect);
}

#[test]
fn stopping_answers_the_request_in_work() {
    let mut served = Served::new(Arc::new(Failing(Duration::from_millis(300))));
    let mut client = served.client();
    let writer = std::thread::spawn(move || client.write_at(0, &[0; 512]).unwrap_err());
    std::thread::sleep(Duration::from_millis(100));
    served.server.take().unwrap().stop();
    assert_eq!(writer.join().unwrap().kind(), ErrorKind::Remote);
}

/// An export that keeps nothing, as the target of a backup may.
struct Sink;

impl Export for Sink {
    fn size(&self) -> u64 {
        64 << 20
    }

    fn read(&self, _offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, _offset: u64, _data: Payload) -> std::io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _extent: Extent) -> std::io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_write_takes_microseconds() {
    let served = Served::new(Arc::new(Sink));
    let mut client = served.client();
    let block = vec![1; 64 << 10];
    let start = Instant::now();
    for round in 0..2000 {
        client.write_at((round % 1000) << 16, &block).unwrap();
    }
    eprintln!("a write of 64 KiB and its reply take {:?}", start.elapsed() / 2000);
}

/// A QEMU without a machine, with a monitor.
struct Monitor {
    child: std::process::Child,
    stdin: std::process::ChildStdin,
    stdout: std::io::Lines<std::io::BufReader<std::process::ChildStdout>>,
}

impl Monitor {
    fn start() -> Self {
        let mut child = Command::new("qemu-system-x86_64")
            .args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-S", "-qmp", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let mut monitor = Self { child, stdin, stdout };
        monitor.call("qmp_capabilities", "{}");
        monitor
    }

    #[track_caller]
    fn call(&mut self, command: &str, arguments: &str) {
        writeln!(self.stdin, r#"{{"execute":"{command}","arguments":{arguments}}}"#).unwrap();
        let answer = self.wait_for("\"return\"");
        assert!(answer.ends_with("{}}"), "{command}: {answer}");
    }

    #[track_caller]
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let line = self.stdout.next().unwrap().unwrap();
            assert!(!line.contains(r#""error""#), "{line}");
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_backup_to_us_is_of_its_instant_although_the_disk_is_written() {
    if !have("qemu-system-x86_64") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.raw");
    let bytes = Numbers(21).bytes(16 << 20);
    std::fs::write(&image, &bytes).unwrap();
    let export = Arc::new(MemoryExport::new(vec![0; bytes.len()]));
    let served = Served::new(export.clone());
    let mut monitor = Monitor::start();
    let (image, socket) = (image.display(), served.socket.display());
    monitor.call(
        "blockdev-add",
        &format!(
            r#"{{"driver":"raw","node-name":"disk","file":{{"driver":"file","filename":"{image}"}}}}"#
        ),
    );
    monitor.call(
        "blockdev-add",
        &format!(
            r#"{{"driver":"nbd","node-name":"target","export":"disk",
                "server":{{"type":"unix","path":"{socket}"}}}}"#
        )
        .replace('\n', ""),
    );
    let guest_socket = directory.path().join("guest.sock");
    monitor.call(
        "nbd-server-start",
        &format!(r#"{{"addr":{{"type":"unix","data":{{"path":"{}"}}}}}}"#, guest_socket.display()),
    );
    monitor.call(
        "block-export-add",
        r#"{"type":"nbd","id":"guest","name":"disk","node-name":"disk","writable":true}"#,
    );
    let params = tintype_nbd::ConnectParams::new("disk");
    let mut guest = tintype_nbd::Client::connect(&guest_socket, &params).unwrap();
    monitor.call(
        "blockdev-backup",
        r#"{"job-id":"b","device":"disk","target":"target","sync":"full","speed":2097152}"#,
    );
    // A guest's writes, through the copy-before-write filter that the job has put in.
    let start = Instant::now();
    for offset in 0..64 {
        guest.write_at((16 << 20) - ((offset + 1) << 16), &[85; 64 << 10]).unwrap();
    }
    eprintln!("a write of 64 KiB through the filter took {:?}", start.elapsed() / 64);
    guest.flush().unwrap();
    drop(guest);
    monitor.call("block-job-set-speed", r#"{"device":"b","speed":0}"#);
    monitor.wait_for("BLOCK_JOB_COMPLETED");
    assert!(export.bytes() == bytes);
    drop(monitor);
    let written = std::fs::read(directory.path().join("disk.raw")).unwrap();
    assert!(written[12 << 20..].iter().all(|&byte| byte == 85));
}
