//! What is left in a QEMU to know what changes, when that is not believed, and that
//! nobody else's is touched.

use std::fs;
use std::os::unix::fs::FileExt;

use serde_json::json;
use tintype_testkit::Qemu;

use crate::bare_vm::{BareVm, DISKS, reading};

const SIZE: u64 = 8 << 20;

#[test]
fn a_write_past_qemu_is_found_told_and_healed() {
    let vm = BareVm::start(&Qemu::system().unwrap(), SIZE);
    vm.io("db", "write -P 1 0 8M");
    vm.tintype.json(&["take", "web", "--no-memory"]);
    vm.io("db", "write -P 2 1M 64k");
    // Half of what no bit is set for: 64 blocks drawn by chance cannot all miss it.
    let image = fs::File::options().write(true).open(vm.image("db")).unwrap();
    image.write_all_at(&[9; 4 << 20], 4 << 20).unwrap();
    let output = vm.tintype.run(&["take", "web", "--no-memory", "--name", "found", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.contains("past QEMU"), "{errors}");
    let taken: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(reading(&taken, "da"), "incremental");
    assert_eq!(reading(&taken, "db"), "full: a write to its image was not recorded");
    assert!(taken["disks"][1]["unrecorded"].as_u64().unwrap() >= 4 << 20, "{taken}");
    vm.copy_all("found");
    vm.must_restore("found", "found");
    let next = vm.tintype.json(&["take", "web", "--no-memory", "--name", "next"]);
    assert_eq!(reading(&next, "db"), "incremental");
    vm.must_restore("next", "found");
}

#[test]
fn a_disk_that_was_cut_and_grown_is_zero_there() {
    let vm = BareVm::start(&Qemu::system().unwrap(), SIZE);
    for (disk, _) in DISKS {
        vm.io(disk, "write -P 1 0 8M");
    }
    vm.tintype.json(&["take", "web", "--no-memory"]);
    for (disk, _) in DISKS {
        vm.resize(disk, SIZE / 2);
        vm.resize(disk, SIZE);
    }
    vm.copy_all("cut");
    let taken = vm.tintype.json(&["take", "web", "--no-memory", "--name", "cut"]);
    assert_eq!(reading(&taken, "da"), "incremental");
    vm.must_restore("cut", "cut");
}

#[test]
fn only_our_own_bitmaps_come_and_go() {
    let vm = BareVm::start(&Qemu::system().unwrap(), SIZE);
    let others = ["tintype-of-somebody-else", "backup"];
    for name in others.into_iter().rev() {
        vm.qmp("block-dirty-bitmap-add", json!({"node": "node-da", "name": name}));
    }
    let count = || vm.bitmaps("da").len();
    vm.tintype.json(&["take", "web", "--name", "one"]);
    assert_eq!(count(), others.len() + 1);
    let two = vm.tintype.json(&["take", "web", "--name", "two"]);
    assert_eq!((reading(&two, "da"), count()), ("incremental".to_owned(), others.len() + 1));

    let full = vm.tintype.json(&["take", "web", "--full"]);
    assert_eq!(reading(&full, "da"), "full: that was asked for");
    assert_eq!(vm.bitmaps("da"), others);
    let next = vm.tintype.json(&["take", "web"]);
    assert_eq!(reading(&next, "da"), "full: nothing has recorded its changes yet");

    let id = next["id"].as_str().unwrap();
    let shown = vm.bitmaps("da").into_iter().find(|name| name.ends_with(id)).unwrap();
    vm.qmp("block-dirty-bitmap-remove", json!({"node": "node-da", "name": shown}));
    let next = vm.tintype.json(&["take", "web", "--name", "three"]);
    assert_eq!(reading(&next, "da"), "full: its bitmap was removed");
    assert_eq!(reading(&next, "db"), "incremental");

    vm.tintype.json(&["rm", "web@three"]);
    let next = vm.tintype.json(&["take", "web"]);
    assert_eq!(reading(&next, "db"), "full: the snapshot before is not in this repository");
    let next = vm.tintype.json(&["take", "web", "--exclude-disk", "db"]);
    assert_eq!(reading(&next, "da"), "incremental");
    let next = vm.tintype.json(&["take", "web"]);
    assert_eq!(reading(&next, "db"), "full: it was not in the snapshot before");

    let pid = vm.tintype.json(&["vm", "show", "web"])["pid"].as_i64().unwrap();
    vm.tintype.json(&["vm", "rm", "web"]);
    assert_eq!(vm.bitmaps("da"), others, "of the VM that is forgotten");
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
