//! What QEMU has itself: internal snapshots with the state of the VM in the image, and a
//! chain of overlays with a file of memory beside each.

use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;
use tintype_testkit::{Format, Qmp};

use super::super::guest::Subject;
use super::super::peers::bytes_of;
use super::{Cost, debian, work};
use crate::failure::Failure;
use crate::process::run;

/// Measures internal snapshots: what the image has beyond its present content.
pub(super) fn internal(snapshots: u32) -> Result<Cost, Failure> {
    let mut subject = debian(Format::Qcow2)?;
    let mut seconds = 0.0;
    for step in 0..snapshots {
        work::step(&mut subject, step)?;
        let start = Instant::now();
        subject.snapshot_save(&format!("s{step}"))?;
        seconds += start.elapsed().as_secs_f64();
    }
    let (image, present) = (subject.disks()[0].clone(), subject.folder().join("present"));
    subject.end();
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-f", "qcow2", "-O", "qcow2"]);
    run(convert.arg(&image).arg(&present))?;
    let kept = bytes_of(&image)? - bytes_of(&present)?;
    Ok(Cost { name: "qcow2 internal snapshots", kept, seconds })
}

/// Measures a chain: each state is an overlay that nobody writes any more, and a file.
pub(super) fn external(snapshots: u32) -> Result<Cost, Failure> {
    let mut subject = debian(Format::Qcow2)?;
    let folder = subject.folder().join("chain");
    std::fs::create_dir(&folder).map_err(Failure::file("make", &folder))?;
    let mut seconds = 0.0;
    for step in 0..snapshots {
        work::step(&mut subject, step)?;
        let start = Instant::now();
        keep(&subject, &folder, step)?;
        seconds += start.elapsed().as_secs_f64();
    }
    // The last overlay is where the guest writes now; the first state is in its own image.
    let now = folder.join(format!("disk-{}", snapshots.saturating_sub(1)));
    let kept = bytes_of(&folder)? - bytes_of(&now)?;
    Ok(Cost { name: "external chain and memory", kept, seconds })
}

/// Keeps the state of a guest: disk and memory of one instant, the guest standing still.
fn keep(subject: &Subject, folder: &Path, step: u32) -> Result<(), Failure> {
    let mut qmp = subject.qmp()?;
    let node = if step == 0 { "vda".to_owned() } else { format!("overlay{}", step - 1) };
    let overlay = folder.join(format!("disk-{step}"));
    let snapshot = json!({
        "node-name": node, "snapshot-file": overlay, "format": "qcow2",
        "snapshot-node-name": format!("overlay{step}"),
    });
    let memory = format!("file:{}", folder.join(format!("memory-{step}")).display());
    qmp.execute("stop", json!({}))?;
    qmp.execute("blockdev-snapshot-sync", snapshot)?;
    qmp.execute("migrate", json!({"uri": memory}))?;
    wait_migrated(&mut qmp)?;
    qmp.execute("cont", json!({}))?;
    Ok(())
}

fn wait_migrated(qmp: &mut Qmp) -> Result<(), Failure> {
    loop {
        let status = qmp.execute("query-migrate", json!({}))?["status"].clone();
        match status.as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") | None => {
                return Err(Failure::Other(format!("QEMU did not save the memory: {status}")));
            }
            Some(_) => sleep(Duration::from_millis(5)),
        }
    }
}
