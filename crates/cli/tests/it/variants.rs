//! Take and revert for the kinds of VM and the states of one that the other tests
//! do not have.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu, Verdict};

use crate::identity::Copies;
use crate::subject::{Subject, TEN, VM, WITHIN, is_built, modes};

fn two_disks() -> [Disk; 2] {
    [Disk::blank(Format::Qcow2, 16), Disk::blank(Format::Raw, 16)]
}

#[test]
fn a_paused_guest_stays_paused() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let builder = Guest::of(GuestKind::Tiny).memory_mib(160).disks(two_disks());
    let mut subject = Subject::start(builder);
    let pair = "pair --workers 2 --disk /dev/vda --disk /dev/vdb";
    subject.guest.serial().start_witness("pair", pair, WITHIN).unwrap();
    subject.owner("stop");
    let raw = subject.guest.files().disks()[1].clone();
    let early = fs::read(&raw).unwrap();
    subject.owner("cont");
    subject.must_be_whole();
    subject.owner("stop");
    let taken = subject.take(&["--name", "still"]);
    assert_eq!(taken["pause_ms"], 0.0, "{taken}");
    subject.owner("cont");
    subject.must_be_whole();
    for _ in 0..2 {
        let report = subject.revert("still", &[]);
        assert_eq!(report["state"], "paused", "{report}");
        subject.owner("cont");
        subject.must_be_whole();
    }
    // And that somebody would notice: the disk of another moment, in place, since
    // QEMU has the file open.
    subject.revert("still", &[]);
    overwrite(&raw, &early);
    subject.owner("cont");
    subject.guest.serial().wait_answer(WITHIN).unwrap();
    let answers = subject.guest.serial().ask_witnesses(WITHIN).unwrap();
    assert!(answers.iter().all(|answer| answer.verdict == Verdict::Torn), "{answers:?}");
}

fn overwrite(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
}

#[test]
fn a_powered_off_vm_is_taken_and_put_back() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 16)];
    let mut subject = Subject::start(Guest::of(GuestKind::Tiny).memory_mib(160).disks(disks));
    subject.guest.serial().must_run("echo before >/disk/state; sync", WITHIN);
    subject.power_off();
    let taken = subject.tintype.json(&["take", VM, "--name", "off"]);
    assert_eq!(taken["mode"], "powered-off");
    subject.power_on();
    assert_eq!(subject.guest.serial().must_run("cat /disk/state", WITHIN), "before\n");
    subject.guest.serial().must_run("echo after >/disk/state; sync", WITHIN);
    subject.take(&["--name", "on"]);
    let report = subject.revert("off", &[]);
    assert_eq!(report["state"], "stopped", "{report}");
    subject.power_on();
    assert_eq!(subject.guest.serial().must_run("cat /disk/state", WITHIN), "before\n");
    subject.revert("on", &[]);
    subject.guest.serial().wait_answer(WITHIN).unwrap();
    assert_eq!(subject.guest.serial().must_run("cat /disk/state", WITHIN), "after\n");
    subject.must_be_well();
}

#[test]
fn disks_alone_boot_afresh() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    // QEMU cannot save the memory of a guest with this device (`hw/nvme/ctrl.c`).
    let image = Image::make("nvme", Format::Qcow2);
    let builder = Guest::of(GuestKind::Tiny).memory_mib(160).extra([
        "-blockdev".to_owned(),
        image.node(),
        "-device".to_owned(),
        "nvme,drive=nvme,id=nvme-device,serial=1".to_owned(),
    ]);
    let mut subject = Subject::boot(builder);
    let write = "echo before >/disk/state; sync; echo before | dd of=/dev/nvme0n1 conv=fsync";
    subject.guest.serial().must_run(write, WITHIN);
    let refused = subject.tintype.run(&["take", VM]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("--no-memory"), "{error}");
    subject.take(&["--name", "disks", "--no-memory"]);
    let write = "echo after >/disk/state; sync; echo after | dd of=/dev/nvme0n1 conv=fsync";
    subject.guest.serial().must_run(write, WITHIN);
    let report = subject.revert("disks", &["--no-safety"]);
    assert_eq!(report["state"], "running");
    subject.guest.serial().wait_ready(WITHIN).unwrap();
    let read = "cat /disk/state; head -c 7 /dev/nvme0n1";
    assert_eq!(subject.guest.serial().must_run(read, WITHIN), "before\nbefore\n");
    subject.must_be_well();
}

#[test]
fn firmware_variables_are_a_disk() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    for format in [Format::Qcow2, Format::Raw] {
        let disk = Disk::blank(Format::Qcow2, 16);
        let builder = Guest::of(GuestKind::Tiny).memory_mib(160).disks([disk]).uefi(format);
        let mut subject = Subject::start(builder);
        let pair = "pair --disk /dev/vda";
        subject.guest.serial().start_witness("pair", pair, WITHIN).unwrap();
        subject.owner("stop");
        let variables = format!("variables.{}", format.name());
        let variables = subject.guest.files().folder().join(variables);
        let copies = Copies::of(&[(variables, format)]);
        subject.take(&["--name", "firmware"]);
        subject.power_off();
        copies.spoil();
        subject.revert("firmware", &[]);
        subject.power_off();
        copies.must_equal();
        subject.revert("firmware", &["--no-safety"]);
        subject.owner("cont");
        subject.must_be_whole();
    }
}

#[test]
fn debian_goes_on_where_it_was() {
    if !is_built(GuestKind::Debian) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 16)];
    let mut subject = Subject::start(Guest::of(GuestKind::Debian).disks(disks));
    subject.guest.serial().start_witness("pair", "pair --disk /dev/vdb", WITHIN).unwrap();
    let make = "sqlite3 base 'create table t(n); insert into t values (1)'; echo 1 >/run/n";
    subject.guest.serial().must_run(make, WITHIN);
    subject.take(&["--name", "good"]);
    let spoil = "sqlite3 base 'insert into t values (2)'; echo 2 >/run/n; rm -rf /usr/share";
    subject.guest.serial().must_run(spoil, WITHIN);
    subject.revert("good", &[]);
    subject.must_be_whole();
    let ask = "sqlite3 base 'select * from t; pragma integrity_check'; cat /run/n; \
               ls -d /usr/share/doc; systemctl --failed --quiet | wc -l";
    let answer = subject.guest.serial().must_run(ask, WITHIN);
    assert_eq!(answer, "1\nok\n1\n/usr/share/doc\n0\n");
}

#[test]
fn disks_behind_every_kind_of_device() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let system = Qemu::system().unwrap();
    let older = Qemu::all().into_iter().filter(|qemu| *qemu != system);
    let kinds = [("q35", system.clone()), ("pc", system.clone())];
    for (machine, qemu) in kinds.into_iter().chain(older.map(|qemu| ("q35", qemu))) {
        eprintln!("{machine} on QEMU {}", qemu.release());
        check_devices(machine, qemu);
    }
}

/// A disk of each kind that can be saved: virtio, virtio in an I/O thread where
/// QEMU can do that, SCSI and IDE. The guest has no driver for the last one; the
/// host looks after that.
fn check_devices(machine: &str, qemu: Qemu) {
    let images = [
        Image::make("thread", Format::Raw),
        Image::make("scsi", Format::Qcow2),
        Image::make("ide", Format::Raw),
    ];
    let mut extra = Vec::new();
    let thread = "virtio-blk-pci,drive=thread,id=thread-device";
    let in_thread = format!("{thread},iothread=io");
    let has_thread = qemu.release() >= TEN;
    if has_thread {
        extra.extend(["-object".to_owned(), "iothread,id=io".to_owned()]);
    }
    for (image, device) in images.iter().zip([
        if has_thread { &in_thread } else { thread },
        "scsi-hd,drive=scsi,id=scsi-device,bus=scsi-bus.0",
        "ide-hd,drive=ide,id=ide-device,bus=ide.0",
    ]) {
        if image.name == "scsi" {
            extra.extend(["-device".to_owned(), "virtio-scsi-pci,id=scsi-bus".to_owned()]);
        }
        let words = ["-blockdev".to_owned(), image.node(), "-device".to_owned(), device.to_owned()];
        extra.extend(words);
    }
    let disk = Disk::blank(Format::Qcow2, 16);
    let modes = modes(&qemu);
    let builder = Guest::of(GuestKind::Tiny).qemu(qemu).machine(machine).memory_mib(160);
    let mut subject = Subject::boot(builder.disks([disk]).extra(extra));
    let pair = "pair --workers 2 --disk /dev/vda --disk /dev/sda";
    subject.guest.serial().start_witness("pair", pair, WITHIN).unwrap();
    // Seldom, since QEMU can lose the end of a request that is under way in an I/O
    // thread when it pauses the guest (`Abilities::io_threads`).
    let seldom = "pair --slot 8 --interval-us 50000 --disk /dev/vdb --disk /dev/vda";
    subject.guest.serial().start_witness("seldom", seldom, WITHIN).unwrap();
    for mode in modes {
        subject.take(&["--name", mode, "--mode", mode]);
        subject.must_be_whole();
        subject.revert(mode, &["--no-safety"]);
        subject.must_be_whole();
    }
    subject.owner("stop");
    let copies: Vec<_> = images.iter().map(|image| (image.path.clone(), image.format)).collect();
    let copies = Copies::of(&copies);
    subject.take(&["--name", "last"]);
    subject.power_off();
    copies.spoil();
    subject.revert("last", &["--no-safety"]);
    subject.power_off();
    copies.must_equal();
}

#[test]
fn an_io_thread_is_refused_where_it_would_end_qemu() {
    let qemu = match Qemu::seven_two() {
        Ok(qemu) => qemu,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let builder = Guest::of(GuestKind::Tiny).qemu(qemu).memory_mib(160).disks(two_disks());
    let mut subject = Subject::start(builder.extra(["-object", "iothread,id=io"]));
    let refused = subject.tintype.run(&["take", VM]);
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && error.contains("I/O thread"), "{error}");
    subject.guest.serial().must_run("true", WITHIN);
    subject.must_be_unchanged();
}

/// An image of 16 MiB that a test puts into a guest by arguments of its own.
struct Image {
    name: &'static str,
    format: Format,
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Image {
    fn make(name: &'static str, format: Format) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", format.name()]).arg(&path).arg("16M");
        assert!(command.status().unwrap().success(), "qemu-img makes {}", path.display());
        Self { name, format, path, _folder: folder }
    }

    /// Returns the value of `-blockdev`.
    fn node(&self) -> String {
        format!(
            "driver={},node-name={},file.driver=file,file.filename={}",
            self.format.name(),
            self.name,
            self.path.display()
        )
    }
}
