//! Errors as people see them: what failed, why, what state things are in, and
//! what to type next. One transcript of all that can be provoked cheaply.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tintype_testkit::Qmp;

use crate::scene::Scene;

/// What was typed and what was said to it, with names for what differs each time.
struct Transcript<'s> {
    scene: &'s Scene,
    text: String,
    replaced: Vec<(String, String)>,
}

impl<'s> Transcript<'s> {
    fn new(scene: &'s Scene) -> Self {
        let folder = scene.guest.files().folder().to_str().unwrap().to_owned();
        let pid = scene.qemu_now().unwrap().to_string();
        let replaced = vec![
            (folder, "FOLDER".to_owned()),
            // In a column of a table, and elsewhere.
            (format!("{pid:>8}"), format!("{:>8}", "PID")),
            (pid, "PID".to_owned()),
        ];
        Self { scene, text: String::new(), replaced }
    }

    fn type_in(&mut self, comment: &str, arguments: &[&str]) {
        let output = self.scene.tintype.run(arguments);
        let code = output.status.code().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        let line = format!("# {comment}\n$ tintype {}\n{said}[{code}]\n\n", arguments.join(" "));
        self.text.push_str(&line);
    }

    /// Gives the ids of snapshots names that stay.
    fn name_ids(&mut self) {
        for line in self.scene.tintype.lines(&["log"]) {
            let name = line["name"].as_str().unwrap().to_uppercase();
            let id = line["id"].as_str().unwrap();
            self.replaced.push((id.to_owned(), format!("ID-OF-{name}")));
            self.replaced.push((id[..12].to_owned(), format!("ID-OF-{name}")));
        }
    }

    fn finish(self) -> String {
        let mut text = self.text;
        for (found, name) in &self.replaced {
            text = text.replace(found, name);
        }
        text
    }
}

#[test]
fn names_that_nobody_has_or_that_somebody_has() {
    let scene = Scene::start();
    let mut transcript = Transcript::new(&scene);
    transcript.name_ids();
    transcript.type_in("no such VM", &["take", "nobody"]);
    transcript.type_in("no such VM", &["vm", "show", "nobody"]);
    transcript.type_in("no such VM", &["log", "nobody"]);
    transcript.type_in("no such VM", &["revert", "nobody", "base"]);
    transcript.type_in("no such snapshot, of a VM that has some", &["revert", "web", "bas"]);
    transcript.type_in("no such snapshot", &["show", "web@older"]);
    transcript.type_in("no such snapshot", &["show", "nobody@base"]);
    transcript.type_in("no such id", &["show", "0123456789abcdef"]);
    transcript.type_in("further back than there is", &["revert", "web", "latest~7"]);
    transcript.type_in("a name that is taken", &["take", "web", "--name", "base"]);
    transcript.type_in("a name that is none", &["take", "web", "--name", "a b"]);
    transcript.type_in("a VM that runs", &["vm", "start", "web"]);
    let qmp = scene.guest.qmp_path();
    let qmp = qmp.to_str().unwrap();
    transcript.type_in("a QEMU that is registered", &["vm", "add", "again", "--qmp", qmp]);
    transcript.type_in("a VM that is there", &["vm", "add", "web", "--qmp", "/nowhere"]);
    transcript.type_in("no repository", &["--repo", "/nowhere", "log"]);
    transcript.type_in("a bucket, and no access key", &["--repo", "s3://bucket/x", "log"]);
    transcript.type_in("the same for a new one", &["--repo", "s3://bucket/x", "init"]);
    transcript.type_in("a repository that is there", &["init"]);
    insta::assert_snapshot!("names", transcript.finish());
}

#[test]
fn sockets_and_programs_that_are_none() {
    let scene = Scene::start();
    let folder = scene.guest.files().folder();
    let file = folder.join("file");
    fs::write(&file, "").unwrap();
    let stranger = folder.join("stranger");
    let listener = UnixListener::bind(&stranger).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(b"220 mail.example.org\r\n");
        }
    });
    let mut transcript = Transcript::new(&scene);
    let mut add = |comment: &str, socket: &Path| {
        transcript.type_in(comment, &["vm", "add", "new", "--qmp", socket.to_str().unwrap()]);
    };
    add("nothing there", &folder.join("nothing"));
    add("not a socket", &file);
    add("not QMP", &stranger);
    let other = Qmp::connect(&scene.guest.qmp_path()).unwrap();
    transcript.type_in("a monitor that another program holds", &["take", "web"]);
    transcript.type_in("all that are there, one of them silent", &["vm", "list"]);
    drop(other);
    transcript.type_in("no such program", &["vm", "run", "new", "--", "qemu-system-nothing"]);
    let wrong = ["vm", "run", "new", "--", "qemu-system-x86_64", "-nonsense"];
    transcript.type_in("not a QEMU command line", &wrong);
    insta::assert_snapshot!("sockets", transcript.finish());
}

#[test]
fn reverts_that_are_refused() {
    let mut scene = Scene::start();
    scene.write("newer");
    let disk = scene.guest.files().disks()[1].clone();
    let away = disk.with_extension("away");
    let mut transcript = Transcript::new(&scene);
    transcript.name_ids();
    fs::rename(&disk, &away).unwrap();
    transcript.type_in("a disk that is not there", &["revert", "web", "base"]);
    fs::rename(&away, &disk).unwrap();
    let qmp = scene.guest.qmp_path();
    let qmp = qmp.to_str().unwrap();
    transcript.type_in("another VM's snapshot (1)", &["vm", "rm", "web"]);
    scene.tintype.json(&["vm", "add", "shop", "--qmp", qmp]);
    transcript.type_in("another VM's snapshot (2)", &["revert", "shop", "web@base"]);
    scene.tintype.json(&["take", "shop", "--name", "mine"]);
    transcript.name_ids();
    let healthy = transcript.finish();

    damage(&scene.home().join("repository"));
    let mut transcript = Transcript::new(&scene);
    transcript.type_in("a snapshot that is damaged", &["revert", "shop", "mine"]);
    let damaged = without_places(&transcript.finish());
    insta::assert_snapshot!("refused", healthy + &damaged);
    assert_eq!(scene.state(), "newer", "nothing was changed");
    let verified = scene.tintype.run(&["verify", "--read-data"]);
    assert_eq!(verified.status.code(), Some(3));
}

/// Changes a byte in the middle of every segment of a repository.
fn damage(folder: &Path) {
    for path in files(folder) {
        let mut bytes = fs::read(&path).unwrap();
        if bytes.len() > 1 << 16 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(&path, bytes).unwrap();
        }
    }
}

pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Hides where the damage is, which differs from run to run.
fn without_places(text: &str) -> String {
    let hide = |word: &str| match word {
        word if word.starts_with("seg/") => "SEGMENT ".to_owned(),
        word if word.trim_end().parse::<u64>().is_ok() => "N ".to_owned(),
        word => word.to_owned(),
    };
    text.split_inclusive([' ', '\n']).map(hide).collect()
}
