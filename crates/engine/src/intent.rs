//! What a command is about to do to a VM, on disk before it does it, so that the
//! next command can finish it or take it back.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tintype_types::{SnapshotId, SnapshotName, VmName};
use tintype_vm::{Footprint, ProcessId};

use crate::Engine;
use crate::error::Result;
use crate::home::{read_json, remove_durably, write_json};

/// What a command is about to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub(crate) enum Intent {
    /// A take changes QEMU, and only for its own time: take it back.
    Take {
        /// What it changes.
        footprint: Footprint,
        /// Whether it may freeze the guest: thaw it.
        #[serde(default)]
        freezes: bool,
        /// The name of the snapshot that the user's programs were told: those after
        /// the instant are due.
        #[serde(default)]
        hooks: Option<SnapshotName>,
    },
    /// A revert overwrites the VM: finish it.
    Revert {
        /// The repository of both snapshots.
        repository: PathBuf,
        /// The snapshot that the VM is to become.
        target: SnapshotId,
        /// The snapshot of what is overwritten.
        safety: Option<SnapshotId>,
    },
    /// A revert has loaded its target: let the guest run. From here on it may have
    /// run and written, so nothing is overwritten any more.
    Reverted {
        /// The QEMU that has loaded it.
        process: ProcessId,
        /// Whether the guest is to run.
        run: bool,
        /// Whether it was frozen at its instant: thaw it.
        #[serde(default)]
        thaw: bool,
    },
    /// A stop stores bitmaps in the images of a VM: remove them, unless it has stopped.
    Stop {
        /// The QEMU that is to end.
        process: ProcessId,
    },
    /// A VM is being made of a snapshot: remove it, nobody was told of it yet.
    Clone {
        /// The folder of its disks, which did not exist before.
        folder: PathBuf,
    },
    /// A QEMU is being started: it runs on, if it comes.
    Start,
}

impl Engine {
    pub(crate) fn intend(&self, vm: &VmName, intent: &Intent) -> Result<()> {
        write_json(&self.home.intent_file(vm), intent)
    }

    pub(crate) fn intent(&self, vm: &VmName) -> Result<Option<Intent>> {
        read_json(&self.home.intent_file(vm))
    }

    pub(crate) fn forget_intent(&self, vm: &VmName) -> Result<()> {
        remove_durably(&self.home.intent_file(vm))
    }
}
