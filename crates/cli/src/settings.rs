//! `vm set`: what the owner of a VM wants of its snapshots.

use clap::{Args, ValueEnum};
use tintype_engine::{Engine, Result, SettingsChange, VmSettings};
use tintype_types::{ByteCount, VmName};

use crate::arguments::size;
use crate::output::Output;
use crate::prune::KeepArguments;

/// What to change.
#[derive(Debug, Args)]
pub(crate) struct SetArguments {
    /// The VM.
    vm: VmName,
    #[command(flatten)]
    keep: KeepArguments,
    /// Forget what is to be kept.
    #[arg(long, conflicts_with = "KeepArguments")]
    no_policy: bool,
    /// Whether each take deletes afterwards what the policy does not keep.
    #[arg(long, value_name = "WHETHER")]
    prune_after_take: Option<Switch>,
    /// How much its snapshots may need together, such as 50G; takes beyond it are refused.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    budget: Option<ByteCount>,
    /// Let its snapshots need as much as there is.
    #[arg(long, conflicts_with = "budget")]
    no_budget: bool,
}

/// Whether something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// It is.
    On,
    /// It is not.
    Off,
}

/// Changes the settings of a VM.
pub(crate) fn run(engine: &Engine, arguments: SetArguments, output: &Output) -> Result<()> {
    let policy = match arguments.no_policy {
        true => Some(None),
        false => arguments.keep.policy().map(Some),
    };
    let prune_after_take = arguments.prune_after_take.map(|switch| switch == Switch::On);
    let budget = match arguments.no_budget {
        true => Some(None),
        false => arguments.budget.map(Some),
    };
    let change = SettingsChange { policy, prune_after_take, budget };
    let report = engine.configure_vm(&arguments.vm, &change)?;
    output.result(&report, || format!("{}: {}", report.name, settings(&report.vm.settings)));
    Ok(())
}

/// Describes settings.
pub(crate) fn settings(settings: &VmSettings) -> String {
    let kept = match &settings.policy {
        None => "all are kept".to_owned(),
        Some(policy) if settings.prune_after_take => format!("{policy}, after each take"),
        Some(policy) => policy.to_string(),
    };
    match settings.budget {
        None => kept,
        Some(budget) => format!("{kept}; {budget} at most"),
    }
}
