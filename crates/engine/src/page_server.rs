//! The process that loads the memory of a guest which runs already. It outlives the
//! command that started it, and ends by itself.
//!
//! A second process stands by at a pipe, like the watchdog of a take: when the first
//! one ends without a word it takes its place. If both are killed the guest waits
//! where it needs what is missing, and the next command on the VM starts another.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tintype_stream::{DeviceState, Limits};
use tintype_types::{ByteCount, VmName};
use tintype_vm::{Guest, ProcessId};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::loading::Loading;
use crate::memory;
use crate::observer::{Observer, Step};
use crate::pages::{End, Listener, Pump, Source, Unit};
use crate::servers::Serves;
use crate::watchdog::said_all_is_well;
use crate::working_set::{MAX_UNITS, RECORD_TIME};

/// How often progress is written.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How long QEMU may take to want another sender after one was lost.
const RESCUE_LIMIT: Duration = Duration::from_secs(5);

/// How many connections to one QEMU may be lost.
const MAX_CONNECTIONS: usize = 100;

/// How a page server comes to its guest.
pub enum PageServerStart<'s> {
    /// By a connection to a QEMU that has nothing yet.
    New(UnixStream),
    /// The one before it has ended.
    TakeOver,
    /// It waits whether the one before it ends without a word.
    StandBy(&'s mut dyn Read),
}

impl Engine {
    /// Starts a page server: with a connection for a new guest, without one to take
    /// over. The lock is its until it ends.
    pub(crate) fn start_page_server(
        &self,
        vm: &VmName,
        connection: Option<UnixStream>,
        lock: File,
    ) -> Result<Child> {
        let (word, input) = match connection {
            Some(stream) => ("new", Stdio::from(OwnedFd::from(stream))),
            None => ("take-over", Stdio::null()),
        };
        let mut command = self.server(Serves::Memory, vm, word, 0)?;
        let started = command.stdin(input).stdout(lock).spawn();
        started.map_err(Error::step("cannot start what loads the memory"))
    }

    /// Is the page server of a VM, until all memory is there or no more of it can be.
    pub fn serve_pages(
        &self,
        vm: &VmName,
        start: PageServerStart<'_>,
        takeovers: u32,
    ) -> Result<()> {
        let connection = match start {
            PageServerStart::New(stream) => Some(stream),
            PageServerStart::TakeOver => None,
            PageServerStart::StandBy(pipe) => match said_all_is_well(pipe) {
                true => return Ok(()),
                false => None,
            },
        };
        let stand_by = self.have_stand_by(Serves::Memory, vm, takeovers);
        let progress = ProgressFile {
            path: self.home.progress_file(vm),
            observer: Arc::clone(&self.config.observer),
            state: Mutex::new(Told {
                loading: Loading { server: std::process::id(), ..Loading::default() },
                at: None,
                loaded_at: None,
                needed: Vec::new(),
            }),
        };
        let loaded = self.load_rest(vm, connection, &progress);
        match &loaded {
            Ok(()) => {
                let settled = self.rescue_pipe(vm).map(|pipe| pipe.settle());
                if let Ok(Err(error)) = settled {
                    tracing::debug!(%error, "the QEMU has ended");
                }
                self.forget_loading(vm)?;
                self.config.observer.step(Step::LoadForgotten);
            }
            Err(error) => progress.fail(error),
        }
        stand_by.dismiss();
        loaded
    }

    fn load_rest(
        &self,
        vm: &VmName,
        mut connection: Option<UnixStream>,
        progress: &ProgressFile,
    ) -> Result<()> {
        let Some(state) = self.loading_state(vm)? else { return Ok(()) };
        let repository = self.open_repository(&state.repository)?;
        let pin = repository
            .pin(state.snapshot)
            .map_err(Error::step("cannot hold on to the snapshot"))?;
        let snapshot = Snapshot::read(pin.record().clone())?;
        let devices = snapshot.device_state(&repository)?;
        let devices = DeviceState::from_bytes(&devices, Limits::default())
            .map_err(Error::step("the device state of the snapshot is damaged"))?;
        let readers = memory::readers(&repository, &snapshot, &devices)?;
        let source = Source { state: &devices, readers };
        let blocks = devices.ram_blocks();
        let needed_first = self.needed_first(&snapshot, blocks);
        for _ in 0..MAX_CONNECTIONS {
            let is_new = connection.is_some();
            let stream = match connection.take() {
                Some(stream) => Some(stream),
                None => self.rescue(vm)?,
            };
            let Some(stream) = stream else { return Ok(()) };
            let first: &[Unit] = if is_new { &needed_first } else { &[] };
            match Pump::new(&source, &stream, progress, first).run(is_new)? {
                End::Complete => {
                    let (needed, requests) = progress.recorded();
                    let units = [needed_first, needed].concat();
                    self.keep_recorded(state.snapshot, blocks, &units, requests);
                    return Ok(());
                }
                End::Lost => {}
                End::Damaged(error) => return Err(error),
            }
        }
        Err(Error::failed("the connection to QEMU is lost again and again"))
    }

    /// Asks a QEMU whose sender was lost for a connection. `None` if it does not need
    /// one any more.
    fn rescue(&self, vm: &VmName) -> Result<Option<UnixStream>> {
        let pipe = self.rescue_pipe(vm)?;
        let Some(state) = self.loading_state(vm)? else { return Ok(None) };
        if !state.process.is_some_and(ProcessId::is_alive) {
            return Ok(None);
        }
        match pipe.ask_for_connection(RESCUE_LIMIT) {
            Ok(Some(stream)) => return Ok(Some(stream)),
            Err(_) if !state.process.is_some_and(ProcessId::is_alive) => return Ok(None),
            refused => refused?,
        };
        // It does not want one when it has all. Then nothing holds its monitor.
        let cannot = |error| Error::failed("QEMU takes no other page server").because(error);
        let mut guest = Guest::connect(&self.vm_state(vm)?.socket).map_err(cannot)?;
        match guest.has_its_memory().map_err(cannot)? {
            true => Ok(None),
            false => Err(Error::failed("QEMU takes no other page server")),
        }
    }
}

/// Tells whoever asks how far loading is.
struct ProgressFile {
    path: PathBuf,
    observer: Arc<dyn Observer>,
    state: Mutex<Told>,
}

/// What is told.
struct Told {
    loading: Loading,
    /// When it was last written.
    at: Option<Instant>,
    /// When the guest had its devices.
    loaded_at: Option<Instant>,
    /// What it waited for in the beginning, in that order.
    needed: Vec<Unit>,
}

impl ProgressFile {
    fn state(&self) -> MutexGuard<'_, Told> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes why it does not go on.
    fn fail(&self, error: &Error) {
        let mut state = self.state();
        state.loading.error = Some(error.with_causes());
        self.write(&state.loading);
    }

    /// Returns what the guest waited for in the beginning, and how often it did in all.
    fn recorded(&self) -> (Vec<Unit>, u64) {
        let state = self.state();
        (state.needed.clone(), state.loading.requests)
    }

    /// Writes for others to read; what a power loss leaves of it is of no use anyway.
    fn write(&self, loading: &Loading) {
        let bytes = serde_json::to_vec(loading).expect("our own values are plain data");
        let temporary = self.path.with_extension("new");
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(temporary, &self.path));
        if let Err(error) = written {
            tracing::debug!(%error, "progress cannot be written");
        }
    }
}

impl Listener for ProgressFile {
    fn loaded(&self) {
        let mut state = self.state();
        state.loading.serving = true;
        state.loaded_at = Some(Instant::now());
        self.write(&state.loading);
        drop(state);
        self.observer.step(Step::LoadBegun);
    }

    fn advance(&self, done: ByteCount, total: ByteCount, requests: u64) {
        let mut state = self.state();
        let loading = &mut state.loading;
        (loading.done, loading.total) = (done.max(loading.done), total);
        loading.requests = requests;
        if state.at.is_none_or(|at| at.elapsed() >= PROGRESS_INTERVAL) {
            state.at = Some(Instant::now());
            self.write(&state.loading);
        }
        drop(state);
        if done.get() >= total.get() / 2 {
            self.observer.step(Step::LoadHalfway);
        }
        if done == total {
            self.observer.step(Step::LoadSent);
        }
    }

    fn wanted(&self, unit: Unit) {
        let mut state = self.state();
        let is_early = state.loaded_at.is_none_or(|at| at.elapsed() < RECORD_TIME);
        if is_early && state.needed.len() < MAX_UNITS && !state.needed.contains(&unit) {
            state.needed.push(unit);
        }
    }
}
