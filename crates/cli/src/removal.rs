//! The commands that delete, take that back, free space and say who needs it.

use std::fmt::Write;

use tintype_engine::{
    CollectionParams, CollectionReport, Engine, NotCompacted, Period, Result, SpaceReport,
    TrashReport, VmSpace,
};

use crate::output::Output;
use crate::text::{counted, time};

/// Deletes snapshots.
pub(crate) fn remove(
    engine: &Engine,
    snapshots: &[String],
    (dry_run, grace): (bool, Period),
    output: &Output,
) -> Result<()> {
    let report = engine.remove(snapshots, dry_run)?;
    output.result(&report, || {
        let ids: Vec<_> = report.removed.iter().map(|id| id.short()).collect();
        let ids = ids.join(", ");
        match report.freed_bytes {
            Some(freed) => format!(
                "would delete {ids}; `tintype gc` would free {freed} after {grace}, with --now at once"
            ),
            None => format!(
                "deleted {ids}; `tintype undo` takes it back for {grace}, until a `gc` after that"
            ),
        }
    });
    Ok(())
}

/// Takes back the last operation, or a certain one.
pub(crate) fn undo(engine: &Engine, operation: Option<u64>, output: &Output) -> Result<()> {
    let report = engine.undo(operation)?;
    output.result(&report, || match report.operation {
        Some(number) => format!("took back operation {number}, {}: {}", report.undone, report.did),
        None => report.did.clone(),
    });
    Ok(())
}

/// Puts back deleted snapshots.
pub(crate) fn undelete(engine: &Engine, snapshots: &[String], output: &Output) -> Result<()> {
    let report = engine.undelete(snapshots)?;
    output.result(&report, || report.did.clone());
    Ok(())
}

/// Frees space.
pub(crate) fn collect(engine: &Engine, params: CollectionParams, output: &Output) -> Result<()> {
    let report = engine.collect_garbage(params)?;
    output.result(&report, || collected(&report));
    Ok(())
}

fn collected(report: &CollectionReport) -> String {
    let CollectionReport { segments, freed_bytes, waiting_for, .. } = report;
    let would = if report.dry_run { "would free" } else { "freed" };
    let mut text = format!("{would} {freed_bytes} in {}", counted(*segments, "segment"));
    if report.compacted_segments > 0 {
        let _ = write!(text, ", {} of them emptied first", report.compacted_segments);
    }
    if report.recompressed_segments > 0 {
        let _ = write!(text, ", {} of them compressed again", report.recompressed_segments);
    }
    let taken = match waiting_for {
        1 => "1 snapshot that is being taken".to_owned(),
        more => format!("{more} snapshots that are being taken"),
    };
    let _ = match (report.dry_run, waiting_for) {
        (_, 0) => Ok(()),
        (false, _) => {
            write!(text, ", and waits for {taken}; `tintype gc` goes on afterwards")
        }
        (true, _) => write!(text, ", after {taken}"),
    };
    text.push_str(match report.not_compacted {
        None => "",
        Some(NotCompacted::NoSpace) => {
            "; there is no room to move what others still hold: `tintype gc` does it when there is more"
        }
        Some(NotCompacted::Damaged) => {
            "; what others still hold was not moved, since something is damaged: `tintype verify` says what"
        }
    });
    let damaged = match report.damaged_deleted {
        0 => None,
        1 => Some("1 deleted snapshot is damaged: all that it may need was kept".to_owned()),
        more => {
            Some(format!("{more} deleted snapshots are damaged: all that they may need was kept"))
        }
    };
    if let Some(damaged) = damaged {
        let _ = write!(
            text,
            "\n{damaged}; `tintype verify` says what is damaged, `tintype repair --from` may mend it"
        );
    }
    if let Some(waiting) = in_trash(&report.trash) {
        let _ = write!(text, "\n{waiting}; `tintype gc --now` frees them at once");
    }
    text
}

/// Says what waits in the trash, if anything does.
fn in_trash(trash: &TrashReport) -> Option<String> {
    let TrashReport { snapshots, bytes, until, doubted } = trash;
    let are = match snapshots {
        0 => return None,
        1 => "1 deleted snapshot waits".to_owned(),
        more => format!("{more} deleted snapshots wait"),
    };
    let mut text = format!("{are} in the trash");
    if let Some(bytes) = bytes {
        let _ = write!(text, ", {bytes} that nobody else needs");
    }
    if let Some(until) = until {
        let _ = write!(text, ", the first until {}", time(*until));
    }
    if *doubted > 0 {
        let _ = write!(
            text,
            "; of {doubted} the time seems to be over, but the clock may have jumped, since nothing happened here for long"
        );
    }
    Some(text)
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
    let _ = writeln!(
        text,
        "together they need {}, of which {} are theirs alone and {} are shared; the repository has {}",
        report.referenced_bytes,
        report.exclusive_bytes,
        report.shared_bytes,
        report.repository_bytes
    );
    if let Some(waiting) = in_trash(&report.trash) {
        let _ = writeln!(text, "{waiting}");
    }
    if let (Some(overall), Some(deduplication), Some(compression)) =
        (report.ratio.overall, report.ratio.deduplication, report.ratio.compression)
    {
        let _ = writeln!(
            text,
            "they hold {}, {overall:.1} times as much: {deduplication:.1} by deduplication, {compression:.1} by compression",
            report.logical_bytes
        );
    }
    report.vms.iter().for_each(|vm| of_vm(&mut text, vm));
    for bound in &report.bounds {
        let _ = writeln!(text, "{}", bound.told());
    }
    if let Some(full) = report.days_to_full {
        let _ = writeln!(text, "at this rate it is full in {}", days(full));
    }
    text
}

fn of_vm(text: &mut String, vm: &VmSpace) {
    let VmSpace { vm, snapshots, referenced_bytes, growth, budget_bytes, days_to_budget } = vm;
    let need = if *snapshots == 1 { "snapshot needs" } else { "snapshots need" };
    let _ = write!(text, "{vm}: {snapshots} {need} {referenced_bytes}");
    if let Some(budget) = budget_bytes {
        let _ = write!(text, " of {budget}");
    }
    if let Some(growth) = growth {
        let _ = write!(
            text,
            "; takes store {} a day, by {} of them in {}",
            growth.daily_bytes(),
            growth.takes,
            days(growth.period_days)
        );
    }
    if let Some(full) = days_to_budget {
        let _ = write!(text, ", and use up the budget in {}", days(*full));
    }
    text.push('\n');
}

/// Writes a time as people read it: `7 hours`, `12 days`.
fn days(days: f64) -> String {
    if days < 2.0 { format!("{:.0} hours", days * 24.0) } else { format!("{days:.0} days") }
}
