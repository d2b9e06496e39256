//! Lets a guest run before its memory is there: whether that is right for a
//! snapshot, what is checked beforehand, and how it is begun.
//!
//! ```text
//! page server ─ starts, opens the repository ─┐
//! QEMU ─ starts ─ takes the connection ───────┴─ devices ─ the guest can run
//! ```

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tintype_repo::Repository;
use tintype_types::ByteCount;
use tintype_vm::{Guest, LazyState, ProcessId, can_serve_missing_pages};

use crate::Engine;
use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::files::is_unchanged;
use crate::loading::{LoadingState, end_loaded};
use crate::vms::LeasedVm;

/// From so many bytes of memory that are not zero on, a guest that may is loaded
/// lazily; from so many of disks on, they are.
pub(crate) const LAZY_FROM: ByteCount = ByteCount(256 << 20);

/// How long the devices may take to be loaded.
const DEVICES_LIMIT: Duration = Duration::from_secs(60);

/// Between two looks whether they are.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// How long a page server whose QEMU was ended may take to notice.
const LOCK_LIMIT: Duration = Duration::from_secs(20);

/// When the guest runs: before or after its memory is loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LoadMode {
    /// Whichever is better for the snapshot.
    #[default]
    Auto,
    /// All memory first.
    Eager,
    /// The guest first, if that is possible here.
    Lazy,
}

/// Arguments of a QEMU that waits for a saved memory. Until it has that it has its disks
/// open as the receiving side of a migration has them: without a lock, and whatever
/// it has read of them is read again.
pub(crate) const WAITING: [&str; 3] = ["-S", "-incoming", "defer"];

/// A QEMU that waits for its memory, with what is to load it.
pub(crate) struct LazyStart {
    guest: Guest,
    server: Child,
    /// QEMU's end of the connection between the two.
    connection: UnixStream,
}

impl Engine {
    /// Decides whether the guest of a snapshot runs before its memory is loaded.
    pub(crate) fn is_lazy(
        &self,
        repository: &Repository,
        target: &Snapshot,
        mode: LoadMode,
    ) -> Result<bool> {
        if mode == LoadMode::Eager || target.details.memory.is_empty() {
            return Ok(false);
        }
        let reason = match can_serve_missing_pages() {
            Err(reason) => Some(reason),
            Ok(()) => self.why_nothing_runs_behind(),
        };
        match (mode, reason) {
            (LoadMode::Lazy, None) => Ok(true),
            (LoadMode::Lazy, Some(reason)) => {
                self.explain_eager(&reason);
                Ok(false)
            }
            (_, Some(_)) => Ok(false),
            (_, None) => {
                let images = target.details.memory.iter().map(|block| &block.image);
                has_much_data(repository, target, images, LAZY_FROM)
            }
        }
    }

    /// Returns why no process may go on with the work of the command, if none may.
    pub(crate) fn why_nothing_runs_behind(&self) -> Option<String> {
        if self.config.helper.is_empty() {
            return Some("nothing may run on behind".to_owned());
        }
        let is_typed = self.typed.get().is_some();
        is_typed.then(|| {
            "a passphrase that was typed is not handed on; --passphrase-file can be".to_owned()
        })
    }

    pub(crate) fn explain_eager(&self, reason: &str) {
        let notice = format!("all memory is loaded before the guest runs: {reason}");
        self.config.observer.notice(&notice);
    }

    /// Checks what is used before the guest runs: disks, devices, and files that
    /// are not what they were.
    pub(crate) fn check_all_but_memory(
        &self,
        repository: &Repository,
        target: &Snapshot,
    ) -> Result<()> {
        target.device_state(repository)?;
        let disks = target.details.disks.iter();
        let disks = disks.map(|saved| ("disk", &saved.disk.name, &saved.image));
        let mut used: Vec<_> = disks.collect();
        for file in &target.details.files {
            if !is_unchanged(repository, target, file)? {
                used.push(("file", &file.name, &file.image));
            }
        }
        for (kind, name, image) in used {
            let cannot = || format!("cannot read the {kind} `{name}` of the snapshot");
            let root = target.promised_image(image)?;
            let reader = repository.open_image(root).map_err(Error::step(cannot()))?;
            reader.check_stored(&self.supervisor("verifying")).map_err(Error::step(cannot()))?;
        }
        Ok(())
    }

    /// Starts the QEMU of a VM with what loads its memory. When this returns its guest
    /// stands still and can run. If it fails, nothing of it is left.
    pub(crate) fn launch_lazily(&self, vm: &LeasedVm, target: &Snapshot) -> Result<Guest> {
        let start = self.start_lazily(vm, target)?;
        self.load_lazily(vm, start)
    }

    /// Starts the QEMU of a VM and what is to load its memory, which has not begun: its
    /// disks are not its own yet. If it fails, nothing of it is left.
    pub(crate) fn start_lazily(&self, vm: &LeasedVm, target: &Snapshot) -> Result<LazyStart> {
        let mut state = LoadingState {
            repository: self.absolute_repository_place(),
            snapshot: target.record.id,
            process: None,
        };
        let lock = self.await_loading_lock(vm)?;
        self.note_loading(&vm.name, &state)?;
        let begun = self.begin_loading(vm, &mut state, lock);
        if begun.is_err() {
            self.end_unloaded(vm, state.process)?;
        }
        begun
    }

    /// Loads the devices. If it fails, nothing is left of the QEMU.
    pub(crate) fn load_lazily(&self, vm: &LeasedVm, start: LazyStart) -> Result<Guest> {
        let LazyStart { mut guest, mut server, connection } = start;
        let loaded = guest
            .receive_lazily(&connection)
            .map_err(Error::from)
            .and_then(|()| self.await_devices(vm, &mut guest, &mut server));
        match loaded {
            Ok(()) => Ok(guest),
            Err(error) => {
                self.give_up_lazily(vm, LazyStart { guest, server, connection })?;
                Err(error)
            }
        }
    }

    /// Ends a QEMU that has nothing yet, and what was to load it.
    pub(crate) fn give_up_lazily(&self, vm: &LeasedVm, mut start: LazyStart) -> Result<()> {
        let _ = start.server.kill();
        let _ = start.server.wait();
        self.end_unloaded(vm, Some(start.guest.process()))
    }

    fn end_unloaded(&self, vm: &LeasedVm, process: Option<ProcessId>) -> Result<()> {
        // Nothing is noted any more of one whose memory is there already.
        process.map_or(Ok(()), end_loaded)?;
        self.end_loading(vm)
    }

    /// Waits until a page server that this VM had before has ended.
    fn await_loading_lock(&self, vm: &LeasedVm) -> Result<File> {
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            if let Some(lock) = self.loading_lock(&vm.name)? {
                return Ok(lock);
            }
            if Instant::now() > deadline {
                return Err(Error::failed("the page server before this one does not end").hint(
                    format!("try again; `tintype vm show {}` says what still runs", vm.name),
                ));
            }
            sleep(LOOK_INTERVAL);
        }
    }

    fn begin_loading(
        &self,
        vm: &LeasedVm,
        state: &mut LoadingState,
        lock: File,
    ) -> Result<LazyStart> {
        let pipe = self.rescue_pipe(&vm.name)?;
        pipe.make().map_err(Error::step("cannot prepare to load the memory"))?;
        let (ours, connection) =
            UnixStream::pair().map_err(Error::step("cannot make a pair of sockets"))?;
        let _ = fs::remove_file(self.home.progress_file(&vm.name));
        let mut server = self.start_page_server(&vm.name, Some(ours), lock)?;
        let arguments = pipe.arguments();
        let mut extra = WAITING.to_vec();
        extra.extend(arguments.iter().map(String::as_str));
        let begun = self.launch(vm, &extra).and_then(|guest| {
            state.process = Some(guest.process());
            self.note_loading(&vm.name, state)?;
            pipe.agree()?;
            Ok(guest)
        });
        match begun {
            Ok(guest) => Ok(LazyStart { guest, server, connection }),
            Err(error) => {
                let _ = server.kill();
                let _ = server.wait();
                Err(error)
            }
        }
    }

    fn await_devices(&self, vm: &LeasedVm, guest: &mut Guest, server: &mut Child) -> Result<()> {
        let deadline = Instant::now() + DEVICES_LIMIT;
        while guest.lazy_state()? == LazyState::Loading {
            // One that has come to its end well has sent all of a small memory already.
            let ended = server.try_wait().ok().flatten();
            if ended.is_some_and(|status| !status.success()) {
                let error = self.loading(&vm.name)?.and_then(|loading| loading.error);
                let why = error.unwrap_or_else(|| "it was ended".to_owned());
                return Err(Error::failed("what loads the memory has ended").because(why));
            }
            if Instant::now() > deadline {
                return Err(Error::failed("QEMU does not load the devices in time"));
            }
            sleep(LOOK_INTERVAL);
        }
        Ok(())
    }
}

/// Tells whether images of a snapshot have so much together that is not zero.
pub(crate) fn has_much_data<'i>(
    repository: &Repository,
    target: &Snapshot,
    images: impl Iterator<Item = &'i String>,
    much: ByteCount,
) -> Result<bool> {
    let mut data = 0;
    for image in images {
        let root = target.promised_image(image)?;
        let cannot = || "cannot look at what is in the snapshot";
        let reader = repository.open_image(root).map_err(Error::step(cannot()))?;
        for extent in reader.data_extents() {
            data += extent.map_err(Error::step(cannot()))?.len;
            if data >= much.get() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
