//! A VM whose guest runs while its disks are still being filled: what is kept of
//! that on disk, who sees to it, and what a command does that meets such a VM.
//!
//! ```text
//! vms/NAME/filling.json           what is filled, from what, in which QEMU: there until
//!                                 every disk is whole
//!          filling-progress.json  how far it is, for whoever asks
//!          filling.lock           locked by the disk server, or by the one that stands by
//! run/NAME.disks                  where what is missing is served
//!          .fill                  QEMU's second monitor
//! ```
//!
//! The images themselves tell: a disk that is not whole names the socket in its header.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tintype_types::{ByteCount, SnapshotId, VmName};
use tintype_vm::{FillImage, Guest, ProcessId, export_name, fill_arguments};

use crate::Engine;
use crate::error::{DAMAGE_HINT, Error, Result};
use crate::home::{read_json, remove_durably, try_lock, write_json};
use crate::observer::Progress;
use crate::vms::LeasedVm;

/// Between two looks how far filling is.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How long a disk server may take until it serves, or says why not.
const SERVE_LIMIT: Duration = Duration::from_secs(20);

/// What is being filled in which QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FillingState {
    /// The repository of the snapshot.
    pub(crate) repository: PathBuf,
    /// The snapshot.
    pub(crate) snapshot: SnapshotId,
    /// The disks, in the order in which they are filled.
    pub(crate) disks: Vec<FillingDisk>,
    /// The QEMU; none while it is being started.
    pub(crate) process: Option<ProcessId>,
    /// Why its disks cannot be filled behind a guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<String>,
}

/// One disk that is being filled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FillingDisk {
    /// The name of its image in the snapshot.
    pub(crate) image: String,
    /// The file that is filled.
    pub(crate) file: PathBuf,
}

impl FillingState {
    pub(crate) fn images(&self) -> impl Iterator<Item = FillImage<'_>> {
        let numbered = self.disks.iter().enumerate();
        numbered.map(|(number, disk)| FillImage { number, file: &disk.file })
    }
}

/// How far filling is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filling {
    /// Bytes of disks that are there, zeros included.
    pub done: ByteCount,
    /// Bytes of disks.
    pub total: ByteCount,
    /// Why it does not go on.
    pub error: Option<String>,
    /// The disk server; 0 before there was one, and while the VM does not run.
    pub server: u32,
    /// Whether what is missing can be read.
    pub serving: bool,
}

impl Filling {
    /// Returns how much is there, in percent, rounded down.
    pub fn percent(&self) -> u64 {
        self.done.get().saturating_mul(100).checked_div(self.total.get()).unwrap_or(0)
    }
}

/// A QEMU that is being started with disks that are not whole. Dropping it lets the
/// disk server look whether there is one.
pub(crate) struct FillingStart {
    state: FillingState,
    server: Child,
}

impl Engine {
    pub(crate) fn filling_state(&self, vm: &VmName) -> Result<Option<FillingState>> {
        read_json(&self.home.filling_file(vm))
    }

    pub(crate) fn note_filling(&self, vm: &VmName, state: &FillingState) -> Result<()> {
        write_json(&self.home.filling_file(vm), state)
    }

    /// Returns how far the filling of a VM's disks is; `None` if they are whole.
    pub(crate) fn filling(&self, vm: &VmName) -> Result<Option<Filling>> {
        let Some(state) = self.filling_state(vm)? else { return Ok(None) };
        let filling: Option<Filling> = read_json(&self.home.fill_progress_file(vm))?;
        let filling = filling.unwrap_or_default();
        Ok(Some(match state.process.is_some_and(ProcessId::is_alive) {
            true => filling,
            false => Filling { server: 0, serving: false, ..filling },
        }))
    }

    /// Returns why the QEMU that was started last could not have its disks filled behind
    /// its guest, if it could not.
    pub(crate) fn refused_filling(&self, vm: &VmName) -> Result<Option<String>> {
        Ok(self.filling_state(vm)?.and_then(|state| state.refusal))
    }

    /// Forgets filling, when every disk is whole or none is needed any more.
    pub(crate) fn forget_filling(&self, vm: &VmName) -> Result<()> {
        for socket in [self.home.disks_socket(vm), self.home.fill_monitor(vm)] {
            let _ = socket.map(fs::remove_file);
        }
        let _ = fs::remove_file(self.home.fill_progress_file(vm));
        remove_durably(&self.home.filling_file(vm))
    }

    /// Takes the lock of who sees to the filling; `None` if somebody does.
    pub(crate) fn filling_lock(&self, vm: &VmName) -> Result<Option<File>> {
        try_lock(&self.home.filling_lock(vm))
    }

    /// Waits until a disk server that this VM had before has ended.
    pub(crate) fn await_filling_lock(&self, vm: &VmName) -> Result<File> {
        let deadline = Instant::now() + SERVE_LIMIT;
        loop {
            if let Some(lock) = self.filling_lock(vm)? {
                return Ok(lock);
            }
            if Instant::now() > deadline {
                return Err(Error::failed("the disk server before this one does not end")
                    .hint(format!("try again; `tintype vm show {vm}` says what still runs")));
            }
            sleep(LOOK_INTERVAL);
        }
    }

    /// Returns what the header of a disk names until it is whole.
    pub(crate) fn export_of(&self, vm: &VmName, image: &str) -> Result<String> {
        Ok(export_name(&self.home.disks_socket(vm)?, image))
    }

    /// Prepares the start of a QEMU if some of its disks are not whole: what is missing
    /// is served from here on.
    pub(crate) fn begin_filling(&self, vm: &LeasedVm) -> Result<Option<FillingStart>> {
        let Some(mut state) = self.filling_state(&vm.name)? else { return Ok(None) };
        let lock = self.await_filling_lock(&vm.name)?;
        (state.process, state.refusal) = (None, None);
        self.note_filling(&vm.name, &state)?;
        let mut server = self.start_disk_server(&vm.name, true, lock)?;
        match self.await_serving(vm, &mut server) {
            Ok(()) => Ok(Some(FillingStart { state, server })),
            Err(error) => {
                let _ = server.kill();
                let _ = server.wait();
                Err(error
                    .state("the VM does not run; what its disks have stays")
                    .hint(format!("the snapshot and its repository are needed: {DAMAGE_HINT}")))
            }
        }
    }

    /// Returns the arguments of a QEMU whose disks are not whole.
    pub(crate) fn filling_arguments(&self, vm: &VmName) -> Result<Vec<String>> {
        let monitor = self.home.fill_monitor(vm)?;
        let _ = fs::remove_file(&monitor);
        Ok(fill_arguments(&monitor))
    }

    /// Looks whether a QEMU that was started so has its disks as it should, and hands
    /// it to the disk server.
    pub(crate) fn filling_began(
        &self,
        vm: &LeasedVm,
        start: FillingStart,
        guest: &mut Guest,
    ) -> Result<()> {
        let FillingStart { mut state, server } = start;
        let socket = self.home.disks_socket(&vm.name)?;
        let checked = guest.check_filling(state.images(), &socket);
        match &checked {
            Ok(()) => state.process = Some(guest.process()),
            Err(error) => state.refusal = Some(error.to_string()),
        }
        self.note_filling(&vm.name, &state)?;
        // It waits for the end of this pipe, and then looks what is noted.
        drop(server);
        Ok(checked?)
    }

    fn await_serving(&self, vm: &LeasedVm, server: &mut Child) -> Result<()> {
        let deadline = Instant::now() + SERVE_LIMIT;
        loop {
            let filling: Option<Filling> = read_json(&self.home.fill_progress_file(&vm.name))?;
            let own = filling.filter(|filling| filling.server == server.id());
            if own.as_ref().is_some_and(|filling| filling.serving) {
                return Ok(());
            }
            if server.try_wait().is_ok_and(|status| status.is_some()) {
                let why = own.and_then(|filling| filling.error);
                let why = why.unwrap_or_else(|| "it was ended".to_owned());
                return Err(cannot_serve(&vm.name).because(why));
            }
            if Instant::now() > deadline {
                return Err(cannot_serve(&vm.name).because("the disk server says nothing"));
            }
            sleep(LOOK_INTERVAL);
        }
    }

    /// Sees to it that somebody serves what is still missing of a VM's disks.
    pub(crate) fn mend_filling(&self, vm: &LeasedVm) -> Result<()> {
        let Some(state) = self.filling_state(&vm.name)? else { return Ok(()) };
        let lock = match state.process.is_some_and(ProcessId::is_alive) {
            true => self.filling_lock(&vm.name)?,
            false => self.note_started(vm, state)?,
        };
        let Some(lock) = lock else { return Ok(()) };
        // The one before may have come to its end just now.
        if self.filling_state(&vm.name)?.is_none() {
            return Ok(());
        }
        self.config.observer.notice(&format!(
            "what filled the disks of `{}` had ended; another one goes on with it",
            vm.name
        ));
        let mut server = self.start_disk_server(&vm.name, false, lock)?;
        self.await_serving(vm, &mut server).map_err(|error| {
            error
                .state("the guest stops where it needs what is missing; nothing of it is lost")
                .hint("the snapshot and its repository are needed; then the next command goes on")
        })
    }

    /// Notes a QEMU whose start was killed before that was done, if there is one. Who
    /// served its disks ends by itself; returns the lock that it had.
    fn note_started(&self, vm: &LeasedVm, mut state: FillingState) -> Result<Option<File>> {
        let Some(mut guest) = vm.foreign_start() else { return Ok(None) };
        let socket = self.home.disks_socket(&vm.name)?;
        if guest.check_filling(state.images(), &socket).is_err() {
            return Ok(None);
        }
        let lock = self.await_filling_lock(&vm.name)?;
        state.process = Some(guest.process());
        self.note_filling(&vm.name, &state)?;
        Ok(Some(lock))
    }

    fn cannot_fill(&self, vm: &VmName) -> Error {
        Error::failed(format!("the disks of `{vm}` cannot be filled to their end"))
            .state("the guest stops where it needs what is missing; nothing of it is lost")
            .hint(format!("{DAMAGE_HINT}; soon after it is mended the guest goes on; `tintype vm show {vm}` says how far it is"))
    }

    /// Waits until the disks of a VM that runs are whole. One that does not run is
    /// refused.
    pub(crate) fn await_filling(&self, vm: &LeasedVm) -> Result<()> {
        let mut is_told = false;
        while let Some(filling) = self.filling(&vm.name)? {
            if !vm.is_alive() {
                return Err(self.not_whole(&vm.name, &filling));
            }
            if !is_told {
                self.config.observer.notice(&format!(
                    "the disks of `{}` are still being filled: waiting for the rest",
                    vm.name
                ));
                is_told = true;
            }
            if let Some(error) = filling.error {
                return Err(self.cannot_fill(&vm.name).because(error));
            }
            let (done, total) = (filling.done, Some(filling.total));
            self.config.observer.progress(Progress { activity: "filling disks", done, total });
            self.check_interruption().map_err(|error| error.state("nothing was changed"))?;
            self.mend_filling(vm)?;
            sleep(LOOK_INTERVAL);
        }
        Ok(())
    }

    fn not_whole(&self, vm: &VmName, filling: &Filling) -> Error {
        let percent = filling.percent();
        Error::refused(format!("the disks of `{vm}` are not whole: {percent} % of them are there"))
            .state("nothing was changed")
            .hint(format!("`tintype vm start {vm}` goes on with them"))
    }

    /// Refuses to forget a VM whose disks are not whole, while they are there.
    pub(crate) fn refuse_unfilled(&self, vm: &LeasedVm) -> Result<()> {
        let Some(filling) = self.filling(&vm.name)? else { return Ok(()) };
        let Some(state) = self.filling_state(&vm.name)? else { return Ok(()) };
        if vm.is_alive() {
            let (vm, percent) = (&vm.name, filling.percent());
            return Err(Error::refused(format!(
                "the disks of `{vm}` are still being filled ({percent} %)"
            ))
            .state("nothing was changed")
            .hint(format!("`tintype vm show {vm}` says how far it is")));
        }
        match state.disks.iter().find(|disk| disk.file.exists()) {
            None => Ok(()),
            Some(disk) => Err(self.not_whole(&vm.name, &filling).hint(format!(
                "`tintype vm start {}` goes on with them; to give the VM up, delete them first, such as {}",
                vm.name,
                disk.file.display()
            ))),
        }
    }
}

fn cannot_serve(vm: &VmName) -> Error {
    Error::failed(format!("what the disks of `{vm}` lack cannot be served"))
}
