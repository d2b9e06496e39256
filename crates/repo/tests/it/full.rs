//! A repository without room.

use std::env;
use std::path::Path;
use std::process::Command;

use tintype_repo::{Kind, Repository, VerifyLevel};

use crate::support::{BLOCK, begin, content, draft, new_repository, read_all, take};
use tintype_repo::{GcParams, ImageParams, InitParams, Skipped, Unwritten};
use tintype_types::ByteCount;

/// Writes noise until the repository is full; returns the kind of the error.
fn fill(repository: &Repository) -> Kind {
    let session = begin(repository);
    let size = ByteCount(256 << 20);
    let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    let mut noise = vec![0; 1 << 20];
    let mut written = Ok(());
    for index in 0..256_u64 {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&index.to_le_bytes()).finalize_xof().fill(&mut noise);
        written = writer.write(index << 20, &noise);
        if written.is_err() {
            break;
        }
    }
    let error = written
        .and_then(|()| writer.finish())
        .and_then(|root| session.commit(draft(vec![("ram", root)])))
        .unwrap_err();
    error.kind()
}

/// Mounts a small file system; `None`, with a word, where that cannot be done.
fn small_file_system(size: &str) -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", size, "tmpfs"])
        .arg(folder.path())
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        eprintln!("not run: a tmpfs cannot be mounted here");
    }
    mounted.then_some(folder)
}

#[test]
fn a_full_disk_fails_the_snapshot_and_nothing_else() {
    let Some(folder) = small_file_system("size=48m") else { return };
    let path = folder.path().join("repo");
    let repository = Repository::init(&path, InitParams::default()).unwrap();
    let first = content(1, 100 * BLOCK);
    let record = take(&repository, &first, None);
    let before = repository.usage().unwrap();
    assert_eq!(fill(&repository), Kind::NoSpace);
    assert_eq!(repository.usage().unwrap(), before, "the space is given back");
    assert!(read_all(&repository, &record.images[0].root) == first);
    take(&repository, &content(2, 100 * BLOCK), Some(&record));
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
    // Even with every last byte taken, snapshots can be deleted and collected.
    let mut filler = std::fs::File::create(folder.path().join("filler")).unwrap();
    while std::io::Write::write_all(&mut filler, &[1; 4096]).is_ok() {}
    repository.remove(record.id).unwrap();
    let id = repository.snapshots().unwrap().records[0].id;
    repository.remove(id).unwrap();
    assert!(repository.gc(GcParams::default(), &()).unwrap().segments > 0);
    assert_eq!(repository.usage().unwrap().segments, 0);
    assert!(path.join("reserve").exists());
    drop((repository, filler));
    let unmounted = Command::new("umount").arg("-l").arg(folder.path()).status().unwrap();
    assert!(unmounted.success());
}

#[test]
fn what_has_no_room_to_move_stays() {
    let Some(folder) = small_file_system("size=64m") else { return };
    let repository = Repository::init(&folder.path().join("repo"), InitParams::default()).unwrap();
    let noise = |seed: u64| {
        let mut bytes = vec![0; 12 << 20];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    let (first, mut second) = (noise(1), noise(2));
    second[..4 << 20].copy_from_slice(&first[..4 << 20]);
    let parent = take(&repository, &first, None);
    let record = take(&repository, &second, Some(&parent));
    repository.remove(parent.id).unwrap();
    let filler = folder.path().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    file.set_len(file.metadata().unwrap().len() - (2 << 20)).unwrap();
    let report = repository.gc(GcParams::default(), &()).unwrap();
    assert_eq!(report.compaction.skipped, Some(Skipped::NoSpace), "{report:?}");
    assert!(read_all(&repository, &record.images[0].root) == second);
    std::fs::remove_file(&filler).unwrap();
    drop(file);
    let report = repository.gc(GcParams::default(), &()).unwrap();
    assert_eq!((report.compaction.snapshots, report.compaction.skipped), (1, None));
    assert!(report.freed_bytes.get() > (7 << 20) + report.compaction.written_bytes.get());
    let moved = repository.snapshot(record.id).unwrap();
    assert!(read_all(&repository, &moved.images[0].root) == second);
    drop(repository);
    assert!(Command::new("umount").arg("-l").arg(folder.path()).status().unwrap().success());
}

const LIMITED: &str = "TINTYPE_REPO_TEST_LIMITED";

/// Not a test of its own: runs with a limit on the size of files.
#[test]
fn child_with_a_file_size_limit() {
    let Ok(path) = env::var(LIMITED) else { return };
    assert_eq!(fill(&Repository::open(Path::new(&path)).unwrap()), Kind::NoSpace);
}

#[test]
fn a_limit_on_file_sizes_fails_the_snapshot_and_nothing_else() {
    let (_folder, repository) = new_repository();
    let first = content(1, 100 * BLOCK);
    let record = take(&repository, &first, None);
    let before = repository.usage().unwrap();
    let status = Command::new("sh")
        // With the signal ignored the write fails with EFBIG.
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$@\"", "sh"])
        .arg(env::current_exe().unwrap())
        .args(["full::child_with_a_file_size_limit", "--exact", "--test-threads=1"])
        .env(LIMITED, repository.path())
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(repository.usage().unwrap(), before);
    assert!(read_all(&repository, &record.images[0].root) == first);
}
