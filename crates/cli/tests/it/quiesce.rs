//! The guest's agent freezes its file systems around the instant, and whatever goes
//! wrong, they are not frozen for longer than the limit.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use tintype_testkit::{Guest, GuestKind, Serial};

use crate::scene::Scene;
use crate::subject::{Subject, WITHIN, has_every_mode, is_built};

/// How long after a kill a guest may be thawed on a busy machine: far less than the
/// limit, which is not what thaws it then.
const SLACK: Duration = Duration::from_secs(20);

/// Has to be frozen, by an agent on a busy machine.
const REQUIRE: [&str; 4] = ["--quiesce", "require", "--quiesce-timeout", "60"];

/// Starts the Debian guest, with its agent and a writer.
fn start() -> Option<Subject> {
    if !is_built(GuestKind::Debian) || !has_every_mode() {
        return None;
    }
    let mut subject = Subject::start(Guest::of(GuestKind::Debian));
    let writer = "while true; do dd if=/dev/urandom of=/srv/noise bs=64k count=4 conv=fsync; \
                  date >>/srv/log; mv /srv/noise /srv/noise.old; done";
    let start = format!("nohup sh -c '{writer}' >/dev/null 2>&1 </dev/null &");
    subject.guest.serial().must_run(&start, WITHIN);
    let log = "while ! grep -q 20 /srv/log 2>/dev/null; do sleep 0.1; done";
    subject.guest.serial().must_run(log, WITHIN);
    Some(subject)
}

/// Writes in the guest, which waits while its file systems are frozen.
fn must_write(serial: &mut Serial) {
    serial.must_run("echo written >/srv/probe && sync /srv/probe", WITHIN);
}

/// Returns where the ext4 file system of a raw disk begins, by its partition table.
fn ext4_offset(disk: &mut File) -> u64 {
    for entry in 0..8 {
        let mut lba = [0; 8];
        disk.seek(SeekFrom::Start(1024 + entry * 128 + 32)).unwrap();
        disk.read_exact(&mut lba).unwrap();
        let offset = u64::from_le_bytes(lba) * 512;
        let mut magic = [0; 2];
        disk.seek(SeekFrom::Start(offset + 1024 + 0x38)).unwrap();
        if disk.read_exact(&mut magic).is_ok() && magic == [0x53, 0xef] {
            return offset;
        }
    }
    panic!("there is no ext4");
}

/// Tells whether the journal of a restored disk has to be replayed; one that has not
/// has to be clean in every respect.
fn needs_recovery(disk: &Path) -> bool {
    const RECOVER: u8 = 4;
    let mut file = File::open(disk).unwrap();
    let offset = ext4_offset(&mut file);
    let mut incompatible = [0];
    file.seek(SeekFrom::Start(offset + 1024 + 0x60)).unwrap();
    file.read_exact(&mut incompatible).unwrap();
    let needs = incompatible[0] & RECOVER != 0;
    if !needs {
        let place = format!("{}?offset={offset}", disk.display());
        let check = Command::new("e2fsck").args(["-f", "-n", &place]).output().unwrap();
        let said = String::from_utf8_lossy(&check.stdout);
        assert!(check.status.success(), "{said}");
    }
    needs
}

fn restored(subject: &Subject, name: &str) -> std::path::PathBuf {
    let to = subject.guest.files().folder().join(format!("restored-{name}"));
    let snapshot = format!("web@{name}");
    let arguments = ["restore", &snapshot, "--format", "raw", "--to", to.to_str().unwrap()];
    let report = subject.tintype.json(&arguments);
    report["disks"][0].as_str().unwrap().into()
}

#[test]
fn file_systems_are_frozen_at_the_instant_and_thawed_after_it() {
    let Some(mut subject) = start() else { return };
    for (name, mode) in [("passes", "iterating"), ("cow", "copy-on-write"), ("still", "stop")] {
        let report = subject.take(&[&["--name", name, "--mode", mode], &REQUIRE[..]].concat());
        assert_eq!(report["consistency"], "filesystem", "{report}");
        assert_eq!(report["mode"], mode);
        must_write(subject.guest.serial());
        assert!(!needs_recovery(&restored(&subject, name)), "{mode}");
    }
    let report = subject.take(&[&["--name", "disks", "--no-memory"], &REQUIRE[..]].concat());
    assert_eq!(report["consistency"], "filesystem", "{report}");
    assert!(!needs_recovery(&restored(&subject, "disks")));
    let report = subject.take(&["--name", "crash", "--quiesce", "off"]);
    assert_eq!(report["consistency"], "crash");
    assert!(needs_recovery(&restored(&subject, "crash")), "the journal of a busy disk is in use");

    // A guest that goes on from there is thawed, and knows the time.
    for name in ["passes", "cow"] {
        let report = subject.revert(name, &["--no-safety"]);
        assert_eq!(report["clock"], "set by the guest agent", "{report}");
        subject.guest.serial().wait_answer(WITHIN).unwrap();
        must_write(subject.guest.serial());
        must_know_the_time(subject.guest.serial());
    }
    let report = subject.tintype.json(&["clone", "web@passes", "twin"]);
    assert_eq!(report["vms"][0]["clock"], "set by the guest agent", "{report}");
    let folder = Path::new(report["vms"][0]["folder"].as_str().unwrap());
    let mut twin = Serial::at(&folder.join("serial"));
    twin.wait_answer(WITHIN).unwrap();
    must_write(&mut twin);
    subject.tintype.json(&["vm", "stop", "twin", "--force"]);

    // So is one that is started without tintype.
    let folder = subject.guest.files().folder().join("restored-passes");
    let started = Command::new(folder.join("start")).stdin(Stdio::null()).spawn().unwrap();
    let started = Started(started);
    let mut serial = Serial::at(&folder.join("serial"));
    serial.wait_answer(WITHIN).unwrap();
    must_write(&mut serial);
    drop(started);
}

/// A process that ends with this.
struct Started(Child);

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn must_know_the_time(serial: &mut Serial) {
    let guest: u64 = serial.must_run("date +%s", WITHIN).trim().parse().unwrap();
    let host = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) < 10, "it is {guest} in the guest, and {host} here");
}

#[test]
fn whatever_happens_the_guest_is_thawed_in_time() {
    let Some(mut subject) = start() else { return };
    for step in ["take-frozen", "take-instant", "take-resumed", "take-thawed"] {
        eprintln!("killed at {step}");
        let output = subject
            .tintype
            .command()
            .args(["take", "web"])
            .args(REQUIRE)
            .env("TINTYPE_TEST_FAULT", step)
            .output()
            .unwrap();
        assert_eq!(output.status.signal(), Some(9), "{step}: {output:?}");
        let killed = Instant::now();
        must_write(subject.guest.serial());
        assert!(killed.elapsed() < SLACK, "{step}: {:?}", killed.elapsed());
        subject.tintype.wait_repaired();
        let report = subject.take(&REQUIRE);
        assert_eq!(report["consistency"], "filesystem", "after {step}: {report}");
    }

    // A command that is held up does not hold the guest up.
    let (report, _) = while_frozen(&mut subject, "2", must_write);
    assert_eq!(report["consistency"], "crash", "it was thawed before the instant: {report}");
    must_write(subject.guest.serial());
}

#[test]
fn an_agent_that_cannot_be_asked_costs_the_consistency_or_the_take() {
    let Some(mut subject) = start() else { return };
    let check = |subject: &mut Subject, why: &str| {
        let report = subject.take(&[]);
        assert_eq!(report["consistency"], "crash", "{report}");
        let reason = report["consistency_reason"].as_str().unwrap();
        assert!(reason.contains(why), "{reason}");
        let output = subject.tintype.run(&["take", "web", "--quiesce", "require"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{errors}");
        assert!(errors.contains(why), "{errors}");
        assert!(errors.contains("state: nothing was changed"), "{errors}");
        must_write(subject.guest.serial());
    };
    let agent = subject.guest.files().agent_path().unwrap();
    let holder = UnixStream::connect(&agent).unwrap();
    check(&mut subject, "another program holds its channel");
    drop(holder);
    subject.guest.serial().must_run("kill -STOP $(pidof qemu-ga)", WITHIN);
    check(&mut subject, "does not answer in time");
    subject.guest.serial().must_run("kill -CONT $(pidof qemu-ga)", WITHIN);
    let report = subject.take(&REQUIRE);
    assert_eq!(report["consistency"], "filesystem", "late answers are let go: {report}");
    subject.guest.serial().must_run("systemctl stop qemu-guest-agent", WITHIN);
    check(&mut subject, "no guest agent runs");
    subject.owner("stop");
    let report = subject.take(&[]);
    assert!(report["consistency_reason"].as_str().unwrap().contains("stood still"), "{report}");
    subject.owner("cont");
}

/// Answers as an agent does: does `$1` to freeze, and says that `$2` were thawed.
const LIAR: &str = r#"exec 3<>/dev/virtio-ports/org.qemu.guest_agent.0; while :; do
    read -r line <&3 || { sleep 0.1; continue; }; case "$line" in
    *sync*) id=${line##*\"id\":}; printf "\377{\"return\": %s}\n" "${id%%[!0-9]*}" >&3;;
    *freeze-freeze*) $1; echo "{\"return\": 2}" >&3;;
    *freeze-thaw*) echo "{\"return\": $2}" >&3;;
    *freeze-status*) echo "{\"return\": \"thawed\"}" >&3;;
    *) echo "{\"return\": {}}" >&3;; esac; done"#;

#[test]
fn an_agent_that_dies_hangs_or_lies_while_the_guest_is_frozen() {
    let Some(mut subject) = start() else { return };
    let unit = "d=/run/systemd/system/qemu-guest-agent.service.d; mkdir -p $d; \
                printf '[Service]\\nRestart=no\\n' >$d/no.conf; systemctl daemon-reload";
    subject.guest.serial().must_run(unit, WITHIN);
    // It wakes up, and thaws by what was said to it meanwhile.
    let (report, said) = while_frozen(&mut subject, "60", |serial| {
        serial.must_run("kill -STOP $(pidof qemu-ga)", WITHIN);
    });
    assert_eq!(report["consistency"], "crash", "{report}");
    assert!(said.contains("may still be frozen") && said.contains("`fsfreeze -u`"), "{said}");
    subject.guest.serial().must_run("kill -CONT $(pidof qemu-ga)", WITHIN);
    must_write(subject.guest.serial());
    let report = subject.take(&REQUIRE);
    assert_eq!(report["consistency"], "filesystem", "{report}");

    // It is gone, and only the guest's owner can thaw it.
    let (report, said) = while_frozen(&mut subject, "60", |serial| {
        serial.must_run("kill -9 $(pidof qemu-ga)", WITHIN);
    });
    assert_eq!(report["consistency"], "crash", "{report}");
    assert!(said.contains("may still be frozen") && said.contains("`fsfreeze -u`"), "{said}");
    subject.guest.serial().must_run("fsfreeze -u /; true", WITHIN);
    must_write(subject.guest.serial());

    // Another one says what was not asked of it: that it froze, that it thawed.
    let liar = |subject: &mut Subject, arguments: &str| {
        let start = format!(
            "printf '%s' '{}' >/run/liar; nohup sh /run/liar {arguments} >/dev/null 2>&1 </dev/null &",
            LIAR.replace('\n', " ")
        );
        subject.guest.serial().must_run(&start, WITHIN);
        subject.guest.serial().must_run("sleep 1", WITHIN);
    };
    liar(&mut subject, "true 0");
    let report = subject.take(&[]);
    assert_eq!(report["consistency"], "crash", "it froze none: {report}");
    let output = subject.tintype.run(&[&["take", "web"], &REQUIRE[..]].concat());
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("no snapshot was taken; the guest runs as before"), "{errors}");
    must_write(subject.guest.serial());
    subject.guest.serial().must_run("pkill -f /run/lia[r]", WITHIN);
    liar(&mut subject, "'fsfreeze -f /' 2");
    let report = subject.take(&["--name", "lie"]);
    assert!(report["duration_ms"].as_u64().unwrap() < 60_000, "{report}");
    subject.guest.serial().must_run("fsfreeze -u /; true", WITHIN);
    must_write(subject.guest.serial());
}

/// Holds a take while the guest is frozen, for so many seconds at most, does something
/// in the guest, and returns what the take has come to, and what it said.
fn while_frozen(
    subject: &mut Subject,
    seconds: &str,
    act: impl FnOnce(&mut Serial),
) -> (Value, String) {
    let folder = subject.guest.files().folder().to_owned();
    let (file, said, errors) = (folder.join("held"), folder.join("said"), folder.join("errors"));
    let mut take = subject
        .tintype
        .command()
        .args(["--json", "take", "web", "--quiesce-timeout", seconds])
        .env("TINTYPE_TEST_FAULT", format!("take-frozen:{}", file.display()))
        .stdout(File::create(&said).unwrap())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + WITHIN;
    while !file.exists() {
        assert!(Instant::now() < deadline, "it is never frozen");
        sleep(Duration::from_millis(5));
    }
    act(subject.guest.serial());
    fs::remove_file(&file).unwrap();
    let errors = || fs::read_to_string(&errors).unwrap();
    assert!(take.wait().unwrap().success(), "{}", errors());
    (serde_json::from_slice(&fs::read(&said).unwrap()).unwrap(), errors())
}

#[test]
fn programs_of_the_user_run_around_the_instant() {
    if !is_built(GuestKind::Tiny) || !has_every_mode() {
        return;
    }
    let mut scene = Scene::start();
    let folder = scene.home().join("take.d");
    let (program, said) = (folder.join("10-say"), scene.home().join("said"));
    fs::create_dir(&folder).unwrap();
    let text = format!(
        "#!/bin/sh\necho $TINTYPE_PHASE $TINTYPE_VM@$TINTYPE_SNAPSHOT_NAME >>{0}\n\
         echo I said $1\ntest $TINTYPE_PHASE.$TINTYPE_SNAPSHOT_NAME != pre.no\n",
        said.display()
    );
    fs::write(&program, text).unwrap();
    let allow = |mode| fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
    allow(0o700);
    scene.tintype.json(&["take", "web", "--name", "yes"]);
    let said = || fs::read_to_string(&said).unwrap();
    assert_eq!(said(), "pre web@yes\npost web@yes\n");

    let output = scene.tintype.run(&["take", "web", "--name", "no"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("10-say does not want this take"), "{errors}");
    assert!(said().ends_with("pre web@no\npost web@no\n"), "{}", said());
    assert!(!scene.snapshots().contains(&"no".to_owned()));

    scene.killed_at("take-instant", &["take", "web", "--name", "killed"]);
    scene.tintype.wait_repaired();
    assert!(said().ends_with("pre web@killed\npost web@killed\n"), "{}", said());
    scene.tintype.json(&["revert", "web", "yes"]);
    assert!(said().ends_with("web@killed\n"), "a safety snapshot has no hooks");

    allow(0o722);
    let output = scene.tintype.run(&["take", "web"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("chmod go-w"), "{errors}");
    fs::remove_file(&program).unwrap();
    scene.must_work();
}
