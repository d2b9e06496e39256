//! The guest's disk as the guest feels it.

use super::super::guest::Subject;
use super::super::median;
use super::own;
use crate::failure::Failure;

/// Blocks of 4 KiB that are written, and read.
const BLOCKS: u32 = 4096;

/// How often both guests are measured: machines are noisy, and these ratios are near 1.
const TURNS: usize = 31;

/// Megabytes a second, and how that compares with a guest that has no snapshots.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    pub(super) megabytes: f64,
    pub(super) ratio: f64,
}

/// Returns the speed of writing and of reading; the guest takes turns with one without
/// snapshots, which has just been started: a QEMU that has run for long is faster.
pub(super) fn speeds(subject: &mut Subject) -> Result<[Speed; 2], Failure> {
    let plain = &mut own::guest()?;
    let directions =
        ["if=/dev/zero of=/dev/vdb oflag=direct", "if=/dev/vdb of=/dev/null iflag=direct"];
    let mut measured = [Vec::new(), Vec::new()];
    for turn in 0..TURNS {
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

fn megabytes(subject: &mut Subject, direction: &str) -> Result<f64, Failure> {
    // Not every `dd` says how long it took.
    let timed = format!(
        "read a x </proc/uptime; dd {direction} bs=4k count={BLOCKS} 2>/dev/null && \
         read b x </proc/uptime && echo $a $b"
    );
    let printed = subject.in_guest(&timed)?;
    Ok(f64::from(BLOCKS) * 4096.0 / 1e6 / seconds(&printed)?)
}

/// Returns the seconds between two times of the guest since its start.
fn seconds(printed: &str) -> Result<f64, Failure> {
    let times: Vec<f64> = printed.split_whitespace().filter_map(|time| time.parse().ok()).collect();
    match times[..] {
        [from, to] if to > from => Ok(to - from),
        _ => Err(Failure::Other(format!("the guest's `dd` took no time: {printed}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read() {
        assert!((seconds("12.25 12.50\n").unwrap() - 0.25).abs() < 1e-9);
        assert!(seconds("").is_err());
        assert!(seconds("12.25 12.25").is_err());
    }
}
