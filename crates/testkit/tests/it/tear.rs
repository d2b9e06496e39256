//! The witness in a real guest: a state that is put together from one moment is
//! whole, and one from two moments is torn. QEMU alone saves and restores here.

use std::fs;
use std::time::Duration;

use serde_json::json;
use tintype_testkit::{Disk, Format, Guest, GuestKind, Verdict};

use crate::is_built;

const WITHIN: Duration = Duration::from_secs(90);

#[test]
fn a_disk_from_another_moment_is_noticed_after_a_restore() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let disks = [Disk::system(Format::Qcow2), Disk::blank(Format::Raw, 8)];
    let mut guest = Guest::of(GuestKind::Tiny).memory_mib(160).disks(disks).start().unwrap();
    let (memory, disk) = (guest.files().folder().join("memory"), guest.files().disks()[1].clone());
    let (early, late) = (disk.with_extension("early"), disk.with_extension("late"));
    guest.serial().start_witness("pair", "pair --disk /dev/vdb --workers 2", WITHIN).unwrap();
    guest.serial().start_witness("sweep", "sweep --bytes 8388608", WITHIN).unwrap();

    let mut qmp = guest.qmp().unwrap();
    qmp.execute("stop", json!({})).unwrap();
    fs::copy(&disk, &early).unwrap();
    qmp.execute("cont", json!({})).unwrap();
    let counts = guest.serial().must_be_whole(WITHIN);
    qmp.execute("stop", json!({})).unwrap();
    let uri = format!("exec:cat >'{}'", memory.display());
    qmp.execute("migrate", json!({ "uri": uri })).unwrap();
    qmp.wait_migrated(WITHIN).unwrap();
    fs::copy(&disk, &late).unwrap();
    drop(qmp);

    let mut restore = |image| {
        guest.kill();
        fs::copy(image, &disk).unwrap();
        guest.replace_qemu(&["-incoming", &format!("exec:cat '{}'", memory.display())]).unwrap();
        let mut qmp = guest.qmp().unwrap();
        qmp.wait_migrated(WITHIN).unwrap();
        qmp.execute("cont", json!({})).unwrap();
        guest.serial().wait_answer(WITHIN).unwrap();
        guest.serial().ask_witnesses(WITHIN).unwrap()
    };
    for _ in 0..2 {
        let whole = restore(&late);
        assert_eq!(whole.len(), 3);
        for (now, then) in whole.iter().zip(&counts) {
            assert_eq!(now.verdict, Verdict::Whole, "{now:?}");
            assert!(now.count() >= then.count(), "{now:?} goes on from {then:?}");
        }
    }
    let verdicts: Vec<Verdict> = restore(&early).iter().map(|answer| answer.verdict).collect();
    assert_eq!(verdicts, [Verdict::Torn, Verdict::Torn, Verdict::Whole]);
}
