//! A guest with a `tintype` of its own: every take and every revert of a test goes
//! through here, and none may leave traces in QEMU or errors in the guest.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tintype_testkit::{Guest, GuestBuilder, GuestKind, Qemu, Release, Testimony};

use crate::command::Tintype;
use crate::traces::Traces;

/// How long anything in a guest may take, emulated and on a busy machine.
pub(crate) const WITHIN: Duration = Duration::from_secs(90);

/// What the guest is called.
pub(crate) const VM: &str = "web";

/// The release from which on QEMU can do all that tintype makes use of.
pub(crate) const TEN: Release = Release { major: 10, minor: 0 };

/// The release from which on the memory of an emulated guest can be saved in passes.
const NINE: Release = Release { major: 9, minor: 0 };

/// The ways of capture, as `--mode` has them.
pub(crate) const MODES: [&str; 3] = ["iterating", "copy-on-write", "stop"];

/// The ways that a QEMU has for an emulated guest.
pub(crate) fn modes(qemu: &Qemu) -> &'static [&'static str] {
    if qemu.release() >= NINE { &MODES } else { &MODES[1..] }
}

/// Says whether the system's QEMU has all the ways; if not, the test that asks cannot run.
pub(crate) fn has_every_mode() -> bool {
    let has_them = Qemu::system().is_ok_and(|qemu| modes(&qemu).len() == MODES.len());
    if !has_them {
        eprintln!("skipped: the system's QEMU has not all ways of capture, 9.0 or newer has");
    }
    has_them
}

/// Says whether the guest has been built; if not, the test that asks cannot run.
pub(crate) fn is_built(kind: GuestKind) -> bool {
    let built = kind.is_built();
    if !built {
        eprintln!("skipped: no {} guest; `cargo xtask guests` builds it", kind.name());
    }
    built
}

/// A registered guest.
pub(crate) struct Subject {
    pub(crate) guest: Guest,
    pub(crate) tintype: Tintype,
    /// What QEMU was like before anything was done.
    first: Traces,
}

impl Subject {
    /// Starts a guest where a saved one like it had booted, and registers it.
    pub(crate) fn start(builder: GuestBuilder) -> Self {
        Self::of(builder.start().unwrap())
    }

    /// Boots a guest, for those that QEMU cannot save, and registers it.
    pub(crate) fn boot(builder: GuestBuilder) -> Self {
        Self::of(builder.boot().unwrap())
    }

    pub(crate) fn of(guest: Guest) -> Self {
        let tintype = Tintype::within(guest.files().folder());
        let socket = guest.qmp_path();
        tintype.json(&["vm", "add", VM, "--qmp", socket.to_str().unwrap()]);
        let first = Traces::of(&guest);
        Self { guest, tintype, first }
    }

    /// Takes a snapshot. QEMU has to be as it was when that returns.
    pub(crate) fn take(&mut self, arguments: &[&str]) -> Value {
        let before = Traces::of(&self.guest);
        let report = self.tintype.json(&[&["take", VM], arguments].concat());
        let expected = if self.keeps_paused() { before } else { before.after_a_migration() };
        assert_eq!(Traces::of(&self.guest), expected, "after a take: {report}");
        report
    }

    /// Tells whether this QEMU can save a guest that is paused and call it paused
    /// afterwards.
    fn keeps_paused(&self) -> bool {
        self.guest.files().qemu().release() >= TEN
    }

    /// Reverts to a snapshot. The new QEMU has to be as the first one was, but for
    /// the state of the guest, which the report tells.
    pub(crate) fn revert(&mut self, snapshot: &str, arguments: &[&str]) -> Value {
        self.guest.serial().disconnect();
        let report = self.tintype.json(&[&["revert", VM, snapshot], arguments].concat());
        let state = &report["state"];
        if report["lazy"] == true {
            self.wait_loaded();
        }
        if state != "stopped" {
            let expected = self.first.in_state(state);
            assert_eq!(Traces::of(&self.guest), expected, "after a revert: {report}");
        }
        report
    }

    /// Waits until all memory of a guest that runs already is there.
    pub(crate) fn wait_loaded(&self) {
        let deadline = Instant::now() + WITHIN;
        loop {
            let loading = self.tintype.json(&["vm", "show", VM])["loading"].take();
            if loading == Value::Null {
                return;
            }
            assert!(Instant::now() < deadline, "it is not loaded: {loading}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a guest that was put back answers; then all of its witnesses
    /// are well, and its kernel has nothing to complain of.
    pub(crate) fn must_be_whole(&mut self) -> Vec<Testimony> {
        self.guest.serial().wait_answer(WITHIN).unwrap();
        let answers = self.guest.serial().must_be_whole(WITHIN);
        self.must_be_well();
        answers
    }

    /// Looks through the kernel's log for errors of disks and of the kernel itself.
    pub(crate) fn must_be_well(&mut self) {
        let errors = "dmesg | grep -E 'I/O error|EXT4-fs error|Call Trace|hung_task' || true";
        let found = self.guest.serial().must_run(errors, WITHIN);
        assert_eq!(found, "", "the guest's kernel complains");
    }

    /// Looks that QEMU is as it was before anything was done.
    pub(crate) fn must_be_unchanged(&self) {
        assert_eq!(Traces::of(&self.guest), self.first);
    }

    /// Pauses or resumes the guest as its owner, past tintype.
    pub(crate) fn owner(&self, command: &str) {
        self.guest.qmp().unwrap().execute(command, json!({})).unwrap();
    }

    /// Starts the guest from its disks and waits until it has booted.
    pub(crate) fn power_on(&mut self) {
        let report = self.tintype.json(&["vm", "start", VM]);
        assert_eq!(report["state"], "running");
        self.guest.serial().wait_ready(WITHIN).unwrap();
    }

    /// Ends QEMU at once; the disks are what the guest had written.
    pub(crate) fn power_off(&mut self) {
        self.guest.serial().disconnect();
        let report = self.tintype.json(&["vm", "stop", VM, "--force"]);
        assert_eq!(report["state"], "stopped");
    }
}
