//! The folder of one user's tintype: registered VMs and what is under way.
//!
//! ```text
//! HOME/
//!   vms/NAME/vm.json       what is known of the VM
//!            lease         locked by the command that works on the VM
//!            intent.json   what that command is about to do
//!            loading.json  what of its memory is still being loaded (`loading.rs`)
//!            filling.json  what its disks still lack (`filling.rs`)
//!            qemu.log      what QEMU said
//!            take.d/       the user's programs around a take of this VM
//!            hooks.log     what they said
//!            files/        small files of snapshots that the VM was reverted to
//!   take.d/                the user's programs around every take
//!   clones/NAME/           disks and sockets of a VM that was cloned
//!   run/NAME.qmp           monitor sockets of VMs that tintype started
//!   names/                 what snapshots are called, for completion (`names.rs`)
//!   working-sets/          what guests of snapshots needed first (`working_set.rs`)
//!   repository/            the default repository
//!   key                    what opens repositories that this home has made
//! ```
//!
//! Folders are 0700 and files 0600: this is about guest memory.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tintype_types::{SnapshotId, VmName};

use crate::error::{Error, Result};

/// The longest path of a unix socket, without its final NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The folder of one user's tintype.
#[derive(Debug, Clone)]
pub struct Home {
    path: PathBuf,
}

impl Home {
    /// Opens the folder, and makes it if it is not there.
    pub fn open(path: &Path) -> Result<Self> {
        let home = Self { path: path.to_owned() };
        make_folder(&home.path.join("vms"))?;
        make_folder(&home.path.join("run"))?;
        let path = fs::canonicalize(path).map_err(Error::io("open", path))?;
        Ok(Self { path })
    }

    /// Returns the place of the default repository.
    pub fn default_repository(&self) -> PathBuf {
        self.path.join("repository")
    }

    /// Returns where parts of buckets are kept. It can be deleted at any time.
    pub(crate) fn cache_folder(&self) -> PathBuf {
        self.path.join("cache")
    }

    /// Returns the key file that opens repositories unless another key is given.
    pub(crate) fn key_file(&self) -> PathBuf {
        self.path.join("key")
    }

    /// Returns the names of the registered VMs, sorted.
    pub(crate) fn vm_names(&self) -> Result<Vec<VmName>> {
        let folder = self.path.join("vms");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
            let entry = entry.map_err(Error::io("list", &folder))?;
            let name = entry.file_name().to_str().and_then(|name| VmName::new(name).ok());
            if let Some(name) = name.filter(|name| self.vm_file(name).exists()) {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    pub(crate) fn vm_folder(&self, vm: &VmName) -> PathBuf {
        self.path.join("vms").join(vm.as_str())
    }

    pub(crate) fn vm_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("vm.json")
    }

    pub(crate) fn intent_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("intent.json")
    }

    pub(crate) fn lease_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("lease")
    }

    pub(crate) fn loading_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("loading.json")
    }

    pub(crate) fn progress_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("progress.json")
    }

    pub(crate) fn loading_lock(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("loading.lock")
    }

    pub(crate) fn filling_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("filling.json")
    }

    pub(crate) fn fill_progress_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("filling-progress.json")
    }

    pub(crate) fn filling_lock(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("filling.lock")
    }

    /// Returns where a VM's QEMU reads what its disks lack.
    pub(crate) fn disks_socket(&self, vm: &VmName) -> Result<PathBuf> {
        self.socket(&format!("{vm}.disks"))
    }

    /// Returns the second monitor of a QEMU whose disks are being filled.
    pub(crate) fn fill_monitor(&self, vm: &VmName) -> Result<PathBuf> {
        self.socket(&format!("{vm}.fill"))
    }

    /// Returns where it is kept what guests needed first. It can be deleted at any time.
    pub(crate) fn working_sets_folder(&self) -> PathBuf {
        self.path.join("working-sets")
    }

    pub(crate) fn working_set_file(&self, snapshot: SnapshotId) -> PathBuf {
        self.working_sets_folder().join(format!("{snapshot}.json"))
    }

    /// Returns the place of the pipe and of the socket by which a VM whose page
    /// server was lost gets another one.
    pub(crate) fn rescue_path(&self, vm: &VmName) -> Result<PathBuf> {
        self.socket(&format!("{vm}.ram"))
    }

    pub(crate) fn log_file(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("qemu.log")
    }

    /// Returns where the user's programs around a take of this VM are.
    pub(crate) fn hook_folders(&self, vm: &VmName) -> [PathBuf; 2] {
        [self.path.join("take.d"), self.vm_folder(vm).join("take.d")]
    }

    /// Returns where goes what these programs print.
    pub(crate) fn hook_log(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("hooks.log")
    }

    /// Returns the folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn files_folder(&self, vm: &VmName) -> PathBuf {
        self.vm_folder(vm).join("files")
    }

    /// Returns where the folders of clones are, unless they are to be elsewhere.
    pub(crate) fn clones_folder(&self) -> PathBuf {
        self.path.join("clones")
    }

    /// Returns the monitor socket for a VM that tintype starts.
    pub(crate) fn monitor_socket(&self, vm: &VmName) -> Result<PathBuf> {
        self.socket(&format!("{vm}.qmp"))
    }

    fn socket(&self, name: &str) -> Result<PathBuf> {
        let socket = self.path.join("run").join(name);
        let length = socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(Error::invalid(format!(
                "the path of the socket {name} has {length} bytes, and at most {MAX_SOCKET_PATH} are possible"
            ))
            .hint("choose a shorter --home or a shorter name"));
        }
        Ok(socket)
    }

    /// Makes a private folder that goes away with the returned value.
    pub(crate) fn short_lived_folder(&self) -> Result<tempfile::TempDir> {
        let run = self.path.join("run");
        remove_leftovers(&run);
        tempfile::Builder::new()
            .prefix(&format!("t{}-", std::process::id()))
            .rand_bytes(6)
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(&run)
            .map_err(Error::io("make a folder in", &run))
    }
}

/// Removes the short-lived folders of processes that were killed. What cannot be
/// removed now is tried again by the next command.
fn remove_leftovers(run: &Path) {
    let Ok(entries) = fs::read_dir(run) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix('t')?.split_once('-'));
        let owner = owner.and_then(|(process, _)| process.parse::<u32>().ok());
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && owner.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Takes the lock on a file of ours; `None` if somebody has it.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(path).map_err(Error::io("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", path)(error)),
    }
}

/// Makes a folder that only its owner may enter.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(Error::io("make", path))
}

/// Writes a file so that it survives power loss, or is not changed at all.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder_of(path)
    };
    write().map_err(Error::io("write", path))
}

/// Removes a file so that it stays removed after power loss.
pub(crate) fn remove_durably(path: &Path) -> Result<()> {
    match fs::remove_file(path).and_then(|()| sync_folder_of(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Reads a JSON file; `None` if it is not there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(Error::step(format!(
            "{} is damaged, or of another version of tintype",
            path.display()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// Writes a JSON file durably.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value).expect("our own values are plain data");
    write_durably(path, &bytes)
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file without a folder"))?;
    File::open(folder)?.sync_all()
}
