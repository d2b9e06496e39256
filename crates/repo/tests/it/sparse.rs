//! Large images with scattered content against a `BTreeMap` of their blocks:
//! many generations, so that runs are made, read, compared and folded.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tintype_repo::{ImageParams, ImageRoot, Repository, Unwritten, VerifyLevel};
use tintype_types::{ByteCount, Extent};

use crate::support::{BLOCK, begin, draft, new_repository};

const SIZE: u64 = 6 << 30;
const BLOCKS: u64 = SIZE / BLOCK as u64;

type Model = BTreeMap<u64, u8>;

#[derive(Debug, Clone)]
struct Generation {
    over_parent: bool,
    /// Blocks to write, and their content; 0 is zero.
    writes: Vec<(u64, u8)>,
    zeroes: Option<(u64, u64)>,
}

fn generation() -> impl Strategy<Value = Generation> {
    let writes = prop::collection::vec((0..BLOCKS, 0_u8..8), 1..120);
    let zeroes = prop::option::weighted(0.2, (0..BLOCKS, 1..BLOCKS / 4));
    (prop::bool::weighted(0.9), writes, zeroes)
        .prop_map(|(over_parent, writes, zeroes)| Generation { over_parent, writes, zeroes })
}

fn take(
    repository: &Repository,
    parent: Option<&(Model, ImageRoot)>,
    generation: &Generation,
) -> (Model, ImageRoot) {
    let session = begin(repository);
    let unwritten = if generation.over_parent { Unwritten::Parent } else { Unwritten::Zero };
    let root = parent.map(|(_, root)| root.clone());
    let params = ImageParams { size: ByteCount(SIZE), parent: root, unwritten };
    let mut writer = session.image(params).unwrap();
    let mut model = match (parent, generation.over_parent) {
        (Some((model, _)), true) => model.clone(),
        (Some((model, _)), false) => {
            // A full image, most of which is the parent's.
            for (block, kind) in model {
                writer.write(block * BLOCK as u64, &[*kind; BLOCK]).unwrap();
            }
            model.clone()
        }
        (None, _) => Model::new(),
    };
    for (block, kind) in &generation.writes {
        writer.write(block * BLOCK as u64, &[*kind; BLOCK]).unwrap();
        model.insert(*block, *kind);
    }
    if let Some((first, count)) = generation.zeroes {
        let last = (first + count).min(BLOCKS);
        let extent = Extent { offset: first * BLOCK as u64, len: (last - first) * BLOCK as u64 };
        writer.write_zeroes(extent).unwrap();
        model.retain(|block, _| !(first..last).contains(block));
    }
    model.retain(|_, kind| *kind != 0);
    let root = writer.finish().unwrap();
    session.commit(draft(vec![("disk", root.clone())])).unwrap();
    (model, root)
}

fn blocks_of(extents: impl IntoIterator<Item = Extent>) -> Vec<u64> {
    extents
        .into_iter()
        .flat_map(|extent| extent.offset / BLOCK as u64..extent.end() / BLOCK as u64)
        .collect()
}

fn check(repository: &Repository, (model, root): &(Model, ImageRoot)) {
    let reader = repository.open_image(root).unwrap();
    let found = blocks_of(reader.data_extents().map(Result::unwrap));
    assert_eq!(found, model.keys().copied().collect::<Vec<_>>());
    for piece in reader.sequence() {
        let (offset, bytes) = piece.unwrap();
        for (block, bytes) in (offset / BLOCK as u64..).zip(bytes.chunks(BLOCK)) {
            assert!(bytes.iter().all(|byte| *byte == model[&block]), "block {block}");
        }
    }
    let mut buffer = [1; BLOCK];
    for block in model.keys().flat_map(|block| [*block, (block + 1) % BLOCKS]) {
        reader.read_at(block * BLOCK as u64, &mut buffer).unwrap();
        let expected = model.get(&block).copied().unwrap_or(0);
        assert!(buffer.iter().all(|byte| *byte == expected), "block {block}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn generations_of_a_sparse_disk(generations in prop::collection::vec(generation(), 1..14)) {
        let (_folder, repository) = new_repository();
        let mut images: Vec<(Model, ImageRoot)> = Vec::new();
        for generation in &generations {
            images.push(take(&repository, images.last(), generation));
        }
        let repository = Repository::open(repository.path()).unwrap();
        for image in &images {
            check(&repository, image);
        }
        for (a, b) in images.iter().zip(images.iter().cycle().skip(3)) {
            let expected: Vec<u64> = (a.0.keys().chain(b.0.keys()))
                .filter(|block| a.0.get(block) != b.0.get(block))
                .copied()
                .collect::<std::collections::BTreeSet<_>>()
                .into_iter()
                .collect();
            prop_assert_eq!(blocks_of(repository.diff(&a.1, &b.1).unwrap()), expected);
        }
        let report = repository.verify(&[], VerifyLevel::ReadData, &()).unwrap();
        prop_assert_eq!(report.damaged, vec![]);
    }
}

#[test]
fn scattered_changes_cost_what_changed() {
    let (_folder, repository) = new_repository();
    let everywhere = (0..BLOCKS).step_by(16).map(|block| (block, 1)).collect();
    let first = Generation { over_parent: true, writes: everywhere, zeroes: None };
    let mut last = take(&repository, None, &first);
    let base = repository.usage().unwrap().segment_bytes.get();
    for round in 0..4 {
        // One page in every leaf: 384 leaves.
        let writes = (0..BLOCKS).step_by(4096).map(|block| (block + round, 2)).collect();
        let next = Generation { over_parent: true, writes, zeroes: None };
        let before = repository.usage().unwrap().segment_bytes.get();
        last = take(&repository, Some(&last), &next);
        let cost = repository.usage().unwrap().segment_bytes.get() - before;
        assert!(cost < 384 * 256, "{cost} bytes for 384 pages over {base}");
    }
    check(&repository, &last);
}
