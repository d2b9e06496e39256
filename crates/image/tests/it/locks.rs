//! An image that someone else uses is refused, with the reason.

use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tintype_image::{ErrorKind, ImageSpec};

use crate::tools::{Place, QEMU, format, place, users};

/// A VM with a disk; it is killed with its scope.
struct Vm(Child);

impl Vm {
    fn start(place: &Place, name: &str, path: &std::path::Path) -> Self {
        let disk = format!("driver={name},node-name=disk,file.driver=file,file.filename={}", {
            path.display()
        });
        let ready = place.path("ready");
        let child = Command::new(QEMU)
            .args(["-S", "-display", "none", "-nodefaults", "-no-user-config", "-accel", "tcg"])
            .args(["-blockdev", &disk, "-device", "virtio-blk-pci,drive=disk", "-pidfile"])
            .arg(&ready)
            .spawn()
            .unwrap();
        let vm = Self(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !(ready.exists() && users(path).contains(&vm.0.id())) {
            assert!(Instant::now() < deadline, "the VM does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        // It is ready when it has its locks, which it takes after it opens the disk.
        std::thread::sleep(Duration::from_millis(300));
        vm
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_of_a_running_vm_is_refused() {
    let Some(place) = place() else { return };
    for name in ["raw", "qcow2"] {
        let path = place.create(name, name, &["4M"]);
        let vm = Vm::start(&place, name, &path);
        for spec in
            [ImageSpec::read_only(&path, format(name)), ImageSpec::writable(&path, format(name))]
        {
            let access = spec.access;
            let error = place.open(spec).err().unwrap_or_else(|| panic!("{name} {access:?}"));
            assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
            assert!(error.to_string().contains("is in use by another process"), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        drop(vm);
        place.open(ImageSpec::writable(&path, format(name))).unwrap().close().unwrap();
        let _ = std::fs::remove_file(place.path("ready"));
    }
    place.assert_tidy();
}

#[test]
fn a_vm_cannot_start_on_an_image_that_we_have() {
    let Some(place) = place() else { return };
    for name in ["raw", "qcow2"] {
        let path = place.create(name, name, &["4M"]);
        for spec in
            [ImageSpec::read_only(&path, format(name)), ImageSpec::writable(&path, format(name))]
        {
            let host = place.open(spec).unwrap();
            let disk = format!("driver={name},file.driver=file,file.filename={}", path.display());
            let output = Command::new("qemu-io")
                .args(["-c", "write 0 512", "--image-opts", &disk])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("lock"), "{said}");
            host.close().unwrap();
        }
    }
}

#[test]
fn readers_share_and_writers_do_not() {
    let Some(place) = place() else { return };
    for name in ["raw", "qcow2"] {
        let path = place.create(name, name, &["4M"]);
        let read = || ImageSpec::read_only(&path, format(name));
        let write = || ImageSpec::writable(&path, format(name));
        let first = place.open(read()).unwrap();
        let second = place.open(read()).unwrap();
        assert_eq!(place.open(write()).err().unwrap().kind(), ErrorKind::InUse);
        first.close().unwrap();
        second.close().unwrap();
        let first = place.open(write()).unwrap();
        assert_eq!(place.open(write()).err().unwrap().kind(), ErrorKind::InUse);
        assert_eq!(place.open(read()).err().unwrap().kind(), ErrorKind::InUse);
        first.close().unwrap();
    }
}
