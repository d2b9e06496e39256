//! How long it takes until a guest that is put back says something: eagerly, lazily,
//! lazily with what it needed the last time, as a clone that shares memory; and
//! QEMU's own `-loadvm` of the same guest, and its bare start as the floor.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::guest::Subject;
use super::{median, sizes_in_mib};
use crate::failure::Failure;

/// Sizes of memory, in MiB.
const SIZES: [u32; 3] = [256, 1024, 4096];

/// One part of so many of memory is in use.
const USED: u32 = 4;

/// How often each is measured.
const ROUNDS: usize = 5;

/// How long a guest may take to say something.
const WITHIN: Duration = Duration::from_secs(300);

/// Measures.
pub(super) fn run(arguments: &[String]) -> Result<(), Failure> {
    let sizes = sizes_in_mib(arguments, &SIZES)?;
    println!(
        "from the start of the command to the first output of the guest, in ms, median of {ROUNDS}; \
         a quarter of memory in use, one qcow2 disk; emulated guest that was stopped before"
    );
    println!(
        "{:>9} {:>8} {:>8} {:>9} {:>8} {:>9} {:>8}  {:>32}",
        "MiB",
        "eager",
        "lazy",
        "recorded",
        "shared",
        "-loadvm",
        "floor",
        "faults unaided, first, recorded"
    );
    let mut lazy = Vec::new();
    for &size in &sizes {
        lazy.push(measure(size)?);
    }
    if let (Some(first), Some(last)) = (lazy.first(), lazy.last()) {
        let (small, large) = (sizes.first().unwrap_or(&0), sizes.last().unwrap_or(&0));
        println!("lazy({large} MiB) / lazy({small} MiB) = {:.2}", last / first);
    }
    Ok(())
}

/// Measures a guest of one size, prints a line, and returns the lazy time.
fn measure(memory_mib: u32) -> Result<f64, Failure> {
    let folder =
        tempfile::tempdir().map_err(Failure::file("make a folder in", Path::new("/tmp")))?;
    let said = folder.path().join("said");
    let file = format!("file:{}", said.display());
    let mut subject = Subject::boot_with(memory_mib, &["-serial", &file])?;
    let used = memory_mib / USED;
    subject.in_guest(&format!(
        "mkdir -p /fill && mount -t tmpfs -o size={used}m fill /fill && \
         dd if=/dev/urandom of=/fill/x bs=1M count={} 2>/dev/null; \
         (while :; do echo tick; usleep 1000; done >/dev/ttyS1 2>&1) >/dev/null 2>&1 </dev/null &",
        used - 8
    ))?;
    subject.take(&["--name", "base"])?;
    subject.snapshot_save("peer")?;
    let revert = |mode: &str| ["revert", "bench", "base", "--no-safety", mode].map(str::to_owned);
    subject.json(&["vm", "stop", "bench", "--force"])?;
    let mut bench = Bench { subject, said };
    let mut times: [Vec<f64>; 6] = Default::default();
    let mut faults: [Vec<f64>; 3] = Default::default();
    // One after the other, so that a machine which is slow for a while is so for all.
    for _ in 0..ROUNDS {
        let eager = bench.reverted(&revert("--eager"))?;
        let _ = fs::remove_dir_all(bench.subject.home().join("working-sets"));
        let lazy = bench.reverted(&revert("--lazy"))?;
        let first = bench.faults()?;
        let recorded = bench.reverted(&revert("--lazy"))?;
        let again = bench.faults()?;
        bench.know_nothing()?;
        bench.reverted(&revert("--lazy"))?;
        for (all, count) in faults.iter_mut().zip([bench.faults()?, first, again]) {
            all.push(count);
        }
        let (shared, loaded, floor) = (bench.cloned()?, bench.loaded()?, bench.floor()?);
        for (all, time) in times.iter_mut().zip([eager, lazy, recorded, shared, loaded, floor]) {
            all.push(time);
        }
    }
    let [unaided, first, again] = faults.map(|all| median(&all));
    let [eager, lazy, recorded, shared, loadvm, floor] = times.map(|all| median(&all));
    println!(
        "{memory_mib:>9} {eager:>8.0} {lazy:>8.0} {recorded:>9.0} {shared:>8.0} {loadvm:>9.0} {floor:>8.0}  {unaided:>14.0} {first:>6.0} {again:>9.0}"
    );
    Ok(lazy)
}

/// The guest; it is stopped before each measurement, and after it.
struct Bench {
    subject: Subject,
    said: PathBuf,
}

impl Bench {
    /// Starts the clock on a machine that has nothing left to write.
    fn begin(&self) -> Instant {
        let _ = fs::remove_file(&self.said);
        rustix::fs::sync();
        Instant::now()
    }

    /// Reverts the guest, waits until all of it is there, and stops it.
    fn reverted(&self, arguments: &[String]) -> Result<f64, Failure> {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let began = self.begin();
        let mut command = self.subject.start(&words)?;
        let time = wait_for_output(&self.said, began)?;
        let ended = command.wait().map_err(Failure::file("wait for", Path::new("tintype")))?;
        if !ended.success() {
            return Err(Failure::Other(format!("tintype {words:?} failed")));
        }
        while self.subject.json(&["vm", "show", "bench"])?["loading"] != Value::Null {
            sleep(Duration::from_millis(50));
        }
        self.subject.json(&["vm", "stop", "bench", "--force"])?;
        Ok(time)
    }

    /// Lets QEMU load the snapshot that it saved itself.
    fn loaded(&mut self) -> Result<f64, Failure> {
        let began = self.begin();
        self.subject.restart(&["-loadvm", "peer"])?;
        let time = wait_for_output(&self.said, began)?;
        self.subject.end();
        Ok(time)
    }

    /// Starts QEMU, and nothing else.
    fn floor(&mut self) -> Result<f64, Failure> {
        self.begin();
        let time = self.subject.bare_start()?;
        self.subject.end();
        Ok(time)
    }

    /// Makes a clone that shares memory, and ends it again.
    fn cloned(&self) -> Result<f64, Failure> {
        let folder = self.subject.home().join("twins");
        let to = folder.display().to_string();
        let began = self.begin();
        let arguments = ["clone", "bench@base", "twin", "--share-memory", "--to", &to];
        let report = self.subject.json(&arguments)?;
        let moved = report["vms"][0]["moved"].as_array().cloned().unwrap_or_default();
        let own = moved.iter().find(|pair| pair[0].as_str() == self.said.to_str());
        let own = own.and_then(|pair| pair[1].as_str());
        let own = own.ok_or_else(|| Failure::Other("the clone says nothing".to_owned()))?;
        let time = wait_for_output(Path::new(own), began)?;
        self.subject.json(&["vm", "stop", "twin", "--force"])?;
        self.subject.json(&["vm", "rm", "twin"])?;
        fs::remove_dir_all(&folder).map_err(Failure::file("remove", &folder))?;
        Ok(time)
    }

    /// Lets the next lazy load send nothing before it is asked for: by a record of no need.
    fn know_nothing(&self) -> Result<(), Failure> {
        let set = self.record()?;
        let nothing = r#"{"version":1,"requests":0,"blocks":[],"units":[]}"#;
        fs::write(&set, nothing).map_err(Failure::file("write", &set))
    }

    /// Returns the file that says what the guest needed first.
    fn record(&self) -> Result<PathBuf, Failure> {
        let folder = self.subject.home().join("working-sets");
        let mut sets = fs::read_dir(&folder).map_err(Failure::file("list", &folder))?;
        let set = sets.next().and_then(Result::ok).map(|set| set.path());
        set.ok_or_else(|| Failure::Other("nothing was recorded".to_owned()))
    }

    /// Returns how often the guest had to wait for a page in the last lazy load.
    fn faults(&self) -> Result<f64, Failure> {
        let set = self.record()?;
        let text = fs::read(&set).map_err(Failure::file("read", &set))?;
        let set: Value = serde_json::from_slice(&text)
            .map_err(|error| Failure::Other(format!("a record is no JSON: {error}")))?;
        Ok(set["requests"].as_f64().unwrap_or(f64::NAN))
    }
}

/// Waits until a guest has said something, and returns how long that took, in ms.
fn wait_for_output(said: &Path, began: Instant) -> Result<f64, Failure> {
    while !fs::metadata(said).is_ok_and(|file| file.len() > 0) {
        if began.elapsed() > WITHIN {
            return Err(Failure::Other("the guest says nothing".to_owned()));
        }
        sleep(Duration::from_millis(1));
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}
