//! What is said of snapshots after they were taken.

use std::fs;

use serde_json::json;
use tintype_repo::{Encryption, GcParams, InitParams, Kind, Label, Repository, VerifyLevel};

use crate::support::{BLOCK, content, files, new_repository, take};

fn say(repository: &Repository, id: tintype_types::SnapshotId, message: &str) -> (Label, Label) {
    repository.relabel(id, |label| label.message = Some(message.to_owned())).unwrap()
}

fn said(repository: &Repository, id: tintype_types::SnapshotId) -> Label {
    repository.labels().unwrap().of.remove(&id).unwrap_or_default()
}

#[test]
fn the_newest_counts_and_says_all() {
    let (_folder, repository) = new_repository();
    let record = take(&repository, &content(1, 9 * BLOCK), None);
    assert_eq!(repository.labels().unwrap(), tintype_repo::Labels::default());
    assert_eq!(say(&repository, record.id, "a").0, Label::default());
    let (before, after) = repository.relabel(record.id, |label| label.pinned = true).unwrap();
    assert_eq!((before.message.as_deref(), before.pinned), (Some("a"), false));
    assert_eq!((after.message.as_deref(), after.pinned), (Some("a"), true));
    assert_eq!(said(&Repository::open(repository.path()).unwrap(), record.id), after);
    let count = || files(&repository.path().join("label")).len();
    assert_eq!(count(), 2);
    repository.relabel(record.id, |label| label.pinned = true).unwrap();
    assert_eq!(count(), 2, "what changes nothing writes nothing");
    let strange = tintype_types::SnapshotId::random();
    let nobody = repository.relabel(strange, |label| label.pinned = true).unwrap_err();
    assert_eq!(nobody.kind(), Kind::NotFound);
}

#[test]
fn who_changes_at_the_same_time_loses_nothing() {
    let (_folder, repository) = new_repository();
    let id = take(&repository, &content(1, 9 * BLOCK), None).id;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let repository = Repository::open(repository.path()).unwrap();
            scope.spawn(move || {
                for number in 0..12 {
                    let tag = (format!("{thread}-{number}"), String::new());
                    let add = |label: &mut Label| {
                        label.tags.get_or_insert_default().push(tag.clone());
                    };
                    repository.relabel(id, add).unwrap();
                }
            });
        }
    });
    let mut tags = said(&repository, id).tags.unwrap();
    tags.sort();
    tags.dedup();
    assert_eq!(tags.len(), 48);
}

#[test]
fn a_damaged_one_gives_way_to_the_one_before_and_protects() {
    let (_folder, repository) = new_repository();
    let id = take(&repository, &content(1, 9 * BLOCK), None).id;
    let spoil = |number: u32| {
        let path = repository.path().join(format!("label/{id}-{number}"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    say(&repository, id, "a");
    say(&repository, id, "b");
    spoil(1);
    let labels = repository.labels().unwrap();
    assert_eq!(labels.damaged.len(), 1);
    let protected = Label { message: Some("a".to_owned()), pinned: true, ..Label::default() };
    assert_eq!(labels.of[&id], protected);
    spoil(0);
    assert_eq!(said(&repository, id), Label { pinned: true, ..Label::default() });
    let verify = || repository.verify(&[], VerifyLevel::Quick, &()).unwrap().damaged.len();
    assert_eq!(verify(), 2);
    assert_eq!(repository.repair(None, &()).unwrap().repaired.len(), 2);
    assert_eq!(verify(), 0);
    assert_eq!(said(&repository, id), Label { pinned: true, ..Label::default() });
    // A change takes the place of a damaged one, too.
    spoil(1);
    repository.relabel(id, |label| label.pinned = false).unwrap();
    assert_eq!(said(&repository, id), Label::default());
}

#[test]
fn operations_are_in_order_and_say_nothing_where_they_are_damaged() {
    let (_folder, repository) = new_repository();
    assert_eq!(repository.operations(9).unwrap(), []);
    for number in 1..=3_u64 {
        assert_eq!(repository.log_operation(&json!({ "did": number })).unwrap(), number);
    }
    let found = |limit| -> Vec<_> {
        let operations = Repository::open(repository.path()).unwrap().operations(limit).unwrap();
        operations.into_iter().map(|one| (one.number, one.entry)).collect()
    };
    let entry = |number: u64| (number, Some(json!({ "did": number })));
    assert_eq!(found(2), [entry(3), entry(2)]);
    let path = repository.path().join("op/00000002");
    fs::write(&path, b"nothing").unwrap();
    assert_eq!(found(9), [entry(3), (2, None), entry(1)]);
    assert_eq!(repository.repair(None, &()).unwrap().repaired, ["op/00000002"]);
    assert_eq!(found(9), [entry(3), (2, None), entry(1)]);
    assert_eq!(repository.verify(&[], VerifyLevel::Quick, &()).unwrap().damaged, []);
}

#[test]
fn they_are_hidden_in_a_sealed_repository_and_go_with_their_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let key = Encryption::KeyFile(folder.path().join("key"));
    let mut params = InitParams::default();
    params.encryption = key;
    let repository = Repository::init(&folder.path().join("repo"), params).unwrap();
    let [kept, gone] = [1, 2].map(|seed| take(&repository, &content(seed, 9 * BLOCK), None).id);
    for id in [kept, gone] {
        say(&repository, id, "a secret");
    }
    repository.log_operation(&json!("another secret")).unwrap();
    for path in files(repository.path()) {
        let bytes = fs::read(&path).unwrap();
        assert!(!bytes.windows(6).any(|word| word == b"secret"), "{}", path.display());
    }
    repository.remove(gone).unwrap();
    repository.gc(GcParams::default(), &()).unwrap();
    let left = files(&repository.path().join("label"));
    assert_eq!(left, [repository.path().join(format!("label/{kept}-0"))]);
}
