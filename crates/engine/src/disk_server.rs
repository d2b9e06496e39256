//! The process that serves what is missing of the disks of a guest which runs already,
//! and has QEMU copy it into them. It outlives the command that started it, and ends by
//! itself: when every disk is whole, or with QEMU.
//!
//! ```text
//! QEMU: image ─ what it lacks ─▶ socket ─▶ Export ─ read, check ─▶ repository
//!            ◀─ a job that copies it ──── second monitor ◀─ look, step ─┘
//! ```
//!
//! A second process stands by, as for the page server. If both are killed, the guest
//! stops at what it cannot read, and the next command on the VM starts another.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tintype_nbd::{Export, Server, ServerConfig};
use tintype_repo::Repository;
use tintype_types::{ByteCount, VmName};
use tintype_vm::{FillImage, FillState, Filler, ProcessId};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::filling::{Filling, FillingState};
use crate::observer::Step;
use crate::served_disk::ServedDisk;
use crate::servers::Serves;
use crate::watchdog::said_all_is_well;

/// Between two looks at QEMU's work.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// After something that failed; it grows from the first to the second.
const RETRY_INTERVALS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(15));

/// For how long a guest that was stopped for want of bytes is told to go on, when they
/// are there again: QEMU takes up to 16 s to come back to an export that was away
/// (`connect_thread_func` in nbd/client-connection.c).
const GO_ON_LIMIT: Duration = Duration::from_secs(40);

/// How a disk server comes to its guest.
pub enum DiskServerStart<'s> {
    /// QEMU is started when it serves, and noted when the pipe ends.
    New(&'s mut dyn Read),
    /// The one before it has ended.
    TakeOver,
    /// It waits whether the one before it ends without a word.
    StandBy(&'s mut dyn Read),
}

impl Engine {
    /// Starts a disk server: for a QEMU that is to be started, or to take over. The lock
    /// is its until it ends.
    pub(crate) fn start_disk_server(&self, vm: &VmName, new: bool, lock: File) -> Result<Child> {
        let _ = fs::remove_file(self.home.fill_progress_file(vm));
        let (word, input) =
            if new { ("new", Stdio::piped()) } else { ("take-over", Stdio::null()) };
        let mut command = self.server(Serves::Disks, vm, word, 0)?;
        let started = command.stdin(input).stdout(lock).spawn();
        started.map_err(Error::step("cannot start what serves the disks"))
    }

    /// Is the disk server of a VM, until every disk is whole or its QEMU has ended.
    pub fn serve_disks(
        &self,
        vm: &VmName,
        mut start: DiskServerStart<'_>,
        takeovers: u32,
    ) -> Result<()> {
        if let DiskServerStart::StandBy(pipe) = &mut start
            && said_all_is_well(*pipe)
        {
            return Ok(());
        }
        let stand_by = self.have_stand_by(Serves::Disks, vm, takeovers);
        let mut told = Told {
            path: self.home.fill_progress_file(vm),
            filling: Filling { server: std::process::id(), ..Filling::default() },
            written: None,
        };
        let served = self.serve_until_whole(vm, start, &mut told);
        if let Err(error) = &served {
            told.filling.serving = false;
            told.tell(Some(error.with_causes()));
        }
        stand_by.dismiss();
        served
    }

    fn serve_until_whole(
        &self,
        vm: &VmName,
        start: DiskServerStart<'_>,
        told: &mut Told,
    ) -> Result<()> {
        let Some(state) = self.filling_state(vm)? else { return Ok(()) };
        let repository = self.open_repository(&state.repository)?;
        let pin = repository
            .pin(state.snapshot)
            .map_err(Error::step("cannot hold on to the snapshot"))?;
        let snapshot = Snapshot::read(pin.record().clone())?;
        let disks = served_disks(&repository, &snapshot, &state)?;
        told.filling.total = ByteCount(disks.iter().map(|disk| disk.size()).sum());
        let socket = self.home.disks_socket(vm)?;
        let server = serve(&socket, &state, &disks)?;
        told.filling.serving = true;
        told.tell(None);
        if let DiskServerStart::New(pipe) = start {
            let _ = io::copy(pipe, &mut io::sink());
        }
        let is_whole = match self.await_guest(vm)? {
            None => false,
            Some(process) => {
                let work = Work { engine: self, vm, snapshot: &snapshot, state: &state, process };
                work.fill(&disks, told)?
            }
        };
        server.stop();
        if is_whole {
            self.forget_filling(vm)?;
            self.config.observer.step(Step::FillForgotten);
        } else {
            let _ = fs::remove_file(&socket);
        }
        Ok(())
    }

    /// Waits until the guest's own devices and memory are there and its command has
    /// noted what it is like. `None` if there is no QEMU any more.
    fn await_guest(&self, vm: &VmName) -> Result<Option<ProcessId>> {
        loop {
            let process = self.filling_state(vm)?.and_then(|state| state.process);
            let Some(process) = process.filter(|process| process.is_alive()) else {
                return Ok(None);
            };
            let is_noted = self.vm_state(vm)?.process == process;
            if is_noted && self.loading(vm)?.is_none() {
                return Ok(Some(process));
            }
            sleep(LOOK_INTERVAL);
        }
    }
}

/// The work on one QEMU.
struct Work<'w> {
    engine: &'w Engine,
    vm: &'w VmName,
    snapshot: &'w Snapshot,
    state: &'w FillingState,
    process: ProcessId,
}

impl Work<'_> {
    /// Has QEMU fill its disks, one after another. Tells whether they are whole; if not,
    /// QEMU has ended.
    fn fill(&self, disks: &[Arc<ServedDisk>], told: &mut Told) -> Result<bool> {
        let observer = &self.engine.config.observer;
        observer.step(Step::FillBegun);
        let mut patience = Patience::new();
        let mut monitor = None;
        let mut whole = 0;
        for (image, disk) in self.state.images().zip(disks) {
            loop {
                if !self.process.is_alive() {
                    return Ok(false);
                }
                let (done, error) = match self.look(&mut monitor, image, &mut patience, disks) {
                    Ok(FillState::Whole) => break,
                    Ok(FillState::Filling(done)) => (done, None),
                    Ok(FillState::NotYet | FillState::Stuck { no_space: false }) => {
                        (ByteCount(0), None)
                    }
                    Ok(FillState::Stuck { no_space: true }) => {
                        (ByteCount(0), Some("there is no space for the disk".to_owned()))
                    }
                    Err(_) if !self.process.is_alive() => return Ok(false),
                    Err(error) => {
                        monitor = None;
                        (ByteCount(0), Some(error.with_causes()))
                    }
                };
                let filling = &mut told.filling;
                filling.done = filling.done.max(ByteCount(whole + done.get()));
                if 2 * filling.done.get() >= filling.total.get() {
                    observer.step(Step::FillHalfway);
                }
                told.tell(disks.iter().find_map(|disk| disk.broken()).or(error));
                sleep(LOOK_INTERVAL);
            }
            disk.passed(disk.size());
            whole += disk.size();
            told.filling.done = ByteCount(whole);
            told.tell(None);
        }
        if let Some(monitor) = &mut monitor {
            let_go_on(monitor);
        }
        Ok(true)
    }

    /// Goes on with a disk, and with a guest that could not.
    fn look(
        &self,
        monitor: &mut Option<Filler>,
        image: FillImage<'_>,
        patience: &mut Patience,
        disks: &[Arc<ServedDisk>],
    ) -> Result<FillState> {
        let monitor = match monitor {
            Some(monitor) => monitor,
            none => none.insert(Filler::connect(&self.engine.home.fill_monitor(self.vm)?)?),
        };
        let is_broken = disks.iter().any(|disk| disk.broken().is_some());
        let is_time = is_broken && patience.is_over();
        let is_mended = is_time && self.read_again(disks).is_ok();
        if is_mended {
            patience.renew();
        }
        let may_go_on = (!is_broken || is_mended) && patience.is_hopeful();
        if may_go_on && monitor.is_stopped_by_error()? && patience.may_act() {
            monitor.go_on()?;
        }
        let state = monitor.advance(image)?;
        match state {
            FillState::Filling(done) => disks[image.number].passed(done.get()),
            // The guest may have overwritten what cannot be read: then nobody needs it.
            FillState::Stuck { .. } if is_time || (!is_broken && patience.may_act()) => {
                monitor.resume(image)?;
            }
            _ => {}
        }
        Ok(state)
    }

    /// Reads again what could not be read, from a repository that may have been mended.
    fn read_again(&self, disks: &[Arc<ServedDisk>]) -> Result<()> {
        let repository = self.engine.open_repository(&self.state.repository)?;
        for (disk, filling) in disks.iter().zip(&self.state.disks) {
            let root = self.snapshot.promised_image(&filling.image)?;
            let reader = repository.open_image(root).map_err(Error::step("cannot open a disk"))?;
            disk.heal(reader).map_err(Error::step("it still cannot be read"))?;
        }
        Ok(())
    }
}

/// Lets a guest go on that an error has stopped, now that its disks are whole. The stop
/// comes a moment after the error.
fn let_go_on(monitor: &mut Filler) {
    for _ in 0..3 {
        if monitor.is_stopped_by_error().unwrap_or(false) {
            // What fails now is QEMU itself.
            let _ = monitor.go_on();
        }
        sleep(LOOK_INTERVAL);
    }
}

/// When what has failed is tried again.
struct Patience {
    /// Until when a guest that an error has stopped is told to go on.
    hopeful_until: Instant,
    /// When what cannot be read is read again, and how long it is waited for then.
    again: (Instant, Duration),
    /// When QEMU was last told to try again.
    acted: Option<Instant>,
}

impl Patience {
    fn new() -> Self {
        let now = Instant::now();
        Self { hopeful_until: now + GO_ON_LIMIT, again: (now, RETRY_INTERVALS.0), acted: None }
    }

    fn renew(&mut self) {
        *self = Self::new();
    }

    fn is_hopeful(&self) -> bool {
        Instant::now() < self.hopeful_until
    }

    /// Tells whether it is time to read again, and makes the next time later.
    fn is_over(&mut self) -> bool {
        let (at, interval) = self.again;
        let is_over = Instant::now() >= at;
        if is_over {
            self.again = (Instant::now() + interval, (2 * interval).min(RETRY_INTERVALS.1));
        }
        is_over
    }

    /// Tells whether QEMU may be told to try again.
    fn may_act(&mut self) -> bool {
        let may = self.acted.is_none_or(|at| at.elapsed() >= RETRY_INTERVALS.0);
        if may {
            self.acted = Some(Instant::now());
        }
        may
    }
}

fn served_disks(
    repository: &Repository,
    snapshot: &Snapshot,
    state: &FillingState,
) -> Result<Vec<Arc<ServedDisk>>> {
    let disk = |image: &String| {
        let root = snapshot.promised_image(image)?;
        let reader = repository
            .open_image(root)
            .map_err(Error::step("cannot open a disk of the snapshot"))?;
        Ok(Arc::new(ServedDisk::new(reader)))
    };
    state.disks.iter().map(|filling| disk(&filling.image)).collect()
}

fn serve(socket: &PathBuf, state: &FillingState, disks: &[Arc<ServedDisk>]) -> Result<Server> {
    // What is there is of a server that has ended: the lock is ours.
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).map_err(Error::io("listen on", socket))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(Error::io("protect", socket))?;
    let exports = state.disks.iter().zip(disks).map(|(filling, disk)| {
        let export: Arc<dyn Export> = Arc::clone(disk) as _;
        (filling.image.clone(), export)
    });
    let max_connections = 4 * disks.len().max(4);
    let config = ServerConfig { max_connections, ..ServerConfig::default() };
    Server::start(listener, exports, &config).map_err(Error::step("cannot serve the disks"))
}

/// Tells whoever asks how far filling is.
struct Told {
    path: PathBuf,
    filling: Filling,
    /// What was last written.
    written: Option<Filling>,
}

impl Told {
    /// Writes for others to read; what a power loss leaves of it is of no use anyway.
    fn tell(&mut self, error: Option<String>) {
        self.filling.error = error;
        if self.written.as_ref() == Some(&self.filling) {
            return;
        }
        let bytes = serde_json::to_vec(&self.filling).expect("our own values are plain data");
        let temporary = self.path.with_extension("new");
        let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(temporary, &self.path));
        match written {
            Ok(()) => self.written = Some(self.filling.clone()),
            Err(error) => tracing::debug!(%error, "progress cannot be written"),
        }
    }
}
