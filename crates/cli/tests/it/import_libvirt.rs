//! Snapshots that libvirt has made come with its names, its tree and its words. The XML
//! is libvirt's own, of versions 9.0 and 11.3; the judge of the disks is `qemu-img`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tempfile::TempDir;
use tintype_testkit::workspace_folder;

use crate::command::Tintype;
use crate::switched_off::{content, failed};

/// Where libvirt had the images.
const THERE: &str = "/var/lib/libvirt/images";

/// The images and the XML of a VM, in a folder, and a home.
struct Place {
    folder: TempDir,
    tintype: Tintype,
}

impl Place {
    /// Takes the XML that a version of libvirt has left, of images that are here.
    fn of(version: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tintype = Tintype::within(folder.path());
        let place = Self { folder, tintype };
        fs::create_dir(place.path("images")).unwrap();
        fs::create_dir(place.path("xml")).unwrap();
        let samples = workspace_folder().join("crates/inspect/tests/data").join(version);
        for sample in fs::read_dir(samples).unwrap().flatten() {
            let xml = fs::read_to_string(sample.path()).unwrap();
            let xml = xml.replace(THERE, &place.text("images"));
            fs::write(place.path("xml").join(sample.file_name()), xml).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn image(&self, name: &str) -> String {
        self.text(&format!("images/{name}"))
    }

    /// Makes a file over another one, or one of its own, and writes to it.
    fn make(&self, name: &str, over: Option<&str>, state: u64) {
        let image = self.image(name);
        match over {
            None => tool("qemu-img", &["create", "-q", "-f", "qcow2", &image, "4M"]),
            Some(over) => {
                let over = self.image(over);
                let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", &over, &image];
                tool("qemu-img", &create);
            }
        }
        self.write(name, state);
    }

    fn write(&self, name: &str, state: u64) {
        let bytes = self.path("bytes");
        fs::write(&bytes, content(state, 100_000)).unwrap();
        let write = format!("write -q -s {} {}k 100000", bytes.display(), state * 200);
        tool("qemu-io", &["-f", "qcow2", "-c", &write, &self.image(name)]);
    }

    /// Says when a file was last written.
    fn written(&self, name: &str, seconds: u64) {
        let file = File::options().append(true).open(self.image(name)).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
    }

    /// The tree that `s1`, `s2`, a revert to `s1`, and `other` have left: libvirt has
    /// removed what was over `web.s1`.
    fn tree() -> Self {
        let place = Self::of("libvirt-11.3");
        for disk in ["web", "data"] {
            let (base, first) = (format!("{disk}.qcow2"), format!("{disk}.s1"));
            let reverted = format!("{disk}.1795723205");
            place.make(&base, None, 1);
            place.make(&first, Some(&base), 2);
            place.make(&reverted, Some(&base), 3);
        }
        place.make("web.other", Some("web.1795723205"), 4);
        for file in fs::read_dir(place.path("images")).unwrap().flatten() {
            place.written(file.file_name().to_str().unwrap(), 1_795_723_204);
        }
        place
    }

    /// Asserts that a disk of a snapshot is what `qemu-img` reads of an image.
    fn must_be(&self, snapshot: &str, disk: &str, image: &str, options: &[&str]) {
        let (expected, exported) = (self.text("expected"), self.text("exported"));
        let convert = ["convert", "-f", "qcow2", "-O", "raw"];
        tool("qemu-img", &[&convert, options, &[&self.image(image), &expected]].concat());
        let export = ["export", snapshot, "--disk", disk, "--format", "raw", "--to", &exported];
        self.tintype.json(&export);
        assert!(fs::read(&expected).unwrap() == fs::read(&exported).unwrap(), "{snapshot} {disk}");
        fs::remove_file(&exported).unwrap();
    }

    fn refused(&self, code: i32, arguments: &[&str]) -> String {
        failed(&self.tintype.run(arguments), code)
    }

    /// Rewrites the XML of one snapshot.
    fn edit(&self, name: &str, from: &str, to: &str) {
        let path = self.path("xml").join(name);
        let xml = fs::read_to_string(&path).unwrap();
        assert!(xml.contains(from), "{xml}");
        fs::write(path, xml.replace(from, to)).unwrap();
    }
}

#[track_caller]
fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// Returns the name and the parent of each.
fn tree(report: &Value) -> Vec<(&str, Option<&str>)> {
    let snapshots = report["snapshots"].as_array().unwrap().iter();
    snapshots.map(|one| (one["name"].as_str().unwrap(), one["parent"].as_str())).collect()
}

#[test]
fn a_tree_of_libvirt_comes_as_it_was() {
    let place = Place::tree();
    let (top, data, xml) =
        (place.image("web.other"), place.image("data.1795723205"), place.text("xml"));
    let import = ["import", &top, &data, "--libvirt", &xml];
    let expected =
        [("s1", None), ("s2", Some("s1")), ("other", Some("s1")), ("web.other", Some("other"))];
    let planned = place.tintype.json(&[&import[..], &["--dry-run"]].concat());
    assert_eq!(tree(&planned), expected);
    let report = place.tintype.json(&import);
    assert_eq!((tree(&report), &report["vm"]), (expected.to_vec(), &json!("web")));
    for (name, web, data) in [
        ("s1", "web.qcow2", "data.qcow2"),
        ("s2", "web.s1", "data.s1"),
        ("web.other", "web.other", "data.1795723205"),
    ] {
        let snapshot = format!("web@{name}");
        place.must_be(&snapshot, "vda", web, &[]);
        place.must_be(&snapshot, "vdb", data, &[]);
    }
    // That one left out a disk.
    place.must_be("web@other", "vda", "web.1795723205", &[]);
    place.refused(2, &["export", "web@other", "--disk", "vdb", "--format", "raw", "--to", "x"]);
    let log = place.tintype.lines(&["log", "web"]);
    let of = |name: &str| log.iter().find(|line| line["name"] == name).unwrap();
    assert_eq!(of("other")["parent"], of("s1")["id"]);
    assert_eq!(of("s2")["created"], "2026-11-26T20:00:03Z");
    let message = of("other")["message"].as_str().unwrap();
    assert!(message.starts_with("after the revert (imported from /"), "{message}");
    let vm = place.tintype.json(&["vm", "show", "web"]);
    assert_eq!(vm["current"], of("web.other")["id"]);
    let again = place.tintype.json(&import);
    let known = again["snapshots"].as_array().unwrap();
    assert!(known.iter().all(|snapshot| snapshot["was_there"] == true), "{again}");
    assert_eq!(place.tintype.json(&["verify", "--read-data"])["damaged"], json!([]));

    // Without the images, only what libvirt knows; from where somebody allows.
    let said = place.refused(2, &["import", "--libvirt", &xml, "--vm", "alone"]);
    assert!(said.contains("--allow-backing"), "{said}");
    let (one, two) = (place.text("xml/s1.xml"), place.text("xml/other.xml"));
    let images = place.text("images");
    let alone = ["--libvirt", &one, "--libvirt", &two, "--allow-backing", &images];
    let report = place.tintype.json(&[&["import", "--vm", "alone"], &alone[..]].concat());
    assert_eq!(tree(&report), [("s1", None), ("other", Some("s1"))]);
    let vm = place.tintype.json(&["vm", "show", "alone"]);
    assert_eq!(vm["current"], report["snapshots"][1]["id"]);
}

#[test]
fn internal_snapshots_of_libvirt_come_by_their_names() {
    let place = Place::of("libvirt-9.0");
    for disk in ["web", "data"] {
        let (base, first) = (format!("{disk}.qcow2"), format!("{disk}.s1"));
        place.make(&base, None, 1);
        let snapshot = ["snapshot", "-c", "Before Upgrade", "-f", "qcow2", &place.image(&base)];
        tool("qemu-img", &snapshot);
        place.write(&base, 2);
        place.make(&first, Some(&base), 3);
    }
    place.make("web.s2", Some("web.s1"), 4);
    let (top, data, xml) = (place.image("web.s2"), place.image("data.s1"), place.text("xml"));
    let report = place.tintype.json(&["import", &data, &top, "--libvirt", &xml]);
    let expected = [
        ("before-upgrade", None),
        ("s1", Some("before-upgrade")),
        ("s2", Some("s1")),
        ("data.s1", Some("s2")),
    ];
    assert_eq!(tree(&report), expected);
    for (disk, name) in [("vda", "web"), ("vdb", "data")] {
        let base = format!("{name}.qcow2");
        place.must_be("web@before-upgrade", disk, &base, &["-l", "snapshot.name=Before Upgrade"]);
        place.must_be("web@s1", disk, &base, &[]);
    }
    place.must_be("web@s2", "vda", "web.s1", &[]);
    place.must_be("web@data.s1", "vda", "web.s2", &[]);
    place.must_be("web@data.s1", "vdb", "data.s1", &[]);
    let log = place.tintype.lines(&["log", "web"]);
    let first = log.iter().find(|line| line["name"] == "before-upgrade").unwrap();
    let message = first["message"].as_str().unwrap();
    assert!(message.starts_with("its memory is in the disk: a <full> one (imported"), "{message}");
}

#[test]
fn what_libvirt_says_is_not_trusted() {
    let place = Place::tree();
    let (top, xml) = (place.image("web.other"), place.text("xml"));
    let data = place.image("data.1795723205");
    let import = ["import", &top, &data, "--libvirt", &xml];
    let original = |name: &str| fs::read_to_string(place.path("xml").join(name)).unwrap();
    let check = |name: &str, from: &str, to: &str, expected: &str| {
        let before = original(name);
        place.edit(name, from, to);
        let said = place.refused(4, &import);
        assert!(said.contains(expected), "{to}: {said}");
        fs::write(place.path("xml").join(name), before).unwrap();
    };
    // Whether there is such a file nobody learns.
    for secret in ["/etc/passwd", "/etc/missing", "images/web.qcow2", "nbd://host/x"] {
        check("s1.xml", &place.image("web.qcow2"), secret, "is not where its disks may be");
        check("s1.xml", &place.image("web.s1"), secret, "is not where its disks may be");
    }
    check("s1.xml", &place.image("web.qcow2"), &place.image("missing"), "cannot be found");
    check("s1.xml", "<domainsnapshot>", "<!DOCTYPE x><domainsnapshot>", "document type");
    check(
        "s2.xml",
        "type='qcow2'/>\n        <source file",
        "type='raw'/>\n        <source file",
        "it is said to be raw, and to be qcow2",
    );
    check("other.xml", "<name>other</name>", "<name>s1</name>", "two of that name");
    // What was merged since is not what it was.
    check("s1.xml", &place.image("web.s1"), &place.image("web.other"), "any more");
    place.written("web.s1", 1_795_800_000);
    let said = place.refused(4, &import);
    assert!(said.contains("`s2` is not imported") && said.contains("was written since"), "{said}");
    let below = place.image("web.qcow2");
    let said = place.refused(4, &["import", &below, &data, "--libvirt", &place.text("xml/s1.xml")]);
    assert!(said.contains("lies over it"), "{said}");
    assert!(
        !Path::new(&place.text("home/vms/web")).exists(),
        "nothing is left of what was refused"
    );
}
