//! What the repository does with the same states.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use tintype_repo::{
    Encryption, GcParams, ImageParams, ImageRoot, InitParams, NamedImage, RecompressionParams,
    Repository, SessionParams, SnapshotDraft, SnapshotRecord, Unwritten, VerifyLevel,
};
use tintype_types::{ByteCount, SnapshotName, VmId, VmName};

use crate::limits::precise;
use crate::states::State;
use crate::{Outcome, said, timed};

const BLOCK: u64 = 4096;
/// Random reads, after as many that warm up.
const READS: u64 = 20_000;

/// Measures a repository's life: two snapshots, reading, collection.
pub(crate) fn measure(
    first: &State,
    second: &State,
    folder: &Path,
    (seed, recompress): (u64, bool),
) -> Outcome<()> {
    std::fs::create_dir_all(folder)?;
    let key = Encryption::KeyFile(folder.join("key"));
    let path = folder.join("repository");
    let mut params = InitParams::default();
    params.encryption = key.clone();
    let repository = Repository::init(&path, params)?;
    let all = None;

    let one = timed("full write", || take(&repository, first, None, all))?;
    said("kept: full", kept(&repository)?);
    timed("unchanged, a core", || take(&repository, first, Some(&one), Some(1)))?;
    let before = kept(&repository)?;
    let two = timed("next snapshot", || take(&repository, second, Some(&one), all))?;
    said("kept: next", kept(&repository)? - before);
    said("kept: both", kept(&repository)?);

    let repository = Repository::open_with(&path, std::slice::from_ref(&key))?;
    timed("eager restore", || restore(&repository, &two))?;
    random_reads(&repository, &two, seed)?;
    timed("verify --read-data", || {
        let report = repository.verify(&[], VerifyLevel::ReadData, &())?;
        if !report.damaged.is_empty() {
            return Err("the repository is damaged".into());
        }
        Ok((report.read_bytes.get(), ()))
    })?;
    if recompress {
        let mut params = GcParams::default();
        params.recompression = Some(RecompressionParams::default());
        timed("gc --recompress", || Ok((first.data_bytes(), repository.gc(params, &())?)))?;
        said("kept: both, after gc --recompress", kept(&repository)?);
    }
    repository.remove(one.id)?;
    timed("gc", || Ok((repository.gc(GcParams::default(), &())?.freed_bytes.get(), ())))?;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

fn take(
    repository: &Repository,
    state: &State,
    parent: Option<&SnapshotRecord>,
    threads: Option<usize>,
) -> Outcome<(u64, SnapshotRecord)> {
    let mut params = SessionParams::default();
    params.threads = threads;
    let session = repository.begin(params)?;
    let mut images = Vec::new();
    for image in &state.images {
        let parent = parent.and_then(|record| root(record, image.name)).cloned();
        let size = ByteCount(image.size);
        let params = ImageParams { size, parent, unwritten: Unwritten::Zero };
        let mut writer = session.image(params)?;
        image.read(|offset, bytes| Ok(writer.write(offset, bytes)?))?;
        images.push(NamedImage { name: image.name.to_owned(), root: writer.finish()? });
    }
    let record = session.commit(SnapshotDraft {
        vm: VmId::from_bytes([7; 16]),
        vm_name: VmName::new("bench")?,
        name: SnapshotName::new("one")?,
        parent: None,
        created: "2026-11-22T10:00:00Z".parse()?,
        images,
        blobs: Vec::new(),
        details: serde_json::Value::Null,
    })?;
    Ok((state.data_bytes(), record))
}

fn root<'a>(record: &'a SnapshotRecord, name: &str) -> Option<&'a ImageRoot> {
    record.images.iter().find(|image| image.name == name).map(|image| &image.root)
}

fn restore(repository: &Repository, record: &SnapshotRecord) -> Outcome<(u64, ())> {
    let mut bytes = 0;
    for image in &record.images {
        for piece in repository.open_image(&image.root)?.sequence() {
            bytes += u64::try_from(black_box(piece?.1).len())?;
        }
    }
    Ok((bytes, ()))
}

/// Reads blocks that are not zero, anywhere in the images.
fn random_reads(repository: &Repository, record: &SnapshotRecord, seed: u64) -> Outcome<()> {
    let mut blocks = Vec::new();
    let mut readers = Vec::new();
    for image in &record.images {
        let reader = repository.open_image(&image.root)?;
        for extent in reader.data_extents() {
            let extent = extent?;
            let whole = (extent.offset..extent.end() - extent.len % BLOCK).step_by(4096);
            blocks.extend(whole.map(|offset| (readers.len(), offset)));
        }
        readers.push(reader);
    }
    let count = u64::try_from(blocks.len())?;
    let mut buffer = [0; 4096];
    let mut times = Vec::new();
    for number in 0..2 * READS {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&number.to_le_bytes());
        let mut dice = [0; 8];
        hasher.finalize_xof().fill(&mut dice);
        let (image, offset) = blocks[usize::try_from(u64::from_le_bytes(dice) % count)?];
        let start = Instant::now();
        readers[image].read_at(offset, &mut buffer)?;
        if number >= READS {
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        black_box(&mut buffer);
    }
    times.sort_by(f64::total_cmp);
    said("random 4 KiB read, p50 µs", times[times.len() / 2]);
    said("random 4 KiB read, p99 µs", times[times.len() * 99 / 100]);
    Ok(())
}

fn kept(repository: &Repository) -> Outcome<f64> {
    Ok(precise(repository.usage()?.repository_bytes.get()))
}
