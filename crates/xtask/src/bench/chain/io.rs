//! The guest's disk as the guest feels it.

use super::super::guest::Subject;
use super::super::median;
use super::ROUNDS;
use crate::failure::Failure;

/// Blocks of 4 KiB that are written, and read.
const BLOCKS: u32 = 4096;

/// Returns megabytes a second of writing and of reading.
pub(super) fn speeds(subject: &mut Subject) -> Result<(f64, f64), Failure> {
    let mut measured = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let directions =
            ["if=/dev/zero of=/dev/vdb oflag=direct", "if=/dev/vdb of=/dev/null iflag=direct"];
        for (direction, speeds) in directions.iter().zip(&mut measured) {
            let printed = subject.in_guest(&format!("dd {direction} bs=4k count={BLOCKS} 2>&1"))?;
            speeds.push(f64::from(BLOCKS) * 4096.0 / 1e6 / seconds(&printed)?);
        }
    }
    Ok((median(&measured[0]), median(&measured[1])))
}

/// Reads the time from what `dd` prints: `… copied, 0.25 seconds, …`.
fn seconds(printed: &str) -> Result<f64, Failure> {
    let words: Vec<&str> = printed.split_whitespace().collect();
    let at = words.iter().position(|word| word.starts_with("seconds"));
    let number = at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok());
    number.ok_or_else(|| Failure::Other(format!("`dd` printed no time: {printed}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_read() {
        let printed = "4096+0 records in\n4096+0 records out\n\
                       16777216 bytes (16.0MB) copied, 0.250000 seconds, 64.0MB/s\n";
        assert!((seconds(printed).unwrap() - 0.25).abs() < 1e-9);
        assert!(seconds("dd: can't open").is_err());
    }
}
