//! QEMU ends when it should, and what that means is said.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tintype_image::{ErrorKind, HostConfig, ImageHost, ImageSpec};

use crate::tools::{format, place, run, users};

/// Tells a test process that it is the one to be killed, and where its image is.
const VICTIM: &str = "TINTYPE_IMAGE_TEST_VICTIM";

#[test]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM) else { return };
    let directory = Path::new(&directory);
    let config = HostConfig::new(Path::new("qemu-system-x86_64"), directory);
    let spec = ImageSpec::writable(&directory.join("disk"), format("qcow2"));
    let host = ImageHost::open(&config, &[spec]).unwrap();
    println!("\nvictim ready");
    loop {
        host.image(0).write_at(0, &[1; 65_536]).unwrap();
    }
}

#[test]
fn a_killed_owner_leaves_no_qemu() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["4M"]);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifetime::victim", "--nocapture"])
        .env(VICTIM, place.directory())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ready = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .any(|line| line.unwrap() == "victim ready");
    assert!(ready);
    assert_eq!(users(&path).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    while !users(&path).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "QEMU outlives its owner");
        std::thread::sleep(Duration::from_millis(1));
    }
    eprintln!("QEMU was gone {:?} after its owner was killed", start.elapsed());
    while std::fs::read_dir(place.directory()).unwrap().count() > 1 {
        assert!(start.elapsed() < Duration::from_secs(10), "the private directory is left");
        std::thread::sleep(Duration::from_millis(1));
    }
    place.open(ImageSpec::writable(&path, format("qcow2"))).unwrap().close().unwrap();
}

#[test]
fn the_thread_that_opens_may_end() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["4M"]);
    let spec = ImageSpec::writable(&path, format("qcow2"));
    let config = place.config();
    let host = std::thread::spawn(move || ImageHost::open(&config, &[spec])).join().unwrap();
    let host = host.unwrap();
    host.image(0).write_at(0, &[1]).unwrap();
    host.close().unwrap();
}

#[test]
fn a_dropped_host_leaves_nothing() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["4M"]);
    let host = place.open(ImageSpec::writable(&path, format("qcow2"))).unwrap();
    let mode = std::fs::read_dir(place.directory())
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| entry.file_name().to_str().unwrap().starts_with("image-"))
        .map(|entry| {
            std::os::unix::fs::PermissionsExt::mode(&entry.metadata().unwrap().permissions())
        });
    assert_eq!(mode.unwrap() & 0o777, 0o700);
    drop(host);
    assert!(users(&path).is_empty());
    place.assert_tidy();
}

#[test]
fn a_qemu_that_dies_is_an_error_and_no_hang() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["4M"]);
    let host = place.open(ImageSpec::writable(&path, format("qcow2"))).unwrap();
    host.image(0).write_at(0, &[1]).unwrap();
    let user = users(&path)[0];
    assert!(seccomp_of(user), "it runs in a sandbox");
    run("kill", &["-KILL", &user.to_string()]);
    let error = host.image(0).write_at(0, &[1]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Access, "{error}");
    let error = host.close().unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Qemu | ErrorKind::Access), "{error}");
    place.assert_tidy();
}

fn seccomp_of(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().any(|line| line == "Seccomp:\t2")
}

#[test]
fn a_bad_program_is_an_error_at_once() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["4M"]);
    let start = Instant::now();
    for program in ["/nowhere/qemu", "/bin/false", "/bin/echo", "no-such-program"] {
        let config = HostConfig::new(Path::new(program), place.directory());
        let spec = ImageSpec::read_only(&path, format("qcow2"));
        let error = ImageHost::open(&config, &[spec]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Qemu, "{program}: {error}");
    }
    let config = HostConfig::new(Path::new("/bin/cat"), Path::new("/nowhere"));
    let error = ImageHost::open(&config, &[]).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Qemu, "{error}");
    assert!(start.elapsed() < Duration::from_secs(10));
    place.assert_tidy();
}

#[test]
fn the_directory_may_be_deep() {
    let Some(place) = place() else { return };
    let path = place.create("disk", "qcow2", &["4M"]);
    let deep = place.path(&"x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    let config = HostConfig { runtime_directory: deep, ..place.config() };
    let spec = ImageSpec::read_only(&path, format("qcow2"));
    let host = ImageHost::open(&config, &[spec]).unwrap();
    host.image(0).read_at(0, &mut [0; 512]).unwrap();
    host.close().unwrap();
}
