//! The commands that keep snapshots by rule: `prune`, and the options that say what is
//! kept, which `vm set` has too.

use std::fmt::Write;

use clap::Args;
use tintype_engine::{
    Count, Engine, Period, Policy, PruneParams, PruneReport, PrunedVm, Result, TagSet,
};
use tintype_types::VmName;

use crate::exit::Exit;
use crate::output::Output;
use crate::text::counted;

/// What to prune.
#[derive(Debug, Args)]
pub(crate) struct PruneArguments {
    /// The VM.
    #[arg(required_unless_present = "all")]
    vm: Option<VmName>,
    /// Every VM whose settings say what is kept.
    #[arg(long, conflicts_with_all = ["vm", "KeepArguments"])]
    all: bool,
    #[command(flatten)]
    keep: KeepArguments,
    /// Only say what would be deleted, and why.
    #[arg(long)]
    dry_run: bool,
    /// Go by the clock even if it seems to have jumped.
    #[arg(long)]
    trust_clock: bool,
}

/// What is kept; snapshots that none of these keeps go.
#[derive(Debug, Args)]
pub(crate) struct KeepArguments {
    /// Keep the newest N; -1 for all, here and below.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_last: Option<Count>,
    /// Keep the newest of each of the last N hours that have one.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_hourly: Option<Count>,
    /// Keep the newest of each of the last N days that have one.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_daily: Option<Count>,
    /// Keep the newest of each of the last N weeks that have one.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_weekly: Option<Count>,
    /// Keep the newest of each of the last N months that have one.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_monthly: Option<Count>,
    /// Keep the newest of each of the last N years that have one.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    keep_yearly: Option<Count>,
    /// Keep all within a period before the newest, such as 1y5m7d2h.
    #[arg(long, value_name = "PERIOD")]
    keep_within: Option<Period>,
    /// Keep the newest of each hour within a period.
    #[arg(long, value_name = "PERIOD")]
    keep_within_hourly: Option<Period>,
    /// Keep the newest of each day within a period.
    #[arg(long, value_name = "PERIOD")]
    keep_within_daily: Option<Period>,
    /// Keep the newest of each week within a period.
    #[arg(long, value_name = "PERIOD")]
    keep_within_weekly: Option<Period>,
    /// Keep the newest of each month within a period.
    #[arg(long, value_name = "PERIOD")]
    keep_within_monthly: Option<Period>,
    /// Keep the newest of each year within a period.
    #[arg(long, value_name = "PERIOD")]
    keep_within_yearly: Option<Period>,
    /// Keep those with all of these tags; can be given several times.
    #[arg(long, value_name = "K[=V],…")]
    keep_tag: Vec<TagSet>,
    /// Keep safety snapshots for a period; 7d without it.
    #[arg(long, value_name = "PERIOD")]
    keep_safety: Option<Period>,
}

impl KeepArguments {
    /// Returns the policy, if any of it was given.
    pub(crate) fn policy(self) -> Option<Policy> {
        let policy = Policy {
            keep_last: self.keep_last,
            keep_hourly: self.keep_hourly,
            keep_daily: self.keep_daily,
            keep_weekly: self.keep_weekly,
            keep_monthly: self.keep_monthly,
            keep_yearly: self.keep_yearly,
            keep_within: self.keep_within,
            keep_within_hourly: self.keep_within_hourly,
            keep_within_daily: self.keep_within_daily,
            keep_within_weekly: self.keep_within_weekly,
            keep_within_monthly: self.keep_within_monthly,
            keep_within_yearly: self.keep_within_yearly,
            keep_tag: self.keep_tag,
            keep_safety: self.keep_safety,
        };
        (policy != Policy::default()).then_some(policy)
    }
}

/// Prunes.
pub(crate) fn run(
    engine: &Engine,
    arguments: PruneArguments,
    grace: Period,
    output: &Output,
) -> Result<Exit> {
    let PruneArguments { vm, all: _, keep, dry_run, trust_clock } = arguments;
    let params = PruneParams { policy: keep.policy(), dry_run, trust_clock };
    let report = match &vm {
        Some(vm) => engine.prune(vm, &params)?,
        None => engine.prune_all(&params)?,
    };
    output.result(&report, || pruned(&report, grace));
    let refused = report.vms.iter().any(|vm| vm.refused.is_some());
    Ok(if refused { Exit::Refused } else { Exit::Done })
}

fn pruned(report: &PruneReport, grace: Period) -> String {
    let mut text = String::new();
    report.vms.iter().for_each(|vm| decisions(&mut text, vm));
    let count = report.removed.len();
    let snapshots = counted(count, "snapshot");
    let freed = |verb: &str, when: &str| {
        let freed = report.freed_bytes.map(|bytes| format!("; `tintype gc` {verb} {bytes} {when}"));
        freed.unwrap_or_default()
    };
    let _ = match (count, report.dry_run) {
        (0, _) => write!(text, "nothing to delete"),
        (_, true) => {
            let freed = freed("would free", &format!("after {grace}"));
            write!(text, "would delete {snapshots}{freed}")
        }
        (_, false) => {
            let freed = freed("frees", "after that");
            write!(text, "deleted {snapshots}, which `tintype undo` takes back for {grace}{freed}")
        }
    };
    text
}

fn decisions(text: &mut String, vm: &PrunedVm) {
    let _ = writeln!(text, "{}: {}", vm.vm, vm.policy);
    if let Some(why) = &vm.refused {
        let _ = writeln!(text, "  refused, since the clock seems to have jumped: {why}");
    }
    let width = vm.snapshots.iter().map(|snapshot| snapshot.name.as_str().len()).max();
    for snapshot in &vm.snapshots {
        let exclusive = snapshot.exclusive_bytes.filter(|_| !snapshot.keep);
        let _ = writeln!(
            text,
            "  {:<6} {:<width$}  {}  {:>10}  {}",
            if snapshot.keep { "keep" } else { "delete" },
            snapshot.name.as_str(),
            snapshot.created.strftime("%Y-%m-%d %H:%M:%S UTC"),
            exclusive.map_or_else(String::new, |bytes| bytes.to_string()),
            snapshot.reasons.join(", "),
            width = width.unwrap_or_default(),
        );
    }
}
