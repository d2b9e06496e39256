//! Parts of segments, and outcomes, that are kept on this machine, so that a
//! bucket is asked for them once. Anything here can be deleted at any time.
//!
//! ```text
//! FOLDER/<xx>/<session>-<number>.<part>   check (32 bytes), then the part
//! FOLDER/objects/outcome-<session>        check, then the outcome
//! ```
//!
//! A part is 1 MiB of a segment; the last one may be shorter. The check is a
//! BLAKE3 hash over the file's name and the bytes, so a file that was torn by a
//! crash or belongs elsewhere is none. It says only that the bytes are what came
//! from the store; whether they are right, the reader of a frame finds out.
//! Nothing here fails: what cannot be kept is asked for again.
//!
//! The parts that were used last are in memory, too: a part has tens of frames, and its
//! check takes longer than reading one of them.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::Error;
use crate::cache::Cache;
use crate::segment::SEGMENT_SIZE;
use crate::store::Store;

/// Bytes of a part. One request brings what the next reads are likely to want.
const PART: usize = 1 << 20;
/// Parts that can be fetched at the same time.
const LANES: usize = 64;
/// The folder is looked through each time that it may have grown by so much.
const GROWTH: u64 = 64 << 20;
const CHECK: usize = 32;
/// Bytes of parts in memory.
const IN_MEMORY: usize = 32 << 20;

/// Stands for a part in memory.
type PartId = [u8; 32];

/// Where parts of segments are kept, and how many.
#[derive(Debug, Clone)]
pub struct CacheParams {
    /// The folder; it is made if it is not there. Several repositories and
    /// processes may share it.
    pub folder: PathBuf,
    /// The bytes that it may have, somewhat more for moments.
    pub limit: u64,
}

/// Parts of segments on this machine.
#[derive(Debug)]
pub(crate) struct Nearby {
    params: CacheParams,
    sizes: Mutex<HashMap<String, u64>>,
    /// Who fetches a part holds its lane: others wait for it, and find it here.
    lanes: [Mutex<()>; LANES],
    in_memory: Cache<PartId, Vec<u8>>,
    /// How often something was forgotten: what was read before that does not go into
    /// memory after it. Locked until it is gone from there and from the folder.
    forgotten: Mutex<u64>,
    grown: AtomicU64,
}

impl Nearby {
    pub(crate) fn new(params: CacheParams) -> Self {
        Self {
            params,
            sizes: Mutex::default(),
            lanes: [const { Mutex::new(()) }; LANES],
            in_memory: Cache::new(IN_MEMORY),
            forgotten: Mutex::default(),
            grown: AtomicU64::new(GROWTH),
        }
    }

    /// Returns a range of a segment, from here as far as it is here.
    pub(crate) fn get_range(
        &self,
        store: &dyn Store,
        key: &str,
        offset: usize,
        len: usize,
    ) -> Result<Vec<u8>, Error> {
        let mut range = Vec::with_capacity(len);
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let part = self.part(store, key, at / PART)?;
            let from = at % PART;
            let until = part.len().min(from + end - at);
            let Some(bytes) = part.get(from..until).filter(|bytes| !bytes.is_empty()) else {
                return Err(Error::damaged(key, None, "it ends early"));
            };
            range.extend_from_slice(bytes);
            at += bytes.len();
        }
        Ok(range)
    }

    /// Returns a whole object that was kept, if it is here.
    pub(crate) fn object(&self, key: &str) -> Option<Vec<u8>> {
        read(&self.object_file(key))
    }

    /// Keeps a small object that never changes, once it was found to be right.
    pub(crate) fn keep_object(&self, key: &str, bytes: &[u8]) {
        self.keep_part(&self.object_file(key), bytes);
    }

    /// Keeps a segment that was just stored.
    pub(crate) fn keep(&self, key: &str, segment: &[u8]) {
        for (number, bytes) in segment.chunks(PART).enumerate() {
            self.keep_part(&self.file(key, number), bytes);
        }
    }

    /// Returns all parts of a segment from the first on that are here.
    pub(crate) fn whole(&self, key: &str) -> Option<Vec<u8>> {
        let parts = (0..SEGMENT_SIZE / PART).map_while(|number| read(&self.file(key, number)));
        Some(parts.collect::<Vec<_>>().concat()).filter(|whole| !whole.is_empty())
    }

    /// Forgets what a range was read from; whether anything of it was here.
    pub(crate) fn forget(&self, key: &str, offset: usize, len: usize) -> bool {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let mut forgotten = self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        *forgotten += 1;
        let parts = offset / PART..(offset + len).div_ceil(PART);
        let gone = parts.filter(|part| {
            let file = self.file(key, *part);
            let in_memory = self.in_memory.remove(&part_id(&file));
            fs::remove_file(file).is_ok() || in_memory
        });
        gone.count() > 0
    }

    fn part(&self, store: &dyn Store, key: &str, number: usize) -> Result<Arc<Vec<u8>>, Error> {
        let file = self.file(key, number);
        let id = part_id(&file);
        if let Some(part) = self.in_memory.get(&id) {
            return Ok(part);
        }
        let forgotten = || self.forgotten.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *forgotten();
        let part = Arc::new(self.kept_or_fetched(store, key, number, &file)?);
        let now = forgotten();
        if *now == before {
            self.in_memory.insert(id, Arc::clone(&part), part.len());
        }
        Ok(part)
    }

    /// Returns a part that is on this machine, or else fetches and keeps it.
    fn kept_or_fetched(
        &self,
        store: &dyn Store,
        key: &str,
        number: usize,
        file: &Path,
    ) -> Result<Vec<u8>, Error> {
        if let Some(bytes) = read(file) {
            return Ok(bytes);
        }
        let _lane = self.lane(&part_id(file));
        if let Some(bytes) = read(file) {
            return Ok(bytes);
        }
        let offset = count(number * PART);
        let left = self.size(store, key)?.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(PART).min(PART);
        let bytes = store.get_range(key, offset, len)?;
        self.keep_part(file, &bytes);
        Ok(bytes)
    }

    /// Returns the size of a segment, which never changes.
    fn size(&self, store: &dyn Store, key: &str) -> Result<u64, Error> {
        let sizes = || self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = sizes().get(key) {
            return Ok(*size);
        }
        let size = store.size(key)?.ok_or_else(|| Error::NotFound(key.to_owned()))?;
        if size > count(SEGMENT_SIZE) {
            return Err(Error::damaged(key, None, "it is too big"));
        }
        sizes().insert(key.to_owned(), size);
        Ok(size)
    }

    fn lane(&self, id: &PartId) -> MutexGuard<'_, ()> {
        let lane = &self.lanes[usize::from(id[0]) % LANES];
        lane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, key: &str, number: usize) -> PathBuf {
        let name = key.strip_prefix("seg/").unwrap_or(key);
        self.params.folder.join(format!("{name}.{number}"))
    }

    fn object_file(&self, key: &str) -> PathBuf {
        self.params.folder.join("objects").join(key.replace('/', "-"))
    }

    fn keep_part(&self, file: &Path, bytes: &[u8]) {
        let grown = self.grown.fetch_add(count(bytes.len()), Ordering::Relaxed);
        if grown >= GROWTH {
            self.grown.store(0, Ordering::Relaxed);
            shrink(&self.params);
        }
        if let Err(error) = write(file, bytes) {
            tracing::debug!(%error, file = %file.display(), "a part of a segment is not kept");
        }
    }
}

/// Returns a part that is here as it was kept, and marks it as used.
fn read(file: &Path) -> Option<Vec<u8>> {
    let mut content = fs::read(file).ok()?;
    if content.len() > CHECK + PART || content.get(..CHECK)? != check(file, &content[CHECK..]) {
        return None;
    }
    content.drain(..CHECK);
    let used = fs::File::open(file).and_then(|file| file.set_modified(SystemTime::now()));
    used.ok().map(|()| content)
}

/// Writes under a name of its own first, so that nobody reads a half. Nothing is
/// synced: a part that a crash has torn fails its check.
fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("the kernel always has random bytes");
    let own = folder.join(format!("new-{:016x}", u64::from_le_bytes(random)));
    let mut options = fs::OpenOptions::new();
    let written =
        options.write(true).create_new(true).mode(0o600).open(&own).and_then(|mut out| {
            out.write_all(&check(file, bytes))?;
            out.write_all(bytes)?;
            fs::rename(&own, file)
        });
    written.inspect_err(|_| drop(fs::remove_file(&own)))
}

fn part_id(file: &Path) -> PartId {
    *blake3::hash(file.as_os_str().as_encoded_bytes()).as_bytes()
}

fn check(file: &Path, bytes: &[u8]) -> [u8; CHECK] {
    let name = file.file_name().unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    hasher.update(name.as_encoded_bytes()).update(b"\n").update(bytes);
    *hasher.finalize().as_bytes()
}

/// Removes the parts that were not used for the longest time, until nine tenths
/// of the limit are left. A file system that is nearly full keeps less.
fn shrink(params: &CacheParams) {
    let mut files = Vec::new();
    let folders = fs::read_dir(&params.folder).into_iter().flatten().flatten();
    for entry in folders.flat_map(|folder| fs::read_dir(folder.path())).flatten().flatten() {
        if let Ok(metadata) = entry.metadata()
            && let Ok(used) = metadata.modified()
        {
            files.push((used, metadata.len(), entry.path()));
        }
    }
    let have: u64 = files.iter().map(|(_, len, _)| len).sum();
    let limit = params.limit.min(have.saturating_add(room(&params.folder)) / 2);
    let mut excess = have.saturating_sub(limit / 10 * 9);
    files.sort();
    for (_, len, path) in files {
        if excess == 0 {
            return;
        }
        if fs::remove_file(path).is_ok() {
            excess = excess.saturating_sub(len);
        }
    }
}

/// Returns the bytes that are free where a folder is.
fn room(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |at| at.f_bavail.saturating_mul(at.f_frsize))
}

fn count(bytes: usize) -> u64 {
    u64::try_from(bytes).expect("a usize fits in 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::repository::create_in;
    use crate::store::{Listed, Memory, Objects, Pulse, Shared};
    use crate::{
        InitParams, Repository, SessionParams, SnapshotDraft, SnapshotRecord, VerifyLevel,
    };

    const KEY: &str = "seg/3f/3f00-00000001";
    const PULSE: Pulse =
        Pulse { beat: Duration::from_secs(10), patience: Duration::from_secs(180) };

    struct Scene {
        folder: tempfile::TempDir,
        store: Shared<Memory>,
        nearby: Nearby,
        segment: Vec<u8>,
    }

    fn scene(len: usize, limit: u64) -> Scene {
        let folder = tempfile::tempdir().unwrap();
        let store = Shared::new(Memory::default(), PULSE);
        let segment: Vec<u8> = (0..len).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect();
        store.put_if_absent(KEY, &segment).unwrap();
        let params = CacheParams { folder: folder.path().join("cache"), limit };
        Scene { folder, store, nearby: Nearby::new(params), segment }
    }

    impl Scene {
        fn must_read(&self, offset: usize, len: usize) {
            let range = self.nearby.get_range(&self.store, KEY, offset, len).unwrap();
            assert!(range == self.segment[offset..offset + len], "{len} from {offset}");
        }
    }

    #[test]
    fn what_was_read_once_is_here() {
        let scene = scene(2 * PART + 777, 1 << 30);
        let ranges =
            [(0, 1), (0, PART), (PART - 1, 2), (1, 2 * PART + 776), (2 * PART, 777), (5, 0)];
        for (offset, len) in ranges {
            scene.must_read(offset, len);
        }
        scene.store.delete(KEY).unwrap();
        for (offset, len) in ranges {
            scene.must_read(offset, len);
        }
        for (offset, len) in [(2 * PART + 777, 1), (2 * PART, 778), (3 * PART, 5)] {
            assert!(scene.nearby.get_range(&scene.store, KEY, offset, len).is_err());
        }
    }

    #[test]
    fn what_is_torn_swapped_or_gone_is_fetched_again() {
        let mut scene = scene(3 * PART, 1 << 30);
        let cache = scene.nearby.params.folder.clone();
        let files = [0, 1].map(|number| scene.nearby.file(KEY, number));
        let file = |number: usize| &files[number];
        let spoil: [&dyn Fn(); 5] = [
            &|| fs::write(file(0), b"").unwrap(),
            &|| fs::write(file(0), vec![0; 40]).unwrap(),
            &|| assert!(fs::copy(file(1), file(0)).is_ok()),
            &|| fs::remove_dir_all(&cache).unwrap(),
            &|| {
                let mut bytes = fs::read(file(0)).unwrap();
                bytes[CHECK + 9] ^= 1;
                fs::write(file(0), bytes).unwrap();
            },
        ];
        for spoil in spoil {
            scene.must_read(0, 3 * PART);
            spoil();
            // Another process finds it so; this one has it in memory.
            scene.must_read(3, 4096);
            scene.nearby = Nearby::new(scene.nearby.params.clone());
            scene.must_read(3, 4096);
        }
        assert!(scene.nearby.forget(KEY, 5, 9));
        assert!(!scene.nearby.forget(KEY, 5, 9));
        scene.must_read(0, 4096);
    }

    /// A repository far away, with a snapshot that has a blob.
    struct Far {
        folder: tempfile::TempDir,
        memory: Memory,
        content: Vec<u8>,
        record: SnapshotRecord,
    }

    impl Far {
        fn new() -> Self {
            let (folder, memory) = (tempfile::tempdir().unwrap(), Memory::default());
            create_in(&Shared::new(memory.clone(), PULSE), &InitParams::default()).unwrap();
            let content = vec![7; 50_000];
            let repository = open(folder.path(), &memory);
            let session = repository.begin(SessionParams::default()).unwrap();
            let blob = session.blob(&content).unwrap();
            let draft = SnapshotDraft {
                blobs: vec![("state".to_owned(), blob)],
                ..SnapshotDraft::plain(serde_json::Value::Null)
            };
            let record = session.commit(draft).unwrap();
            Self { folder, memory, content, record }
        }

        /// Opens it as a new process does.
        fn open(&self) -> Repository {
            open(self.folder.path(), &self.memory)
        }

        fn must_read(&self) {
            let blob = &self.record.blobs[0].1;
            assert!(self.open().read_blob(blob).unwrap() == self.content);
        }

        /// Makes all that is kept wrong, with checks that are right.
        fn spoil(&self) {
            let folders = fs::read_dir(self.folder.path()).unwrap();
            let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
            let spoiled = files.map(|file| {
                let file = file.unwrap().path();
                write(&file, &vec![0x55; read(&file).unwrap().len()]).unwrap();
            });
            assert!(spoiled.count() > 0);
        }
    }

    fn open(folder: &Path, memory: &Memory) -> Repository {
        let params = CacheParams { folder: folder.to_owned(), limit: 1 << 30 };
        let store = Box::new(Shared::new(memory.clone(), PULSE));
        let nearby = Some(Nearby::new(params));
        Repository::open_in(store, nearby, Path::new("s3://memory"), &[]).unwrap()
    }

    #[test]
    fn what_came_wrong_is_fetched_again_by_who_finds_out() {
        let far = Far::new();
        far.must_read();
        far.spoil();
        far.must_read();
        far.spoil();
        let report = far.open().verify(&[], VerifyLevel::StoredNearby, &()).unwrap();
        assert_eq!(report.damaged, []);
        far.must_read();
    }

    #[test]
    fn what_is_damaged_far_away_is_repaired_from_here() {
        let far = Far::new();
        far.must_read();
        let listed = far.memory.list("seg/").unwrap();
        assert!(listed.len() > 1);
        for Listed { key, size } in listed {
            let good = far.memory.get(&key, size).unwrap();
            let mut bad = good.clone();
            bad[90] ^= 1;
            for bad in [&bad[..], &good[..70], b""] {
                far.memory.replace(&key, bad).unwrap();
                let report = far.open().repair(None, &()).unwrap();
                assert_eq!((report.repaired, report.damaged), (vec![key.clone()], vec![]));
                assert!(far.memory.get(&key, size).unwrap() == good);
            }
        }
    }

    #[test]
    fn what_is_wrong_in_memory_is_forgotten_there_too() {
        let scene = scene(PART, 1 << 30);
        scene.must_read(0, 4096);
        let file = scene.nearby.file(KEY, 0);
        scene.nearby.in_memory.insert(part_id(&file), Arc::new(vec![0; PART]), PART);
        assert_ne!(
            scene.nearby.get_range(&scene.store, KEY, 0, 4096).unwrap(),
            scene.segment[..4096]
        );
        fs::remove_file(file).unwrap();
        assert!(scene.nearby.forget(KEY, 0, 4096));
        scene.must_read(0, 4096);
    }

    #[test]
    fn a_record_is_fetched_once_and_as_long_as_it_is_listed() {
        let far = Far::new();
        let key = format!("outcome/{}", far.record.id);
        let list = || far.open().snapshots().unwrap();
        assert_eq!(list().records, std::slice::from_ref(&far.record));
        far.memory.delete(&key).unwrap();
        assert_eq!(list().records, []);
        far.memory.put_if_absent(&key, b"not asked for").unwrap();
        assert_eq!(list().records, std::slice::from_ref(&far.record));
        far.spoil();
        assert_eq!(list().damaged.len(), 1, "what is wrong here is fetched again");
    }

    #[test]
    fn a_place_that_keeps_nothing_is_no_error() {
        let mut scene = scene(PART, 1 << 30);
        scene.nearby.params.folder = PathBuf::from("/proc/none");
        scene.must_read(7, 4096);
        scene.nearby.keep(KEY, &scene.segment);
    }

    #[test]
    fn the_oldest_goes_first() {
        let limit = count(100 * PART);
        let scene = scene(8 * PART, limit);
        for number in 0..300 {
            scene.nearby.keep(&format!("seg/00/00-{number:08}"), &vec![1; PART]);
            scene.must_read(0, PART);
        }
        let left = fs::read_dir(scene.folder.path().join("cache/00")).unwrap().count();
        assert!((30..170).contains(&left), "{left} parts");
        scene.store.delete(KEY).unwrap();
        scene.must_read(0, PART);
        assert!(!scene.nearby.file("seg/00/00-00000000", 0).exists());
    }
}
