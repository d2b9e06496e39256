//! The guest's disk as the guest feels it.

use std::time::Instant;

use serde_json::{Value, json};
use tintype_testkit::Qmp;

use super::super::guest::Subject;
use super::super::median;
use super::confined::Confined;
use crate::failure::Failure;

/// Blocks of 4 KiB that are written, and read, at once: for a tenth of a second, since the
/// speed of a machine wanders from second to second.
const BLOCKS: u32 = 256;
const WRITING: &str = "if=/dev/zero of=/dev/vdb oflag=direct";
const READING: &str = "if=/dev/vdb of=/dev/null iflag=direct";

/// Megabytes a second, and how that compares with a guest that has no snapshots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub(super) megabytes: f64,
    pub(super) ratio: f64,
}

/// Returns the speed of writing and of reading; the guest takes so many turns with one
/// without snapshots that is as old: a QEMU that has run for long is faster. Both have one
/// processor in common meanwhile.
pub(super) fn speeds(
    subject: &mut Subject,
    plain: &mut Subject,
    turns: usize,
) -> Result<[Speed; 2], Failure> {
    let _confined = Confined::to_one_processor(&[subject.process_id(), plain.process_id()])?;
    in_turns(turns, |side, direction| match side {
        Side::Own => megabytes(subject, direction),
        Side::Other => megabytes(plain, direction),
    })
}

/// Returns the same of one guest, in turns with itself while its QEMU does not record what
/// is written to the disk: two QEMUs that do the same differ by some hundredths.
pub(super) fn recording(subject: &mut Subject, turns: usize) -> Result<[Speed; 2], Failure> {
    let _confined = Confined::to_one_processor(&[subject.process_id()])?;
    let mut recording = Recording::find(subject)?;
    let speeds = in_turns(turns, |side, direction| {
        recording.switch(matches!(side, Side::Own))?;
        megabytes(subject, direction)
    })?;
    // What was written in between has to be recorded: it is the same place each time.
    recording.switch(true)?;
    megabytes(subject, WRITING)?;
    Ok(speeds)
}

/// Which of two is measured.
enum Side {
    Own,
    Other,
}

fn in_turns(
    turns: usize,
    mut measure: impl FnMut(Side, &str) -> Result<f64, Failure>,
) -> Result<[Speed; 2], Failure> {
    let mut measured = [Vec::new(), Vec::new()];
    for turn in 0..turns {
        for (direction, pairs) in [WRITING, READING].iter().zip(&mut measured) {
            // Each is the first as often as the second.
            pairs.push(if turn % 2 == 0 {
                let other = measure(Side::Other, direction)?;
                (measure(Side::Own, direction)?, other)
            } else {
                (measure(Side::Own, direction)?, measure(Side::Other, direction)?)
            });
        }
    }
    Ok(measured.map(|pairs| {
        let all: Vec<f64> = pairs.iter().map(|(own, _)| *own).collect();
        let ratios: Vec<f64> = pairs.iter().map(|(own, other)| own / other).collect();
        Speed { megabytes: median(&all), ratio: median(&ratios) }
    }))
}

/// Measures by the host's clock: a guest's is too coarse for so little.
fn megabytes(subject: &mut Subject, direction: &str) -> Result<f64, Failure> {
    let start = Instant::now();
    subject.in_guest(&format!("dd {direction} bs=4k count={BLOCKS} 2>/dev/null"))?;
    Ok(f64::from(BLOCKS) * 4096.0 / 1e6 / start.elapsed().as_secs_f64())
}

/// The bitmap of the disk that is measured, which can be switched off.
struct Recording {
    qmp: Qmp,
    bitmap: Value,
}

impl Recording {
    fn find(subject: &Subject) -> Result<Self, Failure> {
        let mut qmp = subject.qmp()?;
        let nodes = qmp.execute("query-named-block-nodes", json!({"flat": true}))?;
        let measured = subject.disks().last().and_then(|path| path.to_str());
        let is_measured = |node: &&Value| {
            node["drv"] == "qcow2" && node["image"]["filename"].as_str() == measured
        };
        let node = nodes.as_array().into_iter().flatten().find(is_measured);
        let bitmaps = node.and_then(|node| node["dirty-bitmaps"].as_array());
        match (node, bitmaps.map(Vec::as_slice)) {
            (Some(node), Some([bitmap])) => {
                let bitmap = json!({"node": node["node-name"], "name": bitmap["name"]});
                Ok(Self { qmp, bitmap })
            }
            _ => Err(Failure::Other("QEMU has not just one bitmap of the disk".to_owned())),
        }
    }

    fn switch(&mut self, on: bool) -> Result<(), Failure> {
        let verb = if on { "enable" } else { "disable" };
        self.qmp.execute(&format!("block-dirty-bitmap-{verb}"), self.bitmap.clone())?;
        Ok(())
    }
}
