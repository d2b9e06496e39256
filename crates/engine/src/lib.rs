//! The use cases, from take to revert and from deletion to doctor. The boundary for every front
//! end, and the only room that knows both a VM and a repository.
//!
//! It prints nothing and reads no environment: a front end hands it an
//! [`EngineConfig`] and hears of what goes on through an [`Observer`].

mod boot;
mod clone;
mod copy;
mod details;
mod differences;
mod disk_server;
mod disks;
mod doctor;
mod error;
mod export;
mod files;
mod filling;
mod grace;
mod growth;
mod heal;
mod home;
mod hooks;
mod import;
mod intent;
mod keys;
mod labels;
mod lazy;
mod lazy_disks;
mod lease;
mod life;
#[cfg(test)]
mod life_tests;
mod loading;
mod media;
mod memory;
mod names;
mod new_disks;
mod observer;
mod operations;
mod page_server;
mod pages;
mod places;
mod powered_off;
mod prune;
mod quiesce;
mod removal;
mod repair;
mod restore;
mod restored_vm;
mod revert;
mod room;
mod served_disk;
mod servers;
mod settings;
mod settle;
mod shared_memory;
mod sink;
mod snapshots;
mod space;
mod start_script;
mod stop;
mod stored;
mod supervisor;
mod take;
mod tracking;
mod trash;
mod undo;
mod verify;
mod vms;
mod watchdog;
mod working_set;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tintype_repo::{CacheParams, InitParams, Kind, Location, Repository, Site};
use tintype_types::ByteCount;

pub use boot::{BootOutcome, BootReport};
pub use clone::{CloneParams, CloneReport, ClonedVm, MadeVm};
pub use copy::{CopiedSnapshot, CopyAction, CopyParams, CopySummary};
pub use details::{
    Details, DiskRead, DiskReport, MemoryBlock, Purpose, Reading, SavedDisk, SavedFile, Snapshot,
    SnapshotReport,
};
pub use disk_server::DiskServerStart;
pub use doctor::{Finding, Health};
pub use error::{Error, ErrorKind, Result};
pub use export::{ExportFormat, ExportParams, ExportReport};
pub use filling::Filling;
pub use grace::DEFAULT_GRACE;
pub use growth::Growth;
pub use home::Home;
pub use import::{ImportParams, ImportReport, ImportedSnapshot};
pub use keys::{EncryptionKind, InitReport};
pub use labels::TagParams;
pub use lazy::LoadMode;
pub use loading::Loading;
pub use names::{NamedSnapshot, Names};
pub use observer::{Observer, Progress, Silence, Step};
pub use operations::{Caller, Operation};
pub use page_server::PageServerStart;
pub use prune::{PruneParams, PruneReport, PrunedSnapshot, PrunedVm};
pub use quiesce::{Quiesce, QuiesceParams, Quiesced};
pub use removal::RemovalReport;
pub use repair::{MendedSnapshot, OtherContent, RepairParams, RepairSummary};
pub use restore::{RestoreParams, RestoreReport};
pub use restored_vm::RunParams;
pub use revert::{RevertParams, RevertReport};
pub use room::{Bound, BoundKind};
pub use settings::{SettingsChange, VmSettings};
pub use space::{LogEntry, Ratio, SnapshotSpace, SpaceReport, VmSpace};
pub use take::TakeParams;
pub use tintype_repo::{Encryption, KeySlot, Origin, S3Access};
pub use tintype_retention::{Count, Period, Policy, TagSet};
use tintype_vm::Agent;
pub use tintype_vm::{Cancel, MovedPort, Way};
pub use trash::{CollectionParams, CollectionReport, DeletedSnapshot, NotCompacted, TrashReport};
pub use undo::UndoReport;
pub use verify::{LostPart, VerifySummary};
pub use vms::{VmReport, VmState};

/// What to do about a server that would lose snapshots.
const UNSAFE_STORE_HINT: &str = "use a folder, or an S3 server where `If-None-Match: *` lets one of several puts win, such as AWS or Ceph";

/// What to do if a repository cannot be opened.
pub(crate) struct Hints {
    /// How the options begin that give its keys.
    options: &'static str,
    /// For want of a key.
    key: &'static str,
    /// For any other reason.
    place: &'static str,
}

/// For want of an access key.
const ACCESS_KEY_HINT: &str = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY give an access key";

/// For the repository of the command.
const OWN: Hints = Hints {
    options: "--",
    key: "--key-file, --passphrase-file, TINTYPE_PASSPHRASE or --age-identity gives a key that fits",
    place: "`tintype init` makes one; --repo or TINTYPE_REPO says where it is",
};

/// For one that is copied to.
pub(crate) const COPIED_TO: Hints = Hints {
    options: "--to-",
    key: "--to-key-file, --to-passphrase-file, TINTYPE_TO_PASSPHRASE or --to-age-identity gives a key that fits",
    place: "`tintype --repo URL init` makes one; --to says where it is",
};
/// For one that damage is mended from.
pub(crate) const MENDED_FROM: Hints = Hints {
    options: "--from-",
    key: "--from-key-file, --from-passphrase-file, TINTYPE_FROM_PASSPHRASE or --from-age-identity gives a key that fits",
    place: "--from says where it is",
};

/// What a front end decides.
#[derive(Clone)]
pub struct EngineConfig {
    /// The folder of registered VMs.
    pub home: PathBuf,
    /// The repository, a folder or `s3://BUCKET/PREFIX`; the default one in the
    /// home if there is none.
    pub repository: Option<PathBuf>,
    /// How to reach the S3 server of repositories in buckets.
    pub s3: Option<S3Access>,
    /// The bytes of buckets that may be kept in the home.
    pub cache_limit: ByteCount,
    /// How much the repository may hold.
    pub budget: Option<ByteCount>,
    /// How long what is deleted can be put back at least.
    pub grace: Period,
    /// What opens the repository, besides the key file in the home.
    pub keys: Vec<Encryption>,
    /// Variables of the environment for QEMUs that are started.
    pub environment: Vec<(String, String)>,
    /// The command that starts processes which see to a VM behind or after a command,
    /// but for which one and the name of the VM; empty for none.
    pub helper: Vec<String>,
    /// How long to wait for another command on the same VM.
    pub patience: Duration,
    /// Who runs this command, for the log of operations.
    pub caller: Caller,
    /// Says what time it is.
    pub clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    /// The wish to stop.
    pub cancel: Cancel,
    /// Who hears what goes on.
    pub observer: Arc<dyn Observer>,
}

/// The use cases over one home and one repository.
pub struct Engine {
    config: EngineConfig,
    home: Home,
    /// The passphrase that the user typed.
    typed: OnceLock<Encryption>,
    /// The channel to a guest agent that a watchdog was given.
    inherited: Mutex<Option<Agent>>,
}

impl Engine {
    /// Opens the home; the repository is opened when it is needed.
    pub fn open(config: EngineConfig) -> Result<Self> {
        let home = Home::open(&config.home)?;
        Ok(Self { config, home, typed: OnceLock::new(), inherited: Mutex::default() })
    }

    /// Returns the time by the clock of this machine.
    pub(crate) fn now(&self) -> Timestamp {
        (self.config.clock)()
    }

    /// Opens the repository. The default one is made on first use.
    pub(crate) fn repository(&self) -> Result<Repository> {
        self.repository_at(&self.repository_place())
    }

    /// Opens the repository in a place, which may not be the one of this command.
    pub(crate) fn repository_at(&self, place: &Path) -> Result<Repository> {
        if self.config.repository.is_none() && !place.exists() {
            return self.make_default_repository(place);
        }
        self.open_repository(place)
    }

    /// Opens the repository that is in a place.
    pub(crate) fn open_repository(&self, place: &Path) -> Result<Repository> {
        self.open_site(self.site(place), place, &self.keys_at_hand()?, &OWN)
    }

    /// Opens a repository beside the one of this command, with keys of its own.
    pub(crate) fn open_other_repository(
        &self,
        place: &Path,
        keys: &[Encryption],
        s3: Option<&S3Access>,
        hints: &Hints,
    ) -> Result<Repository> {
        keys::must_exist(keys, hints.options)?;
        let site = self.site(place).map(|site| Site { s3: s3.cloned().or(site.s3), ..site });
        self.open_site(site, place, &[keys, &self.keys_at_hand()?].concat(), hints)
    }

    fn open_site(
        &self,
        site: Result<Site, tintype_repo::Error>,
        place: &Path,
        keys: &[Encryption],
        hints: &Hints,
    ) -> Result<Repository> {
        let reachable = site.as_ref().is_ok_and(|site| site.s3.is_some());
        let opened = site.and_then(|site| {
            let mut opened = Repository::open_at(&site, keys);
            if opened.as_ref().is_err_and(tintype_repo::Error::wants_passphrase)
                && let Some(key) = self.ask_passphrase(place)
            {
                opened = Repository::open_at(&site, std::slice::from_ref(&key))
                    .inspect(|_| drop(self.typed.set(key)));
            }
            opened
        });
        opened.map_err(|error| {
            let hint = match error.kind() {
                Kind::UnsafeStore => UNSAFE_STORE_HINT,
                Kind::Key if is_bucket(place) && !reachable => ACCESS_KEY_HINT,
                Kind::Key => hints.key,
                _ => hints.place,
            };
            Error::failed(format!("cannot open the repository {}", place.display()))
                .because(error)
                .state("nothing was changed")
                .hint(hint)
        })
    }

    fn make_default_repository(&self, place: &Path) -> Result<Repository> {
        let encryption = self.encryption(EncryptionKind::default())?;
        let repository = self.make_repository(place, &encryption)?;
        if let Encryption::KeyFile(key) = &encryption {
            self.config.observer.notice(&format!(
                "made the repository {}; keep a copy of its key {} elsewhere: without it no snapshot can be read",
                place.display(),
                key.display()
            ));
        }
        Ok(repository)
    }

    pub(crate) fn make_repository(
        &self,
        place: &Path,
        encryption: &Encryption,
    ) -> Result<Repository> {
        let mut params = InitParams::default();
        params.encryption = encryption.clone();
        let made = self.site(place).and_then(|site| Repository::init_at(&site, params));
        made.map_err(|error| {
            let hint = match error.kind() {
                Kind::UnsafeStore => Some(UNSAFE_STORE_HINT),
                Kind::Key if is_bucket(place) => Some(ACCESS_KEY_HINT),
                Kind::Occupied => Some(
                    "--repo or TINTYPE_REPO names another place; a repository that is there \
                     already needs no `tintype init`",
                ),
                _ => None,
            };
            let what = format!("cannot make the repository {}", place.display());
            let error = Error::failed(what).because(error);
            match hint {
                Some(hint) => error.state("nothing was changed").hint(hint),
                None => error,
            }
        })
    }

    /// Returns the place of the repository for a command that starts in another folder.
    pub(crate) fn absolute_repository_place(&self) -> PathBuf {
        let place = self.repository_place();
        match is_bucket(&place) {
            true => place,
            false => std::path::absolute(&place).unwrap_or(place),
        }
    }

    fn site(&self, place: &Path) -> Result<Site, tintype_repo::Error> {
        let cache =
            CacheParams { folder: self.home.cache_folder(), limit: self.config.cache_limit.get() };
        let location = Location::parse(place)?;
        Ok(Site { location, s3: self.config.s3.clone(), cache: Some(cache) })
    }

    fn repository_place(&self) -> PathBuf {
        self.config.repository.clone().unwrap_or_else(|| self.home.default_repository())
    }
}

/// Whether a place is in a bucket, not a folder.
fn is_bucket(place: &Path) -> bool {
    matches!(Location::parse(place), Ok(Location::Bucket(_)))
}
