//! The command that mends a damaged repository.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use tintype_engine::{Engine, MendedSnapshot, RepairParams, RepairSummary, Result};
use tintype_types::ByteCount;

use crate::commands::s3_access;
use crate::exit::Exit;
use crate::output::Output;
use crate::text::counted;
use crate::{keys, text};

/// Where to take what is damaged here.
#[derive(Debug, Args)]
pub(crate) struct RepairArguments {
    /// Where to take what is damaged here: a copy of the repository, or another one
    /// with copies of its snapshots; a folder or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "URL")]
    from: Option<PathBuf>,
    /// A key file that opens it. The keys of this repository are tried too.
    #[arg(long, env = "TINTYPE_FROM_KEY_FILE", value_name = "FILE")]
    from_key_file: Option<PathBuf>,
    /// A file whose first line is a passphrase that opens it.
    #[arg(long, env = "TINTYPE_FROM_PASSPHRASE_FILE", value_name = "FILE")]
    from_passphrase_file: Option<PathBuf>,
    /// A file with an age identity that opens it.
    #[arg(long, env = "TINTYPE_FROM_AGE_IDENTITY", value_name = "FILE")]
    from_age_identity: Option<PathBuf>,
}

/// Repairs the repository.
pub(crate) fn run(
    engine: &Engine,
    arguments: RepairArguments,
    rate: Option<ByteCount>,
    output: &Output,
) -> Result<Exit> {
    let files = keys::Files {
        key_file: arguments.from_key_file,
        passphrase_file: arguments.from_passphrase_file,
        age_identity: arguments.from_age_identity,
    };
    let params = RepairParams {
        from: arguments.from,
        keys: keys::given(&files, "TINTYPE_FROM_PASSPHRASE")?,
        s3: s3_access(&["TINTYPE_FROM_", ""], rate),
    };
    let summary = engine.repair(&params)?;
    output.result(&summary, || described(&summary));
    Ok(if summary.damaged.is_empty() { Exit::Done } else { Exit::Damage })
}

fn described(summary: &RepairSummary) -> String {
    let mut text = String::new();
    for (keys, meaning) in [
        (&summary.repaired, "is whole again"),
        (&summary.emptied, "is damaged and needed no more: the next `tintype gc` removes it"),
        (&summary.quarantined, "cannot be mended: no new snapshot will rely on it"),
        (&summary.released, "can be relied on again"),
    ] {
        for key in keys {
            let _ = writeln!(text, "{key} {meaning}");
        }
    }
    summary.mended.iter().for_each(|mended| snapshot(&mut text, mended));
    for found in &summary.mismatches {
        let at = found.offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        let (name, part) = (&found.name, &found.part);
        let _ = writeln!(text, "{name} has something else there in {part}{at}: it was not taken");
    }
    if summary.fetched_bytes.get() > 0 {
        let _ = writeln!(text, "{} came from there", summary.fetched_bytes);
    }
    if summary.damaged.is_empty() {
        text.push_str(if summary.found.is_empty() { "nothing is damaged" } else { "all good" });
        return text;
    }
    let _ = writeln!(text, "still damaged, {}:", counted(summary.damaged.len(), "place"));
    let advice = "`tintype repair --from URL` takes from a copy of the repository, or from another \
                  one with copies of its snapshots, what is damaged here";
    text::damage(&mut text, &summary.damaged, &summary.lost, advice);
    text
}

fn snapshot(text: &mut String, mended: &MendedSnapshot) {
    let MendedSnapshot { name, from, unproved_bytes, .. } = mended;
    let _ = match from {
        Some(from) => write!(text, "mended {name} with {} of that repository", from.short()),
        None => write!(text, "mended {name} with what is good here"),
    };
    let _ = match unproved_bytes.get() {
        0 => writeln!(text),
        _ => writeln!(text, "; nothing here proves {unproved_bytes} of it, which are as it says"),
    };
}
