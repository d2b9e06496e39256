//! The script that starts a restored VM without tintype. It is text for any `sh`, makes
//! nothing, and needs nothing but QEMU.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tintype_types::VmName;
use tintype_vm::{CommandLine, arguments};

use crate::error::{Error, Result};

/// What the script is called.
pub(crate) const START: &str = "start";

/// The memory with the device state.
pub(crate) const MEMORY: &str = "memory.stream";

/// What to start.
pub(crate) struct ScriptParams<'p> {
    /// How QEMU is started; all paths start from the folder of the script.
    pub(crate) line: &'p CommandLine,
    /// Whether the guest runs on from the instant the first time.
    pub(crate) has_memory: bool,
    /// Whether it has to be thawed then.
    pub(crate) thaw: bool,
    /// The VM whose disks are filled behind it, and those disks.
    pub(crate) filled: Option<(&'p VmName, Vec<String>)>,
}

/// Returns the text of a script.
pub(crate) fn script(params: &ScriptParams<'_>) -> String {
    let ScriptParams { line, has_memory, thaw, filled } = params;
    let words: Vec<String> = line.arguments.iter().map(|word| quoted(word)).collect();
    let program = quoted(&line.program.display().to_string());
    let whole = match filled {
        Some((vm, disks)) if !disks.is_empty() => whole_part(vm, disks),
        _ => String::new(),
    };
    let memory = if *has_memory { MEMORY_PART } else { "" };
    let thaw = match arguments::agent_socket(&line.arguments).filter(|_| *thaw) {
        Some(socket) => format!("SOCKET={}\n{THAW_PART}", quoted(&socket)),
        None => String::new(),
    };
    format!(
        "#!/bin/sh\n\
         # Starts the VM. QEMU=PROGRAM takes another QEMU than the one that was tried.\n\
         cd \"$(dirname -- \"$0\")\" || exit 1\n\
         {whole}{memory}{thaw}[ -n \"${{QEMU-}}\" ] || QEMU={program}\n\
         exec \"$QEMU\" {} \"$@\"\n",
        words.join(" ")
    )
}

/// Asks the disks themselves, so that nobody has to change the script when they are whole.
fn whole_part(vm: &VmName, disks: &[String]) -> String {
    let disks: Vec<String> = disks.iter().map(|disk| quoted(disk)).collect();
    format!(
        r#"# A disk that is not whole yet says in its header that something is below it (qcow2:
# bytes 8 to 15). Only tintype can start the VM then.
for disk in {}; do
    below=$(od -A n -v -t x1 -j 8 -N 8 "$disk") || exit 1
    case $below in
    *[!0\ ]*)
        echo "$disk is not whole yet: \`tintype vm show {vm}\` says how far it is, \`tintype vm start {vm}\` starts the VM and goes on" >&2
        exit 1
        ;;
    esac
done
"#,
        disks.join(" ")
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

/// Writes a script to a folder, durably.
pub(crate) fn write(folder: &Path, text: &str) -> Result<()> {
    let path = folder.join(START);
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o700).open(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(Error::io("write", &path))
}
