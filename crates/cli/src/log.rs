//! The commands that show what snapshots there are: `log` and `op log`.

use std::collections::HashMap;
use std::fmt::Write;

use clap::Args;
use jiff::Timestamp;
use tintype_engine::{DeletedSnapshot, Engine, Operation, Purpose, Result, Snapshot};
use tintype_types::{SnapshotId, VmName};

use crate::graph::{Origin, draw};
use crate::output::Output;
use crate::text::counted;

/// Digits of an id that are shown, unless more are needed to tell it apart.
const ID_DIGITS: usize = 12;
/// The fewest digits that are shown as enough.
const LEAST_DIGITS: usize = 4;

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct LogArguments {
    /// The VM; all without one.
    vm: Option<VmName>,
    /// At most so many, the newest.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Only those with this tag; with several, those that have all.
    #[arg(long = "tag", value_name = "K[=V]")]
    tags: Vec<String>,
    /// Those that are deleted and can be put back: how much they hold, when they go.
    #[arg(long, conflicts_with = "tags")]
    deleted: bool,
}

/// Lists snapshots.
pub(crate) fn run(engine: &Engine, arguments: &LogArguments, output: &Output) -> Result<()> {
    let vm = arguments.vm.as_ref();
    let limit = arguments.limit.unwrap_or(usize::MAX);
    if arguments.deleted {
        let deleted = engine.deleted(vm)?;
        if output.is_json() {
            deleted.iter().take(limit).for_each(|one| output.result(one, String::new));
        } else {
            output.line(trash(&deleted, limit, Timestamp::now(), output).trim_end());
        }
        return Ok(());
    }
    if output.is_json() {
        let entries = engine.log_entries(vm)?;
        let chosen = entries.iter().rev().filter(|e| has_tags(&e.snapshot.tags, &arguments.tags));
        chosen.take(limit).for_each(|entry| output.result(entry, String::new));
        return Ok(());
    }
    let mut snapshots = engine.log(vm)?;
    snapshots.reverse();
    let mut here: HashMap<SnapshotId, Vec<VmName>> = HashMap::new();
    for (vm, at) in engine.vms_at_rest()? {
        if let Some(at) = at {
            here.entry(at).or_default().push(vm);
        }
    }
    let forest =
        Forest { snapshots: &snapshots, here, now: Timestamp::now(), limit, tags: &arguments.tags };
    output.line(forest.drawn(output).trim_end());
    Ok(())
}

/// Snapshots and what is known beside them, the newest first.
struct Forest<'f> {
    snapshots: &'f [Snapshot],
    /// The VMs whose state is that of a snapshot.
    here: HashMap<SnapshotId, Vec<VmName>>,
    now: Timestamp,
    limit: usize,
    tags: &'f [String],
}

impl Forest<'_> {
    /// Draws the snapshots as a tree; `@` is where a VM is now.
    fn drawn(&self, output: &Output) -> String {
        let has_tags = |snapshot: &&Snapshot| has_tags(&snapshot.details.tags, self.tags);
        let shown: Vec<&Snapshot> = self.snapshots.iter().filter(has_tags).collect();
        if self.snapshots.is_empty() {
            return "there are no snapshots; `tintype take VM` takes one".to_owned();
        }
        if shown.is_empty() {
            return "no snapshot has these tags".to_owned();
        }
        let ids: Vec<String> = self.snapshots.iter().map(|s| s.record.id.to_string()).collect();
        let digits = enough_digits(&ids);
        let lines = |at: usize| {
            let snapshot = shown[at];
            let mark = match self.here.contains_key(&snapshot.record.id) {
                true => output.painted("@", "32;1"),
                false => "○".to_owned(),
            };
            (mark, self.lines(snapshot, &digits, output))
        };
        let mut text = draw(&self.origins(&shown), self.limit, &lines);
        if let Some(more) = shown.len().checked_sub(self.limit).filter(|more| *more > 0) {
            let _ = writeln!(text, "… and {more} older");
        }
        text
    }

    /// Finds what each shown snapshot came from: the nearest one that is shown.
    fn origins(&self, shown: &[&Snapshot]) -> Vec<Origin> {
        let parents: HashMap<_, _> =
            self.snapshots.iter().map(|s| (s.record.id, s.record.parent)).collect();
        let places: HashMap<_, _> =
            shown.iter().zip(0..).map(|(s, at)| (s.record.id, at)).collect();
        let origin = |snapshot: &&Snapshot| {
            let Some(parent) = snapshot.record.parent else { return Origin::Nothing };
            if let Some(at) = places.get(&parent) {
                return Origin::Node(*at);
            }
            let mut next = Some(parent);
            // A forged circle has no more members than there are snapshots.
            for _ in 0..self.snapshots.len() {
                let Some(id) = next else { return Origin::Gone };
                if let Some(at) = places.get(&id) {
                    return Origin::Distant(*at);
                }
                next = parents.get(&id).copied().flatten();
            }
            Origin::Gone
        };
        shown.iter().map(origin).collect()
    }

    fn lines(&self, snapshot: &Snapshot, digits: &Digits, output: &Output) -> Vec<String> {
        let report = snapshot.report();
        let name = output.painted(format!("{}@{}", report.vm, report.name), "33;1");
        let id = digits.painted(report.id, output);
        let time = report.created.strftime("%Y-%m-%d %H:%M:%S UTC");
        let taken = output.painted(age(self.now, report.created), "36");
        let mut head = format!("{name} {id}  {time}, {taken}");
        let others = self.here.get(&report.id).into_iter().flatten();
        let others: Vec<&str> = others.filter(|vm| **vm != report.vm).map(VmName::as_str).collect();
        if !others.is_empty() {
            let _ = write!(head, "  ({} here)", others.join(", "));
        }
        let kind = match (report.purpose, snapshot.details.memory.is_empty()) {
            (Purpose::Safety, _) => "safety",
            (Purpose::Imported, _) => "imported",
            (_, true) => "disks",
            (_, false) => "memory and disks",
        };
        let mut facts = vec![kind.to_owned()];
        facts.extend((report.mode != kind).then(|| report.mode.to_owned()));
        facts.push(format!("{}-consistent", report.consistency));
        if !matches!(report.mode, "powered-off" | "imported") {
            facts.push(format!("pause {:.1} ms", report.pause_ms));
        }
        facts.push(format!("+{}", report.stored_bytes));
        if report.pinned {
            facts.push(output.painted("pinned", "31;1"));
        }
        if let Some(at) = report.booted_at {
            facts.push(format!("booted {}", age(self.now, at)));
        }
        facts.extend(report.tags.iter().map(|(key, value)| printable(&format!("{key}={value}"))));
        let mut lines = vec![head, facts.join(", ")];
        lines.extend(report.message.lines().take(1).map(printable));
        lines
    }
}

/// Lists what is deleted.
fn trash(deleted: &[DeletedSnapshot], limit: usize, now: Timestamp, output: &Output) -> String {
    if deleted.is_empty() {
        return "nothing is deleted that could be put back".to_owned();
    }
    let mut text = String::new();
    for one in deleted.iter().take(limit) {
        let report = &one.snapshot;
        let name = output.painted(format!("{}@{}", report.vm, report.name), "33;1");
        let when = one.deleted.map_or_else(|| "some day".to_owned(), |at| age(now, at));
        let created = report.created.strftime("%Y-%m-%d %H:%M:%S UTC");
        let _ = write!(text, "{name} {}  {created}, deleted {when}", report.id.short());
        if let Some(bytes) = one.exclusive_bytes {
            let _ = write!(text, ", {bytes} alone");
        }
        match one.kept_until {
            Some(until) if until > now => {
                let _ = writeln!(text, ", goes {}", age(now, until));
            }
            Some(_) => text.push_str(", goes with the next `tintype gc`\n"),
            None => text.push_str(", goes with `tintype gc --now`\n"),
        }
    }
    text
}

/// Lists what was done, the newest first.
pub(crate) fn operations(engine: &Engine, limit: usize, output: &Output) -> Result<()> {
    let operations = engine.operations(limit)?;
    if output.is_json() {
        operations.iter().for_each(|operation| output.result(operation, String::new));
    } else if operations.is_empty() {
        output.line("nothing was done yet");
    } else {
        let text: String = operations.iter().map(|one| operation(one, output)).collect();
        output.line(text.trim_end());
    }
    Ok(())
}

fn operation(operation: &Operation, output: &Output) -> String {
    let Operation { number, at, host, user, command, did, .. } = operation;
    let number = output.painted(number, "34;1");
    let time = at.strftime("%Y-%m-%d %H:%M:%S UTC");
    let age = output.painted(age(Timestamp::now(), *at), "36");
    let words = printable(&command.join(" "));
    let who = printable(&format!("{user}@{host}"));
    let mut what = printable(did);
    if let Some(of) = operation.undoes {
        let _ = write!(what, " (takes back {of})");
    }
    if let Some(by) = operation.undone_by {
        let _ = write!(what, " (taken back by {by})");
    }
    format!("{number}  {time}, {age}  {who}\n    tintype {words}\n    {what}\n")
}

/// Whether tags have all that are wanted, each `K` or `K=V`.
fn has_tags(tags: &[(String, String)], wanted: &[String]) -> bool {
    wanted.iter().all(|wanted| match wanted.split_once('=') {
        Some((key, value)) => tags.iter().any(|(k, v)| k == key && v == value),
        None => tags.iter().any(|(key, _)| key == wanted),
    })
}

/// How many digits tell each id apart.
struct Digits(HashMap<String, usize>);

fn enough_digits(ids: &[String]) -> Digits {
    let mut sorted: Vec<&String> = ids.iter().collect();
    sorted.sort();
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let enough = |at: usize| {
        let before = at.checked_sub(1).map_or(0, |before| common(sorted[before], sorted[at]));
        let after = sorted.get(at + 1).map_or(0, |after| common(sorted[at], after));
        (before.max(after) + 1).max(LEAST_DIGITS)
    };
    Digits((0..sorted.len()).map(|at| (sorted[at].clone(), enough(at))).collect())
}

impl Digits {
    /// Shows an id, with the digits that are enough to type.
    fn painted(&self, id: SnapshotId, output: &Output) -> String {
        let text = id.to_string();
        let enough = self.0.get(&text).copied().unwrap_or(ID_DIGITS).min(text.len());
        let (typed, rest) = text.split_at(enough);
        let rest = rest.get(..ID_DIGITS.saturating_sub(enough)).unwrap_or(rest);
        format!("{}{}", output.painted(typed, "35;1"), output.painted(rest, "90"))
    }
}

/// Says how long ago something was, as people do.
fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(then.as_second());
    let units = [
        (31_557_600, "year"),
        (2_629_800, "month"),
        (604_800, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ];
    match units.iter().find(|(unit, _)| seconds.abs() >= *unit) {
        None => "now".to_owned(),
        Some((unit, name)) => {
            let units = counted((seconds / unit).abs(), name);
            match seconds > 0 {
                true => format!("{units} ago"),
                false => format!("in {units}"),
            }
        }
    }
}

/// Replaces what would steer a terminal: others may have written it.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_as_people_say_them() {
        let check = |seconds: i64, expected: &str| {
            let now = Timestamp::from_second(1_800_000_000).unwrap();
            let then = Timestamp::from_second(1_800_000_000 - seconds).unwrap();
            assert_eq!(age(now, then), expected);
        };
        check(0, "now");
        check(1, "1 second ago");
        check(59, "59 seconds ago");
        check(60, "1 minute ago");
        check(7_199, "1 hour ago");
        check(3 * 86_400, "3 days ago");
        check(15 * 86_400, "2 weeks ago");
        check(70 * 86_400, "2 months ago");
        check(800 * 86_400, "2 years ago");
        check(-90, "in 1 minute");
    }

    #[test]
    fn ids_are_as_short_as_they_can_be() {
        let check = |ids: &[&str], expected: &[usize]| {
            let ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
            let digits = enough_digits(&ids).0;
            assert_eq!(ids.iter().map(|id| digits[id]).collect::<Vec<_>>(), expected);
        };
        check(&["1234567"], &[4]);
        check(&["1234567", "1234568", "9"], &[7, 7, 4]);
        check(&["abcde1", "abcd99"], &[5, 5]);
    }

    #[test]
    fn tags_are_asked_for_by_key_or_value() {
        let check = |wanted: &[&str], expected: bool| {
            let tags = [("env".to_owned(), "prod".to_owned()), ("x".to_owned(), String::new())];
            let wanted: Vec<_> = wanted.iter().map(|tag| (*tag).to_owned()).collect();
            assert_eq!(has_tags(&tags, &wanted), expected, "{wanted:?}");
        };
        check(&[], true);
        check(&["env"], true);
        check(&["env=prod", "x="], true);
        check(&["env=test"], false);
        check(&["env", "y"], false);
    }

    #[test]
    fn what_others_wrote_steers_no_terminal() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a\u{fffd}[31mb\u{fffd}c");
    }
}
