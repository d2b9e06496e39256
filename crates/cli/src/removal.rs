//! The commands that delete, take that back, free space and say who needs it.

use std::fmt::Write;

use tintype_engine::{CollectionReport, Engine, Result, SpaceReport};

use crate::output::Output;

/// Deletes snapshots.
pub(crate) fn remove(engine: &Engine, snapshots: &[String], output: &Output) -> Result<()> {
    let report = engine.remove(snapshots)?;
    output.result(&report, || {
        let ids: Vec<_> = report.removed.iter().map(|id| id.short()).collect();
        format!("deleted {}; `tintype undo` takes it back until `tintype gc`", ids.join(", "))
    });
    Ok(())
}

/// Takes back the last deletion.
pub(crate) fn undo(engine: &Engine, output: &Output) -> Result<()> {
    let report = engine.undo()?;
    output.result(&report, || format!("put back {}", report.names.join(", ")));
    Ok(())
}

/// Frees space.
pub(crate) fn collect(engine: &Engine, dry_run: bool, output: &Output) -> Result<()> {
    let report = engine.collect_garbage(dry_run)?;
    output.result(&report, || collected(&report));
    Ok(())
}

fn collected(report: &CollectionReport) -> String {
    let CollectionReport { segments, freed_bytes, waiting_for, .. } = report;
    match (report.dry_run, waiting_for) {
        (false, 0) => format!("freed {freed_bytes} in {segments} segments"),
        (false, _) => format!(
            "freed {freed_bytes} in {segments} segments, and waits for {waiting_for} snapshots that are being taken; `tintype gc` goes on after them"
        ),
        (true, 0) => format!("would free {freed_bytes} in {segments} segments"),
        (true, _) => format!(
            "would free {freed_bytes} in {segments} segments, after {waiting_for} snapshots that are being taken"
        ),
    }
}

/// Says how much space snapshots take.
pub(crate) fn space(engine: &Engine, names: &[String], output: &Output) -> Result<()> {
    let report = engine.space(names)?;
    output.result(&report, || taken(&report));
    Ok(())
}

fn taken(report: &SpaceReport) -> String {
    let mut text = format!("{:>10}  {:>10}  {:>10}  SNAPSHOT\n", "ALONE", "NEEDS", "HOLDS");
    for snapshot in &report.snapshots {
        let _ = writeln!(
            text,
            "{:>10}  {:>10}  {:>10}  {}@{}",
            snapshot.exclusive_bytes.to_string(),
            snapshot.referenced_bytes.to_string(),
            snapshot.logical_bytes.to_string(),
            snapshot.vm,
            snapshot.name
        );
    }
    let _ = write!(
        text,
        "together they need {}, of which {} are theirs alone and {} are shared; the repository has {}",
        report.referenced_bytes,
        report.exclusive_bytes,
        report.shared_bytes,
        report.repository_bytes
    );
    text
}
