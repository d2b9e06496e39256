//! Which snapshots an import makes, from what was found in the images. Nothing is
//! opened here.

use std::path::Path;

use jiff::Timestamp;
use tintype_image::LayerSpec;
use tintype_inspect::ImageFormat;
use tintype_repo::SnapshotRecord;
use tintype_types::{ByteCount, Extent, SnapshotName, VmName};
use tintype_vm::Disk;

use super::chain::Layer;
use super::{ImportReport, ImportedSnapshot};
use crate::details::{Purpose, Snapshot};
use crate::error::{Error, Result};

/// What an import makes.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) vm: VmName,
    /// Each after the one that it came from.
    pub(super) moments: Vec<Moment>,
    /// The one that the VM is at.
    pub(super) current: Option<usize>,
}

/// One snapshot.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) name: SnapshotName,
    pub(super) created: Timestamp,
    /// The one that it came from.
    pub(super) parent: Option<usize>,
    /// What somebody has written about it.
    pub(super) note: String,
    /// One for each disk.
    pub(super) points: Vec<Point>,
}

/// One disk of a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Point {
    /// What somebody called it.
    name: String,
    pub(super) created: Timestamp,
    /// Whether it is an internal snapshot.
    is_internal: bool,
    /// The files, the highest first.
    pub(super) layers: Vec<LayerSpec>,
    /// The start of the highest file, if it is exchanged.
    pub(super) head: Option<Vec<u8>>,
    pub(super) size: ByteCount,
    /// Where the state of a VM is.
    pub(super) state: Option<Extent>,
    pub(super) disk: Disk,
    from: String,
}

impl Moment {
    /// Makes one of disks, with a name that those before it do not have, and that comes
    /// from the last of them.
    pub(super) fn new(name: &str, created: Timestamp, points: Vec<Point>, before: &[Self]) -> Self {
        let taken: Vec<&SnapshotName> = before.iter().map(|moment| &moment.name).collect();
        let (name, parent) = (free_name(name, &taken), before.len().checked_sub(1));
        Self { name, created, parent, note: String::new(), points }
    }

    pub(super) fn disks(&self) -> Vec<Disk> {
        self.points.iter().map(|point| point.disk.clone()).collect()
    }

    /// Tells whether a snapshot is this one.
    pub(super) fn is(&self, known: &Snapshot) -> bool {
        known.details.purpose == Purpose::Imported
            && known.record.name == self.name
            && known.record.created == self.created
    }

    pub(super) fn message(&self, given: &str, is_loadable: bool) -> String {
        let mut message = format!("imported from {}", self.from().join(", "));
        let said: Vec<&str> =
            [given, &self.note].into_iter().filter(|words| !words.is_empty()).collect();
        if !said.is_empty() {
            message = format!("{} ({message})", said.join("; "));
        }
        if self.state().is_some() && !is_loadable {
            message.push_str("; the state of its VM is kept as it was, and cannot be loaded");
        }
        message
    }

    fn from(&self) -> Vec<String> {
        self.points.iter().map(|point| point.from.clone()).collect()
    }

    fn state(&self) -> Option<Extent> {
        self.points.iter().find_map(|point| point.state)
    }

    pub(super) fn report(
        &self,
        record: Option<&SnapshotRecord>,
        was_there: bool,
        is_loadable: bool,
    ) -> ImportedSnapshot {
        ImportedSnapshot {
            has_memory: is_loadable && self.state().is_some(),
            id: record.map(|record| record.id),
            name: self.name.clone(),
            created: self.created,
            parent: None,
            from: self.from(),
            vm_state_bytes: ByteCount(self.state().map_or(0, |state| state.len)),
            was_there,
            stored_bytes: record.map(|record| record.stats.stored_bytes),
        }
    }
}

impl Point {
    /// Whether it is what a file shows, or an internal snapshot in it.
    pub(super) fn shows(&self, file: &Path, internal: Option<&str>) -> bool {
        let is_of = self.layers.first().is_some_and(|layer| layer.path == file);
        is_of
            && self.is_internal == internal.is_some()
            && internal.is_none_or(|name| self.name == name)
    }

    /// Makes it one of a disk with this name.
    pub(super) fn named(mut self, disk: &str) -> Self {
        disk.clone_into(&mut self.disk.name);
        self
    }

    /// Makes it what libvirt knows as a snapshot.
    pub(super) fn of_libvirt(self, disk: &str, snapshot: &str) -> Self {
        let mut point = self.named(disk);
        if !point.is_internal {
            point.from = format!("{}, libvirt's snapshot `{}`", point.from, shown(snapshot));
        }
        point
    }

    /// Makes it one of a VM's disk, which may have had another size then.
    pub(super) fn become_disk(&mut self, disk: &Disk) {
        self.disk = Disk { size: self.size, ..disk.clone() };
    }
}

/// Plans the snapshots of a VM whose disks are these chains, each the lowest first.
pub(super) fn plan(vm: Option<VmName>, disks: &[Vec<Layer>]) -> Result<Plan> {
    let points: Vec<Vec<Point>> = disks
        .iter()
        .enumerate()
        .map(|(number, layers)| points(&disk_name(number), layers))
        .collect();
    let Some(first) = points.first().filter(|points| !points.is_empty()) else {
        return Err(Error::invalid("there is no image to import"));
    };
    let top = first.last().map_or("", |point| &point.name);
    let vm = vm.map_or_else(|| vm_name(top), Ok)?;
    let agree = points.iter().all(|other| {
        other.len() == first.len()
            && other.iter().zip(first).all(|(other, own)| {
                other.is_internal == own.is_internal && (!own.is_internal || other.name == own.name)
            })
    });
    if !agree {
        return Err(Error::refused("the images do not have the same snapshots")
            .because(
                "which of one disk belongs to which of another, only equal names and numbers tell",
            )
            .hint("import each image as a VM of its own: `tintype import IMAGE --vm NAME`"));
    }
    let mut plan = Plan { vm, moments: Vec::new(), current: None };
    for (at, point) in first.iter().enumerate() {
        let together: Vec<Point> = points.iter().map(|disk| disk[at].clone()).collect();
        plan.add(&point.name, together);
    }
    Ok(plan)
}

impl Plan {
    /// Says what became of it, or would.
    pub(super) fn report(
        self,
        dry_run: bool,
        mut snapshots: Vec<ImportedSnapshot>,
    ) -> ImportReport {
        for (snapshot, moment) in snapshots.iter_mut().zip(&self.moments) {
            snapshot.parent = moment.parent.map(|at| self.moments[at].name.clone());
        }
        ImportReport { vm: self.vm, dry_run, snapshots }
    }

    /// Adds what comes after all others, and is what the VM is at.
    fn add(&mut self, name: &str, points: Vec<Point>) {
        let created = points.iter().map(|point| point.created).max().unwrap_or_default();
        let moment = Moment::new(name, created, points, &self.moments);
        self.current = Some(self.moments.len());
        self.moments.push(moment);
    }

    /// Adds the images as they are now, which came from another one.
    pub(super) fn add_images(&mut self, points: Vec<Point>, parent: Option<usize>) {
        let name = points.first().map(|point| point.name.clone()).unwrap_or_default();
        self.add(&name, points);
        if let Some(moment) = self.moments.last_mut() {
            moment.parent = parent;
        }
    }
}

/// Returns the name of a VM that is closest to what somebody called it.
pub(super) fn vm_name(text: &str) -> Result<VmName> {
    VmName::new(&plain(text)).map_err(|error| {
        Error::invalid(format!("the VM cannot be called `{}`", shown(text)))
            .because(error)
            .hint("--vm NAME gives it a name")
    })
}

/// Returns what a disk shows, one after the other: for each file its internal
/// snapshots, and then the file itself.
pub(super) fn points(disk: &str, layers: &[Layer]) -> Vec<Point> {
    let mut points = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let chain: Vec<LayerSpec> = layers[..=number].iter().rev().map(spec).collect();
        let report = &layer.report;
        let shown = shown(&layer.path.to_string_lossy());
        let point = Point {
            name: stem(&layer.path),
            created: layer.modified,
            is_internal: false,
            layers: chain,
            head: None,
            size: report.size,
            state: None,
            disk: Disk {
                name: disk.to_owned(),
                device: String::new(),
                node: String::new(),
                format: report.format.driver().to_owned(),
                file: Some(layer.path.clone()),
                size: report.size,
                read_only: false,
            },
            from: shown.clone(),
        };
        for (snapshot, head) in report.snapshots.iter().zip(&layer.heads) {
            let seconds = i64::try_from(snapshot.created).unwrap_or_default();
            let (offset, len) = (snapshot.vm_state_offset, snapshot.vm_state_len);
            points.push(Point {
                name: snapshot.name.clone(),
                created: Timestamp::from_second(seconds).unwrap_or(layer.modified),
                is_internal: true,
                head: Some(head.clone()),
                size: snapshot.size,
                state: (len > 0).then_some(Extent { offset, len }),
                from: shown_snapshot(&shown, &snapshot.id, &snapshot.name),
                ..point.clone()
            });
        }
        points.push(point);
    }
    points
}

fn shown_snapshot(file: &str, id: &str, name: &str) -> String {
    format!("{file}, its snapshot {} `{}`", shown(id), shown(name))
}

/// Returns text out of an image as it can be shown on a terminal.
pub(super) fn shown(text: &str) -> String {
    let plain = |letter: char| if letter.is_control() { '?' } else { letter };
    text.chars().map(plain).take(256).collect()
}

fn spec(layer: &Layer) -> LayerSpec {
    let driver = layer.report.format.driver();
    let format = driver.parse().expect("QEMU's drivers of what is inspected are formats");
    LayerSpec { path: layer.path.clone(), format, head: None }
}

/// `vda`, `vdb`, …, and numbers after the letters.
fn disk_name(number: usize) -> String {
    match u8::try_from(number) {
        Ok(letter @ 0..26) => format!("vd{}", char::from(b'a' + letter)),
        _ => format!("vd{number}"),
    }
}

/// Returns a file's name, without the end that only tells its format.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.rsplit_once('.') {
        Some((stem, end)) if !stem.is_empty() => {
            let is_format = end.parse::<ImageFormat>().is_ok() || end == "img";
            if is_format { stem.to_owned() } else { name }
        }
        _ => name,
    }
}

/// Makes of any text what comes closest to it and can be a name.
fn plain(text: &str) -> String {
    let mut name = String::new();
    for letter in text.to_lowercase().chars() {
        let is_allowed = letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if is_allowed {
            name.push(letter);
        } else if !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_matches(['-', '.', '_']);
    name.chars().take(56).collect()
}

/// Returns the name that is closest to what somebody called a snapshot.
fn free_name(text: &str, taken: &[&SnapshotName]) -> SnapshotName {
    let plain = plain(text);
    let start = if plain.is_empty() { "imported" } else { &plain };
    let numbered = (2..).map(|number| format!("{start}-{number}"));
    std::iter::once(start.to_owned())
        .chain(numbered)
        .filter_map(|name| SnapshotName::new(&name).ok())
        .find(|name| name.as_str() != "latest" && !taken.contains(&name))
        .expect("one of endlessly many names is free")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_as_far_as_they_can_be() {
        let check = |text: &str, taken: &[&str], expected: &str| {
            let taken: Vec<_> = taken.iter().map(|name| SnapshotName::new(name).unwrap()).collect();
            let taken: Vec<_> = taken.iter().collect();
            assert_eq!(free_name(text, &taken).as_str(), expected, "{text}");
        };
        check("before upgrade", &[], "before-upgrade");
        check("Größe  XL", &[], "gr-e-xl");
        check("base", &["base"], "base-2");
        check("base", &["base", "base-2"], "base-3");
        check("latest", &[], "latest-2");
        check("../..", &[], "imported");
        check(&"x".repeat(100), &[], &"x".repeat(56));
    }

    #[test]
    fn ends_of_names_that_tell_a_format_are_left_out() {
        let check = |path: &str, expected: &str| assert_eq!(stem(Path::new(path)), expected);
        check("/a/base.qcow2", "base");
        check("/a/web.snap1", "web.snap1");
        check("/a/disk.img", "disk");
        check("/a/.qcow2", ".qcow2");
        check("/a/vm.vhdx", "vm");
        let from = shown_snapshot("/a", "1", "x\u{1b}[2J\n");
        assert_eq!(from, "/a, its snapshot 1 `x?[2J?`");
    }
}
