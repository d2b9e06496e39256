//! New VMs from a snapshot, which run on from its instant beside the first.
//!
//! ```text
//! verify the snapshot ─ for each: lease ─ intent ─ disks ─ start QEMU ─ load ─ run
//!                                                            intent forgotten ─┘
//! ```
//!
//! A clone exists for its user when its intent is forgotten. Until then whatever
//! fails, and the next command after a kill, removes it with its folder.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use tintype_repo::{Repository, VerifyLevel};
use tintype_types::{SnapshotId, VmId, VmName};
use tintype_vm::{CommandLine, Guest, MovedPort, RelocateParams, Relocated, arguments, relocate};

use crate::Engine;
use crate::details::{Snapshot, micros_as_ms};
use crate::disks::DiskHost;
use crate::error::{DAMAGE_HINT, Error, Result};
use crate::home::{make_folder, remove_durably};
use crate::import::refuse_imported;
use crate::intent::Intent;
use crate::lazy::LoadMode;
use crate::lease::Lease;
use crate::observer::Step;
use crate::places::Places;
use crate::revert::end_qemu;
use crate::shared_memory::SharedMemory;
use crate::snapshots::hold;
use crate::start_script;
use crate::vms::{LeasedVm, VmState};

/// What to make.
#[derive(Debug, Clone)]
pub struct CloneParams {
    /// The snapshot.
    pub snapshot: String,
    /// The new VM's name; with a count, what the names start with.
    pub name: VmName,
    /// How many; the names then end in `1`, `2` and so on.
    pub count: Option<u16>,
    /// Where the folders of the new VMs are made; in the home without it.
    pub folder: Option<PathBuf>,
    /// The format of the disks, `qcow2` or `raw`; without it each keeps its own.
    pub format: Option<String>,
    /// Whether they map one file of memory together.
    pub share_memory: bool,
    /// When their guests run: before or after their disks are filled, and their memory
    /// is loaded if they do not share it.
    pub load: LoadMode,
    /// Whether media that are missing or others now do not matter.
    pub ignore_media: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CloneReport {
    /// The snapshot that the VMs run on from.
    pub snapshot: SnapshotId,
    /// Always none: nothing is overwritten.
    pub safety_snapshot: Option<SnapshotId>,
    /// From the start of the command to the last guest running.
    pub running_ms: f64,
    /// The VMs.
    pub vms: Vec<ClonedVm>,
}

/// A VM that was made of a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MadeVm {
    /// Its name.
    pub vm: VmName,
    /// What QEMU says the guest does; `stopped` without a QEMU.
    pub state: String,
    /// Whether its memory is still being loaded.
    pub lazy: bool,
    /// Whether its disks are still being filled.
    pub filling: bool,
    /// Its QEMU process.
    pub pid: Option<i32>,
    /// From the start of the command to the guest running.
    pub running_ms: f64,
    /// What became of the guest's clock.
    pub clock: String,
}

/// One that may run beside the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClonedVm {
    /// What it does.
    #[serde(flatten)]
    pub made: MadeVm,
    /// The folder of its disks, sockets and logs.
    pub folder: PathBuf,
    /// The hardware addresses that its cards have from its next start on.
    pub macs: Vec<String>,
    /// The ports of this machine that lead into the guest.
    pub ports: Vec<MovedPort>,
    /// Its sockets and logs, each as the first VM has it and as it is here.
    pub moved: Vec<(String, PathBuf)>,
}

impl Engine {
    /// Makes new VMs that run on from a snapshot.
    pub fn clone_snapshot(&self, params: &CloneParams) -> Result<CloneReport> {
        let began = Instant::now();
        let repository = self.repository()?;
        let mut target = self.find_snapshot(&repository, &params.snapshot, None)?;
        let _held = hold(&repository, &mut target)?;
        self.see_to_media(&mut target, params.ignore_media)?;
        let load = if params.share_memory { LoadMode::Eager } else { params.load };
        let lazy = self.is_lazy(&repository, &target, load)?;
        let format = params.format.as_deref();
        let lazy_disks = self.choose_lazy_disks(&repository, &target, params.load, format)?;
        self.refuse_unfit(&repository, &target, "clone", lazy || !lazy_disks.is_empty())?;
        refuse_missing_program(&target)?;
        let base = match &params.folder {
            Some(folder) => std::path::absolute(folder).map_err(Error::io("find", folder))?,
            None => self.home.clones_folder(),
        };
        make_folder(&base)?;
        let shared = match params.share_memory {
            true => Some(self.share_memory(&repository, &target)?),
            false => None,
        };
        let mut vms: Vec<ClonedVm> = Vec::new();
        for name in names(params)? {
            self.check_interruption().map_err(|error| error.state(so_far(&vms)))?;
            let (repository, target, shared) = (&repository, &target, shared.as_ref());
            let lazy_disks = &lazy_disks;
            let work = CloneWork {
                engine: self,
                repository,
                target,
                format,
                script: None,
                shared,
                lazy,
                lazy_disks,
                began,
            };
            let made = work.make(&name, base.join(name.as_str()));
            vms.push(made.map_err(|error| {
                let what = format!("cannot clone `{}` as `{name}`", target.record.name);
                Error::new(error.kind(), what).because(error).state(so_far(&vms))
            })?);
        }
        Ok(CloneReport {
            snapshot: target.record.id,
            safety_snapshot: None,
            running_ms: since(began),
            vms,
        })
    }

    /// Removes a VM that nobody was told of, with all that it has.
    pub(crate) fn remove_clone(&self, vm: &LeasedVm, folder: &Path) -> Result<()> {
        self.end_loading(vm)?;
        end_qemu(vm)?;
        if self.filling_state(&vm.name)?.is_some() {
            let _ended = self.await_filling_lock(&vm.name)?;
            self.forget_filling(&vm.name)?;
        }
        remove_folder(folder)?;
        remove_durably(&self.home.vm_file(&vm.name))?;
        remove_folder(&self.home.vm_folder(&vm.name))
    }

    /// Refuses a snapshot that is not whole, or that no new VM can be made of.
    pub(crate) fn refuse_unfit(
        &self,
        repository: &Repository,
        target: &Snapshot,
        verb: &str,
        lazy: bool,
    ) -> Result<()> {
        let refused = |why: String| {
            Error::refused(format!("cannot {verb} `{}`", target.record.name))
                .because(why)
                .state("nothing was changed")
        };
        refuse_imported(&target.details.command_line, verb, &target.record.vm_name)?;
        let saved = |name: &String| target.details.disks.iter().any(|disk| disk.disk.name == *name);
        let mut disks = target.details.inventory.writable_disks().map(|disk| &disk.name);
        if let Some(name) = disks.find(|name| !saved(name)) {
            return Err(refused(format!("the disk `{name}` was left out of the snapshot")));
        }
        let line = &target.details.command_line;
        if let Some(word) = arguments::inherited_descriptor(&line.arguments) {
            return Err(refused(format!(
                "QEMU was started with `{word}`, a file that only its parent had open"
            )));
        }
        // What is loaded or written before anything of a new VM runs is checked so.
        let level = if lazy { VerifyLevel::Quick } else { VerifyLevel::StoredNearby };
        let report = repository
            .verify(&[target.record.id], level, &self.supervisor("verifying"))
            .map_err(Error::step("cannot verify the snapshot"))
            .map_err(|error| error.state_unless_known("nothing was changed"))?;
        match report.damaged.first() {
            None => Ok(()),
            Some(damage) => Err(refused(damage.to_string()).hint(DAMAGE_HINT)),
        }
    }
}

/// One clone on its way, or another new VM of a snapshot.
pub(crate) struct CloneWork<'w> {
    pub(crate) engine: &'w Engine,
    pub(crate) repository: &'w Repository,
    pub(crate) target: &'w Snapshot,
    /// The format of its disks, if they do not keep their own.
    pub(crate) format: Option<&'w str>,
    /// The script that starts it without tintype, if it has one.
    pub(crate) script: Option<&'w str>,
    pub(crate) shared: Option<&'w SharedMemory>,
    pub(crate) lazy: bool,
    pub(crate) lazy_disks: &'w [String],
    pub(crate) began: Instant,
}

/// A VM that nobody has been told of.
pub(crate) struct NewVm {
    pub(crate) name: VmName,
    pub(crate) id: VmId,
    /// How its QEMU is started, but for a monitor of ours.
    pub(crate) line: CommandLine,
    pub(crate) lease: Lease,
}

impl CloneWork<'_> {
    fn make(&self, name: &VmName, folder: PathBuf) -> Result<ClonedVm> {
        let lease = self.engine.new_vm(name, "clone")?;
        if folder.exists() {
            return Err(Error::refused(format!("{} exists already", folder.display()))
                .hint("choose another name, or another folder with --to"));
        }
        let id = VmId::random();
        let places = Places::choose(self.target, &folder, self.format)?;
        let Relocated { arguments, ports, macs, moved } = self.relocate(&folder, &places, id)?;
        let line = CommandLine { arguments, ..self.target.details.command_line.clone() };
        let new = NewVm { name: name.clone(), id, line, lease };
        let made = self.make_vm(new, (&folder, &places))?;
        Ok(ClonedVm { made, folder, macs, ports, moved })
    }

    /// Makes a VM in its folder and lets it run on, or leaves nothing of it.
    pub(crate) fn make_vm(&self, new: NewVm, place: Place<'_>) -> Result<MadeVm> {
        let NewVm { name, id, line, lease } = new;
        let socket = self.engine.home.monitor_socket(&name)?;
        let line = self.with_monitor(&name, line)?;
        let inventory = place.1.moved(&self.target.details.inventory);
        let state = VmState { id, ..VmState::at_rest(socket, line, inventory) };
        let mut vm = LeasedVm { name, state, _lease: lease };
        let folder = place.0.to_owned();
        self.engine.intend(&vm.name, &Intent::Clone { folder })?;
        self.engine.save(&vm)?;
        self.step(Step::CloneIntent);
        let made = self.fill(&vm, place.0, place.1).and_then(|()| self.run(&mut vm, place));
        match made {
            Ok(made) => {
                self.engine.forget_intent(&vm.name)?;
                Ok(made)
            }
            Err(error) => {
                self.engine.remove_clone(&vm, place.0)?;
                Err(error)
            }
        }
    }

    fn relocate(&self, folder: &Path, places: &Places, id: VmId) -> Result<Relocated> {
        let ports = Ports::default();
        let params = RelocateParams {
            files: &places.all,
            folder,
            seed: *id.as_bytes(),
            free_port: Some(&|protocol, address| ports.find(protocol, address)),
        };
        relocate(&self.target.details.command_line, &params)
            .map_err(Error::step("the VM of the snapshot cannot have a second one beside it"))
    }

    /// Adds a monitor of our own to a command line.
    pub(crate) fn with_monitor(&self, name: &VmName, line: CommandLine) -> Result<CommandLine> {
        let socket = self.engine.home.monitor_socket(name)?;
        let monitor = ["-qmp".to_owned(), format!("unix:{},server=on,wait=off", socket.display())];
        Ok(CommandLine { arguments: [&line.arguments[..], &monitor].concat(), ..line })
    }

    /// Makes the folder with the disks and the files.
    pub(crate) fn fill(&self, vm: &LeasedVm, folder: &Path, places: &Places) -> Result<()> {
        make_folder(folder)?;
        places.write_files(self.repository, self.target, folder)?;
        self.make_disks(vm, (folder, places), self.lazy_disks)?;
        if let Some(script) = self.script {
            start_script::write(folder, script)?;
        }
        self.step(Step::CloneFilled);
        Ok(())
    }

    fn make_disks(
        &self,
        vm: &LeasedVm,
        (folder, places): Place<'_>,
        lazy: &[String],
    ) -> Result<()> {
        let disks = places.new_disks(self.target, folder)?;
        let short_lived = self.engine.home.short_lived_folder()?;
        let program = &vm.state.command_line.program;
        let host = DiskHost { program, folder: short_lived.path() };
        let from = (self.repository, self.target);
        self.engine.make_disks(&vm.name, &host, from, disks, lazy)
    }

    /// Fills before the guest runs the disks that this QEMU would not fill behind it.
    fn fill_instead(&self, vm: &LeasedVm, (folder, places): Place<'_>, why: &str) -> Result<()> {
        self.engine.explain_written(why);
        let _ended = self.engine.await_filling_lock(&vm.name)?;
        self.engine.forget_filling(&vm.name)?;
        for disk in places.new_disks(self.target, folder)? {
            fs::remove_file(&disk.path).map_err(Error::io("remove", &disk.path))?;
        }
        self.make_disks(vm, (folder, places), &[])
    }

    /// Starts QEMU and lets the guest go on from the instant.
    fn run(&self, vm: &mut LeasedVm, place: Place<'_>) -> Result<MadeVm> {
        let details = &self.target.details;
        if details.memory.is_empty() && details.way.is_none() {
            self.engine.place(vm, &self.target.record)?;
            return Ok(MadeVm {
                vm: vm.name.clone(),
                state: "stopped".to_owned(),
                lazy: false,
                filling: false,
                pid: None,
                clock: "not set: the VM does not run".to_owned(),
                running_ms: since(self.began),
            });
        }
        let (guest, lazy) = match self.launch(vm) {
            Ok(launched) => launched,
            Err(error) => match self.engine.refused_filling(&vm.name)? {
                Some(why) => {
                    self.fill_instead(vm, place, &why)?;
                    self.launch(vm)?
                }
                None => return Err(error),
            },
        };
        self.step(Step::CloneLoaded);
        let mut guest = self.engine.saw(vm, guest)?;
        self.engine.place(vm, &self.target.record)?;
        let cannot = |error| Error::failed("the guest cannot be started").because(error);
        if details.was_running {
            guest.start_running().map_err(cannot)?;
        }
        self.step(Step::CloneRunning);
        let running_ms = since(self.began);
        let state = guest.run_state().map_err(cannot)?;
        let clock = self.engine.settle(&mut guest, self.target);
        let filling = self.engine.filling_state(&vm.name)?.is_some();
        let pid = Some(vm.state.process.pid);
        Ok(MadeVm { vm: vm.name.clone(), state, lazy, filling, pid, running_ms, clock })
    }

    /// Starts QEMU, and tells whether its memory is loaded behind it.
    fn launch(&self, vm: &LeasedVm) -> Result<(Guest, bool)> {
        if self.lazy {
            match self.engine.launch_lazily(vm, self.target) {
                Ok(guest) => return Ok((guest, true)),
                Err(error) if self.engine.refused_filling(&vm.name)?.is_some() => {
                    return Err(error);
                }
                Err(error) => self.engine.explain_eager(&error.with_causes()),
            }
        }
        let has_memory = !self.target.details.memory.is_empty();
        Ok((self.launch_eagerly(vm, has_memory)?, false))
    }

    /// Starts QEMU with all of the memory.
    pub(crate) fn launch_eagerly(&self, vm: &LeasedVm, has_memory: bool) -> Result<Guest> {
        let mapped = self.shared.map(SharedMemory::arguments);
        let mut extra: Vec<&str> = mapped.iter().flatten().map(String::as_str).collect();
        extra.push("-S");
        if has_memory {
            extra.extend(["-incoming", "defer"]);
        }
        let mut guest = self.engine.launch(vm, &extra)?;
        if has_memory {
            let mapped = self.shared.map(|memory| memory.block.as_str());
            let loaded = self.engine.load_memory(self.repository, &mut guest, self.target, mapped);
            if let Err(error) = loaded {
                let _ = guest.quit();
                return Err(error);
            }
        }
        Ok(guest)
    }

    pub(crate) fn step(&self, step: Step) {
        self.engine.config.observer.step(step);
    }
}

/// The folder of a clone, and what goes where in it.
pub(crate) type Place<'p> = (&'p Path, &'p Places);

/// Free ports, held until all of them are found.
#[derive(Default)]
struct Ports {
    streams: RefCell<Vec<TcpListener>>,
    datagrams: RefCell<Vec<UdpSocket>>,
}

impl Ports {
    fn find(&self, protocol: &str, address: &str) -> io::Result<u16> {
        let address = if address.is_empty() { "0.0.0.0" } else { address };
        if protocol == "udp" {
            let socket = UdpSocket::bind((address, 0))?;
            let port = socket.local_addr()?.port();
            self.datagrams.borrow_mut().push(socket);
            return Ok(port);
        }
        let socket = TcpListener::bind((address, 0))?;
        let port = socket.local_addr()?.port();
        self.streams.borrow_mut().push(socket);
        Ok(port)
    }
}

pub(crate) fn refuse_missing_program(target: &Snapshot) -> Result<()> {
    let program = &target.details.command_line.program;
    if program.exists() {
        return Ok(());
    }
    let why = format!("the QEMU of the snapshot, {}, is not there", program.display());
    Err(Error::refused(format!("cannot clone `{}`", target.record.name))
        .because(why)
        .state("nothing was changed")
        .hint(format!("the snapshot needs QEMU {}", target.details.inventory.qemu_version)))
}

/// Returns the names of the new VMs.
fn names(params: &CloneParams) -> Result<Vec<VmName>> {
    let Some(count) = params.count else { return Ok(vec![params.name.clone()]) };
    let numbered = (1..=count).map(|number| {
        VmName::new(&format!("{}{number}", params.name))
            .map_err(Error::step(format!("`{}{number}` cannot be a VM's name", params.name)))
    });
    numbered.collect()
}

/// Says what a clone that fails leaves of those before it.
fn so_far(vms: &[ClonedVm]) -> String {
    if vms.is_empty() {
        return "no VM was made".to_owned();
    }
    let names: Vec<_> = vms.iter().map(|vm| format!("`{}`", vm.made.vm)).collect();
    format!("{} are whole, and no other was made", names.join(", "))
}

/// Removes a folder, or all that is in it where it cannot go, such as a mount point.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !is_empty() => {
            Err(Error::io("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn since(began: Instant) -> f64 {
    micros_as_ms(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX))
}
