//! Processes that are killed while they write.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tintype_repo::{Repository, VerifyLevel};

use crate::support::{BLOCK, begin, content, draft, files, new_repository, read_all, write_image};

const WRITER: &str = "TINTYPE_REPO_TEST_WRITER";
const KILLS: u64 = 60;

/// Not a test of its own: what the child process of the tests below runs.
#[test]
fn child_that_writes() {
    let Ok(path) = env::var(WRITER) else { return };
    let repository = Repository::open(Path::new(&path)).unwrap();
    let mut parent = None;
    for seed in 0.. {
        let session = begin(&repository);
        let root = write_image(&session, &image(seed), parent.take());
        let mut draft = draft(vec![("ram", root.clone())]);
        draft.details = serde_json::json!(seed);
        session.commit(draft).unwrap();
        // Acknowledged from here on.
        println!("committed {seed}");
        parent = Some(root);
    }
}

fn image(seed: u64) -> Vec<u8> {
    let mut bytes = content(1, 300 * BLOCK);
    let changed = content(seed + 2, 40 * BLOCK);
    let at = usize::try_from(seed % 200).unwrap() * BLOCK;
    bytes[at..at + changed.len()].copy_from_slice(&changed);
    bytes
}

fn start_writer(path: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["died::child_that_writes", "--exact", "--nocapture", "--test-threads=1"])
        .env(WRITER, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_writer_loses_nothing_that_was_acknowledged() {
    let (_folder, repository) = new_repository();
    let mut acknowledged = 0;
    for round in 0..KILLS {
        let mut child = start_writer(repository.path());
        std::thread::sleep(Duration::from_micros(15_000 + 2_311 * (round * 37 % 61)));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut text = Vec::new();
        BufReader::new(child.stdout.take().unwrap()).read_to_end(&mut text).unwrap();
        acknowledged +=
            text.lines().filter(|line| line.as_ref().unwrap().contains("committed")).count();
        let repository = Repository::open(repository.path()).unwrap();
        let listing = repository.snapshots().unwrap();
        assert_eq!(listing.damaged, []);
        assert!(listing.records.len() >= acknowledged, "an acknowledged snapshot is lost");
        if let Some(record) = listing.records.last() {
            let seed = record.details.as_u64().unwrap();
            assert!(read_all(&repository, &record.images[0].root) == image(seed));
        }
        acknowledged = listing.records.len();
        assert_eq!(files(&repository.path().join("tmp")), Vec::<std::path::PathBuf>::new());
        if repository.path().join("slot").exists() {
            assert_eq!(files(&repository.path().join("slot")), Vec::<std::path::PathBuf>::new());
        }
    }
    assert!(acknowledged > 0, "no writer got as far as one snapshot");
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
    // Nothing is left of the sessions that died.
    assert_eq!(report.segments, repository.usage().unwrap().segments);
}

#[test]
fn a_session_that_is_given_up_leaves_nothing() {
    let (_folder, repository) = new_repository();
    let before = files(repository.path());
    let session = begin(&repository);
    write_image(&session, &content(1, 2000 * BLOCK), None);
    // A live session is not taken for a dead one.
    Repository::open(repository.path()).unwrap();
    assert_ne!(files(repository.path()), before);
    drop(session);
    assert_eq!(files(repository.path()), before);
}
