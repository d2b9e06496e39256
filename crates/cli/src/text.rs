//! What people read. Every function returns text; nothing is printed here.

use std::fmt::Write;

use jiff::Timestamp;
use tintype_engine::{
    Filling, Finding, Health, Loading, LostPart, RevertReport, Snapshot, SnapshotReport, VmReport,
};
use tintype_types::{ByteCount, SnapshotId};

use crate::output::Output;
use crate::settings::settings;

/// Describes a snapshot that was just taken.
pub(crate) fn taken(report: &SnapshotReport) -> String {
    let pause = match report.mode {
        "powered-off" => "the VM did not run".to_owned(),
        mode => format!("the guest stood still for {:.1} ms ({mode})", report.pause_ms),
    };
    format!(
        "took {}@{} ({}): {pause}, stored {} of {} read in {:.1} s",
        report.vm,
        report.name,
        report.id.short(),
        report.stored_bytes,
        report.read_bytes,
        seconds(report.duration_ms),
    )
}

/// Describes a revert.
pub(crate) fn revert(report: &RevertReport) -> String {
    let mut text = format!(
        "{} is back at {} and {}, after {:.1} s",
        report.vm,
        report.name,
        report.state,
        report.running_ms / 1000.0,
    );
    if report.clock.starts_with("set") {
        let _ = write!(text, "; its clock was {}", report.clock);
    }
    if report.lazy {
        let _ = write!(
            text,
            "\nits memory is loaded behind it; `tintype vm show {}` says how far that is",
            report.vm
        );
    }
    if let Some(name) = &report.safety_name {
        let _ = write!(text, "\nwhat it was before is kept as {}@{name}", report.vm);
    }
    text
}

/// Describes a VM that was just registered.
pub(crate) fn registered(vm: &VmReport) -> String {
    format!("registered {} ({}), process {}", vm.name, vm.state, vm.pid.unwrap_or_default())
}

/// Lists VMs.
pub(crate) fn vms(vms: &[VmReport]) -> String {
    if vms.is_empty() {
        return "there are no VMs; `tintype vm run NAME -- qemu-system-x86_64 …` starts one"
            .to_owned();
    }
    let mut text =
        format!("{:<20} {:<10} {:>8}  {:>10}  MACHINE\n", "NAME", "STATE", "PID", "MEMORY");
    for report in vms {
        let pid = report.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let inventory = &report.vm.inventory;
        let _ = writeln!(
            text,
            "{:<20} {:<10} {pid:>8}  {:>10}  {}",
            report.name.as_str(),
            report.state,
            inventory.memory.to_string(),
            [
                Some(inventory.machine.clone()),
                report.loading.as_ref().map(|it| format!("loading: {} %", it.percent())),
                report.filling.as_ref().map(|it| format!("filling disks: {} %", it.percent())),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", ")
        );
    }
    text
}

/// Shows one VM; `named` names snapshots.
pub(crate) fn vm(report: &VmReport, named: &dyn Fn(SnapshotId) -> String) -> String {
    let vm = &report.vm;
    let inventory = &vm.inventory;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    row("name", report.name.to_string());
    row("state", report.state.clone());
    if let Some(loading) = &report.loading {
        row("loading", loading_state(loading));
    }
    if let Some(filling) = &report.filling {
        row("filling", filling_state(filling, report.pid.is_some()));
    }
    row("process", report.pid.map_or_else(|| "none".to_owned(), |pid| pid.to_string()));
    row("monitor", vm.socket.display().to_string());
    row("QEMU", format!("{} ({})", inventory.qemu_version, vm.command_line.program.display()));
    row("machine", format!("{}, {}", inventory.machine, inventory.accelerator));
    row("processors", format!("{} × {}", inventory.processors, inventory.processor));
    row("memory", inventory.memory.to_string());
    for disk in &inventory.disks {
        let file =
            disk.file.as_ref().map_or("(not a file)".into(), |file| file.display().to_string());
        let mode = if disk.read_only { ", read-only" } else { "" };
        row("disk", format!("{}: {} {}{mode}, {file}", disk.name, disk.size, disk.format));
    }
    for card in &inventory.network_cards {
        row("network", format!("{}: {}", card.name, card.mac));
    }
    row("snapshots", settings(&vm.settings));
    row("now at", vm.current.map_or_else(|| "no snapshot yet".to_owned(), named));
    text
}

/// Says how far the loading of memory is, and why it does not go on.
fn loading_state(loading: &Loading) -> String {
    let text = format!("{} % of {}", loading.percent(), loading.total);
    match &loading.error {
        None => text,
        Some(error) => format!(
            "{text}; {error}. `tintype repair` mends what it can; the next command goes on then"
        ),
    }
}

/// Says how far the filling of disks is, and why it does not go on.
fn filling_state(filling: &Filling, is_alive: bool) -> String {
    let text = format!("{} % of {} of disks", filling.percent(), filling.total);
    match &filling.error {
        _ if !is_alive => format!("{text}; `tintype vm start` goes on with it"),
        None => text,
        Some(error) => format!(
            "{text}; {error}. `tintype repair` mends what it can; soon after, the guest goes on"
        ),
    }
}

/// Writes a time as people read it.
pub(crate) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// Shows one snapshot; `named` names others.
pub(crate) fn show(snapshot: &Snapshot, named: &dyn Fn(SnapshotId) -> String) -> String {
    let report = snapshot.report();
    let details = &snapshot.details;
    let mut text = String::new();
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    row("snapshot", format!("{}@{}", report.vm, report.name));
    row("id", report.id.to_string());
    row("created", time(report.created));
    row("parent", report.parent.map_or_else(|| "none".to_owned(), named));
    if let Some(origin) = report.origin {
        let repository = origin.repository.to_string();
        row("copy of", format!("{} in the repository {repository}", origin.snapshot.short()));
    }
    if !report.message.is_empty() {
        row("message", report.message.clone());
    }
    for (key, value) in &report.tags {
        row("tag", format!("{key}={value}"));
    }
    row("pinned", if report.pinned { "yes" } else { "no" }.to_owned());
    let booted = report.booted_at.map_or_else(|| "never".to_owned(), time);
    row("booted", booted);
    row("mode", format!("{}, {}-consistent", report.mode, report.consistency));
    if !report.consistency_reason.is_empty() {
        row("file systems", frozen(&report));
    }
    if !matches!(report.mode, "powered-off" | "imported") {
        row("pause", format!("{:.2} ms", report.pause_ms));
    }
    row("duration", format!("{:.1} s", seconds(report.duration_ms)));
    row("memory", report.memory_bytes.to_string());
    for saved in &details.disks {
        let read = saved.read.as_ref().map(disk_read).unwrap_or_default();
        row(
            "disk",
            format!("{}: {} {}{read}", saved.disk.name, saved.disk.size, saved.disk.format),
        );
    }
    for file in &details.files {
        row("file", file.path.display().to_string());
    }
    row("stored", format!("{} for {} read", report.stored_bytes, report.read_bytes));
    row("QEMU", format!("{} on {}", details.inventory.qemu_version, details.inventory.machine));
    let words = &details.command_line;
    row("started as", format!("{} {}", words.program.display(), words.arguments.join(" ")));
    text
}

/// Says how a disk was read.
fn disk_read(read: &tintype_engine::DiskRead) -> String {
    use tintype_engine::Reading;
    match (read.reading, &read.why) {
        (Reading::Incremental, _) => format!(", {} changed or checked", read.read_bytes),
        (Reading::Full, None) => format!(", {} read", read.read_bytes),
        (Reading::Full, Some(why)) => format!(", {} read: {why}", read.read_bytes),
    }
}

/// Returns how many there are of something: `1 snapshot`, `2 snapshots`.
pub(crate) fn counted(count: impl TryInto<u64>, thing: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {thing}"),
        count => format!("{count} {thing}s"),
    }
}

/// Lists what is damaged, what that costs, and what can be done about it.
pub(crate) fn damage(text: &mut String, damaged: &[String], parts: &[LostPart], advice: &str) {
    for line in damaged {
        let _ = writeln!(text, "  {line}");
    }
    parts.iter().for_each(|part| lost(text, part));
    let _ = writeln!(text, "{advice}");
}

/// Says what cannot be read of a snapshot.
fn lost(text: &mut String, lost: &LostPart) {
    const SHOWN: usize = 4;
    let LostPart { name, deleted, part, ranges, .. } = lost;
    let name = if *deleted { format!("{name}, which is deleted,") } else { name.clone() };
    if ranges.is_empty() {
        let _ = writeln!(text, "{name} has lost {part}");
    }
    for range in ranges.iter().take(SHOWN) {
        let len = ByteCount(range.len);
        let _ = writeln!(text, "{name} has lost {len} of {part}, from byte {} on", range.offset);
    }
    if let Some(more) = ranges.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        let _ = writeln!(text, "{name} has lost {more} more ranges of {part}");
    }
}

/// Lists what the doctor found.
pub(crate) fn doctor(findings: &[Finding], output: &Output) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.health {
            Health::Good => output.painted("ok      ", "32"),
            Health::Fallback => output.painted("fallback", "33"),
            Health::Missing => output.painted("missing ", "31"),
        };
        let _ = writeln!(text, "{mark}  {}: {}", finding.subject, finding.meaning);
    }
    text
}

fn frozen(report: &SnapshotReport) -> String {
    match report.consistency {
        "filesystem" => report.consistency_reason.clone(),
        _ => format!("not frozen: {}", report.consistency_reason),
    }
}

fn seconds(ms: u64) -> f64 {
    std::time::Duration::from_millis(ms).as_secs_f64()
}
