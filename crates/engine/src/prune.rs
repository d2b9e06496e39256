//! Deletes by rule: what the policy of a VM does not keep goes, in one act that can be
//! undone. What is decided, and what protects a snapshot from it, is for `retention` to
//! say; here is found out what that room cannot know.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use tintype_repo::Repository;
use tintype_retention::{Candidate, Decision, Doubt, Guard, Kind, Policy, decide, doubt};
use tintype_types::{ByteCount, SnapshotId, SnapshotName, VmName};

use crate::Engine;
use crate::details::{Purpose, Snapshot};
use crate::error::{Error, Result};
use crate::intent::Intent;
use crate::observer::Step;
use crate::operations::{Reversal, listed};
use crate::removal::{instant_of_deletion, names_of};
use crate::settings::empty_policy;

/// How to prune.
#[derive(Debug, Clone, Default)]
pub struct PruneParams {
    /// What to keep; what the VM's settings say without it.
    pub policy: Option<Policy>,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Follow the policy even if the clock seems to have jumped.
    pub trust_clock: bool,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Whether nothing was done.
    pub dry_run: bool,
    /// What was deleted, in one act.
    pub removed: Vec<SnapshotId>,
    /// The stored bytes that nobody but the deleted ones needs: what a collection frees.
    /// `None` if maps are damaged.
    pub freed_bytes: Option<ByteCount>,
    /// Each VM.
    pub vms: Vec<PrunedVm>,
}

/// What was decided about the snapshots of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunedVm {
    /// The VM.
    pub vm: VmName,
    /// What was to be kept.
    pub policy: Policy,
    /// Why nothing of this VM was deleted, though the policy would let some go.
    pub refused: Option<String>,
    /// Each snapshot, newest first.
    pub snapshots: Vec<PrunedSnapshot>,
}

/// What was decided about a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its name.
    pub name: SnapshotName,
    /// Its instant.
    pub created: Timestamp,
    /// Whether it is kept.
    pub keep: bool,
    /// Why.
    pub reasons: Vec<String>,
    /// The stored bytes that no other snapshot needs; `None` if maps are damaged.
    pub exclusive_bytes: Option<ByteCount>,
}

impl Engine {
    /// Deletes what the policy of a VM does not keep.
    pub fn prune(&self, vm: &VmName, params: &PruneParams) -> Result<PruneReport> {
        let policy = match &params.policy {
            Some(policy) => policy.clone(),
            None => self.vm_state(vm)?.settings.policy.ok_or_else(|| {
                Error::invalid(format!("`{vm}` has no policy"))
                    .state("nothing was deleted")
                    .hint(format!(
                        "give one here, such as --keep-daily 7, or for ever: tintype vm set {vm} --keep-daily 7"
                    ))
            })?,
        };
        self.follow(&[(vm.clone(), policy)], params)
    }

    /// Deletes what the policies of all VMs do not keep, in one act. A VM without a policy
    /// is left alone, and so is one whose clock is in doubt: its report says so.
    pub fn prune_all(&self, params: &PruneParams) -> Result<PruneReport> {
        let mut policies = Vec::new();
        for vm in self.home.vm_names()? {
            policies.extend(self.vm_state(&vm)?.settings.policy.map(|policy| (vm, policy)));
        }
        if policies.is_empty() {
            return Err(Error::invalid("no VM has a policy")
                .state("nothing was deleted")
                .hint("tintype vm set VM --keep-daily 7 gives it one"));
        }
        let report = self.follow(&policies, params);
        report.map_err(|error| error.state_unless_known("nothing was deleted"))
    }

    /// Does what the settings of a VM want after a take. The snapshot is there whatever
    /// comes of it.
    pub(crate) fn prune_after_take(&self, vm: &VmName) {
        if !self.vm_state(vm).is_ok_and(|state| state.settings.prune_after_take) {
            return;
        }
        let sentence = match self.prune(vm, &PruneParams::default()) {
            Ok(report) if report.removed.is_empty() => return,
            Ok(report) => format!(
                "pruned {} snapshots; `tintype undo` takes it back for {}",
                report.removed.len(),
                self.config.grace
            ),
            Err(error) => {
                let why = std::error::Error::source(&error).map(ToString::to_string);
                format!(
                    "nothing was pruned after the take: {error}: {}; `tintype prune {vm} --dry-run` says more",
                    why.unwrap_or_default()
                )
            }
        };
        self.config.observer.notice(&sentence);
    }

    fn follow(&self, policies: &[(VmName, Policy)], params: &PruneParams) -> Result<PruneReport> {
        let repository = self.repository()?;
        let needed = self.needed()?;
        let now = self.now();
        let mut plans = Vec::new();
        for (vm, policy) in policies {
            if policy.is_empty() {
                return Err(empty_policy().state("nothing was deleted"));
            }
            let snapshots = self.log(Some(vm))?;
            plans.push(self.plan(&repository, snapshots, (vm, policy), &needed, now)?);
        }
        for plan in plans.iter_mut().filter(|_| !params.trust_clock) {
            let Some(error) = plan.doubt(now) else { continue };
            if policies.len() == 1 {
                return Err(error);
            }
            plan.refused = Some(error);
        }
        let removed: Vec<SnapshotId> = plans.iter().flat_map(Plan::removed).collect();
        let (freed_bytes, exclusive) = self.shares_for(&repository, &removed);
        if !params.dry_run && !removed.is_empty() {
            let all: Vec<Snapshot> =
                plans.iter().flat_map(|plan| plan.snapshots.iter().cloned()).collect();
            repository.remove_all(&removed, instant_of_deletion(&all, now)).map_err(|error| {
                Error::failed("cannot delete").because(error).state("some may be deleted already")
            })?;
            self.config.observer.step(Step::Deleted);
            let did = format!("deleted {}", listed(&names_of(&all, &removed)));
            let reversal = Reversal::Restore { snapshots: removed.clone() };
            self.log_operation(&repository, "prune", did, Some(reversal));
        }
        let vms = plans.iter().map(|plan| plan.report(&exclusive)).collect();
        Ok(PruneReport { dry_run: params.dry_run, removed, freed_bytes, vms })
    }

    /// Decides on the snapshots of one VM.
    fn plan<'p>(
        &self,
        repository: &Repository,
        snapshots: Vec<Snapshot>,
        (vm, policy): (&'p VmName, &'p Policy),
        needed: &Needed,
        now: Timestamp,
    ) -> Result<Plan<'p>> {
        let last_good = self.last_good(repository, &snapshots)?;
        let candidate = |snapshot: &Snapshot| {
            let report = snapshot.report();
            let guards = [
                (report.pinned, Guard::Pinned),
                (needed.current.contains(&report.id), Guard::Current),
                (needed.reverts.contains(&report.id), Guard::Revert),
                (needed.loading.contains(&report.id), Guard::Loading),
                (last_good == Some(report.id), Guard::LastGood),
            ];
            Candidate {
                created: report.created,
                tags: report.tags,
                kind: match report.purpose {
                    Purpose::Asked | Purpose::Imported => Kind::Asked,
                    Purpose::Safety => Kind::Safety,
                },
                guards: guards.into_iter().filter_map(|(is, guard)| is.then_some(guard)).collect(),
            }
        };
        let candidates: Vec<Candidate> = snapshots.iter().map(candidate).collect();
        let decisions = decide(policy, &candidates, now);
        Ok(Plan { vm, policy, snapshots, candidates, decisions, refused: None })
    }

    /// Returns what the VMs of this home need, whoever's snapshot it is.
    fn needed(&self) -> Result<Needed> {
        let mut needed = Needed::default();
        for vm in self.home.vm_names()? {
            needed.current.extend(self.vm_state(&vm)?.current);
            let is_loading = self.loading(&vm).is_ok_and(|loading| loading.is_some());
            let loading = self.loading_state(&vm)?.filter(|_| is_loading);
            needed.loading.extend(loading.map(|loading| loading.snapshot));
            needed.loading.extend(self.filling_state(&vm)?.map(|filling| filling.snapshot));
            if let Some(Intent::Revert { target, safety, .. }) = self.intent(&vm)? {
                needed.reverts.insert(target);
                needed.reverts.extend(safety);
            }
        }
        Ok(needed)
    }

    /// Returns the newest snapshot that is not known to be damaged: of those that somebody
    /// asked for, or else of the others.
    fn last_good(
        &self,
        repository: &Repository,
        snapshots: &[Snapshot],
    ) -> Result<Option<SnapshotId>> {
        for purpose in [Purpose::Asked, Purpose::Imported, Purpose::Safety] {
            let newest_first = snapshots.iter().rev();
            for snapshot in newest_first.filter(|snapshot| snapshot.details.purpose == purpose) {
                let id = snapshot.record.id;
                let is_whole = repository.is_whole(id, &self.supervisor("looking for damage"));
                if is_whole.map_err(Error::step("cannot look for damage"))? {
                    return Ok(Some(id));
                }
            }
        }
        Ok(None)
    }

    /// Returns what a set of snapshots needs alone, and what each snapshot does.
    fn shares_for(
        &self,
        repository: &Repository,
        removed: &[SnapshotId],
    ) -> (Option<ByteCount>, HashMap<SnapshotId, ByteCount>) {
        match repository.shares_of(removed) {
            Ok(shares) => {
                let each = shares.snapshots.iter().map(|share| (share.id, share.exclusive_bytes));
                (Some(shares.together.exclusive_bytes), each.collect())
            }
            Err(error) => {
                let sentence = format!("cannot say what each snapshot takes: {error}");
                self.config.observer.notice(&sentence);
                (None, HashMap::new())
            }
        }
    }
}

/// What the VMs of this home need.
#[derive(Debug, Default)]
struct Needed {
    /// Where VMs are now.
    current: HashSet<SnapshotId>,
    /// What interrupted reverts have to put back.
    reverts: HashSet<SnapshotId>,
    /// What memory and disks are being loaded from.
    loading: HashSet<SnapshotId>,
}

/// What was decided about one VM, oldest snapshot first.
struct Plan<'p> {
    vm: &'p VmName,
    policy: &'p Policy,
    snapshots: Vec<Snapshot>,
    candidates: Vec<Candidate>,
    decisions: Vec<Decision>,
    refused: Option<Error>,
}

impl Plan<'_> {
    fn removed(&self) -> impl Iterator<Item = SnapshotId> {
        let pairs = self.snapshots.iter().zip(&self.decisions);
        let gone = pairs.filter(|(_, decision)| !decision.keep && self.refused.is_none());
        gone.map(|(snapshot, _)| snapshot.record.id)
    }

    /// Says why the clock is not believed, if something would go because of it.
    fn doubt(&self, now: Timestamp) -> Option<Error> {
        if self.decisions.iter().all(|decision| decision.keep) {
            return None;
        }
        let time = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        let told = |index: usize| {
            let record = &self.snapshots[index].record;
            format!("{}@{} is of {}", self.vm, record.name, time(record.created))
        };
        let why = match doubt(self.policy, &self.candidates, &self.decisions, now)? {
            Doubt::Future { snapshot } => {
                format!("{}, and the clock says {}", told(snapshot), time(now))
            }
            Doubt::Leap { before, after } => format!(
                "{} and {}, and all that is older than this gap would go at once",
                told(before),
                told(after)
            ),
        };
        let error = Error::refused(format!(
            "the clock seems to have jumped, so nothing of `{}` is pruned",
            self.vm
        ));
        Some(error.because(why).state("nothing was deleted").hint(format!(
            "set the clock right; if it is right, `tintype prune {} --trust-clock --dry-run` shows what would go",
            self.vm
        )))
    }

    fn report(&self, exclusive: &HashMap<SnapshotId, ByteCount>) -> PrunedVm {
        let of = |(snapshot, decision): (&Snapshot, &Decision)| PrunedSnapshot {
            id: snapshot.record.id,
            name: snapshot.record.name.clone(),
            created: snapshot.record.created,
            keep: decision.keep || self.refused.is_some(),
            reasons: decision.reasons.iter().map(ToString::to_string).collect(),
            exclusive_bytes: exclusive.get(&snapshot.record.id).copied(),
        };
        let why = |error: &Error| std::error::Error::source(error).map(ToString::to_string);
        PrunedVm {
            vm: self.vm.clone(),
            policy: self.policy.clone(),
            refused: self.refused.as_ref().and_then(why),
            snapshots: self.snapshots.iter().zip(&self.decisions).rev().map(of).collect(),
        }
    }
}
