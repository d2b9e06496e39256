//! One guest that is taken at random moments, runs on and is put back, again and
//! again, and that notices when its memory and its disks are of two moments.
//! Which guests and how often is for the tests in `oracle` to say.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu};

use crate::subject::{MODES, Subject, WITHIN, modes};

/// What counts in the guest: three pairs of counters at different rates, at the
/// start, in the middle and at the end of both disks, which they write in either
/// order; and generations that go through half of its memory and note on a disk
/// how far they are.
pub(crate) const WITNESSES: [(&str, &str); 4] = [
    ("fast", "pair --workers 2 --interval-us 0 --disk /dev/vda --disk /dev/vdb"),
    ("middle", "pair --slot 4000 --workers 2 --interval-us 3000 --disk /dev/vdb --disk /dev/vda"),
    ("slow", "pair --slot 8000 --interval-us 20000 --disk /dev/vda --disk /dev/vdb"),
    ("sweep", "sweep --bytes 67108864 --interval-us 500 --disk /dev/vdb --slot 2000 --every 2048"),
];

/// Fills places between the counters, so that to read a disk takes its time.
const FILLING: &str = "for disk in vda vdb; do for at in 2 20 40; do \
    dd if=/dev/urandom of=/dev/$disk bs=1M seek=$at count=8 conv=notrunc 2>/dev/null; done; done";

/// Numbers that follow from a seed (splitmix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a number from 0 to below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// How some cycles went.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// How many cycles each way of capture had, in the order of [`MODES`].
    pub(crate) cycles: [u64; MODES.len()],
    /// The longest pause of each way, in milliseconds.
    longest_pause_ms: [f64; MODES.len()],
    /// Takes and reverts together with what the guest did meanwhile.
    elapsed: Duration,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        for way in 0..MODES.len() {
            self.cycles[way] += other.cycles[way];
            self.longest_pause_ms[way] =
                self.longest_pause_ms[way].max(other.longest_pause_ms[way]);
        }
        self.elapsed += other.elapsed;
    }

    fn note(&mut self, mode: &str, taken: &Value) {
        let way = MODES.iter().position(|known| *known == mode).unwrap();
        self.cycles[way] += 1;
        let pause = taken["pause_ms"].as_f64().unwrap();
        self.longest_pause_ms[way] = self.longest_pause_ms[way].max(pause);
    }
}

/// Starts a guest on that QEMU and puts it through so many cycles.
pub(crate) fn run(qemu: &Qemu, random: &mut Random, cycles: u64) -> Tally {
    let disks = [Disk::blank(Format::Qcow2, 64), Disk::blank(Format::Raw, 64)];
    let builder = Guest::of(GuestKind::Tiny).qemu(qemu.clone()).memory_mib(160).disks(disks);
    let mut subject = Subject::start(builder);
    subject.guest.serial().must_run(FILLING, WITHIN);
    for (name, arguments) in WITNESSES {
        subject.guest.serial().start_witness(name, arguments, WITHIN).unwrap();
    }
    let mut tally = Tally::default();
    let mut names: Vec<String> = Vec::new();
    let start = Instant::now();
    for cycle in 0..cycles {
        cycle_once(&mut subject, random, cycle, &mut names, &mut tally);
    }
    tally.elapsed = start.elapsed();
    tally
}

/// Take, run on, revert to this snapshot or to an earlier one, ask.
fn cycle_once(
    subject: &mut Subject,
    random: &mut Random,
    cycle: u64,
    names: &mut Vec<String>,
    tally: &mut Tally,
) {
    let modes = modes(subject.guest.files().qemu());
    let mode = modes[usize::try_from(cycle).unwrap() % modes.len()];
    let name = format!("c{cycle}");
    let moment = Duration::from_micros(random.below(300_000));
    sleep(moment);
    let taken = subject.take(&["--name", &name, "--mode", mode]);
    assert_eq!(taken["mode"], mode);
    tally.note(mode, &taken);
    names.push(name);
    sleep(Duration::from_micros(random.below(300_000)));
    let back = if random.below(3) == 0 { random.below(names.len() as u64) } else { 0 };
    let target = &names[names.len() - 1 - usize::try_from(back).unwrap()];
    let mut how = vec![if random.below(2) == 0 { "--eager" } else { "--lazy" }];
    how.extend((random.below(2) != 0).then_some("--no-safety"));
    eprintln!(
        "cycle {cycle}: {mode} after {moment:.1?} in {} ms, pause {:.1} ms; to {target} {how:?}",
        taken["duration_ms"],
        taken["pause_ms"].as_f64().unwrap(),
    );
    let report = subject.revert(target, &how);
    assert_eq!(report["state"], "running", "{report}");
    subject.must_be_whole();
}

impl std::fmt::Display for Tally {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (way, mode) in MODES.iter().enumerate() {
            let (cycles, pause) = (self.cycles[way], self.longest_pause_ms[way]);
            write!(formatter, "{cycles} {mode} (longest pause {pause:.0} ms), ")?;
        }
        write!(formatter, "in {:.0} s, all whole", self.elapsed.as_secs_f64())
    }
}
