//! A snapshot as a folder that runs by itself, on a machine that has never seen
//! the VM: disks, small files, memory, and a script that starts QEMU.
//!
//! ```text
//! verify ─ empty folder, marked ─ files, empty disks ─ dry run of QEMU
//!                                  disks, memory, script ─ mark removed ─┘
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tintype_types::SnapshotId;
use tintype_vm::{
    CommandLine, LaunchParams, RelocateParams, arguments, launch, relocate, with_machine_type,
};

use crate::Engine;
use crate::details::Snapshot;
use crate::disks::DiskHost;
use crate::error::{Error, Result};
use crate::home::{make_folder, remove_durably, write_durably};
use crate::memory;
use crate::places::Places;
use crate::snapshots::hold;
use crate::vms::find_program;

/// Says that a folder is not finished.
const UNFINISHED: &str = "UNFINISHED";

/// The memory with the device state.
const MEMORY: &str = "memory.stream";

/// The script.
const START: &str = "start";

/// What to restore, and where.
#[derive(Debug, Clone)]
pub struct RestoreParams {
    /// The snapshot.
    pub snapshot: String,
    /// The folder, which is empty or does not exist.
    pub folder: PathBuf,
    /// The format of the disks: `qcow2` or `raw`.
    pub format: String,
    /// Whether media that are missing or others now do not matter.
    pub ignore_media: bool,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreReport {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The folder.
    pub folder: PathBuf,
    /// The script that starts QEMU.
    pub start: PathBuf,
    /// The images of the disks.
    pub disks: Vec<PathBuf>,
    /// The QEMU that the dry run was made with.
    pub program: PathBuf,
}

impl Engine {
    /// Restores a snapshot to a folder.
    pub fn restore(&self, params: &RestoreParams) -> Result<RestoreReport> {
        let repository = self.repository()?;
        let mut target = self.find_snapshot(&repository, &params.snapshot, None)?;
        let _held = hold(&repository, &mut target)?;
        self.see_to_media(&mut target, params.ignore_media)?;
        self.refuse_unfit(&repository, &target, "restore", false)?;
        let folder =
            std::path::absolute(&params.folder).map_err(Error::io("find", &params.folder))?;
        let places = Places::choose(&target, Path::new(""), Some(&params.format))?;
        let line = command_line(&target, &places, &folder)?;
        refuse_used(&folder)?;
        make_folder(&folder)?;
        write_durably(&folder.join(UNFINISHED), b"tintype restore has not finished this folder\n")?;
        places.write_files(&repository, &target, &folder)?;
        let disks = places.new_disks(&target, &folder)?;
        let short_lived = self.home.short_lived_folder()?;
        let host = DiskHost { program: &line.program, folder: short_lived.path() };
        host.make(&disks)?;
        if let Err(error) = dry_run(&line, short_lived.path()) {
            fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
            return Err(error);
        }
        host.fill(&repository, &disks, self.config.observer.as_ref())?;
        let has_memory = !target.details.memory.is_empty();
        if has_memory {
            let path = folder.join(MEMORY);
            let state = target.device_state(&repository)?;
            let mut file = File::create_new(&path).map_err(Error::io("make", &path))?;
            memory::write(&repository, &target, &state, &mut file)?;
            file.sync_all().map_err(Error::io("write", &path))?;
        }
        let thaw = has_memory && target.details.quiesced.needs_thaw();
        write_script(&folder.join(START), &script(&line, has_memory, thaw))?;
        remove_durably(&folder.join(UNFINISHED))?;
        Ok(RestoreReport {
            snapshot: target.record.id,
            start: folder.join(START),
            disks: disks.into_iter().map(|disk| disk.path).collect(),
            program: line.program,
            folder,
        })
    }
}

/// Refuses a folder that has something in it.
fn refuse_used(folder: &Path) -> Result<()> {
    let refused = |why: &str| Err(Error::refused(format!("{} {why}", folder.display())));
    if folder.join(UNFINISHED).exists() {
        return refused("is of a restore that was interrupted")
            .map_err(|error| error.hint("remove it, and restore again"));
    }
    let is_used = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    if is_used { refused("is not empty") } else { Ok(()) }
}

/// Returns how QEMU is started in the folder, where all paths start from.
fn command_line(target: &Snapshot, places: &Places, folder: &Path) -> Result<CommandLine> {
    let details = &target.details;
    let line = &details.command_line;
    let refused = |why: tintype_vm::Error| {
        Error::refused(format!("cannot restore `{}`", target.record.name))
            .because(why)
            .state("nothing was changed")
    };
    if let Some(tpm) = details.tpms.first() {
        return Err(refused(tintype_vm::Error::unsupported(format!(
            "the VM has a software TPM, at {}, that QEMU would look for there",
            tpm.socket.display()
        ))));
    }
    let seed = *tintype_types::VmId::random().as_bytes();
    let params =
        RelocateParams { files: &places.all, folder: Path::new(""), seed, free_port: None };
    let relocated = relocate(line, &params).map_err(refused)?;
    let program = match line.program.exists() {
        true => line.program.clone(),
        false => {
            let name = line.program.file_name().unwrap_or_default().to_string_lossy();
            find_program(&name, folder)?
        }
    };
    Ok(CommandLine {
        program,
        arguments: with_machine_type(&relocated.arguments, &details.inventory.machine),
        directory: folder.to_owned(),
        environment: Vec::new(),
    })
}

/// Starts this machine's QEMU with all of the VM's hardware, and ends it.
fn dry_run(line: &CommandLine, short_lived: &Path) -> Result<()> {
    let socket = short_lived.join("qmp");
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let params = LaunchParams {
        command_line: line,
        extra: &["-S", "-incoming", "defer", "-qmp", &monitor],
        socket: &socket,
        log: &short_lived.join("log"),
    };
    let tried = launch(&params).and_then(tintype_vm::Guest::quit);
    tried.map_err(|error| {
        Error::refused(format!("the VM would not run here, with {}", line.program.display()))
            .because(error)
            .state("nothing was restored")
            .hint("QEMU says what it misses: a newer QEMU, a processor, a file, or a free port")
    })
}

fn script(line: &CommandLine, has_memory: bool, thaw: bool) -> String {
    let words: Vec<String> = line.arguments.iter().map(|word| quoted(word)).collect();
    let program = quoted(&line.program.display().to_string());
    let memory = match has_memory {
        true => MEMORY_PART,
        false => "",
    };
    let thaw = match arguments::agent_socket(&line.arguments).filter(|_| thaw) {
        Some(socket) => format!("SOCKET={}\n{THAW_PART}", quoted(&socket)),
        None => String::new(),
    };
    format!(
        "#!/bin/sh\n\
         # Starts the VM. QEMU=PROGRAM takes another QEMU than the one that was tried.\n\
         cd \"$(dirname -- \"$0\")\" || exit 1\n\
         {memory}{thaw}[ -n \"${{QEMU-}}\" ] || QEMU={program}\n\
         exec \"$QEMU\" {} \"$@\"\n",
        words.join(" ")
    )
}

/// The memory fits the disks once: whatever the guest does changes them.
const MEMORY_PART: &str = r#"# The guest runs on from the snapshot's instant the first time; `--cold` boots it
# from its disks, then and ever after.
if [ "${1-}" = --cold ]; then
    shift
    if [ -e memory.stream ]; then mv memory.stream memory.unused || exit 1; fi
elif mv memory.stream memory.loading 2>/dev/null; then
    set -- -incoming 'exec:cat memory.loading' "$@"
else
    echo "the guest has left the snapshot's instant: \`$0 --cold\` boots it from its disks" >&2
    exit 1
fi
"#;

/// A guest that was frozen at its instant is told to thaw by its own agent, with
/// whichever program can write to a socket. The answer is waited for: the line is
/// lost if the socket is closed before the guest runs.
const THAW_PART: &str = r#"# The guest's file systems were frozen at the instant: its agent is told to thaw them.
thaw() {
    line='{"execute":"guest-fsfreeze-thaw"}'
    if ! command -v python3 >/dev/null && ! command -v perl >/dev/null; then
        echo "the guest is frozen: write $line to the socket $SOCKET" >&2
        return
    fi
    while kill -0 $$ 2>/dev/null; do
        sleep 0.2
        python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(sys.argv[2].encode() + b"\n")
s.recv(1)' "$SOCKET" "$line" 2>/dev/null && return
        perl -MIO::Socket::UNIX -e '$s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or exit 1;
            syswrite $s, "$ARGV[1]\n"; sysread $s, $b, 1' "$SOCKET" "$line" 2>/dev/null && return
    done
}
[ "${1-}" != -incoming ] || thaw &
"#;

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o700).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(Error::io("write", path))
}
