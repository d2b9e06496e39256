//! Compressing again what was compressed fast.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use tintype_repo::{
    CompactionReport, Encryption, Error, GcParams, InitParams, Kind, Pin, RecompressionParams,
    Repository, SnapshotRecord, Supervisor, VerifyLevel,
};
use tintype_types::ByteCount;

use crate::judge::{can_judge, judge};
use crate::support::{
    BLOCK, Dice, begin, draft, eager, files, new_repository, read_all, take, write_image,
};

/// Text in words that come as often as words do: the harder it is tried, the
/// shorter it gets.
fn text(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut bytes = Vec::with_capacity(len + 16);
    while bytes.len() < len {
        let word = dice.roll(40) * dice.roll(40);
        let mut letters = Dice::new(word + 1_000_000);
        let length = 2 + letters.pick(7);
        bytes.extend(letters.noise(length).iter().map(|letter| b'a' + letter % 26));
        bytes.push(b' ');
    }
    bytes.truncate(len);
    bytes
}

/// Snapshots of which each has its own part; the last has a blob too.
fn fill(repository: &Repository, count: u64) -> Vec<(SnapshotRecord, Vec<u8>)> {
    let mut image = text(1, 96 * BLOCK);
    let mut all: Vec<(SnapshotRecord, Vec<u8>)> = Vec::new();
    for seed in 0..count {
        let at = usize::try_from(seed).unwrap() * 8 * BLOCK;
        image[at..at + 32 * BLOCK].copy_from_slice(&text(seed + 2, 32 * BLOCK));
        let session = begin(repository);
        let parent = all.last().map(|(record, _)| record.images[0].root.clone());
        let mut draft = draft(vec![("ram", write_image(&session, &image, parent))]);
        draft.blobs = vec![("state".to_owned(), session.blob(&text(seed, 70_001)).unwrap())];
        all.push((session.commit(draft).unwrap(), image.clone()));
    }
    all
}

fn check_good(repository: &Repository, all: &[(SnapshotRecord, Vec<u8>)]) {
    let repository = Repository::open_with(repository.path(), &[key_of(repository)]).unwrap();
    assert_eq!(repository.snapshots().unwrap().records.len(), all.len());
    for (number, (record, image)) in all.iter().enumerate() {
        let now = repository.snapshot(record.id).unwrap();
        assert!(read_all(&repository, &now.images[0].root) == *image);
        let Some((_, blob)) = now.blobs.first() else { continue };
        let seed = u64::try_from(number).unwrap();
        assert!(repository.read_blob(blob).unwrap() == text(seed, 70_001));
    }
    let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
    assert_eq!(report.damaged, []);
}

/// The key is beside the repository, if it has one.
fn key_of(repository: &Repository) -> Encryption {
    let key = repository.path().with_file_name("key");
    if key.exists() { Encryption::KeyFile(key) } else { Encryption::None }
}

/// Compresses again if a byte is gained, in steps of so many bytes.
fn params(step: u64) -> GcParams {
    let mut recompression = RecompressionParams::default();
    (recompression.least_gain, recompression.step) = (Some(ByteCount(1)), ByteCount(step));
    let mut params = GcParams::default();
    params.recompression = Some(recompression);
    params
}

fn recompress(repository: &Repository) -> CompactionReport {
    let report = repository.gc(params(1 << 30), &()).unwrap();
    assert_eq!((report.waiting_for, report.recompression.skipped), (0, None));
    report.recompression
}

fn gets_smaller_once(encryption: fn(&Path) -> Encryption) {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    let mut init = InitParams::default();
    init.encryption = encryption(&key);
    let repository = Repository::init(&folder.path().join("repo"), init).unwrap();
    let mut all = fill(&repository, 4);
    let before = repository.usage().unwrap().repository_bytes.get();
    let mut dry = params(1 << 30);
    dry.dry_run = true;
    let would = repository.gc(dry, &()).unwrap().recompression;
    assert_eq!(repository.usage().unwrap().repository_bytes.get(), before);

    let report = recompress(&repository);
    let after = repository.usage().unwrap().repository_bytes.get();
    eprintln!("{before} bytes, then {after}; {would:?} {report:?}");
    assert_eq!((report.segments, report.snapshots), (4, 4));
    assert_eq!((would.segments, would.snapshots), (4, 4));
    assert!(after * 100 < before * 95, "{before} {after}");
    assert!(would.gain_bytes.get().abs_diff(before - after) < before / 20, "{would:?}");
    check_good(&repository, &all);

    // Not again, nor after it was moved, nor for what is new but the new.
    let there = files(repository.path());
    assert_eq!(recompress(&repository), CompactionReport::default());
    assert_eq!(files(repository.path()), there);
    repository.remove(all.remove(3).0.id).unwrap();
    assert!(repository.gc(eager(), &()).unwrap().compaction.segments > 0);
    assert_eq!(recompress(&repository), CompactionReport::default());
    check_good(&repository, &all);
    let image = text(9, 96 * BLOCK);
    let record = take(&repository, &image, Some(&all[2].0));
    all.push((record, image));
    assert_eq!(recompress(&repository).segments, 1);
    check_good(&repository, &all);

    let out = folder.path().join("out");
    for (record, image) in &all {
        let id = record.id.to_string();
        judge(repository.path(), &key, &["image", &id, "ram", out.to_str().unwrap()]);
        assert!(fs::read(&out).unwrap() == *image);
    }
}

#[test]
fn what_was_compressed_fast_gets_smaller_once() {
    if can_judge("") {
        gets_smaller_once(|_| Encryption::None);
    }
}

#[test]
fn what_is_sealed_gets_smaller_once() {
    if can_judge("; import cryptography") {
        gets_smaller_once(|key| Encryption::KeyFile(key.to_owned()));
    }
}

#[test]
fn what_gets_hardly_smaller_stays_where_it_is() {
    let (_folder, repository) = new_repository();
    take(&repository, &Dice::new(1).noise(64 * BLOCK), None);
    take(&repository, &vec![7; 64 * BLOCK], None);
    let there = files(repository.path());
    assert_eq!(recompress(&repository), CompactionReport::default());
    assert_eq!(files(repository.path()), there);
    // Nor is anything moved for less than it costs.
    fill(&repository, 1);
    let mut dear = params(1 << 30);
    dear.recompression.as_mut().unwrap().least_gain = Some(ByteCount(10 << 20));
    assert_eq!(repository.gc(dear, &()).unwrap().recompression, CompactionReport::default());
    assert_eq!(recompress(&repository).segments, 1);
}

/// Cancels after some looks.
struct Limited(AtomicU64);

impl Supervisor for Limited {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_err()
    }
}

#[test]
fn what_was_interrupted_goes_on() {
    let (_folder, repository) = new_repository();
    let all = fill(&repository, 5);
    let fast = repository.usage().unwrap().repository_bytes;
    let (mut interrupted, mut halfway) = (0, 0);
    for looks in (0..).step_by(5) {
        // One segment a step: what was done stays.
        let result = repository.gc(params(1), &Limited(AtomicU64::new(looks)));
        check_good(&repository, &all);
        let now = repository.usage().unwrap().repository_bytes;
        match result {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), Kind::Interrupted),
        }
        interrupted += 1;
        halfway += u64::from(now < fast);
    }
    assert!(interrupted > 2 && halfway > 0, "{interrupted} {halfway}");
    assert_eq!(recompress(&repository), CompactionReport::default());
    assert!(repository.usage().unwrap().repository_bytes < fast);
}

#[test]
fn what_is_read_stays_until_it_was_read() {
    let (_folder, repository) = new_repository();
    let all = fill(&repository, 3);
    let pin = repository.pin(all[0].0.id).unwrap();
    let other = Repository::open(repository.path()).unwrap();
    assert_eq!(recompress(&other).segments, 2, "what the first needs is left");
    assert!(read_all(&repository, &pin.record().images[0].root) == all[0].1);
    assert_eq!(*pin.record(), all[0].0);
    drop(pin);
    assert_eq!(recompress(&other).segments, 1);
    check_good(&other, &all);
}

/// Begins to read a snapshot when the first segment was copied.
struct Reading<'r> {
    repository: &'r Repository,
    record: &'r SnapshotRecord,
    pin: Mutex<Option<Pin>>,
}

impl Supervisor for Reading<'_> {
    fn advance(&self, _: ByteCount, _: ByteCount) {
        let mut pin = self.pin.lock().unwrap_or_else(PoisonError::into_inner);
        pin.get_or_insert_with(|| self.repository.pin(self.record.id).unwrap());
    }
}

#[test]
fn who_begins_to_read_meanwhile_reads_on() -> Result<(), Error> {
    let (_folder, repository) = new_repository();
    let all = fill(&repository, 3);
    let reader = Repository::open(repository.path())?;
    let reading = Reading { repository: &reader, record: &all[1].0, pin: Mutex::default() };
    let report = repository.gc(params(1 << 30), &reading)?;
    assert_eq!(report.recompression.segments, 3);
    let pin = reading.pin.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap();
    assert_eq!(*pin.record(), all[1].0, "it was where it had been");
    let fresh = Repository::open(repository.path())?;
    assert!(read_all(&fresh, &pin.record().images[0].root) == all[1].1);
    let held = repository.usage()?.repository_bytes;
    drop(pin);
    repository.gc(GcParams::default(), &())?;
    assert!(repository.usage()?.repository_bytes < held);
    check_good(&repository, &all);
    Ok(())
}

#[test]
fn a_damaged_segment_stays_as_it_is_and_the_others_get_smaller() {
    let (_folder, repository) = new_repository();
    let all = fill(&repository, 3);
    let largest = files(&repository.path().join("seg"));
    let damaged = largest.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, &bytes).unwrap();
    let report = repository.gc(params(1 << 30), &()).unwrap().recompression;
    assert!(report.segments >= 2, "{report:?}");
    assert!(fs::read(&damaged).unwrap() == bytes);
    let last = repository.snapshot(all[2].0.id).unwrap();
    assert_ne!(last.images, all[2].0.images);
}
