//! Stops a VM: by its power button, or at once.
//!
//! ```text
//! lease ─ intent ─ bitmaps stored ─ power button ─ QEMU ends ─ intent forgotten
//!                        └──────── it does not: bitmaps removed ──────┘
//! ```

use std::time::Duration;

use tintype_types::VmName;
use tintype_vm::Guest;

use crate::Engine;
use crate::error::{Error, Result};
use crate::heal::unless_ended;
use crate::observer::Step;
use crate::revert::end_connected;
use crate::vms::{DEATH_LIMIT, LeasedVm, VmReport};

/// How long a guest may take to shut itself down before `--force` is suggested.
const POWER_DOWN_LIMIT: Duration = Duration::from_secs(60);

impl Engine {
    /// Stops a VM: by its power button, or at once with `force`.
    pub fn stop_vm(&self, name: &VmName, force: bool) -> Result<VmReport> {
        match force {
            true => self.stop_at_once(name),
            false => self.stop_by_power_button(name),
        }
    }

    fn stop_at_once(&self, name: &VmName) -> Result<VmReport> {
        // Nothing is repaired before: it may be QEMU that hangs.
        let mut vm = self.lease_as_it_is(name, "vm stop")?;
        self.end_loading(&vm)?;
        if !vm.is_alive() {
            return self.report(&vm);
        }
        let mut connected = vm.connect();
        let mut intended = false;
        if let Ok(guest) = &mut connected
            && self.intent(name)?.is_none()
        {
            intended = self.try_store_bitmaps(&mut vm, guest);
        }
        end_connected(&vm, connected)?;
        if intended {
            self.forget_intent(name)?;
        }
        self.report(&vm)
    }

    fn stop_by_power_button(&self, name: &VmName) -> Result<VmReport> {
        let mut vm = self.lease(name, "vm stop")?;
        if !vm.is_alive() {
            return self.report(&vm);
        }
        let mut guest = vm.connect()?;
        let intended = self.try_store_bitmaps(&mut vm, &mut guest);
        let powered_down = self.power_down(&vm, &mut guest);
        if powered_down.is_ok() {
            self.config.observer.step(Step::StopEnded);
        }
        if intended {
            let taken_back = match powered_down {
                Ok(()) => self.forget_intent(name),
                Err(_) => {
                    unless_ended(guest.process(), || self.unstore_bitmaps(&mut vm, &mut guest))
                        .and_then(|()| self.forget_intent(name))
                }
            };
            if let Err(error) = taken_back {
                tracing::warn!(%error, "the next command removes what the stop has stored");
            }
        }
        powered_down.and_then(|()| self.report(&vm))
    }

    fn power_down(&self, vm: &LeasedVm, guest: &mut Guest) -> Result<()> {
        let name = &vm.name;
        let cannot = |error| Error::failed(format!("cannot stop `{name}`")).because(error);
        match guest.press_power_button() {
            // It was about to end by itself.
            Err(_) if guest.process().ends_within(DEATH_LIMIT) => return Ok(()),
            pressed => pressed.map_err(cannot)?,
        }
        self.config.observer.step(Step::StopPressed);
        let pressed = "its power button was pressed; it still runs";
        match guest.wait_end(POWER_DOWN_LIMIT, &self.config.cancel) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::failed(format!("`{name}` does not shut down"))
                .state(pressed)
                .hint(format!("`tintype vm stop {name} --force` ends it as a power cut would"))),
            Err(error) => Err(cannot(error).state(pressed)),
        }
    }

    /// Has what has changed of the disks be known after the next start. A stop does not
    /// fail for it. Tells whether there is an intent now.
    fn try_store_bitmaps(&self, vm: &mut LeasedVm, guest: &mut Guest) -> bool {
        self.store_bitmaps(vm, guest).unwrap_or_else(|error| {
            tracing::warn!(%error, "all of the disks will be read by the take after the next start");
            true
        })
    }
}
