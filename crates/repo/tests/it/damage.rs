//! Damage is found, named, and never read as content.

use std::fs;
use std::path::Path;

use tintype_repo::{Encryption, Error, Kind, Repository, VerifyLevel};

use crate::support::{BLOCK, content, eager, files, init, new_repository, read_all, take};

/// Reads everything of a repository; an error is one that names damage.
fn read_everything(repository: &Repository) -> Result<Vec<Vec<u8>>, Error> {
    let listing = repository.snapshots()?;
    if let Some(damage) = listing.damaged.into_iter().next() {
        return Err(Error::Damaged(damage));
    }
    let mut contents = Vec::new();
    for record in listing.records {
        let reader = repository.open_image(&record.images[0].root)?;
        let mut bytes = vec![0; usize::try_from(reader.size().get()).unwrap()];
        reader.read_at(0, &mut bytes)?;
        contents.push(bytes);
    }
    Ok(contents)
}

#[test]
fn every_flipped_byte_is_found() {
    let (_folder, repository) = new_repository();
    let first = content(1, 20 * BLOCK);
    let record = take(&repository, &first, None);
    let mut second = first.clone();
    second[3 * BLOCK..4 * BLOCK].fill(9);
    take(&repository, &second, Some(&record));
    let expected = [first, second];
    for path in files(repository.path()) {
        if path.parent().is_some_and(|folder| folder.ends_with("idx")) || path.ends_with("reserve")
        {
            // An index is advisory, and the reserve only takes space.
            continue;
        }
        let good = fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(if good.len() > 8192 { 13 } else { 1 }) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            check_found(&repository, &expected, &format!("{} byte {at}", path.display()));
        }
        fs::write(&path, &good).unwrap();
    }
    assert!(read_everything(&repository).unwrap() == expected);
}

/// To look at what is stored finds all that would be found by decoding it, sealed or not.
#[test]
fn what_cannot_be_read_is_not_as_it_was_stored() {
    let folder = tempfile::tempdir().unwrap();
    let key = Encryption::KeyFile(folder.path().join("key"));
    for (name, encryption) in [("sealed", key), ("plain", Encryption::None)] {
        let repository = init(&folder.path().join(name), &encryption);
        let bytes = content(1, 20 * BLOCK);
        let root = take(&repository, &bytes, None).images[0].root.clone();
        let open = || Repository::open_with(repository.path(), std::slice::from_ref(&encryption));
        let is_as_stored = || -> Result<(), Error> { open()?.open_image(&root)?.check_stored(&()) };
        let read = || -> Result<(), Error> {
            open()?.open_image(&root)?.read_at(0, &mut vec![0; bytes.len()])
        };
        let (mut bad_bytes, mut read_bytes) = (0, 0);
        for path in files(&repository.path().join("seg")) {
            let good = fs::read(&path).unwrap();
            for at in (0..good.len()).step_by(13) {
                let mut bad = good.clone();
                bad[at] ^= 0x10;
                fs::write(&path, &bad).unwrap();
                let (stored, read) = (is_as_stored(), read());
                assert!(stored.is_err() || read.is_ok(), "{name} byte {at}: {read:?}");
                bad_bytes += usize::from(stored.is_err());
                read_bytes += usize::from(read.is_err());
            }
            fs::write(&path, &good).unwrap();
        }
        assert!(read_bytes > 100 && bad_bytes == read_bytes, "{bad_bytes} for {read_bytes}");
        is_as_stored().unwrap();
    }
}

/// The table of a segment has the ids of its blocks. Without them nothing is known to be
/// the same, and content that is good is read all the same.
#[test]
fn blocks_without_ids_count_as_others() {
    let (_folder, repository) = new_repository();
    let bytes = content(1, 20 * BLOCK);
    let record = take(&repository, &bytes, None);
    let compared = |repository: &Repository| {
        let reader = repository.open_image(&record.images[0].root).unwrap();
        reader.differing(0, &bytes).unwrap()
    };
    assert_eq!(compared(&repository), []);
    for path in files(&repository.path().join("seg")) {
        let mut segment = fs::read(&path).unwrap();
        let trailer = segment.len() - 64;
        let table = segment[trailer + 8..trailer + 12].try_into().unwrap();
        segment[u32::from_le_bytes(table) as usize] ^= 1;
        fs::write(&path, segment).unwrap();
    }
    let repository = Repository::open(repository.path()).unwrap();
    let others: Vec<_> = compared(&repository).into_iter().flatten().step_by(BLOCK).collect();
    let data = bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|b| *b != 0));
    let data: Vec<_> = data.map(|(number, _)| number * BLOCK).collect();
    assert_eq!(others, data, "all but zeros, which the map tells");
    assert!(read_all(&repository, &record.images[0].root) == bytes);
}

#[test]
fn every_flipped_byte_of_an_outcome_is_found() {
    let (_folder, repository, expected) = of_all_kinds();
    let outcomes = files(&repository.path().join("outcome"));
    assert_eq!(outcomes.len(), 4, "three snapshots and a move");
    for path in outcomes {
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            fs::write(&path, &bad).unwrap();
            check_rotten(&repository, &expected, &format!("{} byte {at}", path.display()));
        }
        fs::write(&path, &good).unwrap();
    }
}

/// A repository with objects of all kinds: two snapshots that share, one
/// apart, a deletion that was undone, a move, and an epoch.
fn of_all_kinds() -> (tempfile::TempDir, Repository, Vec<Vec<u8>>) {
    let (folder, repository) = new_repository();
    let mut expected = vec![content(1, 50 * BLOCK), content(2, 50 * BLOCK), content(3, 50 * BLOCK)];
    expected[1][..40 * BLOCK].copy_from_slice(&content(1, 40 * BLOCK));
    let mut parent = content(4, 50 * BLOCK);
    parent[..32 * BLOCK].copy_from_slice(&expected[0][..32 * BLOCK]);
    let collected = take(&repository, &parent, None);
    let first = take(&repository, &expected[0], Some(&collected));
    repository.remove(collected.id).unwrap();
    assert_eq!(repository.gc(eager(), &()).unwrap().compaction.snapshots, 1);
    let first = repository.snapshot(first.id).unwrap();
    take(&repository, &expected[1], Some(&first));
    let third = take(&repository, &expected[2], None);
    repository.remove(third.id).unwrap();
    repository.undo_remove(third.id).unwrap();
    repository.relabel(first.id, |label| label.message = Some("well".to_owned())).unwrap();
    repository.relabel(first.id, |label| label.pinned = true).unwrap();
    for number in 0..2 {
        repository.log_operation(&serde_json::json!({ "did": number })).unwrap();
    }
    repository.relabel(third.id, |label| label.tags = Some(Vec::new())).unwrap();
    (folder, repository, expected)
}

/// Checks after damage that verification finds it, and that everything that
/// can be read is as it was.
fn check_rotten(repository: &Repository, expected: &[Vec<u8>], what: &str) {
    let Ok(opened) = Repository::open(repository.path()) else { return };
    let report = opened.verify(&[], VerifyLevel::ReadData, &());
    let found = report.as_ref().map_or(true, |report| !report.damaged.is_empty());
    assert!(found, "{what} is not found by verification");
    let Ok(report) = report else { return };
    let Ok(listing) = opened.snapshots() else { return };
    for record in listing.records {
        let touched = report.damaged.iter().any(|damage| damage.snapshots.contains(&record.id));
        let reader = opened.open_image(&record.images[0].root);
        let mut bytes = vec![0; 50 * BLOCK];
        let read = reader.and_then(|reader| reader.read_at(0, &mut bytes));
        assert!(touched || read.is_ok(), "{what}: {read:?}");
        assert!(read.is_err() || expected.contains(&bytes), "{what}: wrong content");
    }
}

#[test]
fn every_object_that_is_cut_swapped_or_deleted_is_found() {
    let (_folder, repository, expected) = of_all_kinds();
    let kind = |path: &Path| {
        path.strip_prefix(repository.path()).unwrap().iter().next().unwrap().to_owned()
    };
    let all = files(repository.path());
    let objects: Vec<_> =
        all.iter().filter(|path| !["idx", "reserve"].iter().any(|k| kind(path) == *k)).collect();
    for path in &objects {
        let what = path.display();
        let good = fs::read(path).unwrap();
        // The line feed after JSON means nothing.
        for keep in [0, 1, good.len() / 4, good.len() / 2, good.len() - 2] {
            fs::write(path, &good[..keep]).unwrap();
            check_rotten(&repository, &expected, &format!("{what} cut to {keep}"));
        }
        let alike = |other: &&&std::path::PathBuf| other != &path && kind(other) == kind(path);
        for other in objects.iter().filter(alike) {
            let others = fs::read(other).unwrap();
            fs::write(path, &others).unwrap();
            fs::write(other, &good).unwrap();
            check_rotten(&repository, &expected, &format!("{what} and {}", other.display()));
            fs::write(other, &others).unwrap();
        }
        fs::remove_file(path).unwrap();
        // What says by being there that a snapshot exists or is deleted, what is
        // said of it, or how far a collection is, cannot be missed.
        if !["outcome", "gone", "ep", "label", "op"].iter().any(|silent| kind(path) == *silent) {
            check_rotten(&repository, &expected, &format!("{what} deleted"));
        }
        fs::write(path, &good).unwrap();
    }
    let repaired = Repository::open(repository.path()).unwrap();
    let report = repaired.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
}

#[test]
fn cut_and_missing_objects_are_found() {
    let (_folder, repository) = new_repository();
    let expected = [content(1, 50 * BLOCK)];
    take(&repository, &expected[0], None);
    for path in files(&repository.path().join("seg")) {
        let good = fs::read(&path).unwrap();
        for keep in [0, 10, good.len() / 2, good.len() - 1] {
            fs::write(&path, &good[..keep]).unwrap();
            check_found(&repository, &expected, &format!("{} cut to {keep}", path.display()));
        }
        fs::remove_file(&path).unwrap();
        check_found(&repository, &expected, &format!("{} removed", path.display()));
        fs::write(&path, &good).unwrap();
    }
}

#[test]
fn swapped_segments_are_found() {
    let (_folder, repository) = new_repository();
    take(&repository, &content(1, 50 * BLOCK), None);
    take(&repository, &content(2, 50 * BLOCK), None);
    let segments = files(&repository.path().join("seg"));
    let spare = repository.path().join("spare");
    for other in &segments[1..] {
        for (from, to) in [(&segments[0], &spare), (other, &segments[0]), (&spare, other)] {
            fs::rename(from, to).unwrap();
        }
        let opened = Repository::open(repository.path()).unwrap();
        let report = opened.verify(&[], VerifyLevel::Quick, &()).unwrap();
        assert!(report.damaged.len() >= 2, "{report:?}");
        assert!(read_everything(&opened).is_err());
        for (from, to) in [(&segments[0], &spare), (other, &segments[0]), (&spare, other)] {
            fs::rename(from, to).unwrap();
        }
    }
}

/// After damage: the repository does not open, or what cannot be read is an
/// error, and verification says so. Content is never wrong.
fn check_found(repository: &Repository, expected: &[Vec<u8>], what: &str) {
    let opened = match Repository::open(repository.path()) {
        Ok(opened) => opened,
        Err(error) => {
            assert!(
                matches!(error.kind(), Kind::Damaged | Kind::Unsupported | Kind::Key),
                "{what}: {error}"
            );
            return;
        }
    };
    match read_everything(&opened) {
        Ok(contents) => assert!(contents == expected, "{what}: wrong content"),
        Err(error) => assert_eq!(error.kind(), Kind::Damaged, "{what}: {error}"),
    }
    let report = opened.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert!(!report.damaged.is_empty(), "{what} is not found by verification");
    for damage in &report.damaged {
        assert!(damage.object.starts_with("outcome/") || !damage.snapshots.is_empty(), "{what}");
    }
}

#[test]
fn damage_in_one_snapshot_leaves_the_others() {
    let (_folder, repository) = new_repository();
    let good = content(2, 50 * BLOCK);
    let bad = take(&repository, &content(1, 50 * BLOCK), None);
    let kept = take(&repository, &good, None);
    for path in files(&repository.path().join("seg")) {
        if path.to_str().unwrap().contains(&bad.id.to_string()) {
            fs::remove_file(path).unwrap();
        }
    }
    let repository = Repository::open(repository.path()).unwrap();
    assert!(read_all(&repository, &kept.images[0].root) == good);
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert!(!report.damaged.is_empty());
    assert!(report.damaged.iter().all(|damage| damage.snapshots == [bad.id]));
}
