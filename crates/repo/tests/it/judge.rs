//! The reader in `tools/`, written from `docs/format.md` alone, as a judge.

use std::path::Path;
use std::process::{Command, Output};

use tintype_repo::{Encryption, ImageParams, InitParams, Repository, SnapshotRecord, Unwritten};
use tintype_types::{ByteCount, Extent};

use crate::support::{BLOCK, begin, content, draft, read_all};

/// The second reader.
pub(crate) const SCRIPT: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/read_repository.py");

pub(crate) fn judge(repository: &Path, key: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("python3");
    command.arg(SCRIPT).arg("--key-file").arg(key).arg(repository).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

/// Whether Python, libzstd and the packages are here; says so if not.
pub(crate) fn can_judge(packages: &str) -> bool {
    let import = format!("import ctypes; ctypes.CDLL('libzstd.so.1'){packages}");
    let can = Command::new("python3").args(["-c", &import]).output();
    let can = can.is_ok_and(|output| output.status.success());
    if !can {
        eprintln!("not run: python3 with libzstd{packages} is not here");
    }
    can
}

/// A few generations of an image: dense, scattered, zeroed, resized.
fn fill(repository: &Repository) -> Vec<SnapshotRecord> {
    let mut records: Vec<SnapshotRecord> = Vec::new();
    for round in 0..6_u64 {
        let session = begin(repository);
        let parent = records.last().map(|record| record.images[0].root.clone());
        let size = ByteCount((1 << 29) - 5000 * round - round % 2);
        let params = ImageParams { size, parent, unwritten: Unwritten::Parent };
        let mut writer = session.image(params).unwrap();
        if round == 0 {
            writer.write(0, &content(1, 20 * BLOCK)).unwrap();
        }
        for place in (round..64).step_by(3) {
            writer.write(place << 23, &content(place + round, 2 * BLOCK)).unwrap();
        }
        writer.write_zeroes(Extent { offset: round << 24, len: 1 << 23 }).unwrap();
        let root = writer.finish().unwrap();
        let blob = session.blob(&content(round, 70_001)).unwrap();
        let mut draft = draft(vec![("disk", root)]);
        draft.blobs = vec![("state".to_owned(), blob)];
        records.push(session.commit(draft).unwrap());
    }
    repository.remove(records[1].id).unwrap();
    repository.remove(records[2].id).unwrap();
    repository.undo_remove(records[2].id).unwrap();
    records.remove(1);
    records
}

fn check(encryption: fn(&Path) -> Encryption) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let mut params = InitParams::default();
    params.encryption = encryption(&key);
    let repository = Repository::init(&folder.path().join("repo"), params).unwrap();
    let records = fill(&repository);
    let listed = judge(repository.path(), &key, &["list"]).stdout;
    let listed: Vec<SnapshotRecord> =
        serde_json::Deserializer::from_slice(&listed).into_iter().map(Result::unwrap).collect();
    assert!(listed == records);
    for number in 1..=2 {
        repository.log_operation(&serde_json::json!({ "did": number })).unwrap();
    }
    let operations = judge(repository.path(), &key, &["operations"]).stdout;
    assert_eq!(operations, b"[1, {\"did\": 1}]\n[2, {\"did\": 2}]\n");
    for record in [&records[0], &records[4]] {
        let out = folder.path().join("out");
        let id = record.id.to_string();
        judge(repository.path(), &key, &["image", &id, "disk", out.to_str().unwrap()]);
        assert!(std::fs::read(&out).unwrap() == read_all(&repository, &record.images[0].root));
        judge(repository.path(), &key, &["blob", &id, "state", out.to_str().unwrap()]);
        let blob = repository.read_blob(&record.blobs[0].1).unwrap();
        assert!(std::fs::read(&out).unwrap() == blob);
    }
}

#[test]
fn the_second_reader_reads_the_same() {
    if can_judge("") {
        check(|_| Encryption::None);
    }
}

#[test]
fn the_second_reader_opens_what_is_sealed() {
    if can_judge("; import cryptography") {
        check(|key| Encryption::KeyFile(key.to_owned()));
    }
}
