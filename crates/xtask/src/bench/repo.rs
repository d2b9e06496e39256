//! The repository beside the machine's own limits, restic and borg: one run, the same
//! two states of a guest for all. `crates/repo/benches/speed` measures the repository
//! and the limits; the peers are Debian's packages.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::median;
use super::peers::{Peer, Tool};
use crate::failure::Failure;
use crate::process::{capture, cargo};
use crate::setup::Consent;
use crate::{guests, setup};

/// How often the repository is measured. The peers are measured once.
const ROUNDS: u32 = 3;

/// The files of a state, as the large guest's folder has them.
const IMAGES: [&str; 2] = ["disk", "memory"];

/// What was measured under one name, over all rounds.
#[derive(Default)]
struct Figure {
    bytes: f64,
    seconds: Vec<f64>,
    cpu: Vec<f64>,
    values: Vec<f64>,
}

type Figures = BTreeMap<String, Figure>;

/// Measures. `--quick` measures the repository once and no peers.
pub(super) fn run_all(arguments: &[String]) -> Result<(), Failure> {
    let quick = arguments.iter().any(|argument| argument == "--quick");
    let consent = Consent::of(arguments);
    let states = guests::ensure_large(consent)?;
    let work = tempfile::tempdir_in(&states).map_err(Failure::file("make a folder in", &states))?;
    let rounds = if quick { 1 } else { ROUNDS };
    let figures = repository(&states, work.path(), rounds)?;
    show(&figures);
    if !quick {
        setup::ensure_peers()?;
        let peers = [Tool::Restic, Tool::Borg].map(|tool| measure(tool, &states, work.path()));
        let [restic, borg] = peers;
        compare(&figures, &[restic?, borg?]);
    }
    Ok(())
}

/// Lets the benchmark of the repository run, and collects what it prints.
fn repository(states: &Path, work: &Path, rounds: u32) -> Result<Figures, Failure> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = now.map_or(0, |since| since.as_secs());
    println!("median of {rounds}; seed of the random reads {seed}");
    let mut command = cargo();
    command.args(["bench", "--quiet", "--package", "tintype-repo", "--bench", "speed", "--"]);
    command.arg(states).arg(work).args([rounds.to_string(), seed.to_string()]);
    let mut figures = Figures::new();
    for line in capture(&mut command)?.lines() {
        let parsed: Value = serde_json::from_str(line)
            .map_err(|error| Failure::Other(format!("the benchmark printed no JSON: {error}")))?;
        let figure = figures.entry(parsed["name"].as_str().unwrap_or("?").to_owned()).or_default();
        figure.bytes = parsed["bytes"].as_f64().unwrap_or_default();
        figure.seconds.extend(parsed["seconds"].as_f64());
        figure.cpu.extend(parsed["cpu"].as_f64());
        figure.values.extend(parsed["value"].as_f64());
    }
    Ok(figures)
}

fn show(figures: &Figures) {
    println!("{:<34} {:>9} {:>9} {:>11}", "", "s", "GB/s", "GB/s a core");
    for (name, figure) in figures.iter().filter(|(_, figure)| !figure.seconds.is_empty()) {
        let (seconds, cpu) = (median(&figure.seconds), median(&figure.cpu));
        let speed = |seconds: f64| figure.bytes / seconds / 1e9;
        println!("{name:<34} {seconds:>9.2} {:>9.2} {:>11.2}", speed(seconds), speed(cpu));
    }
    for (name, figure) in figures.iter().filter(|(_, figure)| !figure.values.is_empty()) {
        println!("{name:<34} {:>15.0}", median(&figure.values));
    }
    let seconds = |name: &str| figures.get(name).map_or(f64::NAN, |f| median(&f.seconds));
    let value = |name: &str| figures.get(name).map_or(f64::NAN, |f| median(&f.values));
    let part = |what: &str, ratio: f64| println!("{what:<60} {ratio:>6.2}");
    let compress = seconds("limit: compress, all cores");
    part("full write: of the compress limit", compress / seconds("full write"));
    // They are of different states, which have not the same number of bytes.
    let speed = |name: &str| figures.get(name).map_or(f64::NAN, |f| f.bytes / median(&f.seconds));
    let decompress = speed("limit: decompress, all cores");
    part("eager restore: of the decompress limit", speed("eager restore") / decompress);
    let alone = value("changed blocks compressed alone");
    part("next snapshot: kept / changed blocks compressed alone", value("kept: next") / alone);
}

/// What a peer needed for both states, one after the other.
struct Measured {
    name: &'static str,
    seconds: [f64; 2],
    kept: f64,
}

fn compare(figures: &Figures, peers: &[Measured]) {
    let own = |name: &str| figures.get(name).map_or(f64::NAN, |f| median(&f.seconds));
    let value = |name: &str| figures.get(name).map_or(f64::NAN, |f| median(&f.values));
    let kept = value("kept: both");
    println!("{:<34} {:>9} {:>9} {:>12}", "", "full s", "next s", "kept");
    let [full, next] = [own("full write"), own("next snapshot")];
    println!("{:<34} {full:>9.2} {next:>9.2} {kept:>12.0}", "tintype");
    let (again, strong) = (own("gc --recompress"), value("kept: both, after gc --recompress"));
    println!("{:<34} {again:>9.2} {:>9} {strong:>12.0}", "tintype, then gc --recompress", "");
    for Measured { name, seconds: [peer_full, peer_next], kept: peer_kept } in peers {
        println!("{name:<34} {peer_full:>9.2} {peer_next:>9.2} {peer_kept:>12.0}");
        println!(
            "  tintype is {:.1} and {:.1} times as fast, and keeps {:.2} of the bytes",
            peer_full / full,
            peer_next / next,
            kept / peer_kept
        );
    }
}

/// Lets a peer back up both states.
fn measure(tool: Tool, states: &Path, work: &Path) -> Result<Measured, Failure> {
    let peer = Peer::init(tool, work)?;
    let seconds = [peer.back_up("1", states, &files(1))?, peer.back_up("2", states, &files(2))?];
    Ok(Measured { name: peer.name(), seconds, kept: peer.kept()? })
}

fn files(moment: u32) -> [String; 2] {
    IMAGES.map(|image| format!("{image}-{moment}"))
}
