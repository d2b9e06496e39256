//! A disk that is left out is in no snapshot, and no revert touches it.

use tintype_testkit::{Disk, Format, Guest, GuestKind};

use crate::subject::{Subject, WITHIN, is_built};

#[test]
fn a_disk_that_is_left_out_stays_as_it_is() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 16)];
    let mut subject = Subject::start(Guest::of(GuestKind::Tiny).memory_mib(96).disks(disks));
    let write = |state: &str| {
        format!(
            "echo {state} >/disk/me; echo {state} | dd of=/dev/vdb conv=fsync 2>/dev/null; sync"
        )
    };
    subject.guest.serial().must_run(&write("then"), WITHIN);
    let report = subject.take(&["--name", "base", "--exclude-disk", "vdb-device"]);
    assert!(report["disk_bytes"].as_u64().unwrap() > 0);
    let shown = subject.tintype.json(&["show", "web@base"]);
    assert_eq!(shown["details"]["disks"].as_array().unwrap().len(), 1, "{shown}");
    subject.guest.serial().must_run(&write("later"), WITHIN);
    subject.revert("base", &[]);
    subject.guest.serial().wait_answer(WITHIN).unwrap();
    let read = "cat /disk/me; dd if=/dev/vdb bs=512 count=1 iflag=direct 2>/dev/null | head -n 1";
    assert_eq!(subject.guest.serial().must_run(read, WITHIN), "then\nlater\n");

    let output = subject.tintype.run(&["take", "web", "--exclude-disk", "vdz"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("the disks are: vda-device, vdb-device"), "{errors}");
    let output = subject.tintype.run(&["clone", "web@base", "twin"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("`vdb-device` was left out"), "{errors}");
}
