//! Where the built guests are, and what each consists of.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Error;

/// A guest that `cargo xtask guests` builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// Busybox in memory; a 64 MiB ext4 disk without partitions is mounted at `/disk`.
    /// Comes up with no disk as well. Some 6 s to boot under emulation.
    Tiny,
    /// Debian with systemd, guest agent, ssh and sqlite on a disk with partitions.
    /// Some 15 s to boot under emulation.
    Debian,
}

/// The files of a guest.
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    pub(crate) disk: PathBuf,
    /// What the kernel is told.
    pub(crate) command_line: String,
}

impl GuestKind {
    /// Returns the name of the guest and of its folder.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Debian => "debian",
        }
    }

    /// Returns the folder with the guest's `vmlinuz`, `initrd`, `disk.qcow2` and `command-line`.
    pub fn folder(self) -> PathBuf {
        guests_folder().join(self.name())
    }

    /// Says whether the guest has been built.
    pub fn is_built(self) -> bool {
        self.image().is_ok()
    }

    /// Returns how much memory the guest gets unless asked otherwise, in MiB.
    pub(crate) const fn memory_mib(self) -> u32 {
        match self {
            Self::Tiny => 256,
            Self::Debian => 512,
        }
    }

    pub(crate) fn image(self) -> Result<Image, Error> {
        let file = |name: &str| {
            let path = self.folder().join(name);
            if path.is_file() { Ok(path) } else { Err(Error::NotBuilt { path }) }
        };
        let path = file("command-line")?;
        let command_line = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        Ok(Image {
            kernel: file("vmlinuz")?,
            initrd: file("initrd")?,
            disk: file("disk.qcow2")?,
            command_line,
        })
    }
}

/// Returns the folder that holds the built guests: `target/guests` of the
/// workspace, or what `TINTYPE_GUESTS` says. The only look at the environment.
pub fn guests_folder() -> PathBuf {
    std::env::var_os("TINTYPE_GUESTS")
        .map_or_else(|| workspace_folder().join("target/guests"), PathBuf::from)
}

/// Returns the root of the workspace that this crate was compiled in.
pub fn workspace_folder() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Returns a folder of cases that others have made, which lies beside the checkout on the
/// machines that have it.
pub fn oracle_folder(name: &str) -> Option<PathBuf> {
    let folder = workspace_folder().parent()?.join("shared/oracles").join(name);
    folder.is_dir().then_some(folder)
}
