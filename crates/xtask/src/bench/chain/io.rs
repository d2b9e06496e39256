//! The guest's disk as the guest feels it.

use super::super::guest::Subject;
use super::super::median;
use super::ROUNDS;
use crate::failure::Failure;

/// Blocks of 4 KiB that are written, and read.
const BLOCKS: u32 = 8192;

/// Returns megabytes a second of writing and of reading.
pub(super) fn speeds(subject: &mut Subject) -> Result<(f64, f64), Failure> {
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let directions =
            ["if=/dev/zero of=/dev/vdb oflag=direct", "if=/dev/vdb of=/dev/null iflag=direct"];
        for (direction, speeds) in directions.iter().zip(&mut measured) {
            // Not every `dd` says how long it took.
            let timed = format!(
                "read a x </proc/uptime; dd {direction} bs=4k count={BLOCKS} 2>/dev/null && \
                 read b x </proc/uptime && echo $a $b"
            );
            let printed = subject.in_guest(&timed)?;
            speeds.push(f64::from(BLOCKS) * 4096.0 / 1e6 / seconds(&printed)?);
        }
    }
    Ok((median(&measured[0]), median(&measured[1])))
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
