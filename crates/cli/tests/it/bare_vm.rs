//! A VM without a guest: what writes to its disks is the test, through the devices,
//! as a guest would. What a disk holds is asked of `qemu-img`, never of tintype.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tintype_testkit::{Format, Qemu, Qmp};

use crate::command::Tintype;
use crate::scene::Held;

/// Its disks, each a device of the name and a block node `node-NAME`.
pub(crate) const DISKS: [(&str, Format); 2] = [("da", Format::Qcow2), ("db", Format::Raw)];

/// A running VM named `web` with one disk of each format.
pub(crate) struct BareVm {
    pub(crate) tintype: Tintype,
    folder: TempDir,
}

impl BareVm {
    /// Starts it, with empty disks of so many bytes.
    pub(crate) fn start(qemu: &Qemu, size: u64) -> Self {
        Self::start_with(qemu, size, |_| Vec::new())
    }

    /// The same, with more arguments, which may name files of its folder.
    pub(crate) fn start_with(
        qemu: &Qemu,
        size: u64,
        more: impl FnOnce(&Path) -> Vec<String>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let vm = Self { tintype: Tintype::within(folder.path()), folder };
        vm.tintype.json(&["init", "--encryption", "none"]);
        let program = fs::canonicalize(qemu.binary());
        let program = program.unwrap_or_else(|_| qemu.binary());
        let mut line = vec![program.to_str().unwrap().to_owned()];
        let plain = ["-m", "16", "-nodefaults", "-display", "none", "-accel", "tcg"];
        line.extend(plain.map(str::to_owned));
        let monitor = format!("unix:{},server=on,wait=off", vm.monitor().display());
        line.extend(["-qmp".to_owned(), monitor]);
        for (name, format) in DISKS {
            let (format, image) = (format.name(), vm.image(name));
            image_tool(&["create", "-q", "-f", format], &[&image], &[&size.to_string()]);
            let image = image.display();
            line.extend([
                "-blockdev".to_owned(),
                format!("{format},node-name=node-{name},discard=unmap,file.driver=file,file.discard=unmap,file.filename={image}"),
                "-device".to_owned(),
                format!("virtio-blk-pci,id={name},drive=node-{name}"),
            ]);
        }
        line.extend(more(vm.folder.path()));
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        vm.tintype.json(&[&["vm", "run", "web", "--"], &words[..]].concat());
        vm
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn image(&self, disk: &str) -> PathBuf {
        self.path(&format!("{disk}.image"))
    }

    fn monitor(&self) -> PathBuf {
        self.path("second")
    }

    /// Executes a command on a monitor of its own, at any moment of a take.
    pub(crate) fn qmp(&self, command: &str, arguments: Value) -> Value {
        Qmp::connect(&self.monitor()).unwrap().execute(command, arguments).unwrap()
    }

    /// Has the device of a disk do what `qemu-io` calls it: `write -P 1 0 64k`.
    pub(crate) fn io(&self, disk: &str, command: &str) {
        self.io_at(&format!("/machine/peripheral/{disk}/virtio-backend"), command);
    }

    /// The same for a device in any place of the object tree.
    pub(crate) fn io_at(&self, device: &str, command: &str) {
        let line = format!("qemu-io -d {device} \"{command}\"");
        let said = self.qmp("human-monitor-command", json!({"command-line": line}));
        assert_eq!(said, "", "{device}: {command}");
    }

    /// Gives a disk another size.
    pub(crate) fn resize(&self, disk: &str, size: u64) {
        self.qmp("block_resize", json!({"node-name": format!("node-{disk}"), "size": size}));
    }

    /// Stops it by its power button, which ends QEMU as a guest would end it.
    pub(crate) fn stop_by_power_button(&self) {
        let held = self.held_stop("stop-pressed");
        self.qmp("quit", json!({}));
        let ended = held.let_go();
        assert!(ended.status.success(), "{ended:?}");
    }

    /// Starts to stop it by its power button, and waits until that stands at a step.
    pub(crate) fn held_stop(&self, step: &str) -> Held {
        let mut command = self.tintype.command();
        Held::start(command.args(["vm", "stop", "web"]), self.folder.path(), step)
    }

    /// Copies what a disk holds now. Nobody may write to it meanwhile.
    pub(crate) fn copy(&self, disk: &str, format: Format, to: &str) -> PathBuf {
        let to = self.path(&format!("{to}-{disk}"));
        let arguments = ["convert", "-U", "-f", format.name(), "-O", "raw"];
        image_tool(&arguments, &[&self.image(disk), &to], &[]);
        to
    }

    /// Copies what all disks hold now, of a VM that runs.
    pub(crate) fn copy_all(&self, to: &str) {
        for (disk, format) in DISKS {
            self.io(disk, "flush");
            self.copy(disk, format, to);
        }
    }

    /// Asserts that the disks of a snapshot are those copies.
    pub(crate) fn must_restore(&self, snapshot: &str, copies: &str) {
        let folder = self.path("restored");
        let to = folder.to_str().unwrap();
        let from = format!("web@{snapshot}");
        self.tintype.json(&["restore", &from, "--format", "raw", "--to", to]);
        for (disk, _) in DISKS {
            let restored = folder.join(format!("{disk}.raw"));
            must_equal(&restored, &self.path(&format!("{copies}-{disk}")));
        }
        fs::remove_dir_all(folder).unwrap();
    }

    /// Asserts that the disks are those copies now.
    pub(crate) fn must_hold(&self, copies: &str) {
        for (disk, format) in DISKS {
            let now = self.copy(disk, format, "now");
            must_equal(&now, &self.path(&format!("{copies}-{disk}")));
        }
    }

    /// Returns the names of the bitmaps on a disk's node.
    pub(crate) fn bitmaps(&self, disk: &str) -> Vec<String> {
        let nodes = self.qmp("query-named-block-nodes", json!({"flat": true}));
        let mut nodes = nodes.as_array().unwrap().iter();
        let node = nodes.find(|node| node["node-name"] == format!("node-{disk}")).unwrap();
        let bitmaps = node["dirty-bitmaps"].as_array().cloned();
        let names = bitmaps.unwrap_or_default().into_iter();
        names.map(|bitmap| bitmap["name"].as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for BareVm {
    fn drop(&mut self) {
        self.tintype.run(&["vm", "stop", "web", "--force"]);
    }
}

/// Asserts that two raw images hold the same and have the same size.
fn must_equal(image: &Path, expected: &Path) {
    let len = |path: &Path| fs::metadata(path).unwrap().len();
    assert_eq!(len(image), len(expected), "{} has another size", image.display());
    image_tool(&["compare", "-q", "-f", "raw", "-F", "raw"], &[image, expected], &[]);
}

pub(crate) fn image_tool(arguments: &[&str], paths: &[&Path], more: &[&str]) {
    let mut command = Command::new("qemu-img");
    let status = command.args(arguments).args(paths).args(more).status().unwrap();
    assert!(status.success(), "qemu-img {arguments:?} {paths:?}");
}

/// Writes to an image that nobody has open, as any program does that knows its format.
pub(crate) fn image_io(image: &Path, format: Format, command: &str) {
    let arguments = ["-f", format.name(), "-d", "unmap", "-c", command];
    let output = Command::new("qemu-io").args(arguments).arg(image).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

/// Returns how a take has read a disk: `incremental`, or `full: ` and why.
pub(crate) fn reading(taken: &Value, disk: &str) -> String {
    let mut disks = taken["disks"].as_array().unwrap().iter();
    let read = disks.find(|read| read["name"] == disk).unwrap();
    let reading = read["reading"].as_str().unwrap();
    read["why"].as_str().map_or_else(|| reading.to_owned(), |why| format!("{reading}: {why}"))
}
