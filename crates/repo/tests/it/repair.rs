//! Repair puts back what it has a copy of, byte for byte, and keeps new
//! snapshots away from the rest.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tintype_repo::{
    Encryption, GcParams, InitParams, Kind, RepairReport, Repository, SnapshotRecord, VerifyLevel,
};

use crate::support::{BLOCK, content, files, new_repository, read_all, take};

/// Returns all objects by their names.
fn objects(repository: &Repository) -> BTreeMap<PathBuf, Vec<u8>> {
    let there = files(repository.path()).into_iter();
    there.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn copy(repository: &Repository, to: &Path) -> Repository {
    for (path, bytes) in objects(repository) {
        let path = to.join(path.strip_prefix(repository.path()).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    Repository::open(to).unwrap()
}

fn repair(repository: &Repository, copy: Option<&Repository>) -> RepairReport {
    // What a process knows already shall not help it.
    Repository::open(repository.path()).unwrap().repair(copy, &()).unwrap()
}

fn is_whole(repository: &Repository) -> bool {
    let opened = Repository::open(repository.path()).unwrap();
    opened.verify(&[], VerifyLevel::ReadData, &()).unwrap().damaged.is_empty()
}

fn segments(repository: &Repository, of: &SnapshotRecord) -> Vec<PathBuf> {
    let mut segments = files(&repository.path().join("seg"));
    segments.retain(|path| path.to_string_lossy().contains(&of.id.to_string()));
    segments
}

/// A repository with objects of all kinds: snapshots that share, a deletion
/// that was undone, one that was not, and an epoch.
fn of_all_kinds() -> (tempfile::TempDir, Repository) {
    let (folder, repository) = new_repository();
    let collected = take(&repository, &content(4, 50 * BLOCK), None);
    repository.remove(collected.id).unwrap();
    repository.gc(GcParams::default(), &()).unwrap();
    let mut image = content(1, 50 * BLOCK);
    let first = take(&repository, &image, None);
    image[..9 * BLOCK].copy_from_slice(&content(2, 9 * BLOCK));
    let second = take(&repository, &image, Some(&first));
    let third = take(&repository, &content(3, 50 * BLOCK), None);
    repository.remove(second.id).unwrap();
    repository.undo_remove(second.id).unwrap();
    repository.relabel(first.id, |label| label.message = Some("well".to_owned())).unwrap();
    repository.relabel(first.id, |label| label.pinned = true).unwrap();
    repository.log_operation(&serde_json::json!({ "did": "this" })).unwrap();
    repository.remove(third.id).unwrap();
    (folder, repository)
}

#[test]
fn what_is_whole_is_left_as_it_is() {
    let (folder, repository) = of_all_kinds();
    let copy = copy(&repository, &folder.path().join("copy"));
    let before = objects(&repository);
    for from in [None, Some(&copy)] {
        assert_eq!(repair(&repository, from), RepairReport::default());
        assert!(objects(&repository) == before);
    }
}

#[test]
fn every_object_is_put_back_from_a_copy() {
    let (folder, repository) = of_all_kinds();
    let copy = copy(&repository, &folder.path().join("copy"));
    let before = objects(&repository);
    let mut repaired = 0;
    for (path, good) in &before {
        let key = path.strip_prefix(repository.path()).unwrap();
        let flipped = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            Some(bad)
        };
        let cut = |to: usize| Some(good[..to].to_vec());
        let len = good.len();
        let damages = [
            None,
            flipped(0),
            flipped(len / 2),
            flipped(len - 2),
            cut(0),
            cut(len / 2),
            cut(len - 2),
        ];
        for (number, damage) in damages.into_iter().enumerate() {
            match damage {
                None => fs::remove_file(path).unwrap(),
                Some(bad) => fs::write(path, bad).unwrap(),
            }
            let what = format!("{} damaged in way {number}", key.display());
            let kind = key.iter().next().unwrap().to_str().unwrap();
            match kind {
                // Without these it does not open, and these are advisory.
                "config" | "keys" | "idx" | "reserve" => {}
                // What is not there is not missed.
                "outcome" | "gone" | "ep" | "label" | "op" if number == 0 => {}
                _ => {
                    let found = !is_whole(&repository);
                    let report = repair(&repository, Some(&copy));
                    assert_eq!(report.damaged, [], "{what}");
                    assert_eq!(report.quarantined, Vec::<String>::new(), "{what}");
                    let keys: Vec<_> = report.repaired.iter().map(PathBuf::from).collect();
                    // A segment of a deleted snapshot is not looked at.
                    assert!(
                        if found { keys == [key] } else { keys.is_empty() },
                        "{what}: {keys:?}"
                    );
                    assert!(is_whole(&repository), "{what}");
                    let says_the_same = ["seg", "outcome", "label", "op"].contains(&kind);
                    if found && says_the_same {
                        assert!(objects(&repository) == before, "{what}: other bytes");
                    }
                    repaired += usize::from(found);
                }
            }
            fs::write(path, good).unwrap();
        }
    }
    assert!(repaired > 40, "{repaired}");
}

#[test]
fn a_damaged_copy_gives_what_is_good_of_it() {
    let (folder, repository) = new_repository();
    let record = take(&repository, &content(1, 500 * BLOCK), None);
    let copy = copy(&repository, &folder.path().join("copy"));
    let before = objects(&repository);
    let spoil = |repository: &Repository, part: usize| {
        for path in segments(repository, &record) {
            let mut bytes = fs::read(&path).unwrap();
            if bytes.len() > 64 * BLOCK {
                let at = bytes.len() / 4 * part;
                bytes[at] ^= 1;
                fs::write(path, bytes).unwrap();
            }
        }
    };
    spoil(&repository, 1);
    spoil(&copy, 3);
    assert!(!is_whole(&repository) && !is_whole(&copy));
    let report = repair(&repository, Some(&copy));
    assert_eq!((report.found.len(), report.repaired.len()), (1, 1));
    assert_eq!(report.damaged, []);
    assert!(objects(&repository) == before);
    // What both have lost stays lost, and nothing else.
    spoil(&repository, 3);
    let report = repair(&repository, Some(&copy));
    assert_eq!(report.repaired, Vec::<String>::new());
    assert_eq!((report.damaged.len(), report.losses.len()), (1, 1));
}

#[test]
fn new_snapshots_do_not_rely_on_what_is_damaged() {
    // Segments of content, and of maps.
    for number in [0, 1] {
        let (_folder, repository) = new_repository();
        let image = content(1, 300 * BLOCK);
        let bad = take(&repository, &image, None);
        let path = segments(&repository, &bad).remove(number);
        let mut bytes = fs::read(&path).unwrap();
        bytes[100] ^= 1;
        fs::write(&path, bytes).unwrap();
        let report = repair(&repository, None);
        assert_eq!(report.repaired, Vec::<String>::new());
        assert_eq!(report.quarantined.len(), 1);
        assert!(!report.damaged.is_empty() && !report.losses.is_empty());
        assert_eq!(repair(&repository, None).quarantined, Vec::<String>::new(), "it is already");

        let repository = Repository::open(repository.path()).unwrap();
        let good = take(&repository, &image, Some(&bad));
        let report = repository.verify(&[good.id], VerifyLevel::ReadData, &()).unwrap();
        assert_eq!(report.damaged, []);
        assert!(read_all(&repository, &good.images[0].root) == image);

        // When nothing needs the damaged one any more, nothing is left of it.
        repository.remove(bad.id).unwrap();
        repository.gc(GcParams::default(), &()).unwrap();
        assert!(is_whole(&repository));
        assert_eq!(repair(&repository, None).released.len(), 1);
        assert!(
            !repository.path().join("quarantine").exists()
                || files(&repository.path().join("quarantine")).is_empty()
        );
    }
}

#[test]
fn an_epoch_under_way_ends_with_nothing_lost() {
    for damaged in [&["00000001"][..], &["00000001.final"], &["00000001", "00000001.final"]] {
        let (_folder, repository) = new_repository();
        let kept = take(&repository, &content(1, 30 * BLOCK), None);
        let deleted = take(&repository, &content(2, 30 * BLOCK), None);
        repository.remove(deleted.id).unwrap();
        repository.gc(GcParams::default(), &()).unwrap();
        // As if it had been killed before its end.
        let epochs = repository.path().join("ep");
        fs::remove_file(epochs.join("00000001.done")).unwrap();
        if damaged == ["00000001"] {
            fs::remove_file(epochs.join("00000001.final")).unwrap();
        }
        for name in damaged {
            fs::write(epochs.join(name), "damaged").unwrap();
        }
        let collect = || repository.gc(GcParams::default(), &());
        assert_eq!(collect().unwrap_err().kind(), Kind::Damaged);
        let report = repair(&repository, None);
        if let [name] = damaged {
            assert_eq!(report.repaired, [format!("ep/{name}")]);
            collect().unwrap();
            assert!(is_whole(&repository));
        } else {
            // What was condemned nobody knows: it stays, and says so.
            assert_eq!((report.repaired.len(), report.damaged.len()), (0, 2));
        }
        assert!(read_all(&repository, &kept.images[0].root) == content(1, 30 * BLOCK));
    }
}

#[test]
fn another_repository_is_no_copy() {
    let (_folder, repository) = new_repository();
    let (_other_folder, other) = new_repository();
    let refused = repository.repair(Some(&other), &()).unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
}

#[test]
fn an_encrypted_repository_gets_the_very_bytes_back() {
    let folder = tempfile::tempdir().unwrap();
    let key = Encryption::KeyFile(folder.path().join("key"));
    let mut params = InitParams::default();
    params.encryption = key.clone();
    let path = folder.path().join("repository");
    let repository = Repository::init(&path, params).unwrap();
    let image = content(7, 200 * BLOCK);
    let record = take(&repository, &image, None);
    let before = objects(&repository);
    let to = folder.path().join("copy");
    for (path, bytes) in &before {
        let path = to.join(path.strip_prefix(repository.path()).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    let open = |path: &Path| Repository::open_with(path, std::slice::from_ref(&key)).unwrap();
    for path in segments(&repository, &record) {
        let mut bytes = fs::read(&path).unwrap();
        bytes[500] ^= 1;
        fs::write(path, bytes).unwrap();
    }
    let report = open(&path).repair(Some(&open(&to)), &()).unwrap();
    assert_eq!((report.repaired.len(), report.damaged.len()), (2, 0));
    assert!(objects(&repository) == before);
    assert!(read_all(&open(&path), &record.images[0].root) == image);
}

#[test]
fn what_describes_a_segment_is_made_anew_from_its_frames() {
    let (_folder, repository) = of_all_kinds();
    let before = objects(&repository);
    let mut mended = 0;
    for (path, good) in
        before.iter().filter(|(path, _)| path.starts_with(repository.path().join("seg")))
    {
        let field = |at: usize| {
            let bytes = good[good.len() - 64 + at..].first_chunk().unwrap();
            usize::try_from(u32::from_le_bytes(*bytes)).unwrap()
        };
        let (table, trailer) = (field(8), good.len() - 64);
        assert_eq!(table + field(12), trailer);
        let header = (0..64).step_by(5);
        for at in header.chain((table..trailer).step_by(7)).chain((trailer..good.len()).step_by(5))
        {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(path, bad).unwrap();
            if !is_whole(&repository) {
                let report = repair(&repository, None);
                assert_eq!(report.damaged, [], "byte {at}");
                assert_eq!((report.repaired.len(), report.quarantined.len()), (1, 0), "byte {at}");
                assert!(objects(&repository) == before, "byte {at}");
                mended += 1;
            }
        }
        // What nothing proves is left alone.
        let mut bad = good.clone();
        (bad[table], bad[trailer + 30]) = (!bad[table], !bad[trailer + 30]);
        fs::write(path, &bad).unwrap();
        assert_eq!(repair(&repository, None).repaired, Vec::<String>::new());
        assert!(fs::read(path).unwrap() == bad);
        fs::write(path, good).unwrap();
        assert_eq!(repair(&repository, None).damaged, []);
    }
    assert!(mended > 100, "{mended}");
}
