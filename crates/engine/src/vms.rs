//! The registered VMs: run, add, list, show, start, rm. `stop.rs` stops them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tintype_types::{SnapshotId, VmId, VmName};
use tintype_vm::{
    CommandLine, Guest, Inventory, LaunchParams, Process, ProcessId, arguments, fill_arguments,
    launch,
};

use crate::Engine;
use crate::error::{Error, Result};
use crate::filling::Filling;
use crate::home::{make_folder, read_json, write_json};
use crate::import::refuse_imported;
use crate::intent::Intent;
use crate::lease::Lease;
use crate::loading::Loading;
use crate::observer::Step;
use crate::settings::VmSettings;

/// What is kept of a registered VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmState {
    /// Its id, for ever.
    pub id: VmId,
    /// Its monitor socket.
    pub socket: PathBuf,
    /// How it was last started.
    pub command_line: CommandLine,
    /// Its disks when it was last seen running.
    pub inventory: Inventory,
    /// The process that was last seen.
    pub process: ProcessId,
    /// What records the changes of its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tracking: Option<crate::tracking::Tracking>,
    /// The snapshot that its state comes from: where the VM is now.
    pub current: Option<SnapshotId>,
    /// What its owner wants.
    #[serde(default)]
    pub settings: VmSettings,
}

/// The process of a VM that has had none yet.
pub(crate) const NO_PROCESS: ProcessId = ProcessId { pid: 0, start_time: 0 };

impl VmState {
    /// Of a VM whose QEMU was never started.
    pub(crate) fn at_rest(
        socket: PathBuf,
        command_line: CommandLine,
        inventory: Inventory,
    ) -> Self {
        Self {
            id: VmId::random(),
            socket,
            command_line,
            inventory,
            process: NO_PROCESS,
            tracking: None,
            current: None,
            settings: VmSettings::default(),
        }
    }
}

/// A VM as a front end shows it.
#[derive(Debug, Clone, Serialize)]
pub struct VmReport {
    /// Its name.
    pub name: VmName,
    /// What QEMU says the guest does: `running`, `paused`; `stopped` without a
    /// QEMU, `in use` if another command works on it.
    pub state: String,
    /// The QEMU process, while it runs.
    pub pid: Option<i32>,
    /// How far the loading of its memory is; none when all is there.
    pub loading: Option<Loading>,
    /// How far the filling of its disks is; none when they are whole.
    pub filling: Option<Filling>,
    /// What is kept of it.
    #[serde(flatten)]
    pub vm: VmState,
}

/// A VM under lease: nobody else works on it.
pub(crate) struct LeasedVm {
    pub(crate) name: VmName,
    pub(crate) state: VmState,
    pub(crate) _lease: Lease,
}

/// From when a killed QEMU closes its monitor until its process is gone, at most.
pub(crate) const DEATH_LIMIT: Duration = Duration::from_secs(5);

impl Engine {
    /// Starts a QEMU command line as it stands, with a monitor of our own, and
    /// registers it. The first word is the program.
    pub fn run_vm(&self, name: &VmName, words: &[String], directory: &Path) -> Result<VmReport> {
        let Some((program, given)) = words.split_first() else {
            return Err(Error::invalid("there is no QEMU command line")
                .hint("type it after `--`: tintype vm run NAME -- qemu-system-x86_64 …"));
        };
        let lease = self.new_vm(name, "vm run")?;
        let socket = self.home.monitor_socket(name)?;
        let monitor = ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())];
        let command_line = CommandLine {
            program: find_program(program, directory)?,
            arguments: [arguments::without_start_options(given), monitor.to_vec()].concat(),
            directory: directory.to_owned(),
            environment: self.config.environment.clone(),
        };
        let params = LaunchParams {
            command_line: &command_line,
            extra: &[],
            socket: &socket,
            log: &self.home.log_file(name),
        };
        let guest = launch(&params).map_err(|error| {
            Error::failed(format!("cannot start `{name}`"))
                .because(error)
                .state("nothing was registered")
                .hint("tintype changes nothing of a command line but its monitor: try it without")
        })?;
        self.register(name, guest, lease)
    }

    /// Registers a QEMU that runs already.
    pub fn add_vm(&self, name: &VmName, socket: &Path) -> Result<VmReport> {
        let lease = self.new_vm(name, "vm add")?;
        let not_added = |error: Error| {
            error
                .state("nothing was registered")
                .hint("start QEMU with -qmp unix:PATH,server=on,wait=off and give that PATH")
        };
        let socket = fs::canonicalize(socket)
            .map_err(|error| not_added(Error::io("find", socket)(error)))?;
        for other in self.home.vm_names()? {
            if self.vm_state(&other)?.socket == socket {
                return Err(Error::invalid(format!(
                    "the QEMU behind {} is registered as `{other}`",
                    socket.display()
                ))
                .state("nothing was changed")
                .hint(format!("`tintype vm rm {other}` forgets it; its snapshots stay")));
            }
        }
        let guest = Guest::connect(&socket).map_err(|error| {
            not_added(Error::failed(format!("cannot add `{name}`")).because(error))
        })?;
        self.register(name, guest, lease)
    }

    /// Lists the registered VMs.
    pub fn vms(&self) -> Result<Vec<VmReport>> {
        let mut reports = Vec::new();
        for name in self.home.vm_names()? {
            match self.vm_if_it_answers(&name) {
                // It was half a clone, and is removed.
                Err(_) if !self.home.vm_file(&name).exists() => {}
                report => reports.push(report?),
            }
        }
        Ok(reports)
    }

    /// Shows one VM of many: one that cannot be asked hides no other.
    fn vm_if_it_answers(&self, name: &VmName) -> Result<VmReport> {
        self.vm(name).or_else(|error| {
            let vm = self.vm_state(name)?;
            let why = std::error::Error::source(&error).map(ToString::to_string);
            self.config.observer.notice(&format!("{error}: {}", why.unwrap_or_default()));
            let pid = vm.process.is_alive().then_some(vm.process.pid);
            let (loading, filling) = (self.loading(name)?, self.filling(name)?);
            let state = "no answer".to_owned();
            Ok(VmReport { name: name.clone(), state, pid, loading, filling, vm })
        })
    }

    /// Returns where each registered VM is now, without asking any QEMU.
    pub fn vms_at_rest(&self) -> Result<BTreeMap<VmName, Option<SnapshotId>>> {
        let place = |name: VmName| Ok((name.clone(), self.vm_state(&name)?.current));
        self.home.vm_names()?.into_iter().map(place).collect()
    }

    /// Shows one VM. If a command on it was killed, this repairs what it left.
    pub fn vm(&self, name: &VmName) -> Result<VmReport> {
        let vm = self.vm_state(name)?;
        let lease = Lease::try_take(&self.home.lease_file(name), "vm show")?;
        let Some(lease) = lease else {
            let pid = vm.process.is_alive().then_some(vm.process.pid);
            let (loading, filling) = (self.loading(name)?, self.filling(name)?);
            let state = "in use".to_owned();
            return Ok(VmReport { name: name.clone(), state, pid, loading, filling, vm });
        };
        let mut leased = LeasedVm { name: name.clone(), state: vm, _lease: lease };
        let healed = self.heal(&mut leased).and_then(|()| self.recognise(&mut leased));
        match self.loading(name)? {
            // It waits for memory, and QEMU with it.
            Some(loading) if loading.error.is_some() => {
                let LeasedVm { name, state: vm, .. } = leased;
                let (state, pid) = ("waiting for memory".to_owned(), Some(vm.process.pid));
                let filling = self.filling(&name)?;
                Ok(VmReport { name, state, pid, loading: Some(loading), filling, vm })
            }
            _ => healed.and_then(|()| self.report(&leased)),
        }
    }

    /// Starts a VM that is stopped, from its disks as they are.
    pub fn start_vm(&self, name: &VmName) -> Result<VmReport> {
        let mut vm = self.lease(name, "vm start")?;
        if vm.is_alive() {
            return Err(Error::invalid(format!("`{name}` runs already"))
                .state("nothing was changed")
                .hint(format!("`tintype vm show {name}` shows it")));
        }
        refuse_imported(&vm.state.command_line, "start", name)?;
        self.intend(name, &Intent::Start)?;
        let started = self.launch(&vm, &[]).and_then(|guest| self.saw(&mut vm, guest));
        self.forget_intent(name)?;
        started?;
        self.report(&vm)
    }

    /// Forgets a VM. Its QEMU runs on, without our bitmaps; its disks and snapshots stay.
    pub fn remove_vm(&self, name: &VmName) -> Result<()> {
        let vm = self.lease(name, "vm rm")?;
        if let Some(loading) = self.loading(name)? {
            return Err(Error::refused(format!(
                "the memory of `{name}` is still being loaded ({} %)",
                loading.percent()
            ))
            .state("nothing was changed")
            .hint(format!("`tintype vm show {name}` says how far it is; `tintype vm stop {name} --force` gives it up")));
        }
        self.refuse_unfilled(&vm)?;
        let folder = self.home.vm_folder(&vm.name);
        self.forget_all_bitmaps(&vm);
        fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))
    }

    /// Takes the lease of a VM and repairs what a killed command left.
    pub(crate) fn lease(&self, name: &VmName, purpose: &str) -> Result<LeasedVm> {
        let mut vm = self.lease_as_it_is(name, purpose)?;
        self.heal(&mut vm)?;
        self.recognise(&mut vm)?;
        Ok(vm)
    }

    /// Notes a QEMU that was started without tintype since the last command: by the
    /// VM's owner, who may have given it other hardware, or by a command that was killed.
    fn recognise(&self, vm: &mut LeasedVm) -> Result<()> {
        if vm.state.process.is_alive() {
            return Ok(());
        }
        let Some(guest) = vm.foreign_start() else { return Ok(()) };
        let own = match self.filling_state(&vm.name)? {
            Some(_) => fill_arguments(&self.home.fill_monitor(&vm.name)?),
            None => Vec::new(),
        };
        let line = started_line(&guest, &own);
        if line.arguments != vm.state.command_line.arguments {
            self.config.observer.notice(&format!(
                "`{}` was started without tintype, by another command line: that one counts from now on",
                vm.name
            ));
        }
        vm.state.command_line = line;
        self.saw(vm, guest).map(drop)
    }

    /// Takes the lease of a VM, whatever a killed command left.
    pub(crate) fn lease_as_it_is(&self, name: &VmName, purpose: &str) -> Result<LeasedVm> {
        self.vm_state(name)?;
        let lease = self.take_lease(name, purpose)?;
        Ok(LeasedVm { name: name.clone(), state: self.vm_state(name)?, _lease: lease })
    }

    pub(crate) fn take_lease(&self, name: &VmName, purpose: &str) -> Result<Lease> {
        Lease::take(
            &self.home.lease_file(name),
            name,
            &format!("tintype {purpose}"),
            self.config.patience,
            self.config.observer.as_ref(),
            &self.config.cancel,
        )
    }

    pub(crate) fn vm_state(&self, name: &VmName) -> Result<VmState> {
        read_json(&self.home.vm_file(name))?.ok_or_else(|| Error::no_such_vm(name))
    }

    pub(crate) fn save(&self, vm: &LeasedVm) -> Result<()> {
        write_json(&self.home.vm_file(&vm.name), &vm.state)
    }

    /// Starts the QEMU of a VM as it was last started. Disks that are not whole are
    /// filled behind its guest.
    pub(crate) fn launch(&self, vm: &LeasedVm, extra: &[&str]) -> Result<Guest> {
        let filling = self.begin_filling(vm)?;
        let own = match filling {
            Some(_) => self.filling_arguments(&vm.name)?,
            None => Vec::new(),
        };
        let extra: Vec<&str> =
            extra.iter().copied().chain(own.iter().map(String::as_str)).collect();
        let params = LaunchParams {
            command_line: &vm.state.command_line,
            extra: &extra,
            socket: &vm.state.socket,
            log: &self.home.log_file(&vm.name),
        };
        let cannot = || format!("cannot start the QEMU of `{}`", vm.name);
        let mut guest = launch(&params).map_err(Error::step(cannot()))?;
        self.config.observer.step(Step::StartLaunched);
        if let Some(filling) = filling
            && let Err(error) = self.filling_began(vm, filling, &mut guest)
        {
            let _ = guest.quit();
            return Err(Error::step(cannot())(error));
        }
        Ok(guest)
    }

    /// Notes what a running QEMU is like now.
    pub(crate) fn saw(&self, vm: &mut LeasedVm, mut guest: Guest) -> Result<Guest> {
        vm.state.inventory =
            guest.inventory().map_err(Error::step(format!("cannot look at `{}`", vm.name)))?;
        vm.state.process = guest.process();
        self.save(vm)?;
        Ok(guest)
    }

    pub(crate) fn new_vm(&self, name: &VmName, purpose: &str) -> Result<Lease> {
        if let Some(Intent::Clone { .. }) = self.intent(name)?
            && self.home.vm_file(name).exists()
        {
            // What is left of a clone that was interrupted makes way.
            let _ = self.lease(name, purpose);
        }
        make_folder(&self.home.vm_folder(name))?;
        let lease = self.take_lease(name, purpose)?;
        if self.home.vm_file(name).exists() {
            return Err(Error::invalid(format!("there is a VM `{name}` already"))
                .state("nothing was changed")
                .hint(format!("`tintype vm rm {name}` forgets it; its snapshots stay")));
        }
        // An intent of a VM that does not exist has come to nothing.
        self.forget_intent(name)?;
        Ok(lease)
    }

    fn register(&self, name: &VmName, mut guest: Guest, lease: Lease) -> Result<VmReport> {
        let inventory =
            guest.inventory().map_err(Error::step(format!("cannot look at `{name}`")))?;
        let (socket, line) = (guest.socket().to_owned(), started_line(&guest, &[]));
        let state =
            VmState { process: guest.process(), ..VmState::at_rest(socket, line, inventory) };
        drop(guest);
        let vm = LeasedVm { name: name.clone(), state, _lease: lease };
        self.save(&vm)?;
        self.report(&vm)
    }

    pub(crate) fn report(&self, vm: &LeasedVm) -> Result<VmReport> {
        let stopped = ("stopped".to_owned(), None);
        let (state, pid) = if vm.is_alive() {
            let process = vm.state.process;
            let cannot_look = Error::step(format!("cannot look at `{}`", vm.name));
            match vm.connect().and_then(|mut guest| guest.run_state().map_err(cannot_look)) {
                Ok(state) => (state, Some(process.pid)),
                Err(_) if process.ends_within(DEATH_LIMIT) => stopped,
                Err(error) => return Err(error),
            }
        } else {
            stopped
        };
        let (loading, filling) = (self.loading(&vm.name)?, self.filling(&vm.name)?);
        Ok(VmReport { name: vm.name.clone(), state, pid, loading, filling, vm: vm.state.clone() })
    }
}

impl LeasedVm {
    /// Tells whether its QEMU runs.
    pub(crate) fn is_alive(&self) -> bool {
        self.state.process.is_alive() || self.foreign_start().is_some()
    }

    /// Connects to its QEMU.
    pub(crate) fn connect(&self) -> Result<Guest> {
        Guest::connect(&self.state.socket).map_err(|error| {
            let hint = match error.kind() {
                tintype_vm::ErrorKind::Unreachable => format!(
                    "close the program that holds the monitor; if QEMU hangs, `tintype vm stop {} --force` ends it",
                    self.name
                ),
                _ => "try again".to_owned(),
            };
            Error::failed(format!("cannot reach the QEMU of `{}`", self.name))
                .because(error)
                .state("nothing was changed")
                .hint(hint)
        })
    }

    /// Waits for the process that was last seen, or kills it.
    pub(crate) fn process(&self) -> Option<Process> {
        let process = Process::open(self.state.process.pid).ok()?;
        (process.id() == self.state.process).then_some(process)
    }

    /// A VM that was added may have been started again by its owner.
    pub(crate) fn foreign_start(&self) -> Option<Guest> {
        Guest::connect(&self.state.socket).ok()
    }
}

/// Returns how a QEMU can be started again, without what was for one start, at the end.
fn started_line(guest: &Guest, once: &[String]) -> CommandLine {
    let line = guest.command_line();
    let given = line.arguments.strip_suffix(once).unwrap_or(&line.arguments);
    let arguments = arguments::without_start_options(given);
    CommandLine { arguments, ..line.clone() }
}

/// Finds a program as a shell would, but for its own search of the path.
pub(crate) fn find_program(program: &str, directory: &Path) -> Result<PathBuf> {
    let direct = directory.join(program);
    let places = ["/usr/local/bin", "/usr/bin", "/usr/libexec", "/bin"];
    let found = if program.contains('/') {
        Some(direct)
    } else {
        places.iter().map(|place| Path::new(place).join(program)).find(|path| path.exists())
    };
    found.and_then(|path| fs::canonicalize(path).ok()).ok_or_else(|| {
        Error::invalid(format!("there is no program `{program}`"))
            .state("nothing was started")
            .hint("give its whole path, as `command -v` prints it")
    })
}
