//! What QEMU's own image format offers, on images that no guest has open: chains of
//! overlays, and internal snapshots. Of the disk alone; neither keeps memory so.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tintype_testkit::{Content, Disk, Format, GuestKind};

use super::super::guest::Subject;
use super::io::{self, Speed};
use super::{DISK_MIB, FILLED_MIB, Figures, SOME, own, rounds};
use crate::failure::Failure;
use crate::process::run;

/// The guest's memory.
const MEMORY_MIB: u32 = 128;

/// How often both guests' disks are measured: two QEMUs differ by more than more would tell.
const TURNS: usize = 200;

/// Measures chains of overlays.
pub(super) fn overlays(counts: &[usize]) -> Result<Vec<Figures>, Failure> {
    let folder = folder()?;
    let place = |number: usize| folder.path().join(format!("{number}.qcow2"));
    base(&place(0))?;
    let (mut figures, mut top) = (Vec::new(), 0);
    for &count in counts {
        while top < count {
            // Without a look at the chain below, which would make this quadratic.
            let (below, size) = (place(top), format!("{DISK_MIB}M"));
            let mut create = Command::new("qemu-img");
            create.args(["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]);
            run(create.arg(below).arg(place(top + 1)).arg(size))?;
            top += 1;
            write(&place(top), top, true)?;
        }
        figures.push(overlays_at(&place, count)?);
    }
    Ok(figures)
}

fn overlays_at(place: &dyn Fn(usize) -> PathBuf, count: usize) -> Result<Figures, Failure> {
    let [write, read] = speeds(&place(count))?;
    let aside = place(usize::MAX);
    let overlay = |on: &Path| {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
        run(create.arg(on).arg(&aside))
    };
    let take = rounds(|_| overlay(&place(count)))?;
    let revert = rounds(|_| overlay(&place(0)))?;
    let log = rounds(|_| {
        let mut info = Command::new("qemu-img");
        run(info.args(["info", "-f", "qcow2", "--backing-chain"]).arg(place(count)))
    })?;
    let mut delete = None;
    if count >= SOME {
        // The one above takes over what the deleted one had; its file stays for the next round.
        let middle = count / 2;
        delete = Some(rounds(|_| {
            let (below, above) = (place(middle - 1), place(middle + 1));
            let mut rebase = Command::new("qemu-img");
            rebase.args(["rebase", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]);
            run(rebase.arg(below).arg(above))
        })?);
        let mut back = Command::new("qemu-img");
        back.args(["rebase", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b"]);
        run(back.arg(place(middle)).arg(place(middle + 1)))?;
    }
    let revert = Some(revert);
    Ok(Figures { snapshots: count, write, read, take, delete, revert, log, ..Figures::default() })
}

/// Measures internal snapshots.
pub(super) fn internal(counts: &[usize]) -> Result<Vec<Figures>, Failure> {
    let folder = folder()?;
    let image = folder.path().join("image.qcow2");
    base(&image)?;
    let snapshot = |verb: &str, name: &str| {
        let mut command = Command::new("qemu-img");
        run(command.args(["snapshot", "-q", "-f", "qcow2", verb, name]).arg(&image))
    };
    let (mut figures, mut taken) = (Vec::new(), 0);
    for &count in counts {
        while taken < count {
            write(&image, taken, false)?;
            snapshot("-c", &format!("c{taken}"))?;
            taken += 1;
        }
        let take = rounds(|round| snapshot("-c", &format!("m{round}")))?;
        let log = rounds(|_| {
            let mut list = Command::new("qemu-img");
            run(list.args(["snapshot", "-f", "qcow2", "-l"]).arg(&image))
        })?;
        let (mut delete, mut revert) = (None, None);
        if count >= SOME {
            delete = Some(rounds(|round| snapshot("-d", &format!("c{}", count / 2 + round)))?);
            revert = Some(rounds(|_| snapshot("-a", "c0"))?);
            snapshot("-a", "m2")?;
        }
        for round in 0..3 {
            snapshot("-d", &format!("m{round}"))?;
        }
        let [write, read] = speeds(&image)?;
        let rest = Figures::default();
        figures.push(Figures { snapshots: count, write, read, take, delete, revert, log, ..rest });
    }
    Ok(figures)
}

fn folder() -> Result<TempDir, Failure> {
    tempfile::tempdir().map_err(Failure::file("make a folder in", &std::env::temp_dir()))
}

/// Makes an image with something in it.
fn base(path: &Path) -> Result<(), Failure> {
    let mut create = Command::new("qemu-img");
    run(create.args(["create", "-q", "-f", "qcow2"]).arg(path).arg(format!("{DISK_MIB}M")))?;
    let mut fill = Command::new("qemu-io");
    fill.args(["-f", "qcow2", "-c", &format!("write -q -P 7 0 {FILLED_MIB}M")]);
    run(fill.arg(path))
}

/// Writes one cluster; of an overlay without a look at the chain below.
fn write(path: &Path, number: usize, overlay: bool) -> Result<(), Failure> {
    let command = format!("write -q -P {} {}k 64k", number % 250 + 1, 64 * (number % 900));
    let mut tool = Command::new("qemu-io");
    if overlay {
        let options = format!(
            "json:{{\"driver\":\"qcow2\",\"backing\":null,\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
            path.display()
        );
        return run(tool.args(["-c", &command, &options]));
    }
    run(tool.args(["-f", "qcow2", "-c", &command]).arg(path))
}

/// Boots a guest with the image as its second disk. `None` if its QEMU does not live
/// through it: QEMU 10.0 can overflow the stack of a coroutine on a thousand overlays.
fn speeds(path: &Path) -> Result<[Option<Speed>; 2], Failure> {
    let image =
        Disk { format: Format::Qcow2, content: Content::Existing { path: path.to_owned() } };
    let disks = [Disk::system(Format::Qcow2), image];
    let mut subject = Subject::of(GuestKind::Tiny, MEMORY_MIB, disks)?;
    match io::speeds(&mut subject, &mut own::guest()?, TURNS) {
        Ok(speeds) => Ok(speeds.map(Some)),
        Err(_) if subject.has_ended() => Ok([None; 2]),
        Err(failure) => Err(failure),
    }
}
