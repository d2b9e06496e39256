//! A revert puts back every byte of every disk, whatever the guest or anybody else
//! has done to it since. Judged by `qemu-img` and by the files themselves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tintype_testkit::{Disk, Format, Guest, GuestKind};

use crate::subject::{Subject, WITHIN, is_built, modes};

/// Copies of disk images, to compare with what becomes of them.
pub(crate) struct Copies(Vec<(PathBuf, Format)>);

impl Copies {
    /// Copies images of which nobody writes one now: the guest is paused, which
    /// flushes, or its QEMU has ended.
    pub(crate) fn of(images: &[(PathBuf, Format)]) -> Self {
        for (image, _) in images {
            fs::copy(image, copy(image)).unwrap();
        }
        Self(images.to_vec())
    }

    /// Compares the images, which no QEMU uses now, with the copies.
    pub(crate) fn must_equal(&self) {
        for (image, format) in &self.0 {
            let name = format.name();
            let copy = copy(image);
            tool(&["compare", "-f", name, "-F", name], &[image, &copy]);
            match format {
                Format::Qcow2 => tool(&["check", "-q", "-f", name], &[image]),
                Format::Raw => assert!(
                    fs::read(image).unwrap() == fs::read(&copy).unwrap(),
                    "{} is not what it was",
                    image.display()
                ),
            }
        }
    }

    /// Writes over the beginning, the middle and the end of the images, which no
    /// QEMU uses now.
    pub(crate) fn spoil(&self) {
        for (image, format) in &self.0 {
            let mut command = Command::new("qemu-io");
            command.args(["-f", format.name()]).arg(image);
            for place in ["0 64k", "300k 5k", "512k 4k"] {
                command.args(["-c", &format!("write -q -P 0xa5 {place}")]);
            }
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.is_empty(), "qemu-io: {said} {output:?}");
        }
    }
}

fn copy(image: &Path) -> PathBuf {
    image.with_extension("copy")
}

fn tool(arguments: &[&str], images: &[&Path]) {
    let output = Command::new("qemu-img").args(arguments).args(images).output().unwrap();
    assert!(output.status.success(), "qemu-img {arguments:?}: {output:?}");
}

#[test]
fn a_revert_puts_back_every_byte() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 64)];
    let mut subject = Subject::start(Guest::of(GuestKind::Tiny).memory_mib(160).disks(disks));
    let images = subject.guest.files().disks().to_vec();
    let images: Vec<_> = images.into_iter().zip([Format::Qcow2, Format::Raw]).collect();
    let serial = subject.guest.serial();
    serial.start_witness("pair", "pair --workers 2 --disk /dev/vdb", WITHIN).unwrap();
    for mode in modes(subject.guest.files().qemu()) {
        let fill = "dd if=/dev/urandom of=/disk/noise bs=64k count=40 2>/dev/null; sync; \
                    dd if=/dev/urandom of=/dev/vdb bs=64k seek=300 count=40 2>/dev/null";
        subject.guest.serial().must_run(fill, WITHIN);
        subject.owner("stop");
        let copies = Copies::of(&images);
        subject.take(&["--name", mode, "--mode", mode]);
        subject.owner("cont");
        let change = "rm /disk/noise; echo new >/disk/new; sync; fstrim /disk; \
                      dd if=/dev/zero of=/dev/vdb bs=64k seek=310 count=20 2>/dev/null; \
                      dd if=/dev/urandom of=/dev/vdb bs=1k seek=40001 count=77 2>/dev/null; sync";
        subject.guest.serial().must_run(change, WITHIN);
        let report = subject.revert(mode, &[]);
        assert_eq!(report["state"], "paused");
        subject.power_off();
        copies.must_equal();
        copies.spoil();
        subject.revert(mode, &["--no-safety"]);
        subject.power_off();
        copies.must_equal();
        let report = subject.revert(mode, &["--no-safety"]);
        assert_eq!(report["written_bytes"], 0, "nothing had changed");
        subject.owner("cont");
        subject.must_be_whole();
    }
}
