//! Memory and disks of a snapshot are of one instant, whenever it is taken.
//!
//! That the witnesses do notice a disk from another moment is shown by
//! `variants::a_paused_guest_stays_paused` here, and with QEMU alone by the tests
//! of `testkit` (`tear`).
//!
//! `cargo xtask soak guests` runs the cycles with many more rounds: it sets
//! `TINTYPE_SOAK_COUNT`, for each QEMU, and `TINTYPE_SOAK_SEED`.

use tintype_testkit::{Disk, Error, Format, Guest, GuestKind, Qemu};

use crate::cycles::{Random, Tally, run};
use crate::soak::{seed_of_now, wanted};
use crate::subject::{Subject, WITHIN, is_built, modes};

/// How many cycles there are on each QEMU unless somebody asks for more.
const CYCLES: u64 = 9;

/// How many of the cycles there are of a program that never yields.
const NEVER_YIELDING: usize = 6;

/// How often a guest that should be too busy for passes is found less busy.
const MOMENTS_OF_A_BUSY_GUEST: usize = 5;

/// After how many cycles a new guest with a new repository takes over: one boots
/// rarely, and none keeps all that thousands of cycles leave.
const CYCLES_OF_A_GUEST: u64 = 30;

#[test]
fn a_revert_is_of_one_instant_on_the_systems_qemu() {
    check(Qemu::system());
}

#[test]
fn a_revert_is_of_one_instant_on_qemu_7_2() {
    check(Qemu::seven_two());
}

fn check(qemu: Result<Qemu, Error>) {
    let qemu = match qemu {
        Ok(qemu) => qemu,
        Err(error) => return eprintln!("skipped: {error}"),
    };
    if !is_built(GuestKind::Tiny) {
        return;
    }
    let release = qemu.release();
    let seed = wanted("TINTYPE_SOAK_SEED").unwrap_or_else(seed_of_now);
    let cycles = wanted("TINTYPE_SOAK_COUNT").unwrap_or(CYCLES);
    eprintln!("QEMU {release}: {cycles} cycles, TINTYPE_SOAK_SEED={seed}");
    let mut random = Random::from_seed(seed);
    let mut tally = Tally::default();
    let mut left = cycles;
    while left > 0 {
        let batch = left.min(CYCLES_OF_A_GUEST);
        tally.add(&run(&qemu, &mut random, batch));
        left -= batch;
        eprintln!("QEMU {release}: {left} cycles left");
    }
    eprintln!("soak: QEMU {release}, seed {seed}: {tally}");
}

#[test]
fn a_program_that_never_yields_is_taken_whole() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    // A processor for the program alone, whose pages it writes again and again: QEMU
    // before 9.0 loses some of that from memory that is saved in passes.
    for qemu in Qemu::all() {
        let release = qemu.release();
        let builder = Guest::of(GuestKind::Tiny).qemu(qemu).memory_mib(160).cpus(2);
        let mut subject = Subject::start(builder);
        let modes = modes(subject.guest.files().qemu());
        let sweep = "sweep --bytes 4194304 --rewrites 400000";
        subject.guest.serial().start_witness("sweep", sweep, WITHIN).unwrap();
        for mode in modes.iter().cycle().take(NEVER_YIELDING) {
            let taken = subject.take(&["--mode", mode]);
            eprintln!("QEMU {release}: {taken}");
            subject.revert(taken["name"].as_str().unwrap(), &["--no-safety"]);
            subject.must_be_whole();
        }
    }
}

#[test]
fn a_guest_that_is_too_busy_is_taken_all_the_same() {
    if !is_built(GuestKind::Tiny) {
        return;
    }
    for qemu in Qemu::all() {
        let release = qemu.release();
        let disks = [Disk::blank(Format::Qcow2, 16), Disk::blank(Format::Raw, 16)];
        let builder = Guest::of(GuestKind::Tiny).qemu(qemu).memory_mib(192).disks(disks);
        let mut subject = Subject::start(builder);
        let modes = modes(subject.guest.files().qemu());
        let serial = subject.guest.serial();
        serial.start_witness("dirty", "dirty --bytes 104857600", WITHIN).unwrap();
        let pair = "pair --workers 2 --disk /dev/vda --disk /dev/vdb";
        serial.start_witness("pair", pair, WITHIN).unwrap();
        let doctor = subject.tintype.run(&["--json", "doctor", crate::subject::VM]);
        let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
        let can_write_protect = doctor["findings"].as_array().unwrap().iter().any(|finding| {
            finding["subject"] == "copy-on-write capture" && finding["health"] == "good"
        });
        let mode = if can_write_protect { "copy-on-write" } else { modes[0] };
        // On a machine that is busy itself the guest may be slow enough for passes.
        let is_taken_so = (0..MOMENTS_OF_A_BUSY_GUEST).any(|moment| {
            let name = format!("busy{moment}");
            let taken = subject.take(&["--name", &name, "--mode", "auto"]);
            eprintln!("QEMU {release}: {taken}");
            subject.must_be_whole();
            subject.revert(&name, &[]);
            subject.must_be_whole();
            taken["mode"] == mode
        });
        assert!(is_taken_so, "QEMU {release} never took it by {mode}");
    }
}
