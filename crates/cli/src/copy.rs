//! The command that copies snapshots to another repository.

use std::path::PathBuf;

use clap::Args;
use tintype_engine::{CopiedSnapshot, CopyAction, CopyParams, CopySummary, Engine, Result};
use tintype_types::{ByteCount, VmName};

use crate::arguments::{parse_tag, size};
use crate::commands::s3_access;
use crate::exit::Exit;
use crate::keys;
use crate::output::Output;
use crate::text::counted;

/// What to copy, and where to.
#[derive(Debug, Args)]
pub(crate) struct CopyArguments {
    /// The snapshots.
    #[arg(required_unless_present_any = ["all", "vm", "tags"])]
    #[arg(conflicts_with_all = ["all", "vm", "tags"])]
    snapshots: Vec<String>,
    /// Copy all snapshots.
    #[arg(long)]
    all: bool,
    /// Copy the snapshots of this VM.
    #[arg(long)]
    vm: Option<VmName>,
    /// Copy the snapshots with this tag; with all of them, if given several times.
    #[arg(long = "tag", value_name = "K=V", value_parser = parse_tag)]
    tags: Vec<(String, String)>,
    /// The repository to copy to: a folder or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "URL")]
    to: PathBuf,
    /// A key file that opens it. The keys of this repository are tried too.
    #[arg(long, env = "TINTYPE_TO_KEY_FILE", value_name = "FILE")]
    to_key_file: Option<PathBuf>,
    /// A file whose first line is a passphrase that opens it.
    #[arg(long, env = "TINTYPE_TO_PASSPHRASE_FILE", value_name = "FILE")]
    to_passphrase_file: Option<PathBuf>,
    /// A file with an age identity that opens it.
    #[arg(long, env = "TINTYPE_TO_AGE_IDENTITY", value_name = "FILE")]
    to_age_identity: Option<PathBuf>,
    /// How much is read until what has arrived is kept, whatever happens: 512M, or a
    /// 32nd of the snapshot if that is more.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    part_size: Option<ByteCount>,
    /// Only say what would be copied.
    #[arg(long)]
    dry_run: bool,
}

/// Copies snapshots.
pub(crate) fn run(
    engine: &Engine,
    arguments: CopyArguments,
    rate: Option<ByteCount>,
    output: &Output,
) -> Result<Exit> {
    let files = keys::Files {
        key_file: arguments.to_key_file,
        passphrase_file: arguments.to_passphrase_file,
        age_identity: arguments.to_age_identity,
    };
    let params = CopyParams {
        names: arguments.snapshots,
        vm: arguments.vm,
        tags: arguments.tags,
        to: arguments.to,
        keys: keys::given(&files, "TINTYPE_TO_PASSPHRASE")?,
        s3: s3_access(&["TINTYPE_TO_", ""], rate),
        part: arguments.part_size,
        dry_run: arguments.dry_run,
    };
    let summary = engine.copy(&params, &mut |copied| {
        if output.is_json() {
            output.result(copied, String::new);
        } else if let Some(line) = described(copied) {
            output.line(&line);
        }
    })?;
    if !output.is_json() {
        output.line(&summed_up(&summary, params.dry_run));
    }
    Ok(if summary.failed > 0 { Exit::Damage } else { Exit::Done })
}

/// Describes a snapshot; nothing of those that were there.
fn described(copied: &CopiedSnapshot) -> Option<String> {
    let name = format!("{}@{} ({})", copied.vm, copied.name, copied.snapshot.short());
    let CopiedSnapshot { read_bytes, stored_bytes, .. } = copied;
    match (copied.action, &copied.error) {
        (CopyAction::Copied, _) => {
            let copy = copied.copy.map(|copy| copy.short()).unwrap_or_default();
            let resumed = if copied.resumed { ", after what was there of it" } else { "" };
            Some(format!(
                "copied {name} as {copy}: {read_bytes} read{resumed}, {stored_bytes} stored"
            ))
        }
        (CopyAction::WouldCopy, _) => Some(format!("would copy {name}: {read_bytes} to read")),
        (CopyAction::Failed, why) => {
            let why = why.as_deref().unwrap_or_default();
            Some(format!("cannot copy {name}, which is damaged here: {why}"))
        }
        (CopyAction::Skipped, Some(why)) => Some(format!("left out {name}: {why}")),
        (CopyAction::Skipped, None) => None,
    }
}

fn summed_up(summary: &CopySummary, dry_run: bool) -> String {
    let CopySummary { copied, skipped, failed, read_bytes, stored_bytes } = summary;
    let snapshots = counted(*copied, "snapshot");
    let mut text = match dry_run {
        true => format!("would copy {snapshots}, {read_bytes} to read"),
        false => format!("copied {snapshots}: {read_bytes} read, {stored_bytes} stored"),
    };
    if *skipped > 0 {
        let were = if *skipped == 1 { "was" } else { "were" };
        text.push_str(&format!("; {skipped} {were} there"));
    }
    if *failed > 0 {
        let are = if *failed == 1 { "is" } else { "are" };
        text.push_str(&format!(
            "; {failed} {are} damaged here, `tintype verify --read-data` says where"
        ));
    }
    text
}
