//! What the tests share: a repository in a temporary folder, drafts, content
//! that can be made again, dice, and how much a test of chance does.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::TempDir;
use tintype_repo::{
    CompactionParams, Encryption, GcParams, ImageParams, ImageRoot, InitParams, NamedImage,
    RecompressionParams, Repository, Session, SessionParams, SnapshotDraft, SnapshotRecord,
    Unwritten,
};
use tintype_types::{ByteCount, SnapshotName, VmId, VmName};

pub(crate) const BLOCK: usize = 4096;

pub(crate) fn new_repository() -> (TempDir, Repository) {
    let folder = tempfile::tempdir().unwrap();
    let repository = Repository::init(&folder.path().join("repo"), InitParams::default()).unwrap();
    (folder, repository)
}

pub(crate) fn init(path: &Path, encryption: &Encryption) -> Repository {
    let mut params = InitParams::default();
    params.encryption = encryption.clone();
    Repository::init(path, params).unwrap()
}

pub(crate) fn draft(images: Vec<(&str, ImageRoot)>) -> SnapshotDraft {
    SnapshotDraft {
        vm: VmId::from_bytes([7; 16]),
        vm_name: VmName::new("web").unwrap(),
        name: SnapshotName::new("one").unwrap(),
        parent: None,
        created: "2026-11-22T10:00:00Z".parse().unwrap(),
        images: images
            .into_iter()
            .map(|(name, root)| NamedImage { name: name.to_owned(), root })
            .collect(),
        blobs: Vec::new(),
        details: serde_json::json!({ "engine": 1 }),
    }
}

pub(crate) fn begin(repository: &Repository) -> Session {
    repository.begin(SessionParams::default()).unwrap()
}

pub(crate) fn write_image(
    session: &Session,
    content: &[u8],
    parent: Option<ImageRoot>,
) -> ImageRoot {
    let size = ByteCount(content.len() as u64);
    let params = ImageParams { size, parent, unwritten: Unwritten::Zero };
    let mut writer = session.image(params).unwrap();
    writer.write(0, content).unwrap();
    writer.finish().unwrap()
}

/// Commits one snapshot of one image.
pub(crate) fn take(
    repository: &Repository,
    content: &[u8],
    parent: Option<&SnapshotRecord>,
) -> SnapshotRecord {
    let session = begin(repository);
    let parent = parent.map(|record| record.images[0].root.clone());
    let root = write_image(&session, content, parent);
    session.commit(draft(vec![("ram", root)])).unwrap()
}

/// Commits one snapshot of one image, with a number by which it is known again.
pub(crate) fn take_numbered(
    repository: &Repository,
    number: u64,
    content: &[u8],
    parent: Option<&SnapshotRecord>,
) -> SnapshotRecord {
    let session = begin(repository);
    let parent = parent.map(|record| record.images[0].root.clone());
    let mut draft = draft(vec![("ram", write_image(&session, content, parent))]);
    draft.details = serde_json::json!(number);
    session.commit(draft).unwrap()
}

/// Moves everything that is in a segment with anything that nobody needs.
pub(crate) fn eager() -> GcParams {
    let mut compaction = CompactionParams::default();
    compaction.live_percent = 100;
    compaction.least_gain = None;
    let mut params = GcParams::default();
    params.compaction = Some(compaction);
    params
}

/// The same, after it has compressed again what was not yet, even if that gains
/// nothing.
pub(crate) fn eager_and_strong() -> GcParams {
    let mut recompression = RecompressionParams::default();
    (recompression.least_percent, recompression.least_gain) = (0, None);
    let mut params = eager();
    params.recompression = Some(recompression);
    params
}

pub(crate) fn read_all(repository: &Repository, root: &ImageRoot) -> Vec<u8> {
    let reader = repository.open_image(root).unwrap();
    let mut bytes = vec![0; usize::try_from(reader.size().get()).unwrap()];
    reader.read_at(0, &mut bytes).unwrap();
    bytes
}

/// Bytes that look like a guest's: some zero, some text, some noise.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (index, block) in bytes.chunks_mut(BLOCK).enumerate() {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes());
        match hasher.finalize().as_bytes()[0] % 4 {
            0 => {}
            1 => hasher.finalize_xof().fill(block),
            _ => {
                let mut word = [0; 16];
                hasher.finalize_xof().fill(&mut word);
                block.chunks_mut(16).for_each(|chunk| chunk.copy_from_slice(&word[..chunk.len()]));
            }
        }
    }
    bytes
}

/// All files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Copies a folder.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    for path in files(from) {
        let to = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(path, to).unwrap();
    }
}

/// Choices and noise that a seed fixes.
pub(crate) struct Dice(blake3::OutputReader);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    /// A number below `sides`; 0 if there are none.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % sides.max(1)
    }

    pub(crate) fn pick(&mut self, sides: usize) -> usize {
        self.roll(sides as u64) as usize
    }

    pub(crate) fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        bytes
    }
}

/// How much a test of chance does, and from which seed.
pub(crate) struct Soak {
    pub count: u64,
    pub seed: u64,
}

/// Returns what `cargo xtask soak` asks for, or what CI has time for and a new
/// seed, and says it.
pub(crate) fn soak(what: &str, otherwise: u64) -> Soak {
    let wanted = |name| std::env::var(name).ok()?.parse().ok();
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let count = wanted("TINTYPE_SOAK_COUNT").unwrap_or(otherwise);
    let seed = wanted("TINTYPE_SOAK_SEED").unwrap_or_else(now);
    eprintln!("{count} {what}, TINTYPE_SOAK_SEED={seed}");
    Soak { count, seed }
}

/// Does the work of all items on all cores; the results are in no order.
pub(crate) fn on_all_cores<I: Sync, R: Send>(items: &[I], work: impl Fn(&I) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let items = std::iter::from_fn(|| items.get(next.fetch_add(1, Ordering::Relaxed)));
        items.map(&work).collect::<Vec<_>>()
    };
    let cores = std::thread::available_parallelism().unwrap().get();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}
