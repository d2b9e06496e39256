//! Repairs what a killed command left, before the next one does anything.

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::intent::Intent;
use crate::vms::LeasedVm;

impl Engine {
    /// Finishes or takes back what the last command was about to do. Doing it
    /// twice is the same as once.
    pub(crate) fn heal(&self, vm: &mut LeasedVm) -> Result<()> {
        match self.intent(&vm.name)? {
            None => return Ok(()),
            Some(Intent::Take { footprint }) => {
                if footprint.process.is_alive() {
                    let mut guest = vm.connect()?;
                    guest.erase(&footprint).map_err(|error| {
                        Error::failed(format!(
                            "cannot repair what a killed take left in `{}`",
                            vm.name
                        ))
                        .because(error)
                        .hint(
                            "try again; if QEMU does not answer, `tintype vm stop --force` ends it",
                        )
                    })?;
                }
                self.config.observer.notice(&format!(
                    "a take of `{}` had been interrupted; what it left is cleaned up",
                    vm.name
                ));
            }
            Some(Intent::Revert { target, safety }) => {
                let repository = self.repository()?;
                let read = |id| {
                    let record =
                        repository.snapshot(id).map_err(Error::step("cannot read the snapshot"))?;
                    Snapshot::read(record)
                };
                let target = read(target)?;
                let safety = safety.map(read).transpose()?;
                self.config.observer.notice(&format!(
                    "a revert of `{}` to `{}` had been interrupted; it is finished now",
                    vm.name, target.record.name
                ));
                self.become_snapshot(&repository, vm, &target, safety.as_ref())?;
            }
        }
        self.forget_intent(&vm.name)
    }
}
