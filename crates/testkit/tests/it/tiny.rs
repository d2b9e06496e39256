//! The tiny guest.

use std::time::{Duration, Instant};

use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu};

use crate::is_built;

const WITHIN: Duration = Duration::from_secs(30);

#[test]
fn it_boots_and_answers() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let start = Instant::now();
    let mut guest = Guest::of(GuestKind::Tiny).boot().unwrap();
    eprintln!("tiny: ready after {:.1?}", start.elapsed());
    let serial = guest.serial();
    assert_eq!(serial.must_run("cat /disk/hello | wc -l", WITHIN), "1\n");
    let answer = serial.run("echo out; echo err >&2; printf end; exit 3", WITHIN).unwrap();
    assert_eq!((answer.status, answer.output.as_str()), (3, "out\nerr\nend"));
    assert_eq!(
        serial.must_run("seq 1000 | tail -1; dmesg | grep -c .", WITHIN).lines().next(),
        Some("1000")
    );
    serial.must_run("(sleep 1; echo woke >/tmp/woke) >/dev/null 2>&1 &", Duration::from_secs(1));
    assert_eq!(serial.must_run("sleep 2; cat /tmp/woke", WITHIN), "woke\n");
    serial.disconnect();
    serial.wait_answer(WITHIN).unwrap();
}

#[test]
fn it_takes_any_number_of_disks() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let sizes = "cat /sys/class/block/vd?/size";
    let mut none = Guest::of(GuestKind::Tiny).disks([]).boot().unwrap();
    assert_ne!(none.serial().run(sizes, WITHIN).unwrap().status, 0);
    drop(none);
    let disks =
        [Disk::blank(Format::Raw, 8), Disk::system(Format::Raw), Disk::blank(Format::Qcow2, 16)];
    let mut three = Guest::of(GuestKind::Tiny).disks(disks).uefi(Format::Qcow2).boot().unwrap();
    assert_eq!(three.serial().must_run(sizes, WITHIN), "16384\n131072\n32768\n");
    assert_eq!(three.files().disks().len(), 3);
    three.serial().must_run(
        "mount -t ext4 /dev/vdb /mnt || (mkdir -p /mnt && mount -t ext4 /dev/vdb /mnt)",
        WITHIN,
    );
}

#[test]
fn it_starts_where_it_was_saved() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    for qemu in Qemu::all() {
        let release = qemu.release();
        let guest = || Guest::of(GuestKind::Tiny).memory_mib(160).qemu(qemu.clone());
        drop(guest().start().unwrap());
        let start = Instant::now();
        let (mut one, mut other) = (guest().start().unwrap(), guest().start().unwrap());
        eprintln!("tiny: two started in {:.1?} on QEMU {release}", start.elapsed());
        one.serial().must_run("echo one >/disk/name; sync", WITHIN);
        assert_ne!(other.serial().run("cat /disk/name", WITHIN).unwrap().status, 0);
        assert_eq!(one.serial().must_run("cat /disk/name", WITHIN), "one\n");
    }
}
