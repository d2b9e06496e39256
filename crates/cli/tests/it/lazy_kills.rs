//! Whoever fills the disks of a clone is killed, at named steps and at moments of chance,
//! and so are the commands that make it, start it, or go on with it. Its guest reads a
//! disk over and over that it never writes, and sees no other bytes than those of the
//! snapshot; in the end that disk is the snapshot's, by `qemu-img compare`.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use tintype_testkit::{Disk, Format, GuestKind, Qemu};

use crate::cycles::Random;
use crate::lazy_disks::{Origin, Twin, img, kill_servers};
use crate::soak::{is_soak, seed_of_now, wanted};
use crate::subject::{VM, WITHIN, is_built};

const NAME: &str = "twin";

/// How often something is killed during the life of one clone.
const KILLS_OF_A_CLONE: u64 = 4;

/// Fills the disk that is read: nothing, noise, nothing, text, nothing.
const FILL: &str = "dd if=/dev/urandom of=/dev/vdc bs=1M seek=3 count=20 2>/dev/null; \
    yes tintype | head -c 6000000 | dd of=/dev/vdc bs=4k seek=8000 2>/dev/null; sync; \
    md5sum </dev/vdc | tee /tmp/vdc";

/// Reads it and a file, past the guest's own memory, until it is told to stop.
const READER: &str = "while [ ! -e /tmp/stop ]; do echo 3 >/proc/sys/vm/drop_caches; \
    md5sum </dev/vdc | cmp -s - /tmp/vdc || echo the disk >>/tmp/wrong; \
    md5sum </disk/fill | cmp -s - /tmp/sum || echo the file >>/tmp/wrong; \
    echo read >>/tmp/reads; done; touch /tmp/stopped";

/// What is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    /// Who fills the disks; another one takes its place.
    Server,
    /// The one that stands by.
    StandBy,
    /// Both: the next command goes on.
    Both,
    /// Both, and then the command that goes on.
    Repair,
    /// The command that starts the VM, which was ended before.
    Start,
}

const VICTIMS: [Victim; 5] =
    [Victim::Both, Victim::Server, Victim::Repair, Victim::StandBy, Victim::Start];

/// A guest with snapshots, which is switched off by now.
struct Ground {
    origin: Origin,
    /// The sum of the disk that is read.
    sum: String,
    /// The disks of the snapshots, written at once.
    eager: PathBuf,
}

/// A clone that lives until all of it is there.
struct Life<'g> {
    ground: &'g Ground,
    twin: Twin,
    /// Whether its guest was paused at its instant, and never runs.
    is_still: bool,
    /// Whether its guest has booted, so that its memory is not the snapshot's any more.
    has_booted: bool,
}

impl Ground {
    fn start(qemu: &Qemu) -> Self {
        let mut origin = Origin::boot(qemu, Some(Disk::blank(Format::Qcow2, 48)));
        let serial = origin.subject.guest.serial();
        let sum = serial.must_run(FILL, WITHIN);
        serial.must_run(&in_background(READER), WITHIN);
        origin.subject.take(&["--name", "base"]);
        origin.subject.owner("stop");
        origin.subject.tintype.json(&["take", VM, "--name", "still"]);
        origin.subject.power_off();
        let eager = origin.folder().join("eager");
        origin.subject.tintype.json(&["restore", "web@still", "--to", eager.to_str().unwrap()]);
        Self { origin, sum, eager }
    }

    /// Makes a clone, with a fault of who fills its disks.
    fn clone(
        &self,
        is_still: bool,
        fault: impl FnOnce(std::path::Display<'_>) -> Option<String>,
    ) -> Life<'_> {
        let snapshot = if is_still { "web@still" } else { "web@base" };
        let twin = self.origin.clone_with(snapshot, NAME, fault);
        Life { ground: self, twin, is_still, has_booted: false }
    }

    /// Runs a command, and kills it at some moment.
    fn run_and_kill(&self, arguments: &[&str], moment: Duration) {
        eprintln!("{arguments:?} killed after {moment:?}");
        let mut command = self.origin.subject.tintype.command();
        let command = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills the command that makes the clone, and removes what it has made if it was done.
    fn kill_clone(&self, moment: Duration) {
        self.run_and_kill(&["clone", "web@base", NAME, "--lazy"], moment);
        let list = self.origin.subject.tintype.lines(&["vm", "list"]);
        if list.iter().any(|vm| vm["name"] == NAME) {
            self.remove();
        }
    }

    /// Gives a clone up, whether it is whole or not.
    fn remove(&self) {
        let tintype = &self.origin.subject.tintype;
        tintype.json(&["vm", "stop", NAME, "--force"]);
        fs::remove_dir_all(self.origin.folder().join("home/clones").join(NAME)).unwrap();
        tintype.json(&["vm", "rm", NAME]);
    }
}

impl Life<'_> {
    fn show(&self) -> Value {
        self.ground.origin.show(NAME)
    }

    /// Returns how the VM is started again.
    fn command_line(&self) -> Value {
        let state = fs::read(self.twin.file(NAME, "vm.json")).unwrap();
        serde_json::from_slice::<Value>(&state).unwrap()["command_line"].take()
    }

    fn is_filling(&self) -> bool {
        self.twin.file(NAME, "filling.json").exists()
    }

    /// Kills what may have ended already.
    fn kill(&mut self, victim: Victim, moment: Duration) {
        let servers = self.twin.servers(NAME);
        let chosen = match victim {
            Victim::Server => servers.get(..1),
            Victim::StandBy => servers.get(1..),
            Victim::Both | Victim::Repair => Some(&servers[..]),
            Victim::Start => None,
        };
        kill_servers(chosen.unwrap_or_default());
        match victim {
            Victim::Repair => self.ground.run_and_kill(&["vm", "show", NAME], moment),
            Victim::Start => self.start_and_kill(3 * moment),
            _ => {}
        }
        if matches!(victim, Victim::Both | Victim::Repair) {
            self.show();
        }
    }

    fn start_and_kill(&mut self, moment: Duration) {
        let tintype = &self.ground.origin.subject.tintype;
        self.twin.serial.disconnect();
        tintype.json(&["vm", "stop", NAME, "--force"]);
        self.ground.run_and_kill(&["vm", "start", NAME], moment);
        self.has_been_started();
    }

    /// Sees to it that the VM runs, and that its guest reads as before.
    fn has_been_started(&mut self) {
        let tintype = &self.ground.origin.subject.tintype;
        if self.show()["state"] == "stopped" {
            tintype.json(&["vm", "start", NAME]);
        }
        (self.is_still, self.has_booted) = (false, true);
        let (disk, file) = (&self.ground.sum, &self.ground.origin.sum);
        let sums = format!("printf '{disk}' >/tmp/vdc; printf '{file}' >/tmp/sum");
        self.twin.serial.wait_answer(WITHIN).unwrap();
        self.twin.serial.must_run(&sums.replace('\n', "\\n"), WITHIN);
        self.twin.serial.must_run(&in_background(READER), WITHIN);
    }

    /// Asserts that the guest goes on, and has seen nothing that is wrong.
    fn must_be_right(&mut self) {
        if self.is_still {
            assert_eq!(self.show()["state"], "paused");
            return;
        }
        self.twin.serial.wait_answer(WITHIN).unwrap();
        let wrong = self.twin.serial.must_run("cat /tmp/wrong 2>/dev/null; true", WITHIN);
        assert_eq!(wrong, "", "the guest has seen other bytes");
    }

    /// Waits until all is there, and asserts that it is what the snapshot has.
    fn must_end_well(mut self) {
        let deadline = Instant::now() + WITHIN;
        while self.is_filling() {
            // One that came into another's place is held anew.
            let _ = fs::remove_file(&self.twin.held);
            assert!(Instant::now() < deadline, "it is not filled: {}", self.show());
            sleep(Duration::from_millis(20));
        }
        self.ground.origin.must_be_filled(&self.twin, NAME);
        if !self.is_still {
            self.must_be_right();
            let stop = "touch /tmp/stop; until [ -e /tmp/stopped ]; do sleep 0.1; done; \
                        [ -s /tmp/reads ] && cat /tmp/wrong 2>/dev/null; true";
            assert_eq!(self.twin.serial.must_run(stop, WITHIN), "");
        }
        if !self.is_still && !self.has_booted {
            self.twin.must_be_whole();
        }
        self.twin.serial.disconnect();
        let tintype = &self.ground.origin.subject.tintype;
        tintype.json(&["vm", "stop", NAME, "--force"]);
        for disk in self.twin.disks() {
            let name = disk.file_name().unwrap().to_owned();
            img(&["check", "-q", "-f", "qcow2"], &[&disk]);
            // The guest has written to the others.
            if self.is_still || name == "vdc-device.qcow2" {
                let eager = self.ground.eager.join(name);
                img(&["compare", "-f", "qcow2", "-F", "qcow2"], &[&disk, &eager]);
            }
        }
        self.ground.remove();
    }

    /// Waits until nobody fills the disks any more.
    fn wait_abandoned(&self) {
        let lock = File::open(self.twin.file(NAME, "filling.lock")).unwrap();
        self.twin.wait("somebody goes on with it", || lock.try_lock().is_ok());
    }
}

fn in_background(script: &str) -> String {
    format!("({script}) </dev/null >/dev/null 2>&1 &")
}

/// Kills who fills the disks wherever it gets to a step, and starts of a VM at theirs.
fn check_steps(ground: &Ground) {
    for step in ["fill-begun", "fill-halfway", "fill-forgotten"] {
        eprintln!("killed at {step}, as often as somebody gets there");
        let mut life = ground.clone(false, |_| Some(step.to_owned()));
        if step != "fill-forgotten" {
            life.wait_abandoned();
            assert!(life.is_filling());
            life.show();
        }
        life.must_be_right();
        life.must_end_well();
    }
    eprintln!("the start of the VM is killed before QEMU is noted");
    let mut life = ground.clone(false, |file| Some(format!("fill-begun:{file}")));
    life.twin.wait_held();
    life.twin.serial.disconnect();
    let tintype = &ground.origin.subject.tintype;
    tintype.json(&["vm", "stop", NAME, "--force"]);
    life.twin.let_go();
    let mut start = tintype.command();
    start.args(["vm", "start", NAME]).env("TINTYPE_TEST_FAULT", "start-launched");
    assert_eq!(start.output().unwrap().status.signal(), Some(9));
    let before = life.command_line();
    life.has_been_started();
    assert_eq!(life.command_line(), before, "what is for one start is not kept");
    life.must_end_well();
}

/// The life of a clone with some kills. Returns how many of them came in time.
fn check_life(ground: &Ground, random: &mut Random, kills: u64, first: u64) -> u64 {
    let mut moment = |bound| Duration::from_millis(random.below(bound));
    if !first.is_multiple_of(3 * KILLS_OF_A_CLONE) {
        ground.kill_clone(moment(2_500));
    }
    let (is_still, is_held) = (moment(4).is_zero(), moment(2).is_zero());
    eprintln!("a clone, {}", if is_still { "paused" } else { "running" });
    let mut life = ground.clone(is_still, |file| is_held.then(|| format!("fill-begun:{file}")));
    let mut in_time = 0;
    for kill in first..first + kills {
        sleep(moment(700));
        let victim = VICTIMS[usize::try_from(kill).unwrap() % VICTIMS.len()];
        in_time += u64::from(life.is_filling());
        eprintln!("kill {kill}: {victim:?}{}", if life.is_filling() { "" } else { ", too late" });
        life.kill(victim, moment(200));
        life.must_be_right();
        if kill == first + kills / 2 {
            let _ = fs::remove_file(&life.twin.held);
        }
    }
    life.must_end_well();
    in_time
}

#[test]
fn whoever_fills_disks_is_killed() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let seed = wanted("TINTYPE_SOAK_SEED").unwrap_or_else(seed_of_now);
    let kills = wanted("TINTYPE_SOAK_COUNT").unwrap_or(KILLS_OF_A_CLONE);
    eprintln!("{kills} kills, TINTYPE_SOAK_SEED={seed}");
    let mut random = Random::from_seed(seed);
    let mut qemus = Qemu::all();
    if !is_soak() {
        // One of them by chance, for there is not time for all.
        let chosen = usize::try_from(seed).unwrap() % qemus.len();
        qemus = qemus.split_off(chosen);
        qemus.truncate(1);
    }
    for qemu in qemus {
        eprintln!("QEMU {}", qemu.release());
        let ground = Ground::start(&qemu);
        check_steps(&ground);
        let (mut done, mut in_time) = (0, 0);
        while done < kills {
            let some = KILLS_OF_A_CLONE.min(kills - done);
            in_time += check_life(&ground, &mut random, some, done);
            done += some;
        }
        eprintln!(
            "soak: QEMU {}, seed {seed}: {in_time} of {kills} kills came while disks were filled, no guest saw other bytes, and every disk is the snapshot's",
            qemu.release()
        );
    }
}
