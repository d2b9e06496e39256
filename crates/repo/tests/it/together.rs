//! Several writers at once, and who may read the files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::thread;

use tintype_repo::{
    ImageParams, InitParams, Kind, Repository, SessionParams, Unwritten, VerifyLevel,
};
use tintype_types::{ByteCount, SnapshotId};

use crate::support::{BLOCK, begin, content, draft, files, new_repository, read_all, take};

#[test]
fn several_writers_at_once() {
    let (_folder, repository) = new_repository();
    thread::scope(|scope| {
        for writer in 0..4 {
            let repository = if writer % 2 == 0 {
                repository.clone()
            } else {
                Repository::open(repository.path()).unwrap()
            };
            scope.spawn(move || {
                let mut last = None;
                for round in 0..4 {
                    let image = content(writer * 10 + round, 600 * BLOCK);
                    let record = take(&repository, &image, last.as_ref());
                    assert!(read_all(&repository, &record.images[0].root) == image);
                    last = Some(record);
                }
            });
        }
    });
    let listing = repository.snapshots().unwrap();
    assert_eq!((listing.records.len(), listing.damaged.len()), (16, 0));
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!((report.snapshots, report.damaged), (16, vec![]));
}

#[test]
fn images_of_one_session_may_be_fed_at_once() {
    let (_folder, repository) = new_repository();
    let session = begin(&repository);
    let contents: Vec<_> = (0..4).map(|seed| content(seed, 3000 * BLOCK)).collect();
    let roots: Vec<_> = thread::scope(|scope| {
        let writers: Vec<_> = contents
            .iter()
            .map(|content| {
                let session = &session;
                scope.spawn(move || {
                    let size = ByteCount(content.len() as u64);
                    let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
                    let mut writer = session.image(params).unwrap();
                    // The first pass is overwritten later, as a busy guest does.
                    writer.write(0, &vec![5; content.len()]).unwrap();
                    for (index, block) in content.chunks(BLOCK).enumerate() {
                        writer.write((index * BLOCK) as u64, block).unwrap();
                    }
                    writer.finish().unwrap()
                })
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    let names = ["a", "b", "c", "d"];
    session.commit(draft(names.into_iter().zip(roots.clone()).collect())).unwrap();
    for (content, root) in contents.iter().zip(&roots) {
        assert!(read_all(&repository, root) == *content);
    }
}

#[test]
fn a_burst_is_taken_while_the_queue_is_full() {
    let (_folder, repository) = new_repository();
    let mut params = SessionParams::default();
    params.memory = ByteCount(256 << 20);
    params.threads = Some(1);
    let session = repository.begin(params).unwrap();
    let size = ByteCount(512 << 20);
    let image = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
    let mut writer = session.image(image).unwrap();
    let bytes = content(1, 1 << 20);
    for index in 0..200 {
        writer.write(index << 20, &bytes).unwrap();
    }
    session.enter_burst();
    for index in 200..240 {
        writer.write(index << 20, &bytes).unwrap();
    }
    session.leave_burst();
    let root = writer.finish().unwrap();
    session.commit(draft(vec![("ram", root.clone())])).unwrap();
    let reader = repository.open_image(&root).unwrap();
    let mut read = vec![0; 1 << 20];
    for index in [0, 199, 200, 239] {
        reader.read_at(index << 20, &mut read).unwrap();
        assert!(read == bytes);
    }
}

#[test]
fn only_the_owner_may_read_what_is_made() {
    let (folder, repository) = new_repository();
    let session = begin(&repository);
    session.blob(b"secret").unwrap();
    for path in files(folder.path()) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        let mode = fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}", path.parent().unwrap().display());
    }
    session.commit(draft(Vec::new())).unwrap();
    for path in files(folder.path()) {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[test]
fn folders_with_other_things_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let check = |result: Result<Repository, _>, kind| {
        assert_eq!(result.map_err(|error: tintype_repo::Error| error.kind()).unwrap_err(), kind);
    };
    check(Repository::open(folder.path()), Kind::NotARepository);
    check(Repository::open(&folder.path().join("none")), Kind::NotARepository);
    fs::write(folder.path().join("file"), "mine").unwrap();
    check(Repository::init(folder.path(), InitParams::default()), Kind::Occupied);
    fs::remove_file(folder.path().join("file")).unwrap();
    let made = Repository::init(folder.path(), InitParams::default()).unwrap();
    assert_eq!(Repository::open(folder.path()).unwrap().id(), made.id());
    check(Repository::init(folder.path(), InitParams::default()), Kind::Occupied);
}

#[test]
fn removed_snapshots_are_gone_and_the_others_stay() {
    let (_folder, repository) = new_repository();
    let contents = [content(1, 100 * BLOCK), content(2, 100 * BLOCK), content(3, 100 * BLOCK)];
    let mut records = Vec::new();
    for content in &contents {
        records.push(take(&repository, content, records.last()));
    }
    repository.remove(records[1].id).unwrap();
    let kind = |id: SnapshotId| repository.snapshot(id).map_err(|error| error.kind());
    assert_eq!(kind(records[1].id), Err(Kind::NotFound));
    assert_eq!(kind(records[0].id), Ok(records[0].clone()));
    let listed: Vec<_> = repository.snapshots().unwrap().records.iter().map(|r| r.id).collect();
    assert_eq!(listed, [records[0].id, records[2].id]);
    assert!(read_all(&repository, &records[2].images[0].root) == contents[2]);
}

#[test]
fn another_vm_with_the_same_content_costs_little() {
    let (_folder, repository) = new_repository();
    let image = content(5, 4096 * BLOCK);
    take(&repository, &image, None);
    let before = repository.usage().unwrap().segment_bytes.get();
    // Not the first one's child, not at the same place, and in a new process.
    let repository = Repository::open(repository.path()).unwrap();
    let moved = [&content(6, 32 * BLOCK), &image[..]].concat();
    let record = take(&repository, &moved, None);
    let cost = repository.usage().unwrap().segment_bytes.get() - before;
    // What comes before the first hook is stored again: a sixteenth on average.
    assert!(cost < before / 2, "{cost} of {before}");
    assert!(read_all(&repository, &record.images[0].root) == moved);
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
}

#[test]
fn damaged_content_is_stored_again_and_not_referred_to() {
    let (_folder, repository) = new_repository();
    let image = content(5, 1024 * BLOCK);
    take(&repository, &image, None);
    for path in files(&repository.path().join("seg")) {
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        // Frames, not the table at the end.
        bytes[100..middle].fill(0);
        fs::write(&path, bytes).unwrap();
    }
    let repository = Repository::open(repository.path()).unwrap();
    let record = take(&repository, &image, None);
    assert!(read_all(&repository, &record.images[0].root) == image);
}
