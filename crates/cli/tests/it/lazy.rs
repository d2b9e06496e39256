//! A guest that runs before its memory is there is of one instant like any other,
//! whatever becomes of those who bring the memory. Its witnesses count in a memory
//! of which they go through half, and on two disks.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tintype_testkit::{Disk, Format, Guest, GuestKind, Qemu};

use crate::cycles::{Random, WITNESSES};
use crate::soak::{is_soak, seed_of_now, wanted};
use crate::subject::{Subject, TEN, VM, WITHIN, is_built};
use crate::traces::Traces;
use crate::words::files;

/// A guest that is reverted lazily.
struct Lazy {
    subject: Subject,
    /// What its QEMU was like before anything was done.
    first: Traces,
}

impl Lazy {
    /// Starts a guest with witnesses and something to load, and takes `base`.
    fn start(qemu: &Qemu) -> Self {
        let disks = [Disk::blank(Format::Qcow2, 64), Disk::blank(Format::Raw, 64)];
        let builder = Guest::of(GuestKind::Tiny).qemu(qemu.clone()).memory_mib(224).disks(disks);
        let mut subject = Subject::start(builder);
        let first = Traces::of(&subject.guest);
        for (name, arguments) in WITNESSES {
            subject.guest.serial().start_witness(name, arguments, WITHIN).unwrap();
        }
        let fill = "dd if=/dev/urandom of=/tmp/fill bs=1M count=48 2>/dev/null";
        subject.guest.serial().must_run(&format!("{fill}; {SUM} >/tmp/sum"), WITHIN);
        subject.take(&["--name", "base"]);
        Self { subject, first }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.subject.guest.files().folder().join("home").join(name)
    }

    /// Reverts lazily.
    fn revert(&mut self, arguments: &[&str]) {
        let output = self.try_revert(None, arguments);
        let report = must_be_reverted(&output);
        assert_eq!(report["lazy"], true, "{output:?}");
    }

    /// Does so with an environment that lets its page servers die.
    fn try_revert(&mut self, fault: Option<&str>, arguments: &[&str]) -> Output {
        self.subject.guest.serial().disconnect();
        let mut command = self.subject.tintype.command();
        command.args(["--json", "revert", VM, "base", "--lazy"]).args(arguments);
        command.envs(fault.map(|fault| ("TINTYPE_TEST_FAULT", fault)));
        command.output().unwrap()
    }

    fn show(&self) -> Value {
        self.subject.tintype.json(&["vm", "show", VM])
    }

    /// Returns how often the guest had to wait for a page in the last whole load.
    fn requests(&self) -> u64 {
        let sets = files(&self.home("working-sets"));
        let [set] = &sets[..] else { panic!("one snapshot, one set: {sets:?}") };
        let set: Value = serde_json::from_slice(&fs::read(set).unwrap()).unwrap();
        set["requests"].as_u64().unwrap()
    }

    /// Waits until all memory is there; whoever brings it.
    fn wait_loaded(&self) {
        let deadline = Instant::now() + WITHIN;
        while self.home("vms/web/loading.json").exists() {
            assert!(Instant::now() < deadline, "it is not loaded: {}", self.show());
            sleep(Duration::from_millis(5));
        }
    }

    /// Asserts that nothing is left of loading, in QEMU or at home, and that the guest
    /// noticed nothing of it.
    fn must_be_whole(&mut self) {
        self.wait_loaded();
        assert_eq!(self.show()["loading"], Value::Null);
        assert_eq!(Traces::of(&self.subject.guest), self.first);
        let left: Vec<_> = fs::read_dir(self.home("run")).unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
        self.subject.must_be_whole();
        let same = format!("{SUM} | cmp - /tmp/sum && echo same");
        assert_eq!(self.subject.guest.serial().must_run(&same, WITHIN), "same\n");
    }

    /// Returns who loads the memory, and who stands by.
    fn servers(&self) -> Vec<Pid> {
        let file = self.home("vms/web/progress.json");
        let Ok(text) = fs::read(file) else { return Vec::new() };
        let progress: Value = serde_json::from_slice(&text).unwrap();
        let pid = i32::try_from(progress["server"].as_u64().unwrap()).unwrap();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let stands_by = children.split_whitespace().map(|pid| pid.parse().unwrap());
        std::iter::once(pid).chain(stands_by).filter_map(Pid::from_raw).collect()
    }

    /// Sends them a signal at once; one that has ended needs none.
    fn signal(&self, servers: &[Pid], signal: Signal) {
        for server in servers.iter().rev() {
            let _ = kill_process(*server, signal);
        }
    }

    /// Reverts, and holds who loads the memory before all of it is there. To hold them
    /// before the guest runs could hold QEMU too: it may need a page to let the guest run.
    fn revert_and_hold(&mut self) -> Vec<Pid> {
        for _ in 0..20 {
            self.revert(&["--no-safety"]);
            let servers = self.servers();
            self.signal(&servers, Signal::STOP);
            if self.show()["loading"]["done"] != self.show()["loading"]["total"] {
                return servers;
            }
            self.signal(&servers, Signal::CONT);
            self.wait_loaded();
        }
        panic!("all memory is always there before somebody can be held");
    }

    /// Waits until nobody loads the memory any more.
    fn wait_abandoned(&self) {
        let lock = fs::File::open(self.home("vms/web/loading.lock")).unwrap();
        let deadline = Instant::now() + WITHIN;
        while lock.try_lock().is_err() {
            assert!(Instant::now() < deadline, "somebody goes on with it");
            sleep(Duration::from_millis(5));
        }
    }
}

/// Asserts that a revert has let the guest run, and returns its report.
fn must_be_reverted(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["state"], "running");
    report
}

/// Asserts that a revert has failed since QEMU waits for memory that nobody brings, and
/// that it says what goes on with it.
fn must_wait_for_memory(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    for words in ["QEMU did not answer `cont`", "does not run yet", "`tintype vm show web`"] {
        assert!(errors.contains(words), "{errors}");
    }
}

/// What says whether a file in the guest's memory is as it was.
const SUM: &str = "md5sum </tmp/fill";

/// The QEMUs to try; none without the guest.
fn qemus() -> Vec<Qemu> {
    if is_built(GuestKind::Tiny) { Qemu::all() } else { Vec::new() }
}

#[test]
fn a_guest_runs_before_its_memory_is_there() {
    for qemu in qemus() {
        let mut lazy = Lazy::start(&qemu);
        lazy.revert(&["--no-safety"]);
        lazy.must_be_whole();
        let first = lazy.requests();
        // What was needed first is sent first, now not only what was written last: soon the
        // guest waits half as often.
        let mut again = Vec::new();
        while again.last().is_none_or(|requests| 2 * requests > first) {
            assert!(again.len() < 4, "{first} requests, then {again:?}");
            lazy.revert(&["--no-safety"]);
            lazy.must_be_whole();
            again.push(lazy.requests());
        }
        eprintln!("QEMU {}: {first} requests, then {again:?}", qemu.release());
        if qemu.release() < TEN && !is_soak() {
            continue;
        }
        // At once: the safety snapshot waits for what is missing.
        lazy.revert(&["--no-safety"]);
        lazy.revert(&[]);
        lazy.subject.guest.serial().wait_answer(WITHIN).unwrap();
        lazy.subject.tintype.json(&["take", VM, "--name", "again"]);
        lazy.must_be_whole();
        lazy.subject.revert("again", &["--eager"]);
        lazy.must_be_whole();
        lazy.subject.revert("safety1", &[]);
        lazy.must_be_whole();
    }
}

#[test]
fn whoever_loads_is_killed_and_the_next_command_goes_on() {
    let steps = ["load-halfway", "load-forgotten", "load-sent", "load-begun"];
    for (number, qemu) in qemus().iter().enumerate() {
        let mut lazy = Lazy::start(qemu);
        // In CI each QEMU has a share of the steps.
        let share = if is_soak() { &steps[..] } else { &steps[2 * number..][..2] };
        for step in share {
            eprintln!("QEMU {}: killed at {step}, as often as it gets there", qemu.release());
            let reverted = lazy.try_revert(Some(step), &["--no-safety"]);
            // Where the guest could not run yet, QEMU may need a page to let it run, and one
            // whose server dies before that is not worth a second try.
            let is_abandoned = if *step == "load-begun" && !reverted.status.success() {
                must_wait_for_memory(&reverted);
                true
            } else {
                let is_lazy = must_be_reverted(&reverted)["lazy"] == true;
                assert!(is_lazy || *step == "load-begun", "{reverted:?}");
                is_lazy && *step != "load-forgotten"
            };
            if is_abandoned {
                lazy.wait_abandoned();
            }
            assert!(["running", "paused"].contains(&lazy.show()["state"].as_str().unwrap()));
            lazy.must_be_whole();
        }
    }
}

#[test]
fn whoever_loads_is_killed_at_moments_of_chance() {
    let seed = wanted("TINTYPE_SOAK_SEED").unwrap_or_else(seed_of_now);
    let kills = wanted("TINTYPE_SOAK_COUNT").unwrap_or(2);
    eprintln!("{kills} kills on each QEMU, TINTYPE_SOAK_SEED={seed}");
    let mut random = Random::from_seed(seed);
    for qemu in qemus() {
        let mut lazy = Lazy::start(&qemu);
        let mut in_time = 0;
        for kill in 0..kills {
            lazy.revert(&["--no-safety"]);
            let moment = Duration::from_micros(random.below(400_000));
            sleep(moment);
            let servers = lazy.servers();
            let all = kill % 2 == 0;
            let chosen = if all { &servers } else { &servers[..servers.len().min(1)] };
            lazy.signal(chosen, Signal::KILL);
            let was_loading = lazy.home("vms/web/loading.json").exists();
            in_time += u64::from(was_loading);
            eprintln!(
                "killed after {moment:?}, {}",
                if all { "with who stands by" } else { "alone" }
            );
            if all && was_loading {
                lazy.wait_abandoned();
                lazy.show();
            }
            lazy.must_be_whole();
        }
        eprintln!(
            "soak: QEMU {}, seed {seed}: {in_time} of {kills} kills came while memory was loaded, every guest whole",
            qemu.release()
        );
    }
}

#[test]
fn what_cannot_be_read_is_waited_for() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let mut lazy = Lazy::start(&Qemu::system().unwrap());
    let (segment, good, bad) = damaged_memory(&lazy);
    let eager = ["revert", VM, "base", "--eager", "--no-safety"];
    let refused = lazy.subject.tintype.run(&eager);
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    lazy.revert(&["--no-safety"]);
    lazy.wait_abandoned();
    for _ in 0..2 {
        let shown = lazy.show();
        assert_eq!(shown["state"], "waiting for memory", "{shown}");
        let error = shown["loading"]["error"].as_str().unwrap();
        assert!(error.contains("cannot be read"), "{error}");
        let taken = lazy.subject.tintype.run(&["take", VM]);
        let errors = String::from_utf8_lossy(&taken.stderr);
        assert_eq!(taken.status.code(), Some(1), "{errors}");
        assert!(errors.contains("nothing of it is lost"), "{errors}");
    }
    fs::write(&segment, &good).unwrap();
    lazy.subject.tintype.json(&["take", VM]);
    lazy.must_be_whole();

    // What is not there can be given up, too.
    fs::write(&segment, &bad).unwrap();
    lazy.revert(&["--no-safety"]);
    lazy.wait_abandoned();
    assert_eq!(lazy.subject.tintype.json(&["vm", "stop", VM, "--force"])["state"], "stopped");
    fs::write(&segment, &good).unwrap();
    lazy.revert(&["--no-safety"]);
    lazy.must_be_whole();
}

/// Damages the memory of the snapshot and nothing else of it. Returns the segment, and
/// what was in it and is in it now.
fn damaged_memory(lazy: &Lazy) -> (PathBuf, Vec<u8>, Vec<u8>) {
    for segment in files(&lazy.home("repository/seg")) {
        let good = fs::read(&segment).unwrap();
        for at in (0..good.len()).step_by(2 << 20).skip(1) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&segment, &bad).unwrap();
            let output = lazy.subject.tintype.run(&["--json", "verify", "--read-data"]);
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            let lost = report["lost"].as_array().unwrap();
            let is_memory = |part: &Value| part["part"].as_str().unwrap().starts_with("memory/");
            if !lost.is_empty() && lost.iter().all(is_memory) {
                return (segment, good, bad);
            }
            fs::write(&segment, &good).unwrap();
        }
    }
    panic!("no place is of memory alone");
}

#[test]
fn what_needs_all_memory_waits_or_is_refused() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let mut lazy = Lazy::start(&Qemu::system().unwrap());
    let servers = lazy.revert_and_hold();
    let shown = lazy.show();
    assert!(shown["loading"]["total"].as_u64().unwrap() >= 224 << 20, "{shown}");
    let check = |arguments: &[&str], words: &str| {
        let output = lazy.subject.tintype.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {errors}");
        assert!(errors.contains(words), "{errors}");
    };
    check(&["rm", "web@base"], "is still being loaded from the snapshot");
    check(&["vm", "rm", VM], "is still being loaded (");
    let mut take = lazy.subject.tintype.command();
    let mut take = take.args(["take", VM]).spawn().unwrap();
    sleep(Duration::from_millis(500));
    assert!(take.try_wait().unwrap().is_none(), "it waits");
    kill_process(Pid::from_child(&take), Signal::INT).unwrap();
    assert_eq!(take.wait().unwrap().code(), Some(130));
    lazy.signal(&servers, Signal::CONT);
    lazy.must_be_whole();
}

#[test]
fn a_qemu_that_cannot_is_loaded_eagerly() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    // QEMU cannot be told of missing pages in a file that others see.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = folder.path().join("memory").display().to_string();
    let memory = format!("memory-backend-file,id=ram,size=96M,mem-path={file},share=on");
    let extra = ["-object", &memory, "-machine", "memory-backend=ram"].map(str::to_owned);
    let mut subject = Subject::boot(Guest::of(GuestKind::Tiny).memory_mib(96).extra(extra));
    subject.take(&["--name", "base"]);
    subject.guest.serial().disconnect();
    let output = subject.tintype.run(&["--json", "revert", VM, "base", "--lazy"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert!(errors.contains("all memory is loaded before the guest runs: "), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["lazy"], &report["state"]), (&json!(false), &json!("running")));
    subject.guest.serial().wait_answer(WITHIN).unwrap();
    subject.must_be_well();
}
