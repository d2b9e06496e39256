//! Says what this machine and a VM can do, why not, and what is done instead.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;
use tintype_types::VmName;
use tintype_vm::{
    Abilities, AgentChannel, Disk, Guest, Hardware, Inventory, can_serve_missing_pages,
};

use crate::Engine;
use crate::error::{Error, Result};

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    /// It works.
    Good,
    /// It does not, and something else is done instead.
    Fallback,
    /// It does not, and nothing replaces it.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: String,
    /// How it stands.
    pub health: Health,
    /// What was found, and what is done instead.
    pub meaning: String,
}

impl Finding {
    fn new(subject: &str, health: Health, meaning: impl Into<String>) -> Self {
        Self { subject: subject.to_owned(), health, meaning: meaning.into() }
    }
}

impl Engine {
    /// Looks at this machine, and at a VM if one is named.
    pub fn doctor(&self, vm: Option<&VmName>) -> Result<Vec<Finding>> {
        let mut findings = vec![kvm(), userfaultfd(), qemu(), self.repository_health()];
        findings.extend(self.space_findings(vm));
        if let Some(vm) = vm {
            findings.extend(self.vm_findings(vm)?);
        }
        Ok(findings)
    }

    fn repository_health(&self) -> Finding {
        match self.repository() {
            Ok(repository) => Finding::new(
                "repository",
                Health::Good,
                format!("{} opens", repository.path().display()),
            ),
            Err(error) => Finding::new("repository", Health::Missing, error.to_string()),
        }
    }

    fn vm_findings(&self, name: &VmName) -> Result<Vec<Finding>> {
        let vm = self.lease(name, "doctor")?;
        let mut findings = Vec::new();
        let line = &vm.state.command_line;
        findings.push(match tintype_vm::arguments::inherited_descriptor(&line.arguments) {
            None => Finding::new("restart", Health::Good, "its command line can be started again"),
            Some(word) => Finding::new(
                "restart",
                Health::Missing,
                format!("it was started with `{word}`, which only its parent had open: it can be taken, and not be reverted"),
            ),
        });
        if !vm.is_alive() {
            findings.push(Finding::new(
                "guest",
                Health::Fallback,
                "it does not run: its disks are read from their images",
            ));
            return Ok(findings);
        }
        if let Some(loading) = self.loading(name)? {
            let meaning = format!(
                "{} % of its memory is loaded: the rest can be looked at when it is there",
                loading.percent()
            );
            findings.push(Finding::new("guest", Health::Fallback, meaning));
            return Ok(findings);
        }
        if let Some(filling) = self.filling(name)? {
            let meaning = format!("{} % of its disks are filled: a take waits", filling.percent());
            findings.push(Finding::new("disks", Health::Fallback, meaning));
            return Ok(findings);
        }
        let mut guest = vm.connect()?;
        let cannot = |error| Error::failed(format!("cannot look at `{name}`")).because(error);
        let abilities = guest.abilities().map_err(cannot)?;
        let inventory = guest.inventory().map_err(cannot)?;
        let stop = stop_finding(&mut guest, &inventory);
        findings.push(Finding::new("QEMU of the VM", Health::Good, inventory.qemu_version));
        findings.push(memory_finding(&guest.memory_blockers().map_err(cannot)?));
        findings.push(match guest.refuse_unfit() {
            Ok(()) => Finding::new("state", Health::Good, "a snapshot can be taken now"),
            Err(error) => Finding::new("state", Health::Missing, error.to_string()),
        });
        findings.push(hardware_finding(&guest.hardware(&vm.state.command_line).map_err(cannot)?));
        findings.push(iterating_finding(&abilities));
        findings.push(copy_on_write_finding(&abilities));
        findings.push(match abilities.require_disk_snapshots() {
            Ok(()) => Finding::new("disks", Health::Good, "kept at the instant while the guest writes on; a failure of ours never fails a write of the guest"),
            Err(error) => Finding::new("disks", Health::Missing, error.to_string()),
        });
        findings.push(stop);
        findings.push(agent_finding(guest.agent_channel().map_err(cannot)?));
        if abilities.io_threads {
            findings.push(Finding::new("I/O threads", Health::Fallback, "when QEMU pauses a guest it can lose the interrupt of a disk in an I/O thread, and the guest waits for that disk for ever: rare, QEMU's own, and so in every pause, not only in tintype's"));
        }
        for disk in
            vm.state.inventory.disks.iter().filter(|disk| disk.file.is_none() && !disk.read_only)
        {
            findings.push(Finding::new(
                "disk",
                Health::Fallback,
                format!(
                    "`{}` is not a file of this machine: it can be taken, and not be reverted",
                    disk.name
                ),
            ));
        }
        Ok(findings)
    }
}

/// Says of which disks it is known after a stop what has changed.
fn stop_finding(guest: &mut Guest, inventory: &Inventory) -> Finding {
    let mut why_not =
        |disk: &Disk| Some(format!("`{}`: {}", disk.name, guest.backing_files(disk).err()?));
    let read_whole: Vec<String> = inventory.writable_disks().filter_map(&mut why_not).collect();
    let known = "after `tintype vm stop` and a start, a take reads what was written";
    let (health, meaning) = match read_whole.is_empty() {
        true => (Health::Good, known.to_owned()),
        false => {
            (Health::Fallback, format!("{known}, but all of the disk {}", read_whole.join(", ")))
        }
    };
    Finding::new("after a stop", health, meaning)
}

fn agent_finding(channel: AgentChannel) -> Finding {
    let (health, text) = match channel {
        AgentChannel::Socket(_) => (
            Health::Good,
            "its channel is free: the guest can be asked to freeze its file systems".to_owned(),
        ),
        AgentChannel::Unusable(why) => {
            (Health::Fallback, format!("{why}; disks by themselves are as after a power cut"))
        }
        AgentChannel::None => (
            Health::Fallback,
            "the VM has no channel to one; disks by themselves are as after a power cut".to_owned(),
        ),
    };
    Finding::new("guest agent", health, text)
}

fn hardware_finding(hardware: &Hardware) -> Finding {
    let Hardware { changes, unknown, .. } = hardware;
    let (health, text) = if !unknown.is_empty() {
        let why = unknown.join("; ");
        (Health::Fallback, format!("{why}; take the disks alone with --no-memory"))
    } else if changes.is_empty() {
        (Health::Good, "it is that of the command line".to_owned())
    } else {
        let what = changes.join(", and ");
        (Health::Good, format!("since QEMU started {what}; snapshots have it"))
    };
    Finding::new("hardware", health, text)
}

fn iterating_finding(abilities: &Abilities) -> Finding {
    let (health, text) = match (&abilities.iterating, &abilities.copy_on_write) {
        (Ok(()), _) => (
            Health::Good,
            "memory is saved in passes while the guest runs; the pause is a few milliseconds"
                .to_owned(),
        ),
        (Err(reason), Ok(())) => {
            (Health::Fallback, format!("{reason}; copy-on-write is used instead"))
        }
        (Err(reason), Err(_)) => (
            Health::Fallback,
            format!("{reason}; the guest stands still while its memory is saved"),
        ),
    };
    Finding::new("iterating capture", health, text)
}

fn copy_on_write_finding(abilities: &Abilities) -> Finding {
    let (health, text) = match (&abilities.copy_on_write, &abilities.iterating) {
        (Ok(()), Ok(())) => {
            (Health::Good, "used for guests that write memory faster than it is read".to_owned())
        }
        (Ok(()), Err(_)) => (
            Health::Good,
            "used for every guest here; the pause grows slightly with its memory".to_owned(),
        ),
        (Err(reason), Ok(())) => (
            Health::Fallback,
            format!(
                "{reason}; a guest that writes memory faster than it is read stands still for the rest"
            ),
        ),
        (Err(reason), Err(_)) => (Health::Fallback, reason.clone()),
    };
    Finding::new("copy-on-write capture", health, text)
}

fn memory_finding(blockers: &[String]) -> Finding {
    if blockers.is_empty() {
        return Finding::new(
            "memory",
            Health::Good,
            "no device stands in the way of a memory snapshot",
        );
    }
    Finding::new(
        "memory",
        Health::Fallback,
        format!("{}; take the disks alone with --no-memory", blockers.join("; ")),
    )
}

fn kvm() -> Finding {
    let device = Path::new("/dev/kvm");
    let opens = fs::OpenOptions::new().read(true).write(true).open(device);
    match opens {
        Ok(_) => Finding::new(
            "KVM",
            Health::Good,
            "/dev/kvm opens; whether a guest comes up under it, only a guest can tell",
        ),
        Err(error) => Finding::new(
            "KVM",
            Health::Fallback,
            format!("{error}: guests are emulated, which is slower and otherwise the same"),
        ),
    }
}

fn userfaultfd() -> Finding {
    match can_serve_missing_pages() {
        Ok(()) => Finding::new(
            "userfaultfd",
            Health::Good,
            "copy-on-write capture and lazy reverts are possible",
        ),
        Err(reason) => Finding::new(
            "userfaultfd",
            Health::Fallback,
            format!(
                "{reason}; without it captures iterate, guests that are too busy stand still, and reverts load all memory before the guest runs"
            ),
        ),
    }
}

fn qemu() -> Finding {
    let output = Command::new("qemu-system-x86_64").arg("--version").output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let first = text.lines().next().unwrap_or_default().to_owned();
            Finding::new("QEMU", Health::Good, first)
        }
        _ => Finding::new(
            "QEMU",
            Health::Missing,
            "qemu-system-x86_64 is not there: install the package qemu-system-x86",
        ),
    }
}
