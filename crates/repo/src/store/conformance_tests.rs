//! What every store has to do, as one suite that each of them passes.

use std::path::Path;
use std::thread;
use std::time::Duration;

use tintype_testkit::{S3Flaw, S3Server};

use super::bucket::Bucket;
use super::faulty::{Faulty, Odds};
use super::local::LocalStore;
use super::memory::Memory;
use super::probe::{Verdict, probe};
use super::retry::{Budget, Retry};
use super::simulated::SimulatedDisk;
use super::{Listed, Objects, Put};
use crate::location::{BucketName, Location, S3Access};
use crate::{Error, Kind};

/// A budget for tests: many attempts in little time.
const QUICK: Budget = Budget {
    total: Duration::from_secs(20),
    first: Duration::from_millis(1),
    longest: Duration::from_millis(4),
};

/// Runs the whole suite on an empty store.
fn conforms(objects: &dyn Objects) {
    first_put_wins(objects);
    reads_what_was_put(objects);
    lists_in_order(objects);
    replaces(objects);
    deletes_twice(objects);
    keeps_big_objects(objects);
    one_of_many_wins(objects);
    assert_eq!(objects.list("").unwrap(), [], "the suite has removed what it put");
}

fn first_put_wins(objects: &dyn Objects) {
    assert_eq!(objects.put_if_absent("a/one", b"first").unwrap(), Put::Created);
    assert_eq!(objects.put_if_absent("a/one", b"second, and longer").unwrap(), Put::Existed);
    assert_eq!(objects.put_if_absent("a/one", b"first").unwrap(), Put::Existed);
    assert_eq!(objects.get("a/one", 100).unwrap(), b"first");
    objects.delete("a/one").unwrap();
    assert_eq!(objects.put_if_absent("a/one", b"again").unwrap(), Put::Created);
    assert_eq!(objects.get("a/one", 100).unwrap(), b"again");
    objects.delete("a/one").unwrap();
}

fn replaces(objects: &dyn Objects) {
    objects.put_if_absent("a/old", b"the old one").unwrap();
    assert_eq!(objects.get_range("a/old", 4, 3).unwrap(), b"old");
    for key in ["a/old", "a/new"] {
        objects.replace(key, b"the new").unwrap();
        assert_eq!(objects.get(key, 100).unwrap(), b"the new");
        assert_eq!(objects.get_range(key, 4, 3).unwrap(), b"new");
        assert_eq!(objects.size(key).unwrap(), Some(7));
        objects.delete(key).unwrap();
    }
}

fn reads_what_was_put(objects: &dyn Objects) {
    let content: Vec<u8> = (0..=255).collect();
    objects.put_if_absent("r/object", &content).unwrap();
    objects.put_if_absent("r/empty", b"").unwrap();
    assert_eq!(objects.size("r/object").unwrap(), Some(256));
    assert_eq!(objects.size("r/empty").unwrap(), Some(0));
    assert_eq!(objects.get("r/empty", 0).unwrap(), b"");
    for (offset, len) in [(0, 1), (0, 256), (255, 1), (100, 56)] {
        let start = usize::try_from(offset).unwrap();
        let range = objects.get_range("r/object", offset, len).unwrap();
        assert_eq!(range, content[start..start + len], "{len} from {offset}");
    }
    for (offset, len) in [(0, 257), (255, 2), (256, 1), (1 << 40, 1)] {
        let error = objects.get_range("r/object", offset, len).unwrap_err();
        assert_eq!(error.kind(), Kind::Damaged, "{len} from {offset}: {error:?}");
    }
    assert_eq!(objects.get("r/object", 256).unwrap(), content);
    assert_eq!(objects.get("r/object", 255).unwrap_err().kind(), Kind::Damaged);
    assert_eq!(objects.get("r/nothing", 9).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(objects.size("r/nothing").unwrap(), None);
    assert_eq!(objects.get_range("r/nothing", 0, 1).unwrap_err().kind(), Kind::NotFound);
    objects.delete("r/object").unwrap();
    objects.delete("r/empty").unwrap();
}

fn lists_in_order(objects: &dyn Objects) {
    // Two pages of S3 and some.
    let mut keys: Vec<String> = (0..40).map(|n| format!("l/{n:02x}/{n:04}-7")).collect();
    keys.extend(["l/00000001", "l/00000001.done", "l/00000001.final", "lx"].map(str::to_owned));
    for key in keys.iter().rev() {
        objects.put_if_absent(key, key.as_bytes()).unwrap();
    }
    keys.sort();
    let check = |prefix: &str| {
        let expected: Vec<Listed> = keys
            .iter()
            .filter(|key| key.starts_with(prefix))
            .map(|key| Listed { key: key.clone(), size: u64::try_from(key.len()).unwrap() })
            .collect();
        assert_eq!(objects.list(prefix).unwrap(), expected, "{prefix}");
    };
    for prefix in ["", "l", "l/", "l/0", "l/00000001", "l/00000001.", "l/1f/0031-", "m/", "l/zz/"] {
        check(prefix);
    }
    for key in &keys {
        objects.delete(key).unwrap();
    }
}

fn deletes_twice(objects: &dyn Objects) {
    objects.put_if_absent("d/object", b"x").unwrap();
    objects.put_if_absent("d/other", b"y").unwrap();
    objects.delete("d/object").unwrap();
    objects.delete("d/object").unwrap();
    objects.delete("never/there").unwrap();
    assert_eq!(objects.size("d/object").unwrap(), None);
    assert_eq!(objects.get("d/other", 1).unwrap(), b"y");
    objects.delete("d/other").unwrap();
}

fn keeps_big_objects(objects: &dyn Objects) {
    let mut content = vec![0; 16 << 20];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    assert_eq!(objects.put_if_absent("b/segment", &content).unwrap(), Put::Created);
    assert_eq!(objects.size("b/segment").unwrap(), Some(16 << 20));
    let range = objects.get_range("b/segment", (9 << 20) + 5, 1 << 20).unwrap();
    assert!(range == content[(9 << 20) + 5..(10 << 20) + 5]);
    assert!(objects.get("b/segment", 16 << 20).unwrap() == content);
    objects.delete("b/segment").unwrap();
}

fn one_of_many_wins(objects: &dyn Objects) {
    for round in 0..10 {
        let key = format!("c/{round}");
        let key = key.as_str();
        let puts: Vec<(u8, Put)> = thread::scope(|scope| {
            let put = |n: u8| (n, objects.put_if_absent(key, &[n; 100]).unwrap());
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || put(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let winners: Vec<u8> =
            puts.iter().filter(|(_, put)| *put == Put::Created).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "round {round}: {puts:?}");
        assert_eq!(objects.get(key, 100).unwrap(), [winners[0]; 100]);
        objects.delete(key).unwrap();
    }
}

#[test]
fn memory_conforms() {
    conforms(&Memory::default());
}

#[test]
fn a_folder_conforms() {
    let folder = tempfile::tempdir().unwrap();
    conforms(&LocalStore::create(&folder.path().join("repo")).unwrap());
}

#[test]
fn a_simulated_disk_conforms() {
    conforms(&LocalStore::on(Box::new(SimulatedDisk::default()), Path::new("simulated")));
}

#[test]
fn a_bad_network_conforms_with_retries() {
    let odds = Odds { lost_request: 5, lost_answer: 5, delay: 9 };
    for seed in 0..20 {
        // What each of several puts the same bytes, all have put.
        let objects = Retry::new(Faulty::new(Memory::default(), odds, seed), QUICK);
        reads_what_was_put(&objects);
        lists_in_order(&objects);
        deletes_twice(&objects);
        keeps_big_objects(&objects);
        one_of_many_wins(&objects);
    }
}

#[test]
fn a_lost_answer_is_no_other_host() {
    for seed in 0..200 {
        let memory = Memory::default();
        let odds = Odds { lost_answer: 2, ..Odds::default() };
        let objects = Retry::new(Faulty::new(memory.clone(), odds, seed), QUICK);
        assert_eq!(objects.put_if_absent("a", b"ours").unwrap(), Put::Created);
        memory.put_if_absent("b", b"theirs").unwrap();
        assert_eq!(objects.put_if_absent("b", b"ours").unwrap(), Put::Existed);
    }
}

#[test]
fn retries_end_with_their_budget() {
    let odds = Odds { lost_request: 1, ..Odds::default() };
    let budget = Budget { total: Duration::from_millis(100), ..QUICK };
    let objects = Retry::new(Faulty::new(Memory::default(), odds, 0), budget);
    let begun = std::time::Instant::now();
    assert_eq!(objects.get("a", 1).unwrap_err().kind(), Kind::Io);
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(50) && took < Duration::from_secs(5), "{took:?}");
}

/// Starts a server; if there is none, says that the test cannot run.
fn server() -> Option<S3Server> {
    match S3Server::start() {
        Err(missing @ tintype_testkit::Error::NoS3 { .. }) => {
            eprintln!("not run: {missing}");
            None
        }
        server => Some(server.unwrap()),
    }
}

fn bucket(server: &S3Server) -> Bucket {
    let url = server.new_bucket().unwrap();
    let Location::Bucket(name) = Location::parse(Path::new(&format!("{url}/some/where"))).unwrap()
    else {
        panic!("{url} is a bucket");
    };
    Bucket::new(&name, &access(server)).unwrap()
}

fn access(server: &S3Server) -> S3Access {
    S3Access { endpoint: Some(server.endpoint()), ..S3Access::new("test", "test") }
}

#[test]
fn s3_conforms() {
    let Some(server) = server() else { return };
    conforms(&bucket(&server));
    assert_eq!(probe(&bucket(&server)).unwrap(), Verdict::Sound);
}

#[test]
fn servers_that_lose_snapshots_are_found() {
    let Some(server) = server() else { return };
    for (flaw, seen) in [
        (S3Flaw::IgnoresConditions, "it accepted 8"),
        (S3Flaw::LooksThenWrites, "where one may win"),
    ] {
        server.set_flaw(Some(flaw)).unwrap();
        // When its puts race, the server fails at times.
        let verdict = (0..5).find_map(|_| probe(&bucket(&server)).ok());
        match verdict.expect("it answers at last") {
            Verdict::Unsound(said) => assert!(said.contains(seen), "{flaw:?}: {said}"),
            verdict => panic!("{flaw:?}: {verdict:?}"),
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error() {
    let name = BucketName { bucket: "somewhere".to_owned(), prefix: String::new() };
    for endpoint in ["http://127.0.0.1:9", "https://127.0.0.1:9"] {
        let endpoint = Some(endpoint.to_owned());
        let access = S3Access { endpoint, ..S3Access::new("test", "test") };
        match Bucket::new(&name, &access).unwrap().get("config", 9).unwrap_err() {
            Error::Io { source, .. } => {
                assert_eq!(source.kind(), std::io::ErrorKind::ConnectionAborted);
            }
            error => panic!("{error:?}"),
        }
    }
}
