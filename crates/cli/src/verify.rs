//! The command that checks snapshots, and starts them to see whether they live.

use std::fmt::Write;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use tintype_engine::{BootOutcome, BootReport, Engine, Result, VerifySummary};

use crate::exit::Exit;
use crate::output::Output;
use crate::text::{counted, damage};

/// What to check.
#[derive(Debug, Args)]
pub(crate) struct VerifyArguments {
    /// The snapshots; all without any.
    snapshots: Vec<String>,
    /// Read, decode and hash every byte.
    #[arg(long)]
    read_data: bool,
    /// Start each as a throw-away clone that nothing leads out of, until it shows that
    /// it lives.
    #[arg(long)]
    boot: bool,
    /// For how many seconds each is waited for at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "boot",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    boot_timeout: u64,
}

/// Checks snapshots.
pub(crate) fn run(engine: &Engine, arguments: &VerifyArguments, output: &Output) -> Result<Exit> {
    let VerifyArguments { snapshots, read_data, boot, boot_timeout } = arguments;
    let summary = engine.verify(snapshots, *read_data)?;
    if !output.is_json() {
        output.line(verified(&summary).trim_end());
    }
    let mut boots = Vec::new();
    if *boot {
        boots = engine.boot(snapshots, Duration::from_secs(*boot_timeout), &mut |report| {
            if !output.is_json() {
                output.line(booted(report).trim_end());
            }
        })?;
    }
    if output.is_json() {
        let mut value = json!(summary);
        if *boot {
            value["boots"] = json!(boots);
        }
        output.result(&value, String::new);
    }
    let has = |outcome| boots.iter().any(|report: &BootReport| report.outcome == outcome);
    Ok(match () {
        () if !summary.damaged.is_empty() || has(BootOutcome::Failed) => Exit::Damage,
        () if has(BootOutcome::Refused) => Exit::Refused,
        () => Exit::Done,
    })
}

fn verified(summary: &VerifySummary) -> String {
    let deleted = match summary.checked_deleted {
        0 => String::new(),
        count => format!(", {count} of them in the trash"),
    };
    let mut text = format!(
        "checked {}{deleted}, {}, {} read: ",
        counted(summary.checked_snapshots, "snapshot"),
        counted(summary.checked_chunks, "frame"),
        summary.read_bytes
    );
    if summary.damaged.is_empty() {
        text.push_str("all good");
        return text;
    }
    let _ = writeln!(text, "{} damaged", summary.damaged.len());
    let advice = "`tintype repair` mends what it can, with --from by what a copy of the \
                  repository has, and keeps new snapshots away from the rest";
    damage(&mut text, &summary.damaged, &summary.lost, advice);
    text
}

/// Describes what became of a snapshot that was started.
fn booted(report: &BootReport) -> String {
    let BootReport { name, proof, error, seen, .. } = report;
    let why = proof.as_ref().or(error.as_ref()).map_or("", String::as_str);
    let what = match report.outcome {
        BootOutcome::Booted => "lives",
        BootOutcome::Failed => "does not live",
        BootOutcome::Refused => "was not started",
    };
    let seconds = Duration::from_millis(report.duration_ms).as_secs_f64();
    let mut text = format!("{name} {what}, after {seconds:.1} s: {why}\n");
    for line in seen {
        let _ = writeln!(text, "  | {line}");
    }
    text
}
