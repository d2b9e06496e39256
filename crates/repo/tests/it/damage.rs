//! Damage is found, named, and never read as content.

use std::fs;

use tintype_repo::{Error, Kind, Repository, VerifyLevel};

use crate::support::{BLOCK, content, files, new_repository, read_all, take};

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
