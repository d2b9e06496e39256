//! Random images against a plain vector of bytes.

use proptest::prelude::*;
use tintype_repo::{ImageParams, Repository, Unwritten, VerifyLevel};
use tintype_types::{ByteCount, Extent};

use crate::support::{BLOCK, begin, content, draft, new_repository, read_all, take};

/// Regions, windows and leaves all have ends within this many blocks.
const BLOCKS: usize = 3 * 4096 + 100;

#[derive(Debug, Clone)]
enum Step {
    Write { at: usize, blocks: Vec<u8> },
    Zero { at: usize, count: usize },
}

#[derive(Debug, Clone)]
struct Image {
    blocks: usize,
    tail: usize,
    over_parent: bool,
    steps: Vec<Step>,
}

fn step() -> impl Strategy<Value = Step> {
    // Few different blocks, so that equal ones meet; 0 is a block of zeroes.
    let blocks = prop_oneof![
        4 => prop::collection::vec(0_u8..20, 1..24),
        1 => (any::<u8>(), 100..1200_usize).prop_map(|(seed, len)| {
            (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
        }),
    ];
    let at = prop_oneof![0..64_usize, 480..560_usize, 0..BLOCKS];
    prop_oneof![
        5 => (at, blocks).prop_map(|(at, blocks)| Step::Write { at, blocks }),
        1 => (0..BLOCKS, prop_oneof![1..40_usize, 1..BLOCKS])
            .prop_map(|(at, count)| Step::Zero { at, count }),
    ]
}

fn image() -> impl Strategy<Value = Image> {
    let blocks = prop_oneof![1..100_usize, 500..530_usize, 4000..BLOCKS];
    let tail = prop_oneof![Just(0_usize), 1..BLOCK];
    (blocks, tail, any::<bool>(), prop::collection::vec(step(), 0..30))
        .prop_map(|(blocks, tail, over_parent, steps)| Image { blocks, tail, over_parent, steps })
}

fn block(kind: u8) -> Vec<u8> {
    if kind == 0 { vec![0; BLOCK] } else { content(u64::from(kind), 4 * BLOCK)[..BLOCK].to_vec() }
}

/// Applies an image's steps to a writer and to the model.
fn apply(image: &Image, writer: &mut tintype_repo::ImageWriter, model: &mut [u8]) {
    for step in &image.steps {
        match step {
            Step::Write { at, blocks } => {
                let start = at * BLOCK;
                if start >= model.len() {
                    continue;
                }
                let mut bytes: Vec<u8> = blocks.iter().flat_map(|kind| block(*kind)).collect();
                bytes.truncate(model.len() - start);
                writer.write(start as u64, &bytes).unwrap();
                model[start..start + bytes.len()].copy_from_slice(&bytes);
            }
            Step::Zero { at, count } => {
                let start = at * BLOCK;
                if start >= model.len() {
                    continue;
                }
                let end = (start + count * BLOCK).min(model.len());
                let extent = Extent { offset: start as u64, len: (end - start) as u64 };
                writer.write_zeroes(extent).unwrap();
                model[start..end].fill(0);
            }
        }
    }
}

fn check_reads(repository: &Repository, root: &tintype_repo::ImageRoot, model: &[u8]) {
    assert!(read_all(repository, root) == model, "read_at");
    let reader = repository.open_image(root).unwrap();
    let mut sequential = vec![0; model.len()];
    for piece in reader.sequence() {
        let (offset, bytes) = piece.unwrap();
        let offset = offset as usize;
        sequential[offset..offset + bytes.len()].copy_from_slice(&bytes);
    }
    assert!(sequential == model, "sequence");
    let mut last_end = 0;
    for (index, extent) in reader.data_extents().enumerate() {
        let extent = extent.unwrap();
        let (start, end) = (extent.offset as usize, extent.end() as usize);
        assert!(index == 0 || start > last_end, "extents are joined");
        assert!(model[last_end..start].iter().all(|byte| *byte == 0));
        last_end = end;
    }
    assert!(model[last_end..].iter().all(|byte| *byte == 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn images_read_as_they_were_written(images in prop::collection::vec(image(), 1..5)) {
        let (_folder, repository) = new_repository();
        let mut models: Vec<Vec<u8>> = Vec::new();
        let mut records = Vec::new();
        for image in &images {
            let size = image.blocks * BLOCK - image.tail;
            let session = begin(&repository);
            let parent = records.last().map(|record: &tintype_repo::SnapshotRecord| {
                record.images[0].root.clone()
            });
            let unwritten = if image.over_parent { Unwritten::Parent } else { Unwritten::Zero };
            let params = ImageParams { size: ByteCount(size as u64), parent, unwritten };
            let mut model = match (image.over_parent, models.last()) {
                (true, Some(parent)) => parent.clone(),
                _ => Vec::new(),
            };
            model.resize(size, 0);
            let mut writer = session.image(params).unwrap();
            apply(image, &mut writer, &mut model);
            let root = writer.finish().unwrap();
            records.push(session.commit(draft(vec![("ram", root)])).unwrap());
            models.push(model);
        }
        let repository = Repository::open(repository.path()).unwrap();
        let listing = repository.snapshots().unwrap();
        prop_assert_eq!(&listing.records, &records);
        for (record, model) in records.iter().zip(&models) {
            check_reads(&repository, &record.images[0].root, model);
        }
        for pair in records.windows(2).zip(models.windows(2)) {
            check_diff(&repository, pair.0, pair.1);
            check_differing(&repository, &pair.0[0].images[0].root, pair.1);
        }
        let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        prop_assert_eq!(report.damaged, vec![]);
    }
}

/// The difference has every block that differs, and no other.
fn check_diff(
    repository: &Repository,
    records: &[tintype_repo::SnapshotRecord],
    models: &[Vec<u8>],
) {
    let roots = [&records[0].images[0].root, &records[1].images[0].root];
    let extents = repository.diff(roots[0], roots[1]).unwrap();
    let longest = models[0].len().max(models[1].len()).next_multiple_of(BLOCK);
    let [a, b] = [0, 1].map(|side: usize| {
        let mut model = models[side].clone();
        model.resize(longest, 0);
        model
    });
    let mut differs = vec![false; longest / BLOCK];
    for extent in extents {
        let blocks = extent.offset as usize / BLOCK..extent.end() as usize / BLOCK;
        differs[blocks].fill(true);
    }
    for (index, (a, b)) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).enumerate() {
        assert_eq!(differs[index], a != b, "block {index}");
    }
}

/// Bytes of one image that another has, too: as far as both go, from two places on.
fn check_differing(repository: &Repository, root: &tintype_repo::ImageRoot, models: &[Vec<u8>]) {
    let reader = repository.open_image(root).unwrap();
    let [there, other] = [&models[0], &models[1]];
    let mut other = other.clone();
    other.resize(there.len(), 0);
    for start in [0, (there.len() / 3).next_multiple_of(BLOCK).min(there.len())] {
        let found = reader.differing(start as u64, &other[start..]).unwrap();
        let mut differs = vec![false; other.len().div_ceil(BLOCK)];
        for range in &found {
            differs[(start + range.start) / BLOCK..(start + range.end).div_ceil(BLOCK)].fill(true);
        }
        for (index, (a, b)) in there.chunks(BLOCK).zip(other.chunks(BLOCK)).enumerate() {
            assert_eq!(differs[index], index * BLOCK >= start && a != b, "block {index}");
        }
        assert!(found.windows(2).all(|pair| pair[0].end < pair[1].start), "they are joined");
    }
    assert!(reader.differing(0, &vec![0; there.len() + BLOCK]).is_err());
    assert!(there.len() < 2 * BLOCK || reader.differing(1, &other[1..]).is_err());
}

#[test]
fn an_unchanged_image_costs_nothing_but_its_record() {
    let (_folder, repository) = new_repository();
    let content = content(1, 40 << 20);
    let first = take(&repository, &content, None);
    let before = repository.usage().unwrap();
    let second = take(&repository, &content, Some(&first));
    let after = repository.usage().unwrap();
    assert_eq!(after.segments, before.segments);
    assert_eq!(second.images, first.images);
    assert_eq!(second.stats.new_blocks, 0);
    assert_eq!(second.stats.stored_bytes, ByteCount(0));
}

#[test]
fn huge_images_of_zeroes_are_cheap() {
    let (_folder, repository) = new_repository();
    let size = ByteCount(10 << 40);
    let session = begin(&repository);
    let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    writer.write(5 << 40, &[1; BLOCK]).unwrap();
    writer.write_zeroes(Extent { offset: 0, len: 5 << 40 }).unwrap();
    let first = writer.finish().unwrap();
    let params = ImageParams { size, parent: Some(first.clone()), unwritten: Unwritten::Parent };
    let mut writer = session.image(params).unwrap();
    writer.write_zeroes(Extent { offset: 1 << 40, len: 8 << 40 }).unwrap();
    let second = writer.finish().unwrap();
    session.commit(draft(vec![("a", first.clone()), ("b", second.clone())])).unwrap();
    let extents = |root| -> Vec<Extent> {
        repository.open_image(root).unwrap().data_extents().map(Result::unwrap).collect()
    };
    assert_eq!(extents(&first), [Extent { offset: 5 << 40, len: BLOCK as u64 }]);
    assert_eq!(extents(&second), []);
}

#[test]
fn blobs_read_as_they_were_written() {
    let (_folder, repository) = new_repository();
    let session = begin(&repository);
    let blobs: Vec<_> =
        [0, 1, 262_144, 262_145, 3_000_000].into_iter().map(|len| content(3, len)).collect();
    let ids: Vec<_> = blobs.iter().map(|blob| session.blob(blob).unwrap()).collect();
    let mut draft = draft(Vec::new());
    draft.blobs = ids.iter().cloned().zip(0..).map(|(id, n)| (n.to_string(), id)).collect();
    session.commit(draft).unwrap();
    for (blob, id) in blobs.iter().zip(&ids) {
        assert_eq!(id.len(), blob.len() as u64);
        assert!(repository.read_blob(id).unwrap() == *blob);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (_folder, repository) = new_repository();
    let session = begin(&repository);
    let size = ByteCount(10_000);
    let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    for (offset, len) in [(1, 4096), (0, 4097), (8192, 1000), (8192, 4096), (u64::MAX - 4095, 4096)]
    {
        assert!(writer.write(offset, &vec![0; len]).is_err(), "{offset} {len}");
    }
    writer.write(8192, &[1; 1808]).unwrap();
    let root = writer.finish().unwrap();
    let twice = draft(vec![("a", root.clone()), ("a", root)]);
    assert!(session.commit(twice).is_err());
    assert!(repository.snapshots().unwrap().records.is_empty());
}
