//! The arguments: a contract with scripts. Names are added, never changed.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use tintype_engine::{DEFAULT_GRACE, Period};
use tintype_types::{ByteCount, SnapshotName, VmName};

use crate::clone::CloneArguments;
use crate::completion::CompleteArguments;
use crate::copy::CopyArguments;
use crate::export::ExportArguments;
use crate::import::ImportArguments;
use crate::load::LoadArguments;
use crate::log::LogArguments;
use crate::man::ManArguments;
use crate::prune::PruneArguments;
use crate::repair::RepairArguments;
use crate::restore::RestoreArguments;
use crate::servers::ServerArguments;
use crate::settings::SetArguments;
use crate::verify::VerifyArguments;

/// Snapshots of QEMU/KVM virtual machines: memory, settings and disks at one
/// point in time, taken while the machine runs, put back in seconds.
#[derive(Debug, Parser)]
#[command(name = "tintype", version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Globals {
    /// The repository: a folder or s3://BUCKET/PREFIX. By default a folder in the home.
    #[arg(long, global = true, env = "TINTYPE_REPO", value_name = "URL")]
    pub(crate) repo: Option<PathBuf>,
    /// A key file that opens the repository. `key` in the home is tried too.
    #[arg(long, global = true, env = "TINTYPE_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// A file whose first line is a passphrase that opens the repository.
    #[arg(long, global = true, env = "TINTYPE_PASSPHRASE_FILE", value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// A file with an age identity that opens the repository.
    #[arg(long, global = true, env = "TINTYPE_AGE_IDENTITY", value_name = "FILE")]
    pub(crate) age_identity: Option<PathBuf>,
    /// How much of a bucket may be kept in the home, such as 10G; 0 for nothing.
    #[arg(long, global = true, env = "TINTYPE_CACHE_SIZE", value_name = "SIZE",
          value_parser = size, default_value = "10G")]
    pub(crate) cache_size: ByteCount,
    /// How much the repository may hold; takes beyond it are refused.
    #[arg(long, global = true, env = "TINTYPE_REPO_BUDGET", value_name = "SIZE",
          value_parser = size)]
    pub(crate) repo_budget: Option<ByteCount>,
    /// How long `gc` keeps what is deleted, so that it can be put back, such as 12h or 1m.
    #[arg(long, global = true, env = "TINTYPE_GRACE", value_name = "PERIOD",
          default_value_t = DEFAULT_GRACE)]
    pub(crate) grace: Period,
    /// How much may go to and come from a bucket in a second, such as 20M.
    #[arg(long, global = true, env = "TINTYPE_LIMIT_RATE", value_name = "SIZE",
          value_parser = size)]
    pub(crate) limit_rate: Option<ByteCount>,
    /// The folder of registered VMs. By default `tintype` in the XDG data folder.
    #[arg(long, global = true, env = "TINTYPE_HOME", value_name = "DIR")]
    pub(crate) home: Option<PathBuf>,
    /// Print one JSON object, or one a line for lists; progress events go to stderr.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// When to use colours.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    /// Print nothing but results and errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more; twice, much more.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// How many seconds to wait for another command on the same VM.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) wait: u64,
}

/// Reads an amount of bytes: a number, and K, M, G or T for powers of 1024, also as they
/// are printed, as KiB, MiB, GiB or TiB.
pub(crate) fn size(text: &str) -> Result<ByteCount, String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = match unit.trim_start() {
        "" | "B" => Some(1),
        "K" | "KiB" => Some(1 << 10),
        "M" | "MiB" => Some(1 << 20),
        "G" | "GiB" => Some(1 << 30),
        "T" | "TiB" => Some(1 << 40),
        _ => None,
    };
    let Some(unit) = unit.filter(|_| !digits.is_empty()) else {
        return Err("a size is a whole number, and K, M, G or T may follow: 50G".to_owned());
    };
    let size = digits.parse().ok().and_then(|number: u64| number.checked_mul(unit));
    size.map(ByteCount).ok_or_else(|| "it is too big".to_owned())
}

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make the repository. Other commands make the default one on first use.
    Init {
        /// What opens it.
        #[arg(long, value_name = "KIND", default_value = "keyfile")]
        encryption: Encryption,
    },
    /// Add, list and remove keys that open the repository.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Register, start and stop VMs.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Take a snapshot of a VM: its memory, settings and disks at one instant.
    Take(TakeArguments),
    /// List snapshots as a tree, newest first, with the place where the VM is now.
    Log(LogArguments),
    /// Show everything known of one snapshot.
    Show {
        /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
        snapshot: String,
    },
    /// Put a VM back to a snapshot. What is overwritten is kept in a safety snapshot.
    Revert {
        /// The VM.
        vm: VmName,
        /// NAME, latest~2, VM@NAME, or the start of an id.
        snapshot: String,
        #[command(flatten)]
        load: LoadArguments,
        /// Do not keep what is overwritten: it is lost.
        #[arg(long)]
        no_safety: bool,
        /// Go on although a CD or another read-only medium is missing or another one now.
        #[arg(long)]
        ignore_media: bool,
    },
    /// Make new VMs that run on from a snapshot, with disks, sockets and ports of their own.
    Clone(CloneArguments),
    /// Restore a snapshot to a folder that runs by itself, with a script that starts QEMU.
    Restore(RestoreArguments),
    /// Make snapshots of disk images, their backing chains and internal snapshots.
    Import(ImportArguments),
    /// Write a snapshot for other tools: a disk, a chain, memory, or an archive.
    Export(ExportArguments),
    /// Copy snapshots to another repository: what it lacks, checked and encrypted for it.
    Copy(CopyArguments),
    /// Delete snapshots. It can be undone for a week, or as long as --grace says.
    Rm {
        /// The snapshots.
        #[arg(required = true)]
        snapshots: Vec<String>,
        /// Only say what would be deleted, and how much space that frees.
        #[arg(long)]
        dry_run: bool,
    },
    /// Delete the snapshots of a VM that no rule keeps. It can be undone like `rm`.
    Prune(Box<PruneArguments>),
    /// Take back the last thing that was done. Again, and it takes back the one before.
    Undo {
        /// Put back these deleted snapshots instead: VM@NAME, or the start of an id.
        #[arg(value_name = "SNAPSHOTS", conflicts_with = "operation")]
        deleted: Vec<String>,
        /// Take back this one, by its number in `op log`; of an undo, it does it again.
        #[arg(long, value_name = "N")]
        operation: Option<u64>,
    },
    /// Show what was done to the repository.
    #[command(subcommand)]
    Op(OpCommand),
    #[command(flatten)]
    Label(LabelCommand),
    /// Free the space of what no snapshot needs, and move together what is left.
    Gc {
        /// Only say what would be freed, and what would be waited for.
        #[arg(long)]
        dry_run: bool,
        /// Free what is deleted at once, however long ago: nothing of it can be put back.
        #[arg(long)]
        now: bool,
        /// Compress again what takes have compressed fast: it gets some 15 % smaller, and
        /// each core does 10 MB of content a second.
        #[arg(long)]
        recompress: bool,
    },
    /// Say how much space snapshots take, alone and together.
    Du {
        /// Snapshots, or VMs for all of theirs; all without any.
        names: Vec<String>,
    },
    /// Check that snapshots are there and good.
    Verify(VerifyArguments),
    /// Mend what is damaged, and keep new snapshots away from what cannot be mended.
    Repair(RepairArguments),
    /// Say what this machine and a VM can do, what blocks what, and what is done instead.
    Doctor {
        /// The VM.
        vm: Option<VmName>,
    },
    /// Print a script that completes commands and names in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print a page for `man`, or write all of them to a folder.
    Man(ManArguments),
    /// Say what a word on the command line may become (asked by shells).
    #[command(hide = true, name = "__complete")]
    Complete(CompleteArguments),
    /// Load the memory of a guest that runs already (started by reverts and clones).
    #[command(hide = true)]
    PageServer(ServerArguments),
    /// Serve what the disks of a running guest lack (started by clones and `vm start`).
    #[command(hide = true)]
    DiskServer(ServerArguments),
    /// Repair what a killed take leaves (started by takes themselves).
    #[command(hide = true)]
    Watchdog {
        /// The VM.
        vm: VmName,
    },
}

/// What to say of a snapshot.
#[derive(Debug, Subcommand)]
pub(crate) enum LabelCommand {
    /// Give a snapshot another name.
    Rename {
        /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
        snapshot: String,
        /// The new name.
        name: SnapshotName,
    },
    /// Set and remove tags of a snapshot.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Tag {
        /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
        snapshot: String,
        /// Tags to set; one that is there gets this value.
        #[arg(value_name = "K=V", value_parser = parse_tag, group = "change")]
        tags: Vec<(String, String)>,
        /// A tag to remove; can be given several times.
        #[arg(long, value_name = "K", group = "change")]
        remove: Vec<String>,
    },
    /// Protect a snapshot from deletion.
    Pin {
        /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
        snapshot: String,
    },
    /// Let a snapshot be deleted again.
    Unpin {
        /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
        snapshot: String,
    },
    /// Write what a snapshot is good for.
    Note {
        /// VM@NAME, VM@latest, VM@latest~2, or the start of an id.
        snapshot: String,
        /// The text; it replaces what was there.
        text: String,
    },
}

/// What to do with the log of operations.
#[derive(Debug, Subcommand)]
pub(crate) enum OpCommand {
    /// List what was done, the newest first: when, by whom, what was typed.
    Log {
        /// At most so many.
        #[arg(long, value_name = "N", default_value_t = 50)]
        limit: usize,
    },
    /// Take back one of them.
    Undo {
        /// Its number.
        operation: u64,
    },
}

/// What a new repository is encrypted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Encryption {
    /// A key file, which is made if it does not exist.
    #[value(name = "keyfile", alias = "key-file")]
    KeyFile,
    /// A passphrase.
    Passphrase,
    /// Nothing: whoever reads the folder reads the snapshots.
    None,
}

/// What to do with the keys of the repository.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Add a key.
    Add(NewKey),
    /// List the keys.
    List,
    /// Remove a key, but not the last one.
    Remove {
        /// The key's id, or its start.
        id: String,
    },
}

/// A key to add.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct NewKey {
    /// A key file, which is made if it does not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) new_key_file: Option<PathBuf>,
    /// A file whose first line is a passphrase.
    #[arg(long, value_name = "FILE")]
    pub(crate) new_passphrase_file: Option<PathBuf>,
    /// A passphrase that is asked for on the terminal.
    #[arg(long)]
    pub(crate) new_passphrase: bool,
    /// An age recipient, `age1…`. Its identity opens the repository, and need not be here.
    #[arg(long, value_name = "RECIPIENT")]
    pub(crate) new_age_recipient: Option<String>,
}

/// What to do with a VM.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Start a QEMU command line as it stands, with one more monitor, and register it.
    Run {
        /// The VM's name.
        name: VmName,
        /// The command line, QEMU first.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        qemu: Vec<String>,
    },
    /// Register a QEMU that runs already.
    Add {
        /// The VM's name.
        name: VmName,
        /// Its QMP socket, which nobody else uses.
        #[arg(long, value_name = "SOCKET")]
        qmp: PathBuf,
    },
    /// List the VMs.
    List,
    /// Show one VM. Repairs what a killed command has left.
    Show {
        /// The VM.
        vm: VmName,
    },
    /// Say which snapshots of a VM are kept.
    Set(Box<SetArguments>),
    /// Start a VM that is stopped.
    Start {
        /// The VM.
        vm: VmName,
    },
    /// Stop a VM by its power button.
    Stop {
        /// The VM.
        vm: VmName,
        /// At once, as a power cut would.
        #[arg(long)]
        force: bool,
    },
    /// Forget a VM. Its QEMU runs on; its disks and snapshots stay.
    Rm {
        /// The VM.
        vm: VmName,
    },
}

/// What to take.
#[derive(Debug, Args)]
pub(crate) struct TakeArguments {
    /// The VM.
    pub(crate) vm: VmName,
    /// The snapshot's name; s1, s2, … without one.
    #[arg(long)]
    pub(crate) name: Option<SnapshotName>,
    /// What it is good for, in your words.
    #[arg(short, long, default_value = "")]
    pub(crate) message: String,
    /// A tag; can be given several times.
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    pub(crate) tags: Vec<(String, String)>,
    /// Take the disks alone.
    #[arg(long)]
    pub(crate) no_memory: bool,
    /// A disk to leave out, by its name in `vm show`; can be given several times.
    #[arg(long = "exclude-disk", value_name = "DISK")]
    pub(crate) excluded_disks: Vec<String>,
    /// Read whole disks, not what was written since the last snapshot, and leave no
    /// dirty bitmaps in QEMU, which refuses `loadvm` while there are any.
    #[arg(long)]
    pub(crate) full: bool,
    /// How to capture memory.
    #[arg(long, default_value = "auto")]
    pub(crate) mode: Mode,
    /// Try it even if there is not nearly room for it.
    #[arg(long)]
    pub(crate) ignore_space: bool,
    /// Whether the guest agent freezes the file systems around the instant.
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    pub(crate) quiesce: QuiesceWhen,
    /// For how many seconds they may be frozen at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) quiesce_timeout: u64,
}

/// Whether the guest agent freezes the file systems around the instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum QuiesceWhen {
    /// If it answers at once.
    Auto,
    /// Or there is no snapshot.
    Require,
    /// No.
    Off,
}

/// How to capture memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// The best that QEMU and the guest allow.
    Auto,
    /// In passes, while the guest runs.
    Iterating,
    /// Write-protected, read while the guest runs.
    CopyOnWrite,
    /// All of it while the guest stands still.
    Stop,
}

/// Reads `KEY=VALUE`.
pub(crate) fn parse_tag(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a tag is written KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn sizes_are_read_as_they_are_printed() {
        let cases =
            [("0", 0), ("7B", 7), ("512M", 512 << 20), ("1 GiB", 1 << 30), ("3TiB", 3 << 40)];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(ByteCount(bytes)), "{text}");
        }
        for text in
            ["", "G", "1.5G", "-1", "1GB", "1 g", "none", "99999999999999999999", "16777216T"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
