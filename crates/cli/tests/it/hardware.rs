//! Hardware that has changed since QEMU started is in the snapshot, or the take is
//! refused and says what stands in the way.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_testkit::{Disk, Error, Format, Guest, GuestKind, Qemu};

use crate::bare_vm::{BareVm, image_tool};
use crate::subject::{Subject, TEN, WITHIN, is_built};

const SIZE: u64 = 8 << 20;

/// Starts a VM that things can be plugged into.
fn start(qemu: &Qemu) -> BareVm {
    BareVm::start_with(qemu, SIZE, |folder| {
        for name in ["sa", "sb", "hot", "hot-scsi", "older", "newer", "cd1", "cd2", "over"] {
            image_tool(&["create", "-q", "-f", "raw"], &[&folder.join(name)], &["4M"]);
        }
        let place = folder.display();
        let line = format!(
            "-m slots=2,maxmem=1G -smp 1,maxcpus=2 -chardev null,id=c0 -netdev user,id=n0 \
             -device virtio-scsi-pci,id=scsi \
             -drive if=none,id=sa,format=raw,file={place}/sa -device scsi-hd,id=sa-device,drive=sa \
             -drive if=none,id=sb,format=raw,file={place}/sb -device scsi-hd,id=sb-device,drive=sb \
             -drive if=none,id=cd,media=cdrom,format=raw,file={place}/cd1 \
             -device ide-cd,id=cd-device,drive=cd"
        );
        line.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect()
    })
}

/// Plugs one device of each kind of which QEMU tells all.
fn plug_all(vm: &BareVm, qemu: &Qemu) {
    plug_disk(vm, "hot", "hot");
    plug_disk(vm, "hot-scsi-node", "hot-scsi");
    plug_disk(vm, "older-node", "older");
    plug_disk(vm, "newer-node", "newer");
    let processors = vm.qmp("query-hotpluggable-cpus", json!({}));
    let free = processors.as_array().unwrap().iter().find(|one| one["qom-path"].is_null()).unwrap();
    let mut processor = free["props"].clone();
    processor["driver"] = free["type"].clone();
    processor["id"] = "processor".into();
    vm.qmp(
        "object-add",
        json!({"qom-type": "memory-backend-ram", "id": "more", "size": 128 << 20}),
    );
    let mut disk =
        json!({"driver": "virtio-blk-pci", "id": "hot-device", "drive": "hot", "serial": "H,1"});
    if qemu.release() >= TEN {
        vm.qmp("object-add", json!({"qom-type": "iothread", "id": "io"}));
        disk["iothread"] = "io".into();
    }
    for device in [
        disk,
        json!({"driver": "virtio-net-pci", "id": "nic", "netdev": "n0"}),
        json!({"driver": "e1000", "id": "old-nic", "romfile": ""}),
        json!({"driver": "e1000e", "id": "new-nic"}),
        json!({"driver": "virtio-scsi-pci-non-transitional", "id": "bus"}),
        json!({"driver": "virtio-blk-pci-transitional", "id": "older", "drive": "older-node"}),
        json!({"driver": "virtio-blk-pci-non-transitional", "id": "newer", "drive": "newer-node"}),
        json!({"driver": "virtio-net-pci-transitional", "id": "older-nic"}),
        json!({"driver": "virtio-net-pci-non-transitional", "id": "newer-nic"}),
        json!({"driver": "virtio-rng-pci-transitional", "id": "older-rng"}),
        json!({"driver": "virtio-scsi-pci-transitional", "id": "older-bus"}),
        json!({"driver": "virtio-serial-pci-transitional", "id": "older-serial"}),
        json!({"driver": "virtio-serial-pci-non-transitional", "id": "newer-serial"}),
        json!({"driver": "scsi-hd", "id": "hot-scsi", "drive": "hot-scsi-node", "bus": "bus.0"}),
        json!({"driver": "scsi-cd", "id": "tray", "bus": "bus.0"}),
        json!({"driver": "virtio-balloon-pci"}),
        json!({"driver": "virtio-rng-pci", "id": "rng"}),
        json!({"driver": "virtio-serial-pci", "id": "serial"}),
        json!({"driver": "virtserialport", "id": "port", "bus": "serial.0", "chardev": "c0", "name": "a.port"}),
        json!({"driver": "virtconsole", "id": "console", "bus": "serial.0"}),
        json!({"driver": "pc-dimm", "id": "dimm", "memdev": "more"}),
        processor,
    ] {
        vm.qmp("device_add", device);
    }
}

fn plug_disk(vm: &BareVm, node: &str, file: &str) {
    let file = json!({"driver": "file", "filename": vm.path(file)});
    vm.qmp("blockdev-add", json!({"driver": "raw", "node-name": node, "file": file}));
}

/// Returns all devices that were asked for, with where they are.
fn devices(vm: &BareVm) -> Vec<String> {
    let mut devices = Vec::new();
    for place in ["/machine/peripheral", "/machine/peripheral-anon"] {
        for entry in vm.qmp("qom-list", json!({"path": place})).as_array().unwrap() {
            let name = entry["name"].as_str().unwrap();
            if !entry["type"].as_str().unwrap().starts_with("child<") {
                continue;
            }
            let mut device = format!("{name} {}", entry["type"]);
            let path = format!("{place}/{name}");
            let properties = vm.qmp("qom-list", json!({"path": path}));
            for property in properties.as_array().unwrap() {
                let name = property["name"].as_str().unwrap();
                let telling =
                    ["parent_bus", "addr", "scsi-id", "lun", "mac", "serial", "size", "slot", "nr"];
                if telling.contains(&name) {
                    let value = vm.qmp("qom-get", json!({"path": path, "property": name}));
                    device += &format!(" {name}={value}");
                }
            }
            devices.push(device);
        }
    }
    devices.sort();
    devices
}

fn on_each_qemu(check: fn(&Qemu)) {
    for qemu in [Qemu::system(), Qemu::seven_two()] {
        match qemu {
            Ok(qemu) => {
                eprintln!("QEMU {}", qemu.release());
                check(&qemu);
            }
            Err(error @ Error::NoQemu { .. }) => eprintln!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        }
    }
}

fn take(vm: &BareVm, name: &str) -> String {
    let output = vm.tintype.run(&["take", "web", "--name", name]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

#[test]
fn what_was_plugged_is_there_after_a_revert() {
    on_each_qemu(|qemu| {
        let vm = start(qemu);
        let first = devices(&vm);
        assert!(!take(&vm, "first").contains("since QEMU started"));
        plug_all(&vm, qemu);
        vm.io_at("/machine/peripheral/hot-device/virtio-backend", "write -P 7 0 1M");
        vm.io_at("/machine/peripheral/hot-scsi", "write -P 8 0 1M");
        vm.io_at("/machine/peripheral/older/virtio-backend", "write -P 9 0 1M");
        let plugged = devices(&vm);
        let said = take(&vm, "plugged");
        assert!(said.contains("the device `dimm` was added"), "{said}");
        let shown = vm.tintype.json(&["show", "web@plugged"]);
        assert_eq!(shown["details"]["disks"].as_array().unwrap().len(), 8, "{shown}");

        vm.tintype.json(&["revert", "web", "first"]);
        assert_eq!(devices(&vm), first);
        vm.tintype.json(&["revert", "web", "safety1"]);
        assert_eq!(devices(&vm), plugged, "what a revert has overwritten");
        vm.io_at("/machine/peripheral/hot-device/virtio-backend", "write -P 1 0 1M");
        vm.io_at("/machine/peripheral/older/virtio-backend", "write -P 1 0 1M");
        vm.tintype.json(&["revert", "web", "plugged", "--no-safety"]);
        assert_eq!(devices(&vm), plugged);
        must_begin_with(&vm.path("hot"), 7);
        must_begin_with(&vm.path("hot-scsi"), 8);
        must_begin_with(&vm.path("older"), 9);
        assert!(!take(&vm, "again").contains("since QEMU started"));
        let cloned = vm.tintype.json(&["clone", "web@plugged", "twin"]);
        assert_eq!(cloned["vms"][0]["state"], "running", "{cloned}");
        vm.tintype.json(&["vm", "stop", "twin", "--force"]);
    });
}

#[test]
fn what_its_owner_starts_it_with_counts() {
    let Ok(qemu) = Qemu::system() else { return };
    let vm = start(&qemu);
    take(&vm, "first");
    let before = vm.tintype.json(&["vm", "show", "web"]);
    vm.qmp("quit", json!({}));
    while vm.tintype.json(&["vm", "show", "web"])["state"] != "stopped" {
        sleep(Duration::from_millis(10));
    }

    let line = &before["command_line"];
    let arguments = line["arguments"].as_array().unwrap();
    let mut owner = Command::new(line["program"].as_str().unwrap())
        .args(arguments.iter().map(|argument| argument.as_str().unwrap()))
        .args(["-device", "virtio-rng-pci,id=new"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    while vm.tintype.json(&["vm", "show", "web"])["state"] != "running" {
        sleep(Duration::from_millis(10));
    }
    let shown = vm.tintype.json(&["vm", "show", "web"]);
    assert_eq!(shown["pid"], owner.id(), "{shown}");
    let given = shown["command_line"]["arguments"].as_array().unwrap();
    assert_eq!(given.last().unwrap(), "virtio-rng-pci,id=new", "{shown}");
    let now = devices(&vm);
    assert!(!take(&vm, "second").contains("since QEMU started"));
    vm.tintype.json(&["revert", "web", "first"]);
    owner.wait().unwrap();
    vm.tintype.json(&["revert", "web", "second", "--no-safety"]);
    assert_eq!(devices(&vm), now);
}

#[test]
fn what_was_unplugged_stays_away_and_the_rest_in_its_place() {
    on_each_qemu(|qemu| {
        let vm = start(qemu);
        take(&vm, "first");
        vm.qmp("device_del", json!({"id": "sa-device"}));
        fs::remove_file(vm.path("sa")).unwrap();
        let left = devices(&vm);
        let said = take(&vm, "left");
        assert!(said.contains("the device `sa-device` was removed"), "{said}");
        vm.tintype.json(&["revert", "web", "left", "--no-safety"]);
        assert_eq!(devices(&vm), left, "SCSI and PCI addresses are as they were");
        let output = vm.tintype.run(&["revert", "web", "first"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{errors}");
        assert!(errors.contains("the file of the disk `sa-device`"), "{errors}");
        // While a snapshot is taken it is too late.
        let (hold, said) = (vm.path("hold"), vm.path("said"));
        let mut command = vm.tintype.command();
        command.args(["take", "web"]).stderr(File::create(&said).unwrap());
        command.env("TINTYPE_TEST_FAULT", format!("take-resumed:{}", hold.display()));
        let mut taking = command.spawn().unwrap();
        let deadline = Instant::now() + WITHIN;
        while !hold.exists() {
            assert!(Instant::now() < deadline, "it does not come to that");
            sleep(Duration::from_millis(5));
        }
        vm.qmp("eject", json!({"id": "cd-device"}));
        fs::remove_file(&hold).unwrap();
        assert_eq!(taking.wait().unwrap().code(), Some(1));
        let said = fs::read_to_string(said).unwrap();
        assert!(said.contains("was changed while the snapshot was taken"), "{said}");
        // Another one under its name.
        plug_disk(&vm, "other", "hot");
        vm.qmp(
            "device_add",
            json!({"driver": "scsi-hd", "id": "sa-device", "drive": "other", "bus": "scsi.0"}),
        );
        let other = devices(&vm);
        take(&vm, "other");
        vm.tintype.json(&["revert", "web", "other", "--no-safety"]);
        assert_eq!(devices(&vm), other);
    });
}

#[test]
fn a_drive_has_the_medium_of_the_instant() {
    on_each_qemu(|qemu| {
        let vm = start(qemu);
        let medium = || medium_of(&vm, "cd-device");
        take(&vm, "one");
        let change = json!({"id": "cd-device", "filename": vm.path("cd2"), "format": "raw"});
        vm.qmp("blockdev-change-medium", change);
        assert!(take(&vm, "two").contains("cd2 now"));
        vm.qmp("eject", json!({"id": "cd-device"}));
        assert!(take(&vm, "none").contains("the drive `cd-device` is empty now"));
        for (name, expected) in [("one", "cd1"), ("none", ""), ("two", "cd2")] {
            vm.tintype.json(&["revert", "web", name, "--no-safety"]);
            assert_eq!(medium(), expected);
        }
        // One that is another by now, or gone.
        fs::write(vm.path("cd1"), vec![1; 4 << 20]).unwrap();
        let refused = |arguments: &[&str], why: &str| {
            let output = vm.tintype.run(arguments);
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(4), "{errors}");
            assert!(errors.contains(why) && errors.contains("--ignore-media"), "{errors}");
        };
        refused(&["revert", "web", "one"], "cd1, is another one now");
        vm.tintype.json(&["revert", "web", "one", "--no-safety", "--ignore-media"]);
        assert_eq!(medium(), "cd1");
        fs::remove_file(vm.path("cd1")).unwrap();
        let restored = vm.path("restored");
        refused(&["revert", "web", "one"], "cd1: No such file");
        refused(&["clone", "web@one", "twin"], "cd1: No such file");
        refused(&["restore", "web@one", "--to", restored.to_str().unwrap()], "cd1: No such file");
        let output = vm.tintype.run(&["--json", "verify", "web@one", "--boot"]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("booted"), "{output:?}");
        vm.tintype.json(&["revert", "web", "one", "--ignore-media"]);
        assert_eq!(medium(), "", "an empty drive");
        // A disk that another image has taken over, as an external snapshot does.
        let over = vm.path("over.qcow2");
        vm.qmp(
            "blockdev-snapshot-sync",
            json!({"node-name": "node-da", "snapshot-file": over, "format": "qcow2", "snapshot-node-name": "over"}),
        );
        vm.io("da", "write -P 5 0 1M");
        assert!(take(&vm, "over").contains("the drive `da` has the image"));
        vm.io("da", "write -P 6 0 1M");
        vm.tintype.json(&["revert", "web", "over"]);
        let raw = vm.path("raw");
        image_tool(&["convert", "-U", "-f", "qcow2", "-O", "raw"], &[&over, &raw], &[]);
        must_begin_with(&raw, 5);
        assert_eq!(medium_of(&vm, "da"), "over.qcow2");
        // And a larger one.
        take(&vm, "small");
        vm.resize("db", 2 * SIZE);
        vm.tintype.json(&["revert", "web", "small"]);
        assert_eq!(fs::metadata(vm.image("db")).unwrap().len(), SIZE);
        vm.tintype.json(&["revert", "web", "latest"]);
        assert_eq!(fs::metadata(vm.image("db")).unwrap().len(), 2 * SIZE);
    });
}

/// Asserts what the first MiB of an image is filled with.
fn must_begin_with(image: &Path, pattern: u8) {
    let bytes = fs::read(image).unwrap();
    assert!(bytes[..1 << 20].iter().all(|byte| *byte == pattern), "{}", image.display());
}

/// Returns the name of the file in a drive.
fn medium_of(vm: &BareVm, device: &str) -> String {
    let drives = vm.qmp("query-block", json!({}));
    let is_its = |drive: &&Value| drive["qdev"].as_str().is_some_and(|qdev| qdev.contains(device));
    let drive = drives.as_array().unwrap().iter().find(is_its).unwrap();
    let file = drive["inserted"]["image"]["filename"].as_str().unwrap_or_default();
    Path::new(file).file_name().unwrap_or_default().to_str().unwrap().to_owned()
}

#[test]
fn what_qemu_does_not_tell_is_refused_by_name() {
    on_each_qemu(|qemu| {
        let vm = start(qemu);
        vm.qmp("device_add", json!({"driver": "qemu-xhci", "id": "usb"}));
        vm.qmp("netdev_add", json!({"type": "user", "id": "n1"}));
        vm.qmp("device_add", json!({"driver": "e1000", "id": "nic", "netdev": "n1"}));
        plug_disk(&vm, "hot", "hot");
        vm.qmp(
            "device_add",
            json!({"driver": "virtio-blk-pci", "id": "hot-device", "drive": "hot"}),
        );
        let output = vm.tintype.run(&["take", "web"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{errors}");
        for word in ["`usb` (qemu-xhci)", "the network `n1`", "--no-memory", "nothing was changed"]
        {
            assert!(errors.contains(word), "`{word}` is not in {errors}");
        }
        let output = vm.tintype.run(&["take", "web", "--no-memory", "--name", "disks"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("not all of the hardware"), "{said}");
        vm.tintype.json(&["take", "web", "--no-memory", "--exclude-disk", "hot-device"]);
        // The safety snapshot has the disks alone, too.
        vm.tintype.json(&["revert", "web", "disks"]);
        let kinds = devices(&vm).join("\n");
        assert!(kinds.contains("hot-device") && !kinds.contains("xhci"), "{kinds}");
        assert_eq!(vm.tintype.json(&["show", "web@safety1"])["details"]["memory"], json!([]));
    });
}

#[test]
fn a_guest_finds_what_it_had() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    on_each_qemu(|qemu| {
        let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 16)];
        let builder = Guest::of(GuestKind::Tiny).qemu(qemu.clone()).memory_mib(128).disks(disks);
        let builder = builder.extra(["-device", "pcie-root-port,id=port1,chassis=1"]);
        let mut subject = Subject::start(builder);
        let pair = "pair --workers 2 --disk /dev/vdb";
        subject.guest.serial().start_witness("pair", pair, WITHIN).unwrap();
        let image = subject.guest.files().folder().join("hot.qcow2");
        image_tool(&["create", "-q", "-f", "qcow2"], &[&image], &["16M"]);
        let mut qmp = subject.guest.qmp().unwrap();
        let file = json!({"driver": "file", "filename": image});
        let node = json!({"driver": "qcow2", "node-name": "hot", "file": file});
        qmp.execute("blockdev-add", node).unwrap();
        let device =
            json!({"driver": "virtio-blk-pci", "id": "hot-device", "drive": "hot", "bus": "port1"});
        qmp.execute("device_add", device).unwrap();
        drop(qmp);
        let write = "until [ -b /dev/vdc ]; do sleep 0.1; done; \
                     echo hot | dd of=/dev/vdc conv=fsync 2>/dev/null";
        subject.guest.serial().must_run(write, WITHIN);
        subject.tintype.json(&["take", "web", "--name", "with"]);
        let write = "echo cold | dd of=/dev/vdc conv=fsync 2>/dev/null";
        subject.guest.serial().must_run(write, WITHIN);

        let mut qmp = subject.guest.qmp().unwrap();
        qmp.execute("device_del", json!({"id": "hot-device"})).unwrap();
        drop(qmp);
        let wait = "while [ -b /dev/vdc ]; do sleep 0.1; done";
        subject.guest.serial().must_run(wait, WITHIN);
        let deadline = Instant::now() + WITHIN;
        // The node is let go of when the device is.
        loop {
            let mut qmp = subject.guest.qmp().unwrap();
            if qmp.execute("blockdev-del", json!({"node-name": "hot"})).is_ok() {
                break;
            }
            assert!(Instant::now() < deadline, "the device is not unplugged");
            sleep(Duration::from_millis(20));
        }
        subject.tintype.json(&["take", "web", "--name", "without"]);
        let read = "[ -b /dev/vdc ] && head -c 4 /dev/vdc; true";
        for (name, mode, expected) in
            [("with", "--lazy", "hot\n"), ("without", "--eager", ""), ("with", "--eager", "hot\n")]
        {
            subject.guest.serial().disconnect();
            subject.tintype.json(&["revert", "web", name, mode]);
            subject.wait_loaded();
            subject.must_be_whole();
            let found = subject.guest.serial().must_run(read, WITHIN);
            assert_eq!(found, expected, "{name}");
        }
    });
}
