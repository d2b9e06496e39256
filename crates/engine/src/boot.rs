//! Starts snapshots to see whether a guest lives in them: each as a clone that
//! nothing leads out of, which is removed again whatever it shows.
//!
//! ```text
//! verify the snapshot ─ lease ─ intent ─ disks ─ QEMU ─ load ─ run ─ look ─ remove
//! ```
//!
//! The intent is that of a clone and stays until the clone is gone, so what a kill
//! leaves is removed as of any clone. The VM of the snapshot, its disks, its ports
//! and its networks have no part in it.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;
use tintype_repo::Repository;
use tintype_types::{SnapshotId, VmId, VmName};
use tintype_vm::{CommandLine, Guest, RelocateParams, isolate, relocate};

use crate::Engine;
use crate::clone::{CloneWork, refuse_missing_program};
use crate::details::Snapshot;
use crate::error::{Error, ErrorKind, Result};
use crate::intent::Intent;
use crate::life::{Life, Verdict};
use crate::observer::Step;
use crate::places::Places;
use crate::snapshots::hold;
use crate::vms::{LeasedVm, VmState};

/// Between two looks at a guest.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// What became of a snapshot that was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootOutcome {
    /// The guest lives.
    Booted,
    /// It does not, or it could not be started.
    Failed,
    /// It was not started: it cannot be isolated, or nothing can be made of it here.
    Refused,
}

/// A snapshot that was started; the names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BootReport {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// It as people name it: `VM@NAME`.
    pub name: String,
    /// What became of it.
    pub outcome: BootOutcome,
    /// What showed that the guest lives, as a sentence.
    pub proof: Option<String>,
    /// Why it was refused, or what showed that it does not live.
    pub error: Option<String>,
    /// The last lines that the guest wrote on its serial lines.
    pub seen: Vec<String>,
    /// How long that took.
    pub duration_ms: u64,
}

impl Engine {
    /// Starts snapshots, or all if none are named, one after the other, and waits
    /// until each shows that it lives, for `limit` at most. Those that do are
    /// stamped. Those that do not, or cannot be started, hinder no other.
    pub fn boot(
        &self,
        names: &[String],
        limit: Duration,
        each: &mut dyn FnMut(&BootReport),
    ) -> Result<Vec<BootReport>> {
        let repository = self.repository()?;
        let all = self.all_snapshots(&repository)?;
        let chosen = match names.is_empty() {
            true => all,
            false => names
                .iter()
                .map(|name| self.find_among(&all, name, None))
                .collect::<Result<Vec<_>>>()?,
        };
        let mut reports = Vec::new();
        for mut snapshot in chosen {
            self.check_interruption()?;
            let began = Instant::now();
            let tried = self.try_out(&repository, &mut snapshot, limit);
            let mut report = BootReport {
                snapshot: snapshot.record.id,
                name: format!("{}@{}", snapshot.record.vm_name, snapshot.record.name),
                outcome: BootOutcome::Failed,
                proof: None,
                error: None,
                seen: Vec::new(),
                duration_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
            };
            match tried {
                Ok(Shown { verdict: Verdict::Alive(proof), .. }) => {
                    self.stamp(&repository, &snapshot)?;
                    (report.outcome, report.proof) = (BootOutcome::Booted, Some(proof));
                }
                Ok(Shown { verdict: Verdict::Dead(why), seen }) => {
                    (report.error, report.seen) = (Some(why), seen);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => {
                    if error.kind() == ErrorKind::Refused {
                        report.outcome = BootOutcome::Refused;
                    }
                    report.error = Some(error.with_causes());
                }
            }
            each(&report);
            reports.push(report);
        }
        Ok(reports)
    }

    /// Notes that a guest of this snapshot was seen alive.
    fn stamp(&self, repository: &Repository, snapshot: &Snapshot) -> Result<()> {
        let now = self.now();
        let stamped = repository.relabel(snapshot.record.id, |label| label.booted = Some(now));
        stamped.map(drop).map_err(Error::step("it lives, but that cannot be noted"))
    }

    fn try_out(
        &self,
        repository: &Repository,
        target: &mut Snapshot,
        limit: Duration,
    ) -> Result<Shown> {
        let _held = hold(repository, target)?;
        self.see_to_media(target, true)?;
        self.refuse_unfit(repository, target, "boot", false)?;
        refuse_missing_program(target)?;
        let id = target.record.id.short();
        let name = VmName::new(&format!("boot-{id}")).map_err(Error::step("cannot name a VM"))?;
        let folder = self.home.clones_folder().join(name.as_str());
        let began = Instant::now();
        let work = CloneWork {
            engine: self,
            repository,
            target,
            format: None,
            script: None,
            shared: None,
            lazy: false,
            lazy_disks: &[],
            began,
        };
        work.try_out(&name, &folder, limit)
    }
}

/// What a guest has shown.
struct Shown {
    verdict: Verdict,
    /// The last lines that it wrote.
    seen: Vec<String>,
}

impl CloneWork<'_> {
    fn try_out(&self, name: &VmName, folder: &Path, limit: Duration) -> Result<Shown> {
        let places = Places::choose(self.target, folder, None)?;
        let (command_line, outputs) = self.isolated(name, folder, &places)?;
        let lease = self.engine.new_vm(name, "verify")?;
        if folder.exists() {
            return Err(Error::refused(format!("{} exists already", folder.display()))
                .hint("remove it: no VM is in it"));
        }
        let socket = self.engine.home.monitor_socket(name)?;
        let inventory = self.target.details.inventory.clone();
        let state = VmState::at_rest(socket, command_line, inventory);
        let mut vm = LeasedVm { name: name.clone(), state, _lease: lease };
        self.engine.intend(name, &Intent::Clone { folder: folder.to_owned() })?;
        self.engine.save(&vm)?;
        let shown = self.fill(&vm, folder, &places).and_then(|()| {
            let outputs = outputs.into_iter().chain([self.engine.home.log_file(name)]);
            self.look(&mut vm, outputs.collect(), limit)
        });
        self.engine.remove_clone(&vm, folder)?;
        shown
    }

    /// Returns the command line, and where the guest's words go.
    fn isolated(
        &self,
        name: &VmName,
        folder: &Path,
        places: &Places,
    ) -> Result<(CommandLine, Vec<PathBuf>)> {
        let details = &self.target.details;
        let refused = |error: tintype_vm::Error| {
            Error::refused(format!("cannot boot `{}`", self.target.record.name)).because(error)
        };
        let alone = isolate(&details.command_line.arguments, self.has_memory()).map_err(refused)?;
        let line = CommandLine { arguments: alone.arguments, ..details.command_line.clone() };
        let params = RelocateParams {
            files: &places.all,
            folder,
            seed: *VmId::random().as_bytes(),
            free_port: Some(&|_, _| Err(std::io::Error::other("nothing leads into it"))),
        };
        let relocated = relocate(&line, &params).map_err(refused)?;
        let line = CommandLine { arguments: relocated.arguments, ..line };
        let command_line = self.with_monitor(name, line)?;
        Ok((command_line, alone.outputs.iter().map(|name| folder.join(name)).collect()))
    }

    /// Lets the guest run, and looks at it until it is known how it fares.
    fn look(&self, vm: &mut LeasedVm, outputs: Vec<PathBuf>, limit: Duration) -> Result<Shown> {
        let guest = self.launch_eagerly(vm, self.has_memory())?;
        let mut guest = self.engine.saw(vm, guest)?;
        guest.start_running().map_err(Error::step("the guest cannot be started"))?;
        self.step(Step::CloneRunning);
        if self.target.details.quiesced.needs_thaw() {
            // Its agent answers little as long as it is frozen.
            self.engine.settle(&mut guest, self.target);
        }
        let mut life = Life::new(self.has_memory(), outputs);
        let deadline = Instant::now() + limit;
        loop {
            let verdict = match guest.signs() {
                Ok(signs) => life.judge(&signs, &mut || agent_answers(&mut guest)),
                Err(error) => Some(Verdict::Dead(format!("QEMU has ended: {error}"))),
            };
            let verdict =
                verdict.or_else(|| (Instant::now() > deadline).then(|| life.give_up(limit)));
            if let Some(verdict) = verdict {
                return Ok(Shown { verdict, seen: life.last_words() });
            }
            self.engine.check_interruption()?;
            sleep(LOOK_INTERVAL);
        }
    }

    fn has_memory(&self) -> bool {
        !self.target.details.memory.is_empty()
    }
}

/// Asks the guest's agent, if it has its channel open; `None` if there is none.
fn agent_answers(guest: &mut Guest) -> Option<bool> {
    use tintype_vm::{Agent, AgentChannel};
    /// How long one answer may take.
    const ANSWER_LIMIT: Duration = Duration::from_secs(2);
    match guest.agent_channel() {
        Ok(AgentChannel::Socket(path)) => {
            Some(Agent::connect(&path).and_then(|mut agent| agent.sync(ANSWER_LIMIT)).is_ok())
        }
        _ => None,
    }
}
