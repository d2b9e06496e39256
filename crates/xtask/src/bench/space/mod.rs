//! What many snapshots take: a Debian guest works, and is kept again and again with its
//! memory, by tintype, by restic and borg as images that are saved for them, by QEMU's
//! internal snapshots, and by an external chain. The same work for each.

mod images;
mod qemu;
mod work;

use std::time::Instant;

use tintype_testkit::{Disk, Format, GuestKind};

use super::guest::Subject;
use super::peers::{Peer, Tool, bytes_of};
use crate::failure::Failure;
use crate::setup;

/// How many snapshots, unless another number is given.
const SNAPSHOTS: u32 = 20;

/// The guest's memory, in MiB.
const MEMORY_MIB: u32 = 512;

/// What keeping all the snapshots cost; the first two are tintype's, as taken and recompressed.
struct Cost {
    name: &'static str,
    kept: f64,
    seconds: f64,
}

/// Measures.
pub(super) fn run(arguments: &[String]) -> Result<(), Failure> {
    let snapshots = match arguments {
        [] => SNAPSHOTS,
        [number] => number
            .parse()
            .map_err(|_| Failure::Other(format!("`{number}` is no number of snapshots")))?,
        _ => return Err(Failure::Other("say how many snapshots, and nothing else".to_owned())),
    };
    setup::ensure_peers()?;
    let mut costs = side_by_side(snapshots)?;
    costs.push(qemu::internal(snapshots)?);
    costs.push(qemu::external(snapshots)?);
    show(snapshots, &costs);
    Ok(())
}

/// Lets one guest work, and keeps each of its states in three ways.
fn side_by_side(snapshots: u32) -> Result<Vec<Cost>, Failure> {
    let mut subject = debian(Format::Raw)?;
    let images = images::Images::within(subject.folder())?;
    let peers = [Tool::Restic, Tool::Borg].map(|tool| Peer::init(tool, images.folder()));
    let [restic, borg] = peers;
    let peers = [restic?, borg?];
    let (mut own, mut theirs) = (0.0, [0.0; 2]);
    for step in 0..snapshots {
        work::step(&mut subject, step)?;
        let start = Instant::now();
        subject.take(&[])?;
        own += start.elapsed().as_secs_f64();
        images.save(&subject)?;
        for (peer, seconds) in peers.iter().zip(&mut theirs) {
            *seconds += peer.back_up(
                &step.to_string(),
                images.folder(),
                &images::NAMES.map(str::to_owned),
            )?;
        }
    }
    let repository = subject.folder().join("home/repository");
    let mut costs = vec![Cost { name: "tintype", kept: bytes_of(&repository)?, seconds: own }];
    let start = Instant::now();
    subject.tintype(&["gc", "--recompress"])?;
    let seconds = own + start.elapsed().as_secs_f64();
    costs.push(Cost { name: "tintype, gc --recompress", kept: bytes_of(&repository)?, seconds });
    for (peer, seconds) in peers.iter().zip(theirs) {
        costs.push(Cost { name: peer.name(), kept: peer.kept()?, seconds });
    }
    Ok(costs)
}

/// Boots the Debian guest with its own disk.
fn debian(format: Format) -> Result<Subject, Failure> {
    Subject::of(GuestKind::Debian, MEMORY_MIB, [Disk::system(format)])
}

fn show(snapshots: u32, costs: &[Cost]) {
    println!("{snapshots} snapshots of memory and disk; what tintype keeps, as a share of each");
    println!("{:<28} {:>15} {:>9} {:>9} {:>13}", "", "bytes", "seconds", "share", "recompressed");
    let [own, recompressed, ..] = costs else { return };
    for Cost { name, kept, seconds } in costs {
        let (share, better) = (own.kept / kept, recompressed.kept / kept);
        println!("{name:<28} {kept:>15.0} {seconds:>9.1} {share:>9.2} {better:>13.2}");
    }
}
