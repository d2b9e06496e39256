//! Several hosts on one bucket of a real S3 server: processes that share
//! nothing else take, delete, undo and collect at once, and are killed.

use std::collections::HashMap;
use std::env;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use tintype_repo::{
    GcParams, InitParams, Kind, Location, Repository, S3Access, SessionParams, Site, Supervisor,
    VerifyLevel,
};
use tintype_testkit::{Error as KitError, S3Flaw, S3Server};

use crate::support::{BLOCK, begin, content, draft, eager, read_all, soak, take, write_image};

/// What a child process is told: the server, the bucket and a seed.
const HOST: &str = "TINTYPE_REPO_TEST_HOST";
/// How many seconds the hosts work.
const SECONDS: u64 = 15;
/// How long it takes until one of two hosts is killed: time to take and to
/// collect. A Ceph gateway is slower than a server in memory.
const LIFE: Duration = Duration::from_millis(2_500);
const CEPH_LIFE: Duration = Duration::from_secs(10);
/// So many lives more at most, until enough was done.
const MORE_LIVES: u32 = 18;

/// Starts a server; if there is none, says that the test cannot run.
fn server() -> Option<S3Server> {
    there(S3Server::start())
}

fn there(server: Result<S3Server, KitError>) -> Option<S3Server> {
    match server {
        Err(missing @ KitError::NoS3 { .. }) => {
            eprintln!("not run: {missing}");
            None
        }
        server => Some(server.unwrap()),
    }
}

/// Names a repository in a bucket, with hosts that are soon taken for dead.
fn site(endpoint: &str, bucket: &str) -> Site {
    let mut access = S3Access::new("test", "test");
    access.endpoint = Some(endpoint.to_owned());
    access.beat = Duration::from_millis(200);
    access.patience = Duration::from_secs(3);
    let location = Location::parse(Path::new(&format!("{bucket}/vms"))).unwrap();
    Site { location, s3: Some(access), cache: None }
}

fn image(seed: u64) -> Vec<u8> {
    content(seed, 200 * BLOCK)
}

#[test]
fn a_repository_in_a_bucket() {
    keeps_and_collects(server());
}

#[test]
fn a_repository_behind_a_ceph_gateway() {
    keeps_and_collects(there(S3Server::start_ceph()));
}

fn keeps_and_collects(server: Option<S3Server>) {
    let Some(server) = server else { return };
    let site = site(&server.endpoint(), &server.new_bucket().unwrap());
    assert_eq!(Repository::open_at(&site, &[]).unwrap_err().kind(), Kind::NotARepository);
    let repository = Repository::init_at(&site, InitParams::default()).unwrap();
    let error = Repository::init_at(&site, InitParams::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Occupied);
    let first = take(&repository, &image(1), None);
    let second = take(&repository, &image(2), Some(&first));
    repository.remove(first.id).unwrap();
    repository.undo_remove(first.id).unwrap();
    repository.remove(first.id).unwrap();
    let report = repository.gc(GcParams::default(), &()).unwrap();
    assert!(report.segments > 0 && report.waiting_for == 0, "{report:?}");
    let other_host = Repository::open_at(&site, &[]).unwrap();
    let ids: Vec<_> = other_host.snapshots().unwrap().records.iter().map(|r| r.id).collect();
    assert_eq!(ids, [second.id]);
    assert!(read_all(&other_host, &second.images[0].root) == image(2));
    let report = other_host.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!((report.snapshots, report.damaged), (1, vec![]));
}

#[test]
fn a_session_that_was_silent_is_fenced_for_ever() {
    let Some(server) = server() else { return };
    let bucket = server.new_bucket().unwrap();
    let site = site(&server.endpoint(), &bucket);
    let collector = Repository::init_at(&site, InitParams::default()).unwrap();
    let kept = take(&collector, &image(1), None);
    // This host is as good as suspended: it has no heartbeat for an hour.
    let mut silent = site.clone();
    silent.s3.as_mut().unwrap().beat = Duration::from_secs(3600);
    let suspended = Repository::open_at(&silent, &[]).unwrap();
    let session = begin(&suspended);
    let root = write_image(&session, &image(2), None);
    let begun = Instant::now();
    collector.remove(kept.id).unwrap();
    assert_eq!(collector.gc(GcParams::default(), &()).unwrap().waiting_for, 0);
    assert!(begun.elapsed() >= Duration::from_secs(3), "a first look decides nothing");
    collector.gc(GcParams::default(), &()).unwrap();
    let error = session.commit(draft(vec![("ram", root)])).unwrap_err();
    assert_eq!(error.kind(), Kind::Fenced);
    assert_eq!(collector.snapshots().unwrap().records, []);
    // What it stored after its end is collected like everything else.
    collector.gc(GcParams::default(), &()).unwrap();
    assert_eq!(collector.usage().unwrap().segments, 0);
}

/// Cancels as soon as it is waited for anybody.
#[derive(Default)]
struct Impatient {
    waits: Mutex<Vec<(usize, Duration)>>,
}

impl Supervisor for Impatient {
    fn waits(&self, sessions: usize, at_most: Duration) {
        self.waits.lock().unwrap().push((sessions, at_most));
    }

    fn is_cancelled(&self) -> bool {
        !self.waits.lock().unwrap().is_empty()
    }
}

#[test]
fn a_collection_that_waits_can_be_ended() {
    let Some(server) = server() else { return };
    let site = site(&server.endpoint(), &server.new_bucket().unwrap());
    let repository = Repository::init_at(&site, InitParams::default()).unwrap();
    let deleted = take(&repository, &image(1), None);
    repository.remove(deleted.id).unwrap();
    // A heartbeat between two looks would be a sign of life, and nothing to wait for.
    let mut silent = site.clone();
    silent.s3.as_mut().unwrap().beat = Duration::from_secs(3600);
    let session = begin(&Repository::open_at(&silent, &[]).unwrap());
    let other_host = Repository::open_at(&site, &[]).unwrap();
    let impatient = Impatient::default();
    let ended = other_host.gc(GcParams::default(), &impatient).unwrap_err();
    assert_eq!(ended.kind(), Kind::Interrupted);
    let waits = impatient.waits.into_inner().unwrap();
    let patience = site.s3.unwrap().patience;
    assert!(matches!(waits[..], [(1, at_most)] if at_most <= patience), "{waits:?}");
    drop(session);
    assert!(other_host.gc(GcParams::default(), &()).unwrap().segments > 0);
}

#[test]
fn a_session_at_work_is_left_alone() {
    let Some(server) = server() else { return };
    let site = site(&server.endpoint(), &server.new_bucket().unwrap());
    let collector = Repository::init_at(&site, InitParams::default()).unwrap();
    let deleted = take(&collector, &image(1), None);
    let session = begin(&collector);
    let root = write_image(&session, &image(2), None);
    collector.remove(deleted.id).unwrap();
    let other_host = Repository::open_at(&site, &[]).unwrap();
    assert_eq!(other_host.gc(GcParams::default(), &()).unwrap().waiting_for, 1);
    let record = session.commit(draft(vec![("ram", root)])).unwrap();
    assert!(other_host.gc(GcParams::default(), &()).unwrap().segments > 0);
    assert!(read_all(&other_host, &record.images[0].root) == image(2));
}

#[test]
fn a_server_that_would_lose_snapshots_is_refused() {
    let Some(server) = server() else { return };
    let site = site(&server.endpoint(), &server.new_bucket().unwrap());
    Repository::init_at(&site, InitParams::default()).unwrap();
    server.set_flaw(Some(S3Flaw::LooksThenWrites)).unwrap();
    let error = Repository::open_at(&site, &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::UnsafeStore, "{error}");
    server.set_flaw(None).unwrap();
    Repository::open_at(&site, &[]).unwrap();
}

/// Not a test of its own: what the child processes of the test below run.
#[test]
fn child_that_is_a_host() {
    let Ok(told) = env::var(HOST) else { return };
    let [endpoint, bucket, seed] = told.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{told}");
    };
    let seed: u64 = seed.parse().unwrap();
    let repository = Repository::open_at(&site(endpoint, bucket), &[]).unwrap();
    let mut mine = Vec::new();
    for round in 0.. {
        let seed = seed * 1_000_000 + round;
        match try_take(&repository, seed, mine.last()) {
            Ok(record) => {
                println!("kept {seed}");
                mine.push(record);
            }
            // Slower than its patience, on a busy machine.
            Err(error) if error.kind() == Kind::Fenced => println!("fenced {seed}"),
            Err(error) => panic!("take {seed}: {error:?}"),
        }
        if mine.len() > 3 {
            let oldest = mine.remove(0);
            println!("deleting {}", oldest.details);
            repository.remove(oldest.id).unwrap();
        }
        if round % 3 == 2 {
            match repository.gc(eager(), &()) {
                Ok(report) => {
                    println!("collected {}", report.segments);
                    println!("moved {}", report.compaction.snapshots);
                }
                Err(error) if error.kind() == Kind::Fenced => println!("fenced compaction"),
                // Another one has deleted what this one was looking at.
                Err(error) if error.kind() == Kind::Damaged => println!("gave way {error}"),
                Err(error) => panic!("gc: {error:?}"),
            }
        }
    }
}

fn try_take(
    repository: &Repository,
    seed: u64,
    parent: Option<&tintype_repo::SnapshotRecord>,
) -> Result<tintype_repo::SnapshotRecord, tintype_repo::Error> {
    let session = repository.begin(SessionParams::default())?;
    let root = parent.map(|record| record.images[0].root.clone());
    let root = write_image(&session, &image(seed), root);
    let mut draft = draft(vec![("ram", root)]);
    draft.details = serde_json::json!(seed);
    session.commit(draft)
}

fn start_host(endpoint: &str, bucket: &str, seed: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["hosts::child_that_is_a_host", "--exact", "--nocapture", "--test-threads=1"])
        .env(HOST, format!("{endpoint} {bucket} {seed}"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a host has said of its snapshots until it was killed.
#[derive(Default)]
struct Said {
    /// Whether each snapshot must be there; one that was being deleted may.
    snapshots: HashMap<u64, bool>,
    collected: u64,
    moved: u64,
    lines: Vec<String>,
}

impl Said {
    /// Whether the hosts have done what the test is about.
    fn enough(&self) -> bool {
        self.snapshots.len() > 5 && self.collected > 0
    }
}

/// Kills a host and reads what it has said.
fn end_host(mut host: Child, said: &mut Said) {
    assert!(host.try_wait().unwrap().is_none(), "a host has ended by itself");
    host.kill().unwrap();
    host.wait().unwrap();
    for line in BufReader::new(host.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match (word, rest.parse::<u64>()) {
            ("kept", Ok(seed)) => _ = said.snapshots.insert(seed, true),
            ("deleting", Ok(seed)) => _ = said.snapshots.insert(seed, false),
            ("collected", Ok(segments)) => said.collected += segments,
            ("moved", Ok(snapshots)) => said.moved += snapshots,
            ("fenced", _) | ("gave", _) => said.lines.push(line),
            _ => {}
        }
    }
}

#[test]
fn hosts_that_take_delete_collect_and_die_at_once() {
    take_delete_collect_and_die(server(), LIFE);
}

#[test]
fn hosts_that_die_at_once_behind_a_ceph_gateway() {
    take_delete_collect_and_die(there(S3Server::start_ceph()), CEPH_LIFE);
}

fn take_delete_collect_and_die(server: Option<S3Server>, life: Duration) {
    let Some(server) = server else { return };
    let (endpoint, bucket) = (server.endpoint(), server.new_bucket().unwrap());
    let site = site(&endpoint, &bucket);
    let repository = Repository::init_at(&site, InitParams::default()).unwrap();
    let mut said = Said::default();
    let begun = Instant::now();
    let soak = soak("seconds", SECONDS);
    let time = Duration::from_secs(soak.count);
    let mut seed = 0;
    let mut next = || {
        seed += 1;
        start_host(&endpoint, &bucket, seed)
    };
    let mut hosts = vec![next(), next()];
    let most_time = time + MORE_LIVES * life;
    while begun.elapsed() < time || (!said.enough() && begun.elapsed() < most_time) {
        thread::sleep(life);
        // One dies, and another one comes.
        end_host(hosts.remove(0), &mut said);
        hosts.push(next());
    }
    hosts.into_iter().for_each(|host| end_host(host, &mut said));
    let repository = {
        drop(repository);
        Repository::open_at(&site, &[]).unwrap()
    };
    let listing = repository.snapshots().unwrap();
    assert_eq!(listing.damaged, []);
    let found: HashMap<u64, _> =
        listing.records.iter().map(|r| (r.details.read().unwrap(), r)).collect();
    let kept: Vec<u64> = said.snapshots.iter().filter(|(_, kept)| **kept).map(|s| *s.0).collect();
    for seed in &kept {
        let record = found.get(seed).unwrap_or_else(|| panic!("snapshot {seed} is lost"));
        assert!(read_all(&repository, &record.images[0].root) == image(*seed), "{seed}");
    }
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
    let last = repository.gc(GcParams::default(), &()).unwrap();
    assert_eq!(last.waiting_for, 0, "the dead are ended");
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
    assert_eq!(report.segments, repository.usage().unwrap().segments, "nothing of them is left");
    eprintln!(
        "soak: {} snapshots by {seed} hosts, {} there, {} segments collected and {} snapshots \
         moved meanwhile; {:?}",
        said.snapshots.len(),
        found.len(),
        said.collected,
        said.moved,
        said.lines
    );
    assert!(said.enough());
}
