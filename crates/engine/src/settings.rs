//! What the owner of a VM wants of its snapshots: kept with the VM, until it is forgotten.

use serde::{Deserialize, Serialize};
use tintype_retention::Policy;
use tintype_types::{ByteCount, VmName};

use crate::Engine;
use crate::error::{Error, Result};
use crate::vms::VmReport;

/// What the owner of a VM wants.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmSettings {
    /// What `prune` keeps.
    pub policy: Option<Policy>,
    /// Whether each take is followed by a `prune`.
    pub prune_after_take: bool,
    /// How much its snapshots may need together.
    pub budget: Option<ByteCount>,
}

/// What is to be another way; `None` leaves it as it is.
#[derive(Debug, Clone, Default)]
pub struct SettingsChange {
    /// The policy, or none.
    pub policy: Option<Option<Policy>>,
    /// Whether each take is followed by a `prune`.
    pub prune_after_take: Option<bool>,
    /// The budget, or none.
    pub budget: Option<Option<ByteCount>>,
}

impl Engine {
    /// Changes what is wanted for a VM.
    pub fn configure_vm(&self, name: &VmName, change: &SettingsChange) -> Result<VmReport> {
        // Nothing is repaired before: it has nothing to do with what QEMU does.
        let mut vm = self.lease_as_it_is(name, "vm set")?;
        let mut settings = vm.state.settings.clone();
        if let Some(policy) = &change.policy {
            settings.policy.clone_from(policy);
        }
        settings.prune_after_take = change.prune_after_take.unwrap_or(settings.prune_after_take);
        settings.budget = change.budget.unwrap_or(settings.budget);
        if settings.policy.as_ref().is_some_and(Policy::is_empty) {
            return Err(empty_policy().state("nothing was changed"));
        }
        if settings.prune_after_take && settings.policy.is_none() {
            return Err(Error::invalid(format!("`{name}` has no policy to follow after takes"))
                .state("nothing was changed")
                .hint(format!(
                    "give one: tintype vm set {name} --keep-daily 7 --prune-after-take on; or say --prune-after-take off"
                )));
        }
        vm.state.settings = settings;
        self.save(&vm)?;
        self.report(&vm)
    }
}

/// A policy that would let everything go is a mistake.
pub(crate) fn empty_policy() -> Error {
    Error::invalid("the policy keeps nothing").hint(
        "say what is to be kept, such as --keep-last 3 --keep-daily 7; `tintype rm` deletes by name",
    )
}
