//! The guest's disk as the guest feels it.

use std::time::Instant;

use super::super::guest::Subject;
use super::super::median;
use crate::failure::Failure;

/// Blocks of 4 KiB that are written, and read, at once: for a tenth of a second, since the
/// speed of a machine wanders from second to second.
const BLOCKS: u32 = 256;

/// Megabytes a second, and how that compares with a guest that has no snapshots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub(super) megabytes: f64,
    pub(super) ratio: f64,
}

/// Returns the speed of writing and of reading; the guest takes so many turns with one
/// without snapshots that is as old: a QEMU that has run for long is faster.
pub(super) fn speeds(
    subject: &mut Subject,
    plain: &mut Subject,
    turns: usize,
) -> Result<[Speed; 2], Failure> {
    let directions =
        ["if=/dev/zero of=/dev/vdb oflag=direct", "if=/dev/vdb of=/dev/null iflag=direct"];
    let mut measured = [Vec::new(), Vec::new()];
    for turn in 0..turns {
        for (direction, pairs) in directions.iter().zip(&mut measured) {
            // Each is the first as often as the second.
            pairs.push(if turn % 2 == 0 {
                let other = megabytes(plain, direction)?;
                (megabytes(subject, direction)?, other)
            } else {
                (megabytes(subject, direction)?, megabytes(plain, direction)?)
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
