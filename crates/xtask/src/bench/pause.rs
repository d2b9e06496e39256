//! How long a guest stands still: for a take of ours, and for QEMU's own
//! `snapshot-save` of the same guest, one after the other.

use super::guest::Subject;
use super::{median, sizes_in_mib};
use crate::failure::Failure;

/// Takes of each guest; the first is warm-up and not counted.
const TAKES: usize = 8;

/// Sizes of memory, in MiB.
const SIZES: [u32; 4] = [256, 1024, 4096, 12288];

/// The guest with memory in use: its size, and how much of it is in use, in MiB.
const USED: (u32, u32) = (2560, 2048);

/// How much the busy guest dirties.
const DIRTY_BYTES: u64 = 400_000_000;

/// Measures.
pub(super) fn run(arguments: &[String]) -> Result<(), Failure> {
    let sizes = sizes_in_mib(arguments, &SIZES)?;
    println!(
        "pause STOP to RESUME by QEMU's event timestamps, in ms; one qcow2 disk; emulated guest"
    );
    println!(
        "{:<34} {:>8} {:>8} {:>8}  {:>13} {:>7}",
        "guest", "min", "median", "max", "snapshot-save", "ratio"
    );
    let mut medians = Vec::new();
    for &size in &sizes {
        medians.push(idle(size)?);
    }
    if let (Some(first), Some(last)) = (medians.first(), medians.last()) {
        let (small, large) = (sizes.first().unwrap_or(&0), sizes.last().unwrap_or(&0));
        println!("pause({large} MiB) / pause({small} MiB) = {:.2}", last / first);
    }
    if arguments.is_empty() {
        used()?;
        busy()?;
    }
    Ok(())
}

fn idle(memory_mib: u32) -> Result<f64, Failure> {
    let subject = Subject::boot(memory_mib)?;
    compare(&subject, &format!("{memory_mib} MiB, idle"))
}

fn used() -> Result<(), Failure> {
    let (memory_mib, used_mib) = USED;
    let mut subject = Subject::boot(memory_mib)?;
    subject.in_guest(&format!(
        "mkdir -p /fill && mount -t tmpfs -o size={used_mib}m fill /fill && \
         dd if=/dev/urandom of=/fill/x bs=1M count={}",
        used_mib - 16
    ))?;
    compare(&subject, &format!("{memory_mib} MiB, {used_mib} MiB in use, idle")).map(drop)
}

fn busy() -> Result<(), Failure> {
    let mut subject = Subject::boot(2048)?;
    subject.dirty(DIRTY_BYTES)?;
    for _ in 0..3 {
        let taken = subject.take(&[])?;
        println!(
            "2048 MiB, dirtying {} MB at full speed: {} took {:.1} s, pause {:.1} ms",
            DIRTY_BYTES / 1_000_000,
            taken["mode"].as_str().unwrap_or("?"),
            taken["duration_ms"].as_f64().unwrap_or_default() / 1e3,
            taken["pause_ms"].as_f64().unwrap_or_default(),
        );
    }
    Ok(())
}

/// Takes the guest several times, lets QEMU save it once, and prints both.
fn compare(subject: &Subject, what: &str) -> Result<f64, Failure> {
    let mut pauses = Vec::new();
    for _ in 0..TAKES {
        let taken = subject.take(&["--mode", "iterating"])?;
        pauses.push(taken["pause_ms"].as_f64().unwrap_or(f64::NAN));
    }
    pauses.remove(0);
    let save = subject.snapshot_save("peer")?;
    let own = median(&pauses);
    let min = pauses.iter().copied().fold(f64::INFINITY, f64::min);
    let max = pauses.iter().copied().fold(0.0, f64::max);
    println!("{what:<34} {min:>8.1} {own:>8.1} {max:>8.1}  {save:>13.1} {:>6.0}x", save / own);
    Ok(own)
}
