//! A disk of which only what was written is read is the same as one that is read
//! whole, whatever happens between two takes, on each QEMU and in each format.
//!
//! `cargo xtask soak incremental` runs more steps: it sets `TINTYPE_SOAK_COUNT`, for
//! each QEMU, and `TINTYPE_SOAK_SEED`.

use std::fs;
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tintype_testkit::{Error, Format, Qemu};

use crate::bare_vm::{BareVm, DISKS, image_io, reading};
use crate::cycles::Random;
use crate::scene::{TAKE, WITHIN};
use crate::soak::{seed_of_now, wanted};

/// How many steps there are on each QEMU unless somebody asks for more.
const STEPS: u64 = 60;

/// After how many steps a new VM with a new repository takes over.
const STEPS_OF_A_VM: u64 = 200;

/// The sizes of the disks, in order to be changed between them. The last is no multiple
/// of what a bit of a bitmap stands for, nor of a block.
const SIZES: [u64; 3] = [8 << 20, 12 << 20, (5 << 20) + 512];

#[test]
fn incremental_is_the_same_as_full_on_the_systems_qemu() {
    check(Qemu::system());
}

#[test]
fn incremental_is_the_same_as_full_on_qemu_7_2() {
    check(Qemu::seven_two());
}

fn check(qemu: Result<Qemu, Error>) {
    let qemu = match qemu {
        Ok(qemu) => qemu,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    let release = qemu.release();
    let seed = wanted("TINTYPE_SOAK_SEED").unwrap_or_else(seed_of_now);
    let steps = wanted("TINTYPE_SOAK_COUNT").unwrap_or(STEPS);
    eprintln!("QEMU {release}: {steps} steps, TINTYPE_SOAK_SEED={seed}");
    let (mut random, mut tally) = (Random::from_seed(seed), Tally::default());
    let start = Instant::now();
    for batch in 0..steps.div_ceil(STEPS_OF_A_VM) {
        let mut world = World::start(&qemu, &mut random, &mut tally);
        for _ in 0..STEPS_OF_A_VM.min(steps - batch * STEPS_OF_A_VM) {
            world.step();
        }
        world.take_and_check();
    }
    assert!(tally.incremental > 0, "no disk was read by its bitmap: {tally:?}");
    let seconds = start.elapsed().as_secs();
    eprintln!("soak: QEMU {release}, seed {seed}: {steps} steps in {seconds} s: {tally:?}");
}

/// What was seen: disks read in one way or the other, takes, and what came between.
#[derive(Debug, Default)]
struct Tally {
    incremental: u64,
    full: u64,
    written_meanwhile: u64,
    killed: u64,
    off: u64,
    resized: u64,
    restarted: u64,
    stopped: u64,
    written_while_off: u64,
    put_back_while_off: u64,
    reverted: u64,
}

/// A VM, and what is to be expected of its next take.
struct World<'w> {
    vm: BareVm,
    random: &'w mut Random,
    tally: &'w mut Tally,
    sizes: [u64; 2],
    /// The size of each disk in the snapshot since which it is recorded, if it is.
    recorded: [Option<u64>; 2],
    /// Snapshots of which there are copies, with the sizes of the disks.
    kept: Vec<(String, [u64; 2])>,
    takes: u64,
}

impl<'w> World<'w> {
    fn start(qemu: &Qemu, random: &'w mut Random, tally: &'w mut Tally) -> Self {
        let vm = BareVm::start(qemu, SIZES[0]);
        let sizes = [SIZES[0]; 2];
        let kept = Vec::new();
        let mut world = Self { vm, random, tally, sizes, recorded: [None; 2], kept, takes: 0 };
        (0..8).for_each(|_| world.write());
        world.take_and_check();
        world
    }

    fn step(&mut self) {
        match self.random.below(64) {
            0..36 => self.write(),
            36..46 => self.take_and_check(),
            46..49 => self.take_while_written(),
            49..51 => self.killed_take(),
            51..55 => self.resize(),
            55 => self.kill_qemu(),
            56 => self.switch_off_and_on(),
            57..60 => self.stop_and_start(),
            _ => self.revert(),
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.random.below(limit as u64)).unwrap()
    }

    /// Does to a disk what a guest does: writes, zeros and discards, mostly unaligned.
    fn write(&mut self) {
        let at = self.below(2);
        let command = self.some_write(at);
        self.vm.io(DISKS[at].0, &command);
    }

    fn some_write(&mut self, at: usize) -> String {
        let format = DISKS[at].1;
        let sectors = self.sizes[at] / 512;
        let first = self.random.below(sectors);
        let len = (1 + self.random.below(600)).min(sectors - first) * 512;
        let offset = first * 512;
        let pattern = 1 + self.random.below(255);
        match self.random.below(8) {
            0 => format!("write -z {offset} {len}"),
            1 => format!("write -z -u {offset} {len}"),
            2 => format!("discard {offset} {len}"),
            3 if format == Format::Qcow2 => format!("write -f -P {pattern} {offset} {len}"),
            _ => format!("write -P {pattern} {offset} {len}"),
        }
    }

    /// Takes a snapshot, with memory or without, whose disks have to be those of now.
    fn take_and_check(&mut self) {
        let name = self.next_name();
        self.vm.copy_all(&name);
        let mut arguments = vec!["take", "web", "--name", &name];
        if self.random.below(4) > 0 {
            arguments.push("--no-memory");
        }
        let taken = self.vm.tintype.json(&arguments);
        self.check_taken(&taken, &name);
    }

    /// Takes a snapshot while the disks are written to.
    fn take_while_written(&mut self) {
        self.tally.written_meanwhile += 1;
        let name = self.next_name();
        self.vm.copy_all(&name);
        let hold = self.vm.path("hold");
        let steps = ["take-resumed", "take-disks-read", "take-stored"];
        let step = steps[self.below(steps.len())];
        let taking = self.begin_take(&name, &format!("{step}:{}", hold.display()));
        wait_until(|| hold.exists());
        (0..4).for_each(|_| self.write());
        fs::remove_file(&hold).unwrap();
        let output = taking.wait_with_output().unwrap();
        let taken = serde_json::from_slice(&output.stdout);
        self.check_taken(&taken.unwrap_or_else(|_| panic!("{output:?}")), &name);
    }

    fn begin_take(&self, name: &str, fault: &str) -> Child {
        let mut command = self.vm.tintype.command();
        let arguments = ["--json", "take", "web", "--no-memory", "--name", name];
        command.args(arguments).env("TINTYPE_TEST_FAULT", fault);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Kills a take at some step. What was recorded before is recorded still.
    fn killed_take(&mut self) {
        self.tally.killed += 1;
        let step = TAKE[self.below(TAKE.len())];
        let name = self.next_name();
        self.vm.copy_all(&name);
        let output = self.begin_take(&name, step).wait_with_output().unwrap();
        assert_eq!(output.status.code(), None, "{output:?}");
        self.write();
        self.vm.tintype.wait_repaired();
        if step == "take-forgotten" {
            self.recorded = self.sizes.map(Some);
        }
        if ["take-committed", "take-forgotten"].contains(&step) {
            self.vm.must_restore(&name, &name);
            self.kept.push((name, self.sizes));
        }
    }

    fn check_taken(&mut self, taken: &Value, name: &str) {
        for (at, (disk, _)) in DISKS.into_iter().enumerate() {
            let was = reading(taken, disk);
            let expected = self.recorded[at] == Some(self.sizes[at]);
            assert_eq!(was == "incremental", expected, "{disk} was read {was}");
            let count = if expected { &mut self.tally.incremental } else { &mut self.tally.full };
            *count += 1;
            let ours: Vec<_> = self.vm.bitmaps(disk);
            let id = taken["id"].as_str().unwrap();
            assert!(ours.len() == 1 && ours[0].ends_with(id), "{ours:?}");
        }
        self.recorded = self.sizes.map(Some);
        self.vm.must_restore(name, name);
        self.kept.push((name.to_owned(), self.sizes));
    }

    fn resize(&mut self) {
        self.tally.resized += 1;
        let at = self.below(2);
        let size = SIZES[self.below(SIZES.len())];
        self.vm.resize(DISKS[at].0, size);
        self.sizes[at] = size;
    }

    fn kill_qemu(&mut self) {
        self.tally.restarted += 1;
        // What is not flushed is lost, and of that there would be no copy.
        DISKS.iter().for_each(|(disk, _)| self.vm.io(disk, "flush"));
        let shown = self.vm.tintype.json(&["vm", "show", "web"]);
        let pid = i32::try_from(shown["pid"].as_i64().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        wait_until(|| self.vm.tintype.json(&["vm", "show", "web"])["state"] == "stopped");
        self.vm.tintype.json(&["vm", "start", "web"]);
        self.recorded = [None; 2];
    }

    fn switch_off_and_on(&mut self) {
        self.tally.off += 1;
        let name = self.next_name();
        self.vm.copy_all(&name);
        self.vm.tintype.json(&["vm", "stop", "web", "--force"]);
        let taken = self.vm.tintype.json(&["take", "web", "--name", &name]);
        assert_eq!(reading(&taken, "da"), "full: QEMU did not run");
        self.vm.must_restore(&name, &name);
        self.start_again();
    }

    /// Stops the VM cleanly and starts it again. Meanwhile somebody may write to an image,
    /// or put back an older copy of one.
    fn stop_and_start(&mut self) {
        self.tally.stopped += 1;
        self.stop();
        let at = self.below(2);
        let image = self.vm.image(DISKS[at].0);
        match self.random.below(3) {
            0 => {
                self.tally.written_while_off += 1;
                let command = self.some_write(at);
                image_io(&image, DISKS[at].1, &command);
            }
            1 => {
                self.tally.put_back_while_off += 1;
                let copy = self.vm.path("older");
                fs::copy(&image, &copy).unwrap();
                self.start_again();
                (0..4).for_each(|_| self.write());
                self.stop();
                fs::copy(&copy, &image).unwrap();
            }
            _ => {}
        }
        self.start_again();
    }

    /// Stops it at once, or as its guest would when the power button was pressed.
    fn stop(&mut self) {
        match self.random.below(2) {
            0 => drop(self.vm.tintype.json(&["vm", "stop", "web", "--force"])),
            _ => self.vm.stop_by_power_button(),
        }
    }

    fn start_again(&mut self) {
        self.vm.tintype.json(&["vm", "start", "web"]);
        for (recorded, (_, format)) in self.recorded.iter_mut().zip(DISKS) {
            // It alone stores what has changed.
            recorded.take_if(|_| format != Format::Qcow2);
        }
    }

    /// Goes back to some snapshot, whatever sizes the disks had then.
    fn revert(&mut self) {
        self.tally.reverted += 1;
        let at = self.below(self.kept.len());
        let (name, sizes) = self.kept[at].clone();
        let mut arguments = vec!["revert", "web", &name];
        if self.random.below(2) == 0 {
            arguments.push("--no-safety");
        }
        let report = self.vm.tintype.json(&arguments);
        assert_eq!(report["state"], "running");
        self.vm.must_hold(&name);
        self.sizes = sizes;
        self.recorded = [None; 2];
    }

    fn next_name(&mut self) -> String {
        self.takes += 1;
        format!("t{}", self.takes)
    }
}

pub(crate) fn wait_until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + WITHIN;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not come to that");
        sleep(Duration::from_millis(5));
    }
}
