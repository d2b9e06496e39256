//! What people have becomes snapshots, and snapshots become what other tools read.
//! The judge is `qemu-img`.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::fs::inotify;
use serde_json::{Value, json};
use tempfile::TempDir;
use tintype_testkit::Qemu;

use crate::command::Tintype;
use crate::switched_off::{content, failed};

/// A folder with images, and a home.
struct Place {
    folder: TempDir,
    tintype: Tintype,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tintype = Tintype::within(folder.path());
        fs::create_dir(folder.path().join("images")).unwrap();
        Self { folder, tintype }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Makes a raw disk of 4 MiB with content of its own.
    fn raw(&self, name: &str, state: u64) -> String {
        let mut bytes = vec![0; 4 << 20];
        bytes[1 << 20..][..300_000].copy_from_slice(&content(state, 300_000));
        fs::write(self.path(name), bytes).unwrap();
        self.text(name)
    }

    fn import(&self, arguments: &[&str]) -> Value {
        self.tintype.json(&[&["import"], arguments].concat())
    }

    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        failed(&self.tintype.run(arguments), code)
    }

    /// Exports a snapshot, and asserts that it is what `qemu-img` reads of an image.
    fn must_be(&self, snapshot: &str, arguments: &[&str], image: &str, options: &[&str]) {
        let (expected, exported) = (self.text("expected"), self.text("exported"));
        let convert = ["convert", "-O", "raw"];
        tool("qemu-img", &[&convert, options, &[image, &expected]].concat());
        for format in ["raw", "qcow2"] {
            let export = ["export", snapshot, "--format", format, "--to", &exported];
            let report = self.tintype.json(&[&export, arguments].concat());
            assert_eq!(report["files"], json!([exported]));
            tool("qemu-img", &["compare", "-f", "raw", "-F", format, &expected, &exported]);
            if format == "qcow2" {
                tool("qemu-img", &["check", "-q", "-f", "qcow2", &exported]);
            }
            fs::remove_file(&exported).unwrap();
        }
    }
}

/// Runs a tool, which must succeed.
#[track_caller]
fn tool(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output
}

fn names(report: &Value) -> Vec<&str> {
    let snapshots = report["snapshots"].as_array().unwrap().iter();
    snapshots.map(|snapshot| snapshot["name"].as_str().unwrap()).collect()
}

/// Makes three files as libvirt does: the disk, and what was written after each of two
/// snapshots. The lowest is raw.
fn chain(place: &Place) -> String {
    let base = place.raw("images/web.raw", 1);
    let mut below = ("web.raw".to_owned(), "raw");
    for (name, at) in [("web.first", "1M"), ("web.second", "2M")] {
        let path = place.text(&format!("images/{name}"));
        let create = ["create", "-q", "-f", "qcow2", "-b", &below.0, "-F", below.1, &path];
        tool("qemu-img", &create);
        tool("qemu-io", &["-f", "qcow2", "-c", &format!("write -P {} {at} 70k", at.len()), &path]);
        below = (path, "qcow2");
    }
    assert!(Path::new(&base).exists());
    below.0
}

#[test]
fn a_chain_becomes_a_snapshot_for_each_file() {
    let place = Place::new();
    let top = chain(&place);
    let before = fs::read(&top).unwrap();
    let import = [top.as_str(), "--format", "qcow2", "--vm", "web", "-m", "old"];
    let planned = place.import(&[&import[..], &["--dry-run"]].concat());
    assert!(!place.path("home/repository").exists(), "a dry run makes nothing");
    assert!(!place.path("home/vms/web").exists(), "a dry run makes nothing");
    let report = place.import(&import);
    assert_eq!(names(&report), ["web", "web.first", "web.second"]);
    assert_eq!(names(&planned), names(&report));
    let log = place.tintype.lines(&["log", "web"]);
    let parents: Vec<_> = log.iter().map(|line| line["parent"].clone()).collect();
    assert_eq!(parents, [log[1]["id"].clone(), log[2]["id"].clone(), Value::Null]);
    assert!(log[0]["message"].as_str().unwrap().starts_with("old (imported from "));
    assert_eq!(log[0]["mode"], "imported");
    let stored = |number: usize| report["snapshots"][number]["stored_bytes"].as_u64().unwrap();
    assert!(stored(1) < stored(0) / 4, "only differences are stored: {report}");
    let lowest = place.text("images/web.raw");
    place.must_be("web@web", &[], &lowest, &["-f", "raw"]);
    for name in ["web.first", "web.second"] {
        let file = place.text(&format!("images/{name}"));
        place.must_be(&format!("web@{name}"), &["--disk", "vda"], &file, &["-f", "qcow2"]);
    }
    assert!(fs::read(&top).unwrap() == before, "the images are as they were");
    let verified = place.tintype.json(&["verify", "--read-data"]);
    assert_eq!(verified["damaged"], json!([]));
    assert_eq!(place.tintype.json(&["du", "web"])["snapshots"].as_array().unwrap().len(), 3);

    let again = place.import(&import);
    let known = again["snapshots"].as_array().unwrap();
    assert!(known.iter().all(|snapshot| snapshot["was_there"] == true), "{again}");
    assert_eq!(place.tintype.lines(&["log"]).len(), 3);
    for arguments in [
        &["revert", "web", "web.first"][..],
        &["clone", "web@web", "other"],
        &["restore", "web@web", "--to", &place.text("restored")],
        &["vm", "start", "web"],
        &["take", "web"],
    ] {
        let said = place.refused(4, arguments);
        assert!(said.contains("it was imported") && said.contains("tintype export"), "{said}");
    }
    comes_out_again(&place);
}

/// Asserts that the chain comes out as it went in.
fn comes_out_again(place: &Place) {
    let to = place.text("chain");
    let export = ["export", "web@latest", "--format", "qcow2", "--chain", "--to", &to];
    let report = place.tintype.json(&export);
    let files: Vec<_> =
        report["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    assert_eq!(files.len(), 3);
    for (file, name) in files.iter().zip(["web.raw", "web.first", "web.second"]) {
        let original = place.text(&format!("images/{name}"));
        let format = if name == "web.raw" { "raw" } else { "qcow2" };
        tool("qemu-img", &["compare", "-f", format, "-F", "qcow2", &original, file]);
        tool("qemu-img", &["check", "-q", "-f", "qcow2", file]);
    }
    assert!(fs::metadata(files[2]).unwrap().len() < 1 << 20, "it has what differs alone");
    let info = tool("qemu-img", &["info", "-f", "qcow2", "--output=json", files[2]]);
    let info: Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["backing-filename"], "02-web.first.qcow2");
    assert_eq!(info["backing-filename-format"], "qcow2");
    let said = place.refused(4, &export);
    assert!(said.contains("is there already"), "{said}");
    assert_eq!(
        fs::read_dir(place.folder.path())
            .unwrap()
            .flatten()
            .filter(|entry| { entry.file_name().to_str().unwrap().starts_with('.') })
            .count(),
        0,
        "nothing of exports is left"
    );
}

#[test]
fn internal_snapshots_come_with_their_disks_and_states() {
    let place = Place::new();
    let image = place.text("images/disk.qcow2");
    let raw = place.raw("images/raw", 1);
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &raw, &image]);
    let program = Qemu::system().unwrap().binary().to_owned();
    let drive = format!("file={image},format=qcow2,if=virtio");
    let mut qemu = Command::new(program)
        .args(["-m", "16", "-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-monitor", "stdio", "-drive", &drive])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut monitor = qemu.stdin.take().unwrap();
    monitor.write_all(b"savevm with\nquit\n").unwrap();
    assert!(qemu.wait().unwrap().success());
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 5 1M 200k", &image]);
    tool("qemu-img", &["snapshot", "-c", "Second One", "-f", "qcow2", &image]);
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 6 0 1M", &image]);
    tool("qemu-img", &["resize", "-q", "-f", "qcow2", &image, "6M"]);

    let report = place.import(&[&image]);
    assert_eq!(report["vm"], "disk");
    assert_eq!(names(&report), ["with", "second-one", "disk"]);
    let bytes = report["snapshots"][0]["vm_state_bytes"].as_u64().unwrap();
    assert!(bytes > 100_000, "{report}");
    for (name, other) in [("with", "1"), ("second-one", "2")] {
        let option = format!("snapshot.id={other}");
        place.must_be(&format!("disk@{name}"), &[], &image, &["-f", "qcow2", "-l", &option]);
    }
    place.must_be("disk@disk", &[], &image, &["-f", "qcow2"]);

    // All of it is in an archive, that comes as a file or a stream.
    let tar = place.text("all.tar");
    place.tintype.json(&["export", "disk@with", "--format", "tar", "--to", &tar]);
    let streamed = place.tintype.run(&["export", "disk@with", "--format", "tar", "--to", "-"]);
    assert!(streamed.stdout == fs::read(&tar).unwrap());
    let listed = tool("tar", &["-tf", &tar]);
    assert_eq!(
        String::from_utf8(listed.stdout).unwrap(),
        "tintype.json\ndisks/vda.raw\nvm-state\n"
    );
    let state = tool("tar", &["-xOf", &tar, "vm-state"]).stdout;
    assert_eq!(state.len() as u64, bytes);
    assert!(state.starts_with(b"QEVM\0\0\0\x03"), "it is a migration stream");
    let folder = place.text("");
    tool("tar", &["-xf", &tar, "-C", &folder]);
    assert!(fs::read(place.path("disks/vda.raw")).unwrap() == fs::read(&raw).unwrap());
}

#[test]
fn images_of_others_become_one_snapshot() {
    let place = Place::new();
    let raw = place.raw("images/raw", 3);
    for (format, name) in [("vmdk", "a.vmdk"), ("vpc", "b.vhd"), ("vhdx", "c.vhdx")] {
        let image = place.text(&format!("images/{name}"));
        tool("qemu-img", &["convert", "-f", "raw", "-O", format, &raw, &image]);
        let report = place.import(&[&image]);
        let vm = &name[..1];
        assert_eq!(names(&report), [vm]);
        place.must_be(&format!("{vm}@{vm}"), &[], &image, &["-f", format]);
    }
    let said = place.refused(2, &["import", &raw, "--vm", "d"]);
    assert!(said.contains("--format raw"), "{said}");
    let other = place.raw("images/other", 4);
    let report = place.import(&[&raw, &other, "--format", "raw", "--vm", "d"]);
    assert_eq!(report["snapshots"][0]["from"].as_array().unwrap().len(), 2);
    place.must_be("d@raw", &["--disk", "vda"], &raw, &["-f", "raw"]);
    place.must_be("d@raw", &["--disk", "vdb"], &other, &["-f", "raw"]);
    let to = place.text("x");
    let said = place.refused(2, &["export", "d@raw", "--format", "raw", "--to", &to]);
    assert!(said.contains("vda, vdb"), "{said}");
}

#[test]
fn no_image_leads_to_a_file_that_was_not_allowed() {
    let place = Place::new();
    let secret = place.raw("secret", 9);
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    let events = inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS;
    inotify::add_watch(&watch, &secret, events).unwrap();
    let untouched = || {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 512];
        inotify::Reader::new(&watch, &mut buffer).next().is_err()
    };
    let image = place.text("images/bad.qcow2");
    std::os::unix::fs::symlink(&secret, place.path("images/link")).unwrap();
    let json = format!(r#"json:{{"driver":"file","filename":"{secret}"}}"#);
    let long = format!("file:{secret}");
    let cases = [
        (secret.as_str(), "raw", "is not beside it"),
        ("../secret", "raw", "is not beside it"),
        ("link", "raw", "is not beside it"),
        ("/dev/zero", "raw", "is not beside it"),
        (&json, "raw", "not a file of this machine"),
        (&long, "raw", "not a file of this machine"),
        ("nbd:unix:/nowhere", "raw", "not a file of this machine"),
        ("bad.qcow2", "qcow2", "circle"),
        ("missing", "raw", "cannot be found"),
        ("x", "luks", "of a format that is not imported"),
    ];
    for (backing, format, expected) in cases {
        let create = ["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format];
        tool("qemu-img", &[&create[..], &[&image, "4M"]].concat());
        let said = place.refused(4, &["import", &image]);
        assert!(said.contains(expected), "{backing}: {said}");
        assert!(untouched(), "{backing} was opened");
    }
    // Somebody who trusts the image says so.
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &secret, "-F", "raw", &image]);
    let allowed = place.folder.path().to_str().unwrap();
    let report = place.import(&[&image, "--allow-backing", allowed, "--vm", "good"]);
    assert_eq!(names(&report), ["secret", "bad"]);
    assert!(!untouched());

    let options = format!("data_file={},data_file_raw=on", place.text("images/data"));
    tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, &image, "4M"]);
    let said = place.refused(4, &["import", &image]);
    assert!(said.contains("its data is in another file"), "{said}");
    fs::remove_file(&image).unwrap();
    tool(
        "qemu-img",
        &["create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", &image, "4M"],
    );
    let said = place.refused(4, &["import", &image, "--format", "vmdk"]);
    assert!(said.contains("it consists of other files"), "{said}");
    assert!(!place.path("home/vms/bad").exists(), "nothing is left of what was refused");
}

#[test]
fn an_import_that_is_ended_goes_on_and_a_disk_in_use_is_refused() {
    let place = Place::new();
    let top = chain(&place);
    let import = ["import", &top, "--format", "qcow2", "--vm", "web"];
    for (step, count) in [("import-stored", 0), ("import-committed", 1)] {
        let mut command = place.tintype.command();
        let output = command.args(import).env("TINTYPE_TEST_FAULT", step).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{output:?}");
        assert_eq!(place.tintype.lines(&["log"]).len(), count, "after {step}");
    }
    let report = place.tintype.json(&import);
    assert_eq!(names(&report), ["web", "web.first", "web.second"]);
    assert_eq!(place.tintype.lines(&["log"]).len(), 3);
    assert_eq!(place.tintype.json(&["verify", "--read-data"])["damaged"], json!([]));

    // The highest file is written, and is another one from then on.
    tool("qemu-io", &["-f", "qcow2", "-c", "write -P 7 0 64k", &top]);
    let said = place.refused(4, &import);
    assert!(said.contains("another snapshot `web.second`"), "{said}");

    let drive = format!("file={top},format=qcow2,if=virtio");
    let program = Qemu::system().unwrap().binary().to_owned();
    let mut qemu = Command::new(program)
        .args(["-m", "16", "-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-monitor", "stdio", "-drive", &drive])
        .stdin(Stdio::piped())
        .stdout(File::create(place.path("said")).unwrap())
        .spawn()
        .unwrap();
    while fs::metadata(place.path("said")).unwrap().len() == 0 {
        assert!(qemu.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let said = place.refused(1, &["import", &top, "--format", "qcow2", "--vm", "other"]);
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(said.contains("in use by another process"), "{said}");
    assert!(!place.path("home/vms/other").exists(), "nothing is left of it");
}
