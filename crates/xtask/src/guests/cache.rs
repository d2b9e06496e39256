//! The folder that holds built guests: one sub-folder for each, with the key of
//! what it was made of. Complete folders are moved in; nothing is built in place.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tempfile::TempDir;

use crate::failure::Failure;

/// The cache, locked against other builders until it is dropped.
pub(super) struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache and waits for whoever builds there now.
    pub(super) fn open(root: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(root).map_err(Failure::file("make", root))?;
        let path = root.join("lock");
        let lock = File::create(&path).map_err(Failure::file("make", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|error| Failure::file("lock", &path)(error.into()))?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Returns the folder of that name, which need not exist.
    pub(super) fn folder(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Says whether the folder exists and was made of exactly this.
    pub(super) fn holds(&self, name: &str, key: &Key) -> bool {
        fs::read_to_string(self.folder(name).join("key")).is_ok_and(|text| text == key.0)
    }

    /// Returns the folder, after `build` filled it unless it is up to date.
    ///
    /// A failed build leaves the folder as it was.
    pub(super) fn ensure(
        &self,
        name: &str,
        key: &Key,
        build: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<PathBuf, Failure> {
        let target = self.folder(name);
        if self.holds(name, key) {
            return Ok(target);
        }
        eprintln!("building {}", target.display());
        let fresh = self.scratch()?;
        build(fresh.path())?;
        let file = fresh.path().join("key");
        fs::write(&file, &key.0).map_err(Failure::file("write", &file))?;
        if target.exists() {
            fs::rename(&target, self.scratch()?.path().join("old"))
                .map_err(Failure::file("move away", &target))?;
        }
        let fresh = fresh.keep();
        fs::rename(&fresh, &target).map_err(Failure::file("move in", &target))?;
        Ok(target)
    }

    /// Makes a temporary folder on the cache's file system.
    pub(super) fn scratch(&self) -> Result<TempDir, Failure> {
        tempfile::Builder::new()
            .prefix("build-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .tempdir_in(&self.root)
            .map_err(Failure::file("make a folder in", &self.root))
    }
}

/// What a folder was made of, as a hash in hexadecimal digits.
pub(super) struct Key(String);

impl Key {
    /// Hashes the parts of a recipe: sources, versions, other keys.
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(blake3::hash(part).as_bytes());
        }
        Self(hasher.finalize().to_string())
    }

    /// Returns the bytes of the key, to be a part of another one.
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}
