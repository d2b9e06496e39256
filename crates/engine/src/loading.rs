//! A VM whose guest runs while its memory is still being loaded: what is kept of
//! that on disk, who sees to it, and what a command does that meets such a VM.
//!
//! ```text
//! vms/NAME/loading.json    what is loaded, into which QEMU: there until all is there
//!          progress.json   how far it is, for whoever asks
//!          loading.lock    locked by the page server, or by the one that stands by
//! run/NAME.ram.in          QEMU's second monitor
//! ```

use std::fs::{self, File};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tintype_types::{ByteCount, SnapshotId, VmName};
use tintype_vm::{Process, ProcessId, RescuePipe};

use crate::Engine;
use crate::error::{DAMAGE_HINT, Error, Result};
use crate::home::{read_json, remove_durably, try_lock, write_json};
use crate::observer::Progress;
use crate::vms::LeasedVm;

/// Between two looks how far loading is.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a page server may take until it goes on with a guest, or says why not.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(20);

/// How long a process that was killed may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(20);

/// What is being loaded into which QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoadingState {
    /// The repository of the snapshot.
    pub(crate) repository: PathBuf,
    /// The snapshot.
    pub(crate) snapshot: SnapshotId,
    /// The QEMU; none while it is being started.
    pub(crate) process: Option<ProcessId>,
}

/// How far loading is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loading {
    /// Bytes of memory that are there.
    pub done: ByteCount,
    /// Bytes of memory.
    pub total: ByteCount,
    /// How often the guest had to wait for a page.
    pub requests: u64,
    /// Why it does not go on.
    pub error: Option<String>,
    /// The page server; 0 before there was one.
    pub server: u32,
    /// Whether the page server has the guest.
    pub serving: bool,
}

impl Loading {
    /// Returns how much is there, in percent, rounded down.
    pub fn percent(&self) -> u64 {
        self.done.get().saturating_mul(100).checked_div(self.total.get()).unwrap_or(0)
    }
}

impl Engine {
    pub(crate) fn loading_state(&self, vm: &VmName) -> Result<Option<LoadingState>> {
        read_json(&self.home.loading_file(vm))
    }

    pub(crate) fn note_loading(&self, vm: &VmName, state: &LoadingState) -> Result<()> {
        write_json(&self.home.loading_file(vm), state)
    }

    /// Returns how far the loading of a VM is; `None` if all is there.
    pub(crate) fn loading(&self, vm: &VmName) -> Result<Option<Loading>> {
        let Some(state) = self.loading_state(vm)? else { return Ok(None) };
        if !state.process.is_some_and(ProcessId::is_alive) {
            return Ok(None);
        }
        Ok(Some(read_json(&self.home.progress_file(vm))?.unwrap_or_default()))
    }

    /// Forgets loading, when all is there or nobody needs it any more.
    pub(crate) fn forget_loading(&self, vm: &VmName) -> Result<()> {
        let Ok(pipe) = self.rescue_pipe(vm) else { return Ok(()) };
        pipe.remove();
        let _ = fs::remove_file(self.home.progress_file(vm));
        remove_durably(&self.home.loading_file(vm))
    }

    pub(crate) fn rescue_pipe(&self, vm: &VmName) -> Result<RescuePipe> {
        Ok(RescuePipe::new(&self.home.rescue_path(vm)?))
    }

    /// Takes the lock of who sees to the loading; `None` if somebody does.
    pub(crate) fn loading_lock(&self, vm: &VmName) -> Result<Option<File>> {
        try_lock(&self.home.loading_lock(vm))
    }

    /// Sees to it that somebody loads what is still missing of a VM's memory.
    pub(crate) fn mend_loading(&self, vm: &LeasedVm) -> Result<()> {
        let Some(state) = self.loading_state(&vm.name)? else { return Ok(()) };
        let Some(lock) = self.loading_lock(&vm.name)? else { return Ok(()) };
        if !state.process.is_some_and(ProcessId::is_alive) {
            return self.forget_loading(&vm.name);
        }
        self.config.observer.notice(&format!(
            "what loaded the memory of `{}` had ended; another one goes on with it",
            vm.name
        ));
        let before: Option<Loading> = read_json(&self.home.progress_file(&vm.name))?;
        let has_failed = before.is_some_and(|loading| loading.error.is_some());
        let _ = fs::remove_file(self.home.progress_file(&vm.name));
        self.start_page_server(&vm.name, None, lock)?;
        let deadline = Instant::now() + TAKE_OVER_LIMIT;
        loop {
            // It is done, or has the guest, or has ended and said why. Where one has
            // failed before, the next one soon knows whether it fails, too.
            let Some(loading) = self.loading(&vm.name)? else { return Ok(()) };
            if let Some(error) = loading.error {
                return Err(self.cannot_load(&vm.name).because(error));
            }
            let is_late = Instant::now() > deadline;
            if loading.serving && (is_late || !has_failed) {
                return Ok(());
            }
            if is_late {
                return Err(self.cannot_load(&vm.name).because("the page server says nothing"));
            }
            sleep(LOOK_INTERVAL);
        }
    }

    fn cannot_load(&self, vm: &VmName) -> Error {
        Error::failed(format!("the memory of `{vm}` cannot be loaded to its end"))
            .state("the guest waits where it needs what is missing; nothing of it is lost")
            .hint(format!("{DAMAGE_HINT}; then `tintype vm show {vm}` goes on, or `tintype vm stop {vm} --force` and `tintype revert` give it up"))
    }

    /// Waits until all memory of a VM is there.
    pub(crate) fn await_loading(&self, vm: &LeasedVm) -> Result<()> {
        let mut is_told = false;
        loop {
            let Some(loading) = self.loading(&vm.name)? else {
                return self.forget_loading_of_the_dead(vm);
            };
            if !is_told {
                self.config.observer.notice(&format!(
                    "the memory of `{}` is still being loaded: waiting for the rest",
                    vm.name
                ));
                is_told = true;
            }
            if let Some(error) = loading.error {
                return Err(self.cannot_load(&vm.name).because(error));
            }
            self.config.observer.progress(Progress {
                activity: "loading",
                done: loading.done,
                total: Some(loading.total),
            });
            self.check_interruption().map_err(|error| error.state("nothing was changed"))?;
            self.mend_loading(vm)?;
            sleep(LOOK_INTERVAL);
        }
    }

    fn forget_loading_of_the_dead(&self, vm: &LeasedVm) -> Result<()> {
        match self.loading_state(&vm.name)? {
            None => Ok(()),
            Some(_) => self.forget_loading(&vm.name),
        }
    }

    /// Ends a QEMU whose memory is not all there, and who loads it. Nothing happens
    /// to any other.
    pub(crate) fn end_loading(&self, vm: &LeasedVm) -> Result<()> {
        let Some(state) = self.loading_state(&vm.name)? else { return Ok(()) };
        state.process.map_or(Ok(()), end_loaded)?;
        self.forget_loading(&vm.name)
    }
}

/// Ends a QEMU that may not have its memory yet.
pub(crate) fn end_loaded(id: ProcessId) -> Result<()> {
    let process = Process::open(id.pid).ok().filter(|process| process.id() == id);
    let Some(process) = process else { return Ok(()) };
    // Its threads may wait for memory: it would not end by itself.
    process.kill();
    if !process.wait_end(END_LIMIT) {
        return Err(Error::failed("the old QEMU does not end"));
    }
    Ok(())
}
