//! The entry point: making and opening repositories, and everything that is
//! asked of one as a whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tintype_types::{ByteCount, Extent, RepositoryId, SnapshotId};

use crate::blob;
use crate::compact::{self, Work};
use crate::diff;
use crate::epoch::Segments;
use crate::gc::{self, Collection, GcReport};
use crate::gone::{self, Deleted, Deletions, Due};
use crate::heal;
use crate::journal::{self, Logged};
use crate::keys::{Keys, commitment};
use crate::label::{self, Label, Labels};
use crate::listing::{self, Listing};
use crate::nearby::Nearby;
use crate::pointer::hex;
use crate::reader::ImageReader;
use crate::recompress::{RecompressionParams, Recompressor};
use crate::record::{BlobId, Outcome, SnapshotRecord, outcome_key};
use crate::repair::{self, RepairReport, Source};
use crate::session::{Session, SessionParams};
use crate::shares::{self, Shares};
use crate::site::Site;
use crate::slot::{self, Slot};
use crate::slots::{self, Encryption, KeySlot, MasterKey};
use crate::store::{LocalStore, Put, Store};
use crate::supervisor::Supervisor;
use crate::survey::{CompactionParams, Survey};
use crate::trash::{self, TrashShares};
use crate::tree::ImageRoot;
use crate::vault::Vault;
use crate::verify::{self, VerifyLevel, VerifyReport};
use crate::whole;
use crate::{Error, Kind};

const CONFIG: &str = "config";
const MAX_CONFIG: u64 = 64 << 10;
const FORMAT: u32 = 1;
/// The feature of repositories that hide their content.
const SEALED: &str = "aes-256-gcm";

/// How a repository is made.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct InitParams {
    /// What opens it.
    pub encryption: Encryption,
}

/// How garbage is collected.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct GcParams {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// Which deletions are ended, so that nobody can undo them.
    pub due: Due,
    /// Whether and when what is left of segments is moved.
    pub compaction: Option<CompactionParams>,
    /// Whether and when what was compressed fast is compressed again, to be smaller.
    pub recompression: Option<RecompressionParams>,
}

impl Default for GcParams {
    fn default() -> Self {
        let compaction = Some(CompactionParams::default());
        Self { dry_run: false, due: Due::All, compaction, recompression: None }
    }
}

/// Keeps the content of one snapshot in place until dropped.
#[derive(Debug)]
pub struct Pin {
    vault: Arc<Vault>,
    slot: Option<Slot>,
    record: SnapshotRecord,
}

impl Pin {
    pub(crate) fn new(vault: &Arc<Vault>, slot: Slot, record: SnapshotRecord) -> Self {
        Self { vault: Arc::clone(vault), slot: Some(slot), record }
    }

    /// Returns the snapshot.
    pub fn record(&self) -> &SnapshotRecord {
        &self.record
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let released = self.slot.take().map_or(Ok(()), |slot| slot.release(&self.vault));
        if let Err(error) = released {
            tracing::warn!(snapshot = %self.record.id, %error, "a reader's slot stays");
        }
    }
}

/// What a repository holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// All objects.
    pub repository_bytes: ByteCount,
    /// Segments: content and maps.
    pub segment_bytes: ByteCount,
    /// How many segments there are.
    pub segments: u64,
}

/// The object `config`: written last, so a repository exists when it does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    tintype: u32,
    repository: RepositoryId,
    /// What a reader has to understand beyond the format's number.
    features: Vec<String>,
    /// Proves that a key is the right one.
    key_commitment: String,
}

/// An open repository. Cheap to clone; any number of threads may use it.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) vault: Arc<Vault>,
    path: PathBuf,
    master: Arc<MasterKey>,
}

impl Repository {
    /// Makes a repository in a folder that is empty or does not exist. When
    /// this returns, it survives power loss.
    pub fn init(path: &Path, params: InitParams) -> Result<Self, Error> {
        create_in(&LocalStore::create(path)?, &params)?;
        Self::open_with(path, &[params.encryption])
    }

    /// Makes a repository in any place that is empty.
    pub fn init_at(site: &Site, params: InitParams) -> Result<Self, Error> {
        let store = site.create()?;
        create_in(&*store, &params)?;
        Self::open_in(store, site.nearby(), &site.location.to_path(), &[params.encryption])
    }

    /// Opens a repository in any place; see `open_with`.
    pub fn open_at(site: &Site, keys: &[Encryption]) -> Result<Self, Error> {
        Self::open_in(site.open()?, site.nearby(), &site.location.to_path(), keys)
    }

    /// Opens a repository that is not encrypted; see `open_with`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_with(path, &[])
    }

    /// Opens a repository with the first of the keys that fits, and ends the
    /// sessions of processes that have died. If none fits, the error is of
    /// [`Kind::Key`](crate::Kind::Key).
    pub fn open_with(path: &Path, keys: &[Encryption]) -> Result<Self, Error> {
        Self::open_in(Box::new(LocalStore::open(path)), None, path, keys)
    }

    pub(crate) fn open_in(
        store: Box<dyn Store>,
        nearby: Option<Nearby>,
        path: &Path,
        keys: &[Encryption],
    ) -> Result<Self, Error> {
        let config = match store.get(CONFIG, MAX_CONFIG) {
            Ok(bytes) => bytes,
            Err(Error::NotFound(_)) => return Err(Error::NotARepository(path.to_owned())),
            Err(error) => return Err(error),
        };
        let config = parse_config(&config)?;
        let hides = !config.features.is_empty();
        let is_right = |master: &MasterKey| {
            hex(&commitment(master, config.repository, hides)) == config.key_commitment
        };
        let master = slots::open(&*store, config.repository, keys, &is_right)?;
        let vault = Vault::new(store, nearby, Keys::derive(&master, hides), config.repository);
        heal::end_dead_sessions(&vault)?;
        vault.store.keep_reserve();
        Ok(Self { vault: Arc::new(vault), path: path.to_owned(), master: Arc::new(master) })
    }

    /// Lists the ways to open the repository.
    pub fn keys(&self) -> Result<Vec<KeySlot>, Error> {
        slots::list(&*self.vault.store)
    }

    /// Adds a way to open the repository and returns its slot's id. One that
    /// hides nothing takes no keys, and one that does takes no `None`.
    pub fn add_key(&self, key: &Encryption) -> Result<String, Error> {
        if self.vault.keys.hides() != (*key != Encryption::None) {
            return Err(Error::Invalid(
                "whether a repository is encrypted cannot change".to_owned(),
            ));
        }
        slots::add(&*self.vault.store, self.vault.id, &self.master, key)
    }

    /// Removes a way to open the repository; the last one stays. Whoever had
    /// it and the repository may have kept the master key.
    pub fn remove_key(&self, id: &str) -> Result<(), Error> {
        slots::remove(&*self.vault.store, id)
    }

    /// Returns the repository's id.
    pub fn id(&self) -> RepositoryId {
        self.vault.id
    }

    /// Returns the place that was opened: a folder, or the address of a bucket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lists the snapshots, oldest first.
    pub fn snapshots(&self) -> Result<Listing, Error> {
        listing::list(&self.vault)
    }

    /// Returns one snapshot.
    pub fn snapshot(&self, id: SnapshotId) -> Result<SnapshotRecord, Error> {
        listing::one(&self.vault, id)
    }

    /// Returns what is said of each snapshot that has a label; what it does not
    /// say is as in the record.
    pub fn labels(&self) -> Result<Labels, Error> {
        label::all(&self.vault)
    }

    /// Returns what is said of one snapshot.
    pub fn labels_of(&self, id: SnapshotId) -> Result<Labels, Error> {
        label::of(&self.vault, id)
    }

    /// Changes what is said of a snapshot that is there; returns what was said
    /// before, and after. When this returns, it survives power loss. What others
    /// change at the same time is kept, so the change may be tried several times.
    pub fn relabel(
        &self,
        id: SnapshotId,
        change: impl Fn(&mut Label),
    ) -> Result<(Label, Label), Error> {
        self.even_if_full(|vault| label::change(vault, id, &change))
    }

    /// Begins a snapshot.
    pub fn begin(&self, params: SessionParams) -> Result<Session, Error> {
        let slot = slot::register_writer(&self.vault)?;
        Session::begin(Arc::clone(&self.vault), slot, &params)
    }

    /// Opens an image for reading.
    pub fn open_image(&self, image: &ImageRoot) -> Result<ImageReader, Error> {
        for pointer in image.pointers() {
            self.vault.node(pointer)?;
        }
        Ok(ImageReader::new(Arc::clone(&self.vault), image.clone()))
    }

    /// Returns the bytes of a blob.
    pub fn read_blob(&self, id: &BlobId) -> Result<Vec<u8>, Error> {
        blob::read(&self.vault, id)
    }

    /// Returns the ranges in which two images may differ, in order and joined,
    /// in whole blocks; their maps are compared, no content is read.
    pub fn diff(&self, a: &ImageRoot, b: &ImageRoot) -> Result<Vec<Extent>, Error> {
        diff::diff(&self.vault, a, b)
    }

    /// Looks for damage in some snapshots, or in all if none are named.
    pub fn verify(
        &self,
        snapshots: &[SnapshotId],
        level: VerifyLevel,
        supervisor: &dyn Supervisor,
    ) -> Result<VerifyReport, Error> {
        verify::verify(&self.vault, snapshots, level, supervisor)
    }

    /// Whether a snapshot is not known to be damaged: all that it needs is there, and no
    /// repair has given any of it up. Its data is not read.
    pub fn is_whole(&self, id: SnapshotId, supervisor: &dyn Supervisor) -> Result<bool, Error> {
        whole::is_whole(&self.vault, id, supervisor)
    }

    /// Deletes a snapshot, as an act of its own; see `remove_all`.
    pub fn remove(&self, id: SnapshotId) -> Result<(), Error> {
        self.remove_all(&[id], Timestamp::now())
    }

    /// Deletes snapshots in one act, of an instant that the caller tells. Their
    /// content goes with the first collection for which that is due, unless other
    /// snapshots or readers need it; until then it can be undone. If one of them
    /// is not there, none is deleted.
    pub fn remove_all(&self, ids: &[SnapshotId], at: Timestamp) -> Result<(), Error> {
        let deletions = Deletions::read(&self.vault)?;
        for id in ids {
            if deletions.has(*id) {
                return Err(Error::NotFound(format!("snapshot {id}")));
            }
            match listing::read(&self.vault, &outcome_key(*id)) {
                // One whose record is damaged can still be deleted.
                Ok(Outcome::Committed(_)) | Err(Error::Damaged(_)) => {}
                Ok(Outcome::Aborted | Outcome::Moved(_)) => {
                    return Err(Error::NotFound(format!("snapshot {id}")));
                }
                Err(error) => return Err(error),
            }
        }
        self.even_if_full(|vault| gone::delete(vault, ids, at))
    }

    /// Undoes the deletion of a snapshot. If a collection has begun to remove
    /// its content, the error is of [`Kind::NotFound`](crate::Kind::NotFound).
    pub fn undo_remove(&self, id: SnapshotId) -> Result<SnapshotRecord, Error> {
        self.even_if_full(|vault| gone::undo(vault, id))?;
        self.snapshot(id)
    }

    /// Lists the snapshots whose deletion can be undone, the newest deletion first
    /// by the clocks of those who deleted. What has the same instant was one act.
    pub fn deleted(&self) -> Result<Vec<Deleted>, Error> {
        gone::undoable(&self.vault)
    }

    /// Returns how much is kept for deleted snapshots alone, as if what is due was gone.
    pub fn trash_shares(&self, due: &Due) -> Result<TrashShares, Error> {
        trash::shares(&self.vault, due)
    }

    /// Adds an entry to the log of operations, once what it tells of is done;
    /// returns its number. When this returns, it survives power loss. The newest
    /// thousand stay.
    pub fn log_operation(&self, entry: &serde_json::Value) -> Result<u64, Error> {
        self.even_if_full(|vault| journal::add(vault, entry))
    }

    /// Returns the newest operations, the newest first.
    pub fn operations(&self, limit: usize) -> Result<Vec<Logged>, Error> {
        journal::newest(&self.vault, limit)
    }

    /// Keeps a snapshot's content in place while a guest reads from it, even
    /// if it is deleted meanwhile.
    pub fn pin(&self, id: SnapshotId) -> Result<Pin, Error> {
        let (slot, record) = slot::register_reader(&self.vault, id)?;
        Ok(Pin::new(&self.vault, slot, record))
    }

    /// Removes what no snapshot and no reader needs, but for what was deleted and is
    /// not due: that can still be undone. Snapshots may be taken and deleted meanwhile, on any host; those that are being taken are
    /// waited for by a later call. Killed or cancelled anywhere, the next call
    /// goes on.
    ///
    /// Segments of which little is needed are emptied first, see
    /// [`CompactionParams`]; an error there leaves what was collected before.
    pub fn gc(&self, params: GcParams, supervisor: &dyn Supervisor) -> Result<GcReport, Error> {
        let collect = || {
            let collection = Collection { dry_run: params.dry_run, due: &params.due };
            let report = self.even_if_full(|vault| gc::collect(vault, collection, supervisor))?;
            self.vault.store.keep_reserve();
            Ok(report)
        };
        let mut report = collect()?;
        let vault = &self.vault;
        let mut emptied = Segments::new();
        if let Some(recompression) = &params.recompression {
            // First, so that nothing is moved twice.
            let recompressor = Recompressor::new(vault, recompression, supervisor);
            let choose =
                |survey: &Survey, room, avoid: &Segments| recompressor.plan(survey, (room, avoid));
            if params.dry_run {
                let limits = (&params.due, &emptied);
                (report.recompression, emptied) = compact::estimate(vault, &choose, limits)?;
            } else if report.waiting_for == 0 {
                let recoder = Some(recompressor.recoder());
                let step = recompression.step;
                let work = Work { step, is_once: false, choose: &choose, recoder };
                report.recompression =
                    report.add(compact::run(vault, &work, supervisor, &collect)?);
            }
        }
        if let Some(compaction) = &params.compaction {
            let choose = |survey: &Survey, room, avoid: &Segments| {
                survey.plan(vault, compaction, (room, avoid), supervisor)
            };
            if params.dry_run {
                let limits = (&params.due, &emptied);
                report.compaction = compact::estimate(vault, &choose, limits)?.0;
            } else if report.waiting_for == 0 {
                let is_once = compaction.least_gain.is_none();
                let step = compaction.step;
                let work = Work { step, is_once, choose: &choose, recoder: None };
                report.compaction = report.add(compact::run(vault, &work, supervisor, &collect)?);
            }
        }
        Ok(report)
    }

    /// Repairs what is damaged: from what this machine keeps of it, from a copy of
    /// this repository, or from another one that has copies of its snapshots, or what
    /// they are copies of. Writes nothing if nothing is damaged. What cannot be
    /// repaired is kept away from new snapshots. Ended anywhere, the next call goes on.
    pub fn repair(
        &self,
        from: Option<&Repository>,
        supervisor: &dyn Supervisor,
    ) -> Result<RepairReport, Error> {
        let source = match from {
            None => Source::Nothing,
            Some(copy) if copy.vault.id == self.vault.id => Source::Copy(&copy.vault),
            Some(other) => Source::Other(other),
        };
        repair::repair(&self.vault, source, supervisor)
    }

    /// Does what frees space, if need be with the space that was set aside.
    fn even_if_full<T>(&self, work: impl Fn(&Vault) -> Result<T, Error>) -> Result<T, Error> {
        work(&self.vault).or_else(|error| {
            if error.kind() == Kind::NoSpace && self.vault.store.use_reserve()? {
                work(&self.vault)
            } else {
                Err(error)
            }
        })
    }

    /// Returns, for each snapshot, the stored bytes that it needs and those of
    /// them that no other snapshot needs.
    pub fn shares(&self) -> Result<Shares, Error> {
        self.shares_of(&[])
    }

    /// Returns the same, and of some snapshots together what they need and what
    /// nobody but they needs.
    pub fn shares_of(&self, together: &[SnapshotId]) -> Result<Shares, Error> {
        shares::shares(&self.vault, together)
    }

    /// Returns what the repository holds.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for listed in self.vault.store.list("")? {
            usage.repository_bytes.0 += listed.size;
            if listed.key.starts_with("seg/") {
                usage.segment_bytes.0 += listed.size;
                usage.segments += 1;
            }
        }
        Ok(usage)
    }
}

/// Makes a repository in a store that is empty.
pub(crate) fn create_in(store: &dyn Store, params: &InitParams) -> Result<(), Error> {
    let mut master = MasterKey::default();
    getrandom::fill(&mut master[..]).expect("the kernel always has random bytes");
    // Left by interrupted calls, or of calls that race with this one; none is
    // of a repository.
    let leftovers = store.list("keys/")?;
    let hides = params.encryption != Encryption::None;
    let repository = RepositoryId::random();
    let config = Config {
        tintype: FORMAT,
        repository,
        features: hides.then(|| SEALED.to_owned()).into_iter().collect(),
        key_commitment: hex(&commitment(&master, repository, hides)),
    };
    slots::add(store, repository, &master, &params.encryption)?;
    put_json(store, CONFIG, &config)?;
    leftovers.iter().try_for_each(|listed| store.delete(&listed.key))
}

fn put_json(store: &dyn Store, key: &str, value: &impl Serialize) -> Result<(), Error> {
    let mut text = serde_json::to_string(value).expect("it is plain data");
    text.push('\n');
    match store.put_if_absent(key, text.as_bytes())? {
        Put::Created => Ok(()),
        Put::Existed => Err(Error::Invalid(format!("another process has just made {key}"))),
    }
}

/// Reads the settings of a repository of untrusted bytes.
pub(crate) fn parse_config(bytes: &[u8]) -> Result<Config, Error> {
    #[derive(Deserialize)]
    struct Version {
        tintype: u32,
    }
    let damaged = || Error::damaged(CONFIG, None, "it cannot be understood");
    let version: Version = serde_json::from_slice(bytes).map_err(|_| damaged())?;
    if version.tintype != FORMAT {
        return Err(Error::Unsupported(format!(
            "the repository has format {}, and this version knows format {FORMAT}",
            version.tintype
        )));
    }
    let config: Config = serde_json::from_slice(bytes).map_err(|_| damaged())?;
    match config.features.iter().find(|feature| *feature != SEALED) {
        None => Ok(config),
        Some(feature) => Err(Error::Unsupported(format!(
            "the repository uses `{feature}`, which this version does not know"
        ))),
    }
}
