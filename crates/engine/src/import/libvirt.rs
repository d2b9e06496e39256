//! Snapshots as libvirt knows them: names, order, times and descriptions are in its XML,
//! and the disks in files that images and XML lead to.
//!
//! ```text
//! base.qcow2 ◄── base.s1 ◄── base.s2      internal: base.qcow2, its snapshot `s1`
//!   is s1          is s2       is now
//! ```
//!
//! An external snapshot is the file that the VM wrote to before, as long as nobody has
//! written to it since: what lies under another file is not written, but for merging.
//! The XML names files like a header of an image does: none is opened that nobody has
//! allowed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use rustix::fs::OFlags;
use tintype_inspect::{DiskPlace, ImageFormat, LibvirtDisk, LibvirtSnapshot, MAX_XML};
use tintype_types::VmName;

use super::ImportParams;
use super::chain::{self, Allowed, Layer, Unopened};
use super::plan::{self, Moment, Plan, Point, shown};
use crate::Engine;
use crate::error::{Error, Result};

/// The most snapshots of one VM.
const MAX_SNAPSHOTS: usize = 4096;
/// So long after a snapshot was begun its file may still have been written: libvirt
/// notes the time first, and may save memory before the disks change.
const SLACK: SignedDuration = SignedDuration::from_hours(1);

/// A snapshot, and where its parent is among those before it.
struct Known {
    snapshot: LibvirtSnapshot,
    parent: Option<usize>,
}

impl Engine {
    /// Plans the snapshots that libvirt knows, and then one of the images as they are.
    pub(super) fn plan_libvirt(
        &self,
        params: &ImportParams,
        format: Option<ImageFormat>,
    ) -> Result<Plan> {
        let known = ordered(read_all(&params.libvirt)?)?;
        let mut files = Files::of(params, &known)?;
        let mut images = Vec::new();
        for image in &params.images {
            images.push(files.image(image, format)?);
        }
        // The newest first: what they lie on is most of the others.
        for Known { snapshot, .. } in known.iter().rev() {
            self.check_interruption()?;
            snapshot.disks.iter().try_for_each(|disk| files.look(snapshot, disk))?;
        }
        let found = Found::of(&files);
        let targets = found.targets(&images, &known)?;
        let mut moments: Vec<Moment> = Vec::new();
        for Known { snapshot, parent } in &known {
            let mut points = Vec::new();
            for target in &targets {
                let Some(disk) = snapshot.disks.iter().find(|disk| disk.target == **target) else {
                    continue;
                };
                points.push(self.point(&files, &found, (snapshot, disk))?);
            }
            if params.qemu.is_some() && points.len() != images.len() {
                return Err(refused(&snapshot.name, "it does not have the disks of the images")
                    .hint("without --qemu its disks alone are imported"));
            }
            let mut moment = Moment::new(&snapshot.name, taken(snapshot), points, &moments);
            (moment.parent, moment.note) = (*parent, note(snapshot));
            moments.push(moment);
        }
        let now = known.iter().position(|known| known.snapshot.is_current);
        let now = now.or(known.len().checked_sub(1));
        let mut plan = Plan { vm: name(params, &known)?, moments, current: now };
        if !images.is_empty() {
            plan.add_images(found.tops(&images, &targets), now);
        }
        self.say_what_is_missing(&known);
        Ok(plan)
    }

    /// Returns a disk as a snapshot has it.
    fn point(
        &self,
        files: &Files,
        found: &Found,
        (snapshot, disk): (&LibvirtSnapshot, &LibvirtDisk),
    ) -> Result<Point> {
        let file = files.permitted(snapshot, &disk.file)?;
        let (is_internal, name) = (disk.place == DiskPlace::Internal, &snapshot.name);
        let internal = is_internal.then_some(name.as_str());
        let point = found.points.iter().flatten().find(|point| point.shows(&file, internal));
        let Some(point) = point else {
            let why = format!("{} has no internal snapshot of that name", shown_path(&disk.file));
            return Err(refused(name, &why));
        };
        if !is_internal && point.created.duration_since(taken(snapshot)) > SLACK {
            self.config.observer.notice(&format!(
                "{} was written after libvirt took `{}`: if files were merged into it since, that is in the snapshot too",
                shown_path(&disk.file),
                shown(name)
            ));
        }
        Ok(point.clone().of_libvirt(&disk.target, name))
    }

    fn say_what_is_missing(&self, known: &[Known]) {
        let notice = |text: String| self.config.observer.notice(&text);
        for Known { snapshot, parent } in known {
            let name = shown(&snapshot.name);
            if let (Some(named), None) = (&snapshot.parent, parent) {
                let named = shown(named);
                notice(format!("`{name}` came from `{named}`, which is not among the XML"));
            }
            if snapshot.memory.is_some() {
                notice(format!(
                    "the memory of `{name}` is in a file of libvirt, which is not imported: its disks are as after a power cut"
                ));
            }
        }
    }
}

/// Returns what was written about a snapshot, and what of it is not imported.
fn note(snapshot: &LibvirtSnapshot) -> String {
    let mut note: String = shown(snapshot.description.trim());
    if let Some(memory) = &snapshot.memory {
        let separator = if note.is_empty() { "" } else { "; " };
        note.push_str(&format!("{separator}its memory stayed in {}", shown_path(memory)));
    }
    note
}

/// Returns what the VM is called.
fn name(params: &ImportParams, known: &[Known]) -> Result<VmName> {
    let domain = known.first().map_or("", |known| &known.snapshot.domain);
    params.vm.clone().map_or_else(|| plan::vm_name(domain), Ok)
}

/// Reads the XML of files, and of the files in folders.
fn read_all(places: &[PathBuf]) -> Result<Vec<LibvirtSnapshot>> {
    let mut snapshots = Vec::new();
    for place in places {
        let place = fs::canonicalize(place).map_err(Error::io("find", place))?;
        let files = if place.is_dir() { within(&place)? } else { vec![place] };
        if snapshots.len() + files.len() > MAX_SNAPSHOTS {
            return Err(Error::refused(format!("there are over {MAX_SNAPSHOTS} snapshots")));
        }
        for file in files {
            snapshots.push(read(&file)?);
        }
    }
    Ok(snapshots)
}

fn within(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(Error::io("read", folder))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<Result<Vec<_>, _>>().map_err(Error::io("read", folder))?;
    paths.retain(|path| path.extension().is_some_and(|end| end == "xml"));
    paths.sort();
    if paths.is_empty() {
        return Err(Error::invalid(format!("no file in {} ends in .xml", folder.display())).hint(
            "libvirt keeps them in /var/lib/libvirt/qemu/snapshot/VM; `virsh snapshot-dumpxml VM SNAPSHOT` prints one",
        ));
    }
    Ok(paths)
}

fn read(path: &Path) -> Result<LibvirtSnapshot> {
    const FLAGS: i32 = OFlags::NONBLOCK.union(OFlags::NOFOLLOW).bits().cast_signed();
    let open = File::options().read(true).custom_flags(FLAGS).open(path);
    let file = open.map_err(Error::io("open", path))?;
    let mut xml = Vec::new();
    let read = file.take(MAX_XML + 1).read_to_end(&mut xml);
    read.map_err(Error::io("read", path))?;
    LibvirtSnapshot::read(&xml).map_err(|error| {
        Error::refused(format!("{} is not imported", path.display()))
            .because(error)
            .hint("`virsh snapshot-dumpxml VM SNAPSHOT` prints what is understood")
    })
}

/// Puts snapshots in an order in which each comes after its parent, the oldest first.
fn ordered(mut all: Vec<LibvirtSnapshot>) -> Result<Vec<Known>> {
    all.sort_by(|one, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
    let mut left: HashSet<String> = HashSet::new();
    for snapshot in &all {
        if !left.insert(snapshot.name.clone()) {
            return Err(refused(&snapshot.name, "there are two of that name"));
        }
        if snapshot.domain != all[0].domain {
            let (one, other) = (shown(&all[0].domain), shown(&snapshot.domain));
            let why = format!("it is of `{other}`, and others are of `{one}`");
            return Err(refused(&snapshot.name, &why));
        }
    }
    let mut known: Vec<Known> = Vec::new();
    while let Some(first) = all.first() {
        let is_ready =
            |one: &LibvirtSnapshot| one.parent.as_ref().is_none_or(|parent| !left.contains(parent));
        let Some(at) = all.iter().position(is_ready) else {
            return Err(refused(&first.name, "it comes from itself"));
        };
        let snapshot = all.remove(at);
        left.remove(&snapshot.name);
        let parent = snapshot.parent.as_ref();
        let parent = parent.and_then(|named| known.iter().position(|k| k.snapshot.name == *named));
        known.push(Known { snapshot, parent });
    }
    Ok(known)
}

/// The files that were looked at, and which may be.
struct Files {
    allowed: Vec<Allowed>,
    chains: Vec<Vec<Layer>>,
}

impl Files {
    fn of(params: &ImportParams, known: &[Known]) -> Result<Self> {
        let mut allowed = Vec::new();
        for image in &params.images {
            allowed.push(Allowed::of(image, &params.allowed)?);
        }
        if params.images.is_empty() && !params.allowed.is_empty() {
            allowed.push(Allowed::below(&params.allowed)?);
        }
        let named = known.first().and_then(|known| known.snapshot.disks.first());
        match (&allowed[..], named) {
            ([], Some(disk)) => Err(Error::invalid("nobody has said where the disks are")
                .because(format!("the XML names {}, and is not trusted", shown_path(&disk.file)))
                .hint("name the images that the VM writes to; or allow the folder with --allow-backing DIR")),
            _ => Ok(Self { allowed, chains: Vec::new() }),
        }
    }

    /// Looks at an image that somebody has named; returns which chain it is.
    fn image(&mut self, image: &Path, format: Option<ImageFormat>) -> Result<usize> {
        let allowed = &self.allowed[self.chains.len()];
        // What the VM writes to is libvirt's own overlay, or has internal snapshots.
        let format = format.unwrap_or(ImageFormat::Qcow2);
        self.chains.push(chain::resolve(image, Some(format), allowed)?);
        Ok(self.chains.len() - 1)
    }

    /// Looks at what the XML says of a disk.
    fn look(&mut self, snapshot: &LibvirtSnapshot, disk: &LibvirtDisk) -> Result<()> {
        let mut over = Vec::new();
        if let DiskPlace::External { over: named } = &disk.place {
            for name in named {
                match self.find(name) {
                    Ok((path, allowed)) => {
                        self.add(&path, ImageFormat::Qcow2, allowed)?;
                        over.push(path);
                    }
                    Err(Unopened::Missing) => {}
                    Err(Unopened::Elsewhere) => return Err(elsewhere(snapshot, name)),
                }
            }
        }
        let file = self.permitted(snapshot, &disk.file)?;
        let allowed = self.find(&disk.file).map_or(0, |(_, allowed)| allowed);
        self.add(&file, disk.format, allowed)?;
        match disk.place {
            DiskPlace::Internal => Ok(()),
            DiskPlace::External { .. } => self.must_be_as_it_was(snapshot, &file, &over),
        }
    }

    /// Fails if a file may have been written since: libvirt removes what lies over one
    /// when it reverts, but may also have merged it.
    fn must_be_as_it_was(
        &self,
        snapshot: &LibvirtSnapshot,
        file: &Path,
        over: &[PathBuf],
    ) -> Result<()> {
        let mut pairs = self.chains.iter().flat_map(|layers| layers.windows(2));
        let over_it: Vec<_> = pairs.by_ref().filter(|two| two[0].path == file).collect();
        let has_moved = |upper: &&PathBuf| over_it.iter().all(|two| two[1].path != **upper);
        let mut layers = self.chains.iter().flatten();
        let was_written = layers.any(|layer| layer.path == file && was_written(layer, snapshot));
        let file = file.display();
        let why = match over.iter().find(has_moved) {
            Some(upper) => format!("{} is not over {file} any more", upper.display()),
            None if over_it.is_empty() && was_written => {
                format!("nothing is over {file} any more, and it was written since")
            }
            None => return Ok(()),
        };
        Err(refused(&snapshot.name, &why).hint(
            "libvirt's notes do not tell any more what is where: leave its XML out, or import the images without",
        ))
    }

    fn add(&mut self, path: &Path, format: ImageFormat, allowed: usize) -> Result<()> {
        let mut all = self.chains.iter().flatten();
        let Some(layer) = all.find(|layer| layer.path == path) else {
            let chain = chain::resolve(path, Some(format), &self.allowed[allowed])?;
            self.chains.push(chain);
            return Ok(());
        };
        let known = layer.report.format;
        if known != format {
            return Err(Error::refused(format!("{} is not imported", path.display()))
                .because(format!("it is said to be {known}, and to be {format}")));
        }
        Ok(())
    }

    /// Finds a file that the XML names, if it may be opened.
    fn find(&self, name: &str) -> Result<(PathBuf, usize), Unopened> {
        let mut why = Unopened::Elsewhere;
        for (number, allowed) in self.allowed.iter().enumerate() {
            match chain::permitted(Path::new(name), allowed) {
                Ok(path) => return Ok((path, number)),
                Err(Unopened::Missing) => why = Unopened::Missing,
                Err(Unopened::Elsewhere) => {}
            }
        }
        Err(why)
    }

    fn permitted(&self, snapshot: &LibvirtSnapshot, name: &str) -> Result<PathBuf> {
        self.find(name).map(|(path, _)| path).map_err(|why| match why {
            Unopened::Missing => {
                refused(&snapshot.name, &format!("{} cannot be found", shown_path(name)))
            }
            Unopened::Elsewhere => elsewhere(snapshot, name),
        })
    }
}

/// What the chains show.
struct Found<'f> {
    files: &'f Files,
    points: Vec<Vec<Point>>,
}

impl<'f> Found<'f> {
    fn of(files: &'f Files) -> Self {
        let points = files.chains.iter().map(|layers| plan::points("", layers)).collect();
        Self { files, points }
    }

    /// Returns the disks of all snapshots, those of the images first and in their order.
    fn targets<'k>(&self, images: &[usize], known: &'k [Known]) -> Result<Vec<&'k str>> {
        let disks = || known.iter().flat_map(|known| &known.snapshot.disks);
        let mut targets: Vec<&str> = Vec::new();
        for image in images {
            let chain = &self.files.chains[*image];
            let Some(top) = chain.last() else { continue };
            let has = |name: &str| {
                let found = self.files.find(name).ok();
                found.is_some_and(|(path, _)| chain.iter().any(|layer| layer.path == path))
            };
            let disk = disks().find(|disk| has(&disk.file));
            let cannot = |why: &str| {
                let top = top.path.display();
                Error::refused(format!("{top} is not imported")).because(why.to_owned())
            };
            let disk = disk.ok_or_else(|| cannot("no snapshot of libvirt is of it"))?;
            if targets.contains(&&*disk.target) {
                return Err(cannot("another image is of the same disk"));
            }
            let mut pairs = self.files.chains.iter().flat_map(|layers| layers.windows(2));
            if let Some(two) = pairs.find(|two| two[0].path == top.path) {
                let why = format!("{} lies over it", two[1].path.display());
                return Err(cannot(&why).hint("name the image that the VM writes to"));
            }
            targets.push(&disk.target);
        }
        for disk in disks() {
            if !targets.contains(&&*disk.target) {
                targets.push(&disk.target);
            }
        }
        Ok(targets)
    }

    /// Returns the images as they are now.
    fn tops(&self, images: &[usize], targets: &[&str]) -> Vec<Point> {
        let tops = images
            .iter()
            .zip(targets)
            .filter_map(|(image, target)| Some(self.points[*image].last()?.clone().named(target)));
        tops.collect()
    }
}

fn taken(snapshot: &LibvirtSnapshot) -> Timestamp {
    Timestamp::from_second(snapshot.created).unwrap_or_default()
}

fn was_written(layer: &Layer, after: &LibvirtSnapshot) -> bool {
    layer.modified.duration_since(taken(after)) > SLACK
}

fn refused(snapshot: &str, why: &str) -> Error {
    let error = Error::refused(format!("libvirt's snapshot `{}` is not imported", shown(snapshot)));
    error.because(why.to_owned())
}

fn elsewhere(snapshot: &LibvirtSnapshot, file: &str) -> Error {
    let why = format!("{} is not where its disks may be", shown_path(file));
    refused(&snapshot.name, &why).hint("--allow-backing DIR allows a folder that you trust it with")
}

/// Returns the name of a file as it can be shown on a terminal.
fn shown_path(name: &str) -> String {
    name.chars().take(256).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(name: &str, parent: Option<&str>, created: i64) -> LibvirtSnapshot {
        let (name, parent) = (name.to_owned(), parent.map(str::to_owned));
        LibvirtSnapshot { name, parent, created, ..LibvirtSnapshot::default() }
    }

    #[test]
    fn parents_come_before_their_children() {
        let check = |all: &[(&str, Option<&str>, i64)], expected: &[(&str, Option<usize>)]| {
            let all = all.iter().map(|(name, parent, at)| snapshot(name, *parent, *at)).collect();
            let known = ordered(all).unwrap();
            let known: Vec<_> =
                known.iter().map(|known| (&*known.snapshot.name, known.parent)).collect();
            assert_eq!(known, expected);
        };
        check(&[("b", Some("a"), 2), ("a", None, 1)], &[("a", None), ("b", Some(0))]);
        // A clock that went back makes no child older than its parent.
        check(
            &[("a", None, 9), ("b", Some("a"), 2), ("c", Some("a"), 3)],
            &[("a", None), ("b", Some(0)), ("c", Some(0))],
        );
        check(&[("b", Some("gone"), 2)], &[("b", None)]);
        let refused = |all: Vec<LibvirtSnapshot>| ordered(all).err().unwrap().with_causes();
        let circle = vec![snapshot("a", Some("b"), 1), snapshot("b", Some("a"), 2)];
        assert!(refused(circle).contains("comes from itself"));
        let double = vec![snapshot("a", None, 1), snapshot("a", None, 2)];
        assert!(refused(double).contains("two of that name"));
    }
}
