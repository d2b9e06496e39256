//! Copies to another repository: equal, of nothing twice, and wherever they are
//! interrupted.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tempfile::TempDir;
use tintype_repo::{
    Copier, CopyError, CopyParams, CopyReport, Encryption, GcParams, ImageParams, Kind, NamedImage,
    Repository, SnapshotDraft, SnapshotRecord, Supervisor, Unwritten, VerifyLevel,
};
use tintype_types::{ByteCount, Extent, SnapshotId, SnapshotName, VmId};

use crate::support::{self, BLOCK, Dice, begin, draft, files, init, soak};

/// A repository, another one with a key of its own, and what the first holds.
struct Pair {
    _folder: TempDir,
    source: Repository,
    target: Repository,
    /// The content of the images of the source's snapshots.
    held: BTreeMap<SnapshotId, Vec<Vec<u8>>>,
}

/// Interrupts a copy when it has kept so many parts; may do something before.
struct Impatient<'a> {
    parts: AtomicU64,
    limit: u64,
    meanwhile: &'a (dyn Fn() + Sync),
}

impl Supervisor for Impatient<'_> {
    fn keeps_part(&self) {
        self.parts.fetch_add(1, Relaxed);
        (self.meanwhile)();
    }

    fn is_cancelled(&self) -> bool {
        self.parts.load(Relaxed) >= self.limit
    }
}

fn params(part: u64) -> CopyParams {
    let mut params = CopyParams::default();
    params.part = Some(ByteCount(part));
    params.session.threads = Some(1);
    params
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = Encryption::KeyFile(folder.path().join("key"));
        let source = init(&folder.path().join("source"), &Encryption::None);
        let target = init(&folder.path().join("target"), &key);
        Self { _folder: folder, source, target, held: BTreeMap::new() }
    }

    /// Takes a snapshot of some images, each like the parent's of its place.
    fn take(
        &mut self,
        name: &str,
        vm: u8,
        images: Vec<Vec<u8>>,
        parent: Option<SnapshotId>,
    ) -> SnapshotId {
        let session = begin(&self.source);
        let before = parent.and_then(|id| self.source.snapshot(id).ok());
        let mut named = Vec::new();
        for (number, content) in images.iter().enumerate() {
            let parent = before.as_ref().and_then(|r| Some(r.images.get(number)?.root.clone()));
            let size = ByteCount(content.len() as u64);
            let unwritten = Unwritten::Zero;
            let mut writer = session.image(ImageParams { size, parent, unwritten }).unwrap();
            writer.write(0, content).unwrap();
            named.push(NamedImage {
                name: format!("disk/{number}"),
                root: writer.finish().unwrap(),
            });
        }
        let blob = session.blob(name.as_bytes()).unwrap();
        let draft = SnapshotDraft {
            vm: VmId::from_bytes([vm; 16]),
            name: SnapshotName::new(name).unwrap(),
            parent,
            created: instant(self.held.len()),
            images: named,
            blobs: vec![("state".to_owned(), blob)],
            ..draft(Vec::new())
        };
        let id = session.commit(draft).unwrap().id;
        self.held.insert(id, images);
        id
    }

    fn copier(&self, part: u64) -> Copier {
        Copier::new(&self.source, &self.target, params(part)).unwrap()
    }

    fn copy(&self, id: SnapshotId, part: u64) -> CopyReport {
        self.copier(part).copy(id, &()).unwrap()
    }

    fn copies(&self) -> Vec<SnapshotRecord> {
        let listing = self.target.snapshots().unwrap();
        assert_eq!(listing.damaged, []);
        listing.records
    }

    /// Asserts that every copy is as its origin was.
    fn check(&self) {
        let mut seen = HashSet::new();
        for copy in self.copies() {
            let origin = copy.origin.unwrap();
            assert_eq!(origin.repository, self.source.id());
            assert!(seen.insert(origin), "{} is there twice", copy.name);
            assert_eq!(copy.part, None);
            let held = &self.held[&origin.snapshot];
            assert_eq!(copy.images.len(), held.len());
            for (image, content) in copy.images.iter().zip(held) {
                assert!(support::read_all(&self.target, &image.root) == *content, "{}", copy.name);
            }
            let (_, blob) = &copy.blobs[0];
            assert_eq!(self.target.read_blob(blob).unwrap(), copy.name.as_str().as_bytes());
        }
        let report = self.target.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        assert_eq!(report.damaged, []);
    }
}

/// An instant that grows with the number.
fn instant(number: usize) -> jiff::Timestamp {
    jiff::Timestamp::from_second(1_800_000_000 + i64::try_from(number).unwrap()).unwrap()
}

/// Changes an image as a guest does: some blocks, a range that is trimmed, the size.
fn change(content: &mut Vec<u8>, dice: &mut Dice) {
    let blocks = content.len() / BLOCK;
    for _ in 0..dice.roll(12) {
        let at = dice.pick(blocks.max(1)) * BLOCK;
        let noise = dice.noise(64);
        if let Some(place) = content.get_mut(at..at + 64) {
            place.copy_from_slice(&noise);
        }
    }
    if dice.roll(3) == 0 && blocks > 0 {
        let (from, len) = (dice.pick(blocks), 1 + dice.pick(blocks));
        content[from * BLOCK..(from + len).min(blocks) * BLOCK].fill(0);
    }
    match dice.roll(6) {
        0 => content.truncate(dice.pick(content.len() + 1)),
        1 => content.resize(content.len() + dice.pick(3 << 20), 0),
        _ => {}
    }
}

/// A source with a history of two VMs.
fn history(dice: &mut Dice) -> (Pair, Vec<SnapshotId>) {
    let mut pair = Pair::new();
    let mut ids = Vec::new();
    let mut last: [Option<(SnapshotId, Vec<Vec<u8>>)>; 2] = [None, None];
    for number in 0..3 + dice.roll(4) {
        let vm = dice.pick(2);
        let (parent, mut images) = match &last[vm] {
            Some((id, images)) => (Some(*id), images.clone()),
            None => {
                // Some go beyond a leaf of the map.
                let large = if dice.roll(4) == 0 { 20 << 20 } else { 4 << 20 };
                let lens = [dice.pick(large), dice.pick(2 << 20)];
                (None, lens.map(|len| support::content(dice.roll(1000), len)).to_vec())
            }
        };
        images.iter_mut().for_each(|image| change(image, dice));
        let id = pair.take(&format!("s{number}"), vm as u8, images.clone(), parent);
        ids.push(id);
        last[vm] = Some((id, images));
    }
    (pair, ids)
}

/// Copies a random history in a random order, interrupted and with collections
/// of chance; says what each snapshot became.
fn chance(seed: u64) {
    let mut dice = Dice::new(seed);
    let (pair, ids) = history(&mut dice);
    let mut left: Vec<_> = ids.clone();
    while !left.is_empty() {
        let id = left[dice.pick(left.len())];
        let part = 1 + dice.roll(4 << 20);
        let collects = dice.roll(4) == 0;
        let collect = || {
            if collects {
                pair.target.gc(GcParams::default(), &()).unwrap();
            }
        };
        let limit = if dice.roll(2) == 0 { dice.roll(4) } else { u64::MAX };
        let impatient = Impatient { parts: AtomicU64::new(0), limit, meanwhile: &collect };
        match pair.copier(part).copy(id, &impatient) {
            Ok(_) => left.retain(|other| *other != id),
            Err(error) => assert_eq!(error.kind(), Kind::Interrupted, "seed {seed}: {error:?}"),
        }
        pair.check();
        if dice.roll(5) == 0 {
            pair.target.gc(GcParams::default(), &()).unwrap();
        }
    }
    let order: Vec<_> = pair.copies().iter().map(|copy| copy.origin.unwrap().snapshot).collect();
    assert_eq!(order, ids, "seed {seed}: the order of the source");
    for id in ids {
        let again = pair.copy(id, 1 << 20);
        assert!(again.was_there && again.read_bytes.get() == 0, "seed {seed}");
    }
    pair.target.gc(GcParams::default(), &()).unwrap();
    pair.check();
}

#[test]
fn random_histories_are_copied() {
    let soak = soak("histories", 4);
    (0..soak.count).for_each(|number| chance(soak.seed.wrapping_add(number)));
    eprintln!("soak: {} histories, all copied bit for bit", soak.count);
}

#[test]
fn only_what_differs_is_read() {
    let mut pair = Pair::new();
    let mut disk = support::content(1, 20 << 20);
    let first = pair.take("one", 1, vec![disk.clone()], None);
    disk[5 << 20..(5 << 20) + 10 * BLOCK].fill(7);
    disk[9 << 20..12 << 20].fill(0);
    let second = pair.take("two", 1, vec![disk], Some(first));
    let plan = |id| pair.copier(1 << 30).plan(id).unwrap();
    let whole = plan(second).read_bytes;
    let first = pair.copy(first, 1 << 30);
    assert!(!first.was_there && first.base.is_none());
    let planned = plan(second);
    let copied = pair.copy(second, 1 << 30);
    assert_eq!(copied.read_bytes, ByteCount(10 * BLOCK as u64 + 3), "ten blocks and a blob");
    assert_eq!((planned.read_bytes, planned.base), (copied.read_bytes, copied.base));
    assert!(whole.get() > 5 << 20);
    assert!(copied.stored_bytes.get() < 64 << 10, "{copied:?}");
    pair.check();
    let copies = pair.copies();
    assert_eq!(copies[1].parent, Some(copies[0].id));
    assert_eq!(plan(second).copy, Some(copied.copy));
}

#[test]
fn a_copy_goes_on_where_it_was_interrupted() {
    let mut pair = Pair::new();
    let mut disk = vec![0; 24 << 20];
    Dice::new(3).noise(24 << 20).iter().zip(&mut disk).for_each(|(from, to)| *to = *from);
    let first = pair.take("one", 1, vec![disk.clone(), disk[1 << 20..2 << 20].to_vec()], None);
    let nothing = || {};
    let impatient = Impatient { parts: AtomicU64::new(0), limit: 5, meanwhile: &nothing };
    let error = pair.copier(4 << 20).copy(first, &impatient).unwrap_err();
    assert_eq!(error.kind(), Kind::Interrupted);
    // Nobody sees what is there of it.
    assert_eq!(pair.copies(), []);
    assert!(pair.target.deleted().unwrap().is_empty());
    assert_eq!(pair.target.shares().unwrap().snapshots, []);
    let resumed = pair.copy(first, 4 << 20);
    assert!(resumed.resumed, "{resumed:?}");
    assert_eq!(resumed.read_bytes, ByteCount((5 << 20) + 3), "what was left");
    assert_eq!(pair.copies()[0].stats.read_bytes, ByteCount((25 << 20) + 3), "all of it");
    pair.check();
    // What the parts alone need is collected.
    let segments = |pair: &Pair| files(&pair.target.path().join("seg")).len();
    pair.target.gc(GcParams::default(), &()).unwrap();
    let (with_one, outcomes) = (segments(&pair), files(&pair.target.path().join("outcome")).len());
    assert_eq!(outcomes, 1);
    pair.check();

    // After a collection it begins anew.
    disk.fill(9);
    disk[..16 << 20].copy_from_slice(&Dice::new(4).noise(16 << 20));
    let second = pair.take("two", 2, vec![disk], None);
    let impatient = Impatient { parts: AtomicU64::new(0), limit: 2, meanwhile: &nothing };
    pair.copier(4 << 20).copy(second, &impatient).unwrap_err();
    assert!(segments(&pair) > with_one);
    pair.target.gc(GcParams::default(), &()).unwrap();
    assert_eq!(segments(&pair), with_one);
    assert!(!pair.copy(second, 4 << 20).resumed);
    pair.check();
}

#[test]
fn a_collection_spares_the_part_of_a_copy_under_way() {
    let mut pair = Pair::new();
    let id = pair.take("one", 1, vec![Dice::new(5).noise(16 << 20)], None);
    let collected = AtomicU64::new(0);
    let collect = || {
        let report = pair.target.gc(GcParams::default(), &()).unwrap();
        collected.fetch_add(report.freed_bytes.get(), Relaxed);
        // Deleted and collected in the source too: the copy reads on.
        let _ = pair.source.remove(id);
        pair.source.gc(GcParams::default(), &()).unwrap();
    };
    let supervisor = Impatient { parts: AtomicU64::new(0), limit: u64::MAX, meanwhile: &collect };
    let report = pair.copier(2 << 20).copy(id, &supervisor).unwrap();
    assert_eq!(report.read_bytes, ByteCount((16 << 20) + 3), "nothing was read twice");
    assert!(collected.load(Relaxed) < 2 << 20, "maps of earlier parts at most");
    assert_eq!(supervisor.parts.load(Relaxed), 7);
    pair.check();
    assert_eq!(pair.source.snapshots().unwrap().records, []);
    pair.source.gc(GcParams::default(), &()).unwrap();
    assert_eq!(pair.source.usage().unwrap().segments, 0);
}

#[test]
fn a_damaged_snapshot_fails_and_no_other() {
    let mut pair = Pair::new();
    let disk = Dice::new(6).noise(4 << 20);
    let first = pair.take("one", 1, vec![disk.clone()], None);
    let mut later = disk;
    later[..64].fill(1);
    let second = pair.take("two", 1, vec![later], Some(first));
    let other = pair.take("three", 2, vec![Dice::new(7).noise(1 << 20)], None);
    pair.copy(first, 1 << 30);
    let largest = files(&pair.source.path().join("seg"));
    let of_second = largest.iter().filter(|path| {
        path.file_name().unwrap().to_str().unwrap().starts_with(&second.to_string())
    });
    for path in of_second {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    let source = Repository::open(pair.source.path()).unwrap();
    let mut copier = Copier::new(&source, &pair.target, params(1 << 30)).unwrap();
    let error = copier.copy(second, &()).unwrap_err();
    assert!(matches!(error, CopyError::Source(_)) && error.kind() == Kind::Damaged, "{error:?}");
    assert!(copier.copy(first, &()).unwrap().was_there);
    assert!(!copier.copy(other, &()).unwrap().was_there);
    pair.check();
    assert_eq!(pair.copies().len(), 2);
}

#[test]
fn what_came_from_there_is_not_copied_back() {
    let mut pair = Pair::new();
    let disk = support::content(8, 3 << 20);
    let first = pair.take("one", 1, vec![disk.clone()], None);
    let copy = pair.copy(first, 1 << 30).copy;
    let mut back = Copier::new(&pair.target, &pair.source, params(1 << 30)).unwrap();
    let report = back.copy(copy, &()).unwrap();
    assert!(report.was_there);
    assert_eq!(report.copy, first);
    // A third repository knows both as one.
    let (_folder, third) = support::new_repository();
    let onward = Copier::new(&pair.target, &third, params(1 << 30)).unwrap().copy(copy, &());
    assert_eq!(third.snapshots().unwrap().records[0].origin.unwrap().snapshot, first);
    let direct = Copier::new(&pair.source, &third, params(1 << 30)).unwrap().copy(first, &());
    assert_eq!(direct.unwrap().copy, onward.unwrap().copy);
    // Deleted in the source, it can come back.
    pair.source.remove(first).unwrap();
    let mut back = Copier::new(&pair.target, &pair.source, params(1 << 30)).unwrap();
    let report = back.copy(copy, &()).unwrap();
    assert!(!report.was_there);
    let record = pair.source.snapshot(report.copy).unwrap();
    assert!(support::read_all(&pair.source, &record.images[0].root) == disk);
    let refused = Copier::new(&pair.source, &pair.source, params(1)).unwrap_err();
    assert_eq!(refused.kind(), Kind::Invalid);
}

#[test]
fn parents_that_were_not_copied_are_passed_over() {
    let mut pair = Pair::new();
    let image = |seed| vec![support::content(seed, 1 << 20)];
    let first = pair.take("one", 1, image(1), None);
    let second = pair.take("two", 1, image(2), Some(first));
    let third = pair.take("three", 1, image(3), Some(second));
    let first_copy = pair.copy(first, 1 << 30).copy;
    let third_copy = pair.copy(third, 1 << 30).copy;
    assert_eq!(pair.target.snapshot(third_copy).unwrap().parent, Some(first_copy));
    pair.copy(second, 1 << 30);
    let names: Vec<_> = pair.copies().iter().map(|copy| copy.name.to_string()).collect();
    assert_eq!(names, ["one", "two", "three"]);
}

#[test]
fn what_the_base_has_beyond_the_end_does_not_come_along() {
    let mut pair = Pair::new();
    let long = support::content(9, (2 << 20) + 777);
    let first = pair.take("one", 1, vec![long.clone()], None);
    let second = pair.take("two", 1, vec![long[..100_000].to_vec()], Some(first));
    let mut third = long[..100_000].to_vec();
    third.resize(3 << 20, 0);
    let third = pair.take("three", 1, vec![third], Some(second));
    for id in [first, second, third] {
        pair.copy(id, 64 << 10);
    }
    pair.check();
    let diff = pair.target.diff(&pair.copies()[1].images[0].root, &pair.copies()[2].images[0].root);
    assert_eq!(diff.unwrap(), Vec::<Extent>::new());
}
