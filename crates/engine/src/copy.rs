//! Copies snapshots to another repository, as a timer may do again and again.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tintype_repo::{Copier, CopyError, CopyPlan, CopyReport, Kind, Repository, S3Access};
use tintype_types::{ByteCount, SnapshotId, SnapshotName, VmName};

use crate::details::Snapshot;
use crate::error::{Error, Result};
use crate::observer::Step;
use crate::operations::{Reversal, listed};
use crate::supervisor::Supervisor;
use crate::{COPIED_TO, Engine, is_bucket};

/// What to copy, and where to.
#[derive(Debug, Clone, Default)]
pub struct CopyParams {
    /// The snapshots; none if the rest says which.
    pub names: Vec<String>,
    /// Only those of this VM.
    pub vm: Option<VmName>,
    /// Only those that have all of these tags.
    pub tags: Vec<(String, String)>,
    /// The other repository.
    pub to: PathBuf,
    /// What opens it, besides what opens this one.
    pub keys: Vec<tintype_repo::Encryption>,
    /// How to reach its S3 server; as that of this one if `None`.
    pub s3: Option<S3Access>,
    /// How much is read until what has arrived is kept.
    pub part: Option<ByteCount>,
    /// Only say what would be copied.
    pub dry_run: bool,
}

/// What became of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyAction {
    /// It is there now.
    Copied,
    /// It would be copied.
    WouldCopy,
    /// It was there, or it was deleted here meanwhile.
    Skipped,
    /// It is damaged here.
    Failed,
}

/// A snapshot that was to be copied; the names are a contract.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CopiedSnapshot {
    /// Its id here.
    pub snapshot: SnapshotId,
    /// Its VM.
    pub vm: VmName,
    /// Its name.
    pub name: SnapshotName,
    /// What became of it.
    pub action: CopyAction,
    /// Its id there.
    pub copy: Option<SnapshotId>,
    /// The snapshot that told what differs, and had been copied before.
    pub base: Option<SnapshotId>,
    /// Whether an interrupted copy had left a part of it.
    pub resumed: bool,
    /// Bytes that were read, or would be.
    pub read_bytes: ByteCount,
    /// Bytes that the other repository grew by.
    pub stored_bytes: ByteCount,
    /// Why it was not copied.
    pub error: Option<String>,
}

/// What a command has copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopySummary {
    /// Snapshots that were copied, or would be.
    pub copied: u64,
    /// Snapshots that were there.
    pub skipped: u64,
    /// Snapshots that are damaged here.
    pub failed: u64,
    /// Bytes that were read, or would be.
    pub read_bytes: ByteCount,
    /// Bytes that the other repository grew by.
    pub stored_bytes: ByteCount,
}

impl Engine {
    /// Copies snapshots to another repository; `each` hears of each as it is done.
    /// A damaged one fails, and the others are copied.
    pub fn copy(
        &self,
        params: &CopyParams,
        each: &mut dyn FnMut(&CopiedSnapshot),
    ) -> Result<CopySummary> {
        let source = self.repository()?;
        let (keys, s3) = (&params.keys, params.s3.as_ref());
        let target = self.open_other_repository(&params.to, keys, s3, &COPIED_TO)?;
        if source.id() == target.id() {
            return Err(Error::invalid(format!(
                "{} is the repository that is copied from, or a byte for byte copy of it",
                params.to.display()
            ))
            .state("nothing was changed")
            .hint("--to names another repository; `tintype --repo URL init` makes one"));
        }
        let (chosen, unreadable) = self.chosen_to_copy(&source, params)?;
        let mut settings = tintype_repo::CopyParams::default();
        settings.part = params.part;
        let mut copier = Copier::new(&source, &target, settings).map_err(|error| {
            let (Ok(error) | Err(error)) = side(error);
            Error::failed("cannot compare the two repositories")
                .because(error)
                .state("nothing was changed")
        })?;
        let supervisor = self.supervisor("copying");
        let mut summary = CopySummary { failed: unreadable, ..CopySummary::default() };
        let mut made = Vec::new();
        let mut copy_all = || -> Result<()> {
            for snapshot in &chosen {
                let copied = match params.dry_run {
                    true => copier.plan(snapshot.record.id).map(|plan| planned(snapshot, plan)),
                    false => self.copy_one(&mut copier, snapshot, &supervisor),
                };
                let copied = match copied {
                    Ok(copied) => copied,
                    Err(error) => left_out(snapshot, error)
                        .map_err(|error| self.broken(error, snapshot, params, &summary))?,
                };
                if copied.action == CopyAction::Copied {
                    made.extend(copied.copy.map(|copy| (name_of(snapshot), copy)));
                }
                summary.add(&copied);
                each(&copied);
            }
            Ok(())
        };
        let done = copy_all();
        self.log_copies(&source, &target, &params.to, &made);
        done.map(|()| summary)
    }

    /// Notes copies on both sides: there, where they can be deleted again, and here,
    /// where nothing was changed.
    fn log_copies(
        &self,
        source: &Repository,
        target: &Repository,
        to: &Path,
        made: &[(String, SnapshotId)],
    ) {
        if made.is_empty() {
            return;
        }
        let (names, snapshots): (Vec<_>, _) = made.iter().cloned().unzip();
        let names = listed(&names);
        let there = Some(Reversal::Delete { snapshots });
        let operation =
            self.log_operation(target, "copy", format!("copied {names} to here"), there);
        let place = if is_bucket(to) { to.to_owned() } else { absolute(to) };
        let did = format!("copied {names} to {}", place.display());
        self.log_operation(source, "copy", did, Some(Reversal::Elsewhere { place, operation }));
    }

    fn copy_one(
        &self,
        copier: &mut Copier,
        snapshot: &Snapshot,
        supervisor: &Supervisor<'_>,
    ) -> Result<CopiedSnapshot, CopyError> {
        let report = copier.copy(snapshot.record.id, supervisor)?;
        if !report.was_there {
            self.config.observer.step(Step::CopyCommitted);
        }
        Ok(done(snapshot, &report))
    }

    /// Returns what is to be copied, oldest first, and how many more there are
    /// whose records cannot be read.
    fn chosen_to_copy(
        &self,
        source: &Repository,
        params: &CopyParams,
    ) -> Result<(Vec<Snapshot>, u64)> {
        if !params.names.is_empty() {
            let find = |name: &String| Ok(self.find_snapshot(source, name, None)?.record.id);
            let ids = params.names.iter().map(find).collect::<Result<Vec<_>>>()?;
            let mut all = self.log(None)?;
            all.retain(|snapshot| ids.contains(&snapshot.record.id));
            return Ok((all, 0));
        }
        let mut chosen = self.log(params.vm.as_ref())?;
        chosen.retain(|snapshot| params.tags.iter().all(|t| snapshot.details.tags.contains(t)));
        let listing = source.snapshots().map_err(Error::step("cannot list the snapshots"))?;
        Ok((chosen, u64::try_from(listing.damaged.len()).unwrap_or(u64::MAX)))
    }

    /// Describes a copy that cannot go on.
    fn broken(
        &self,
        error: CopyError,
        snapshot: &Snapshot,
        params: &CopyParams,
        summary: &CopySummary,
    ) -> Error {
        let name = name_of(snapshot);
        let to = params.to.display();
        let (what, error) = match side(error) {
            Ok(error) => (format!("cannot read {name}"), error),
            Err(error) => (format!("cannot copy {name} to {to}"), error),
        };
        let is_full = error.kind() == Kind::NoSpace;
        let made = Error::failed(what).because(error).state(format!(
            "{} snapshots were copied before; nothing was changed in those that were there",
            summary.copied
        ));
        made.hint(match is_full {
            true => format!(
                "make room there, as `tintype --repo {to} gc --now` does if something is deleted there; the same command then goes on where this one stopped"
            ),
            false => "the same command goes on where this one stopped".to_owned(),
        })
    }
}

impl CopySummary {
    fn add(&mut self, copied: &CopiedSnapshot) {
        match copied.action {
            CopyAction::Copied | CopyAction::WouldCopy => self.copied += 1,
            CopyAction::Skipped => self.skipped += 1,
            CopyAction::Failed => self.failed += 1,
        }
        self.read_bytes.0 += copied.read_bytes.get();
        self.stored_bytes.0 += copied.stored_bytes.get();
    }
}

fn name_of(snapshot: &Snapshot) -> String {
    format!("{}@{}", snapshot.record.vm_name, snapshot.record.name)
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Tells which side failed: this one is `Ok`.
fn side(error: CopyError) -> Result<tintype_repo::Error, tintype_repo::Error> {
    match error {
        CopyError::Source(error) => Ok(error),
        CopyError::Target(error) => Err(error),
    }
}

fn unchanged(snapshot: &Snapshot, action: CopyAction) -> CopiedSnapshot {
    CopiedSnapshot {
        snapshot: snapshot.record.id,
        vm: snapshot.record.vm_name.clone(),
        name: snapshot.record.name.clone(),
        action,
        copy: None,
        base: None,
        resumed: false,
        read_bytes: ByteCount(0),
        stored_bytes: ByteCount(0),
        error: None,
    }
}

fn planned(snapshot: &Snapshot, plan: CopyPlan) -> CopiedSnapshot {
    let CopyPlan { copy, base, read_bytes } = plan;
    let action = if copy.is_some() { CopyAction::Skipped } else { CopyAction::WouldCopy };
    CopiedSnapshot { copy, base, read_bytes, ..unchanged(snapshot, action) }
}

fn done(snapshot: &Snapshot, report: &CopyReport) -> CopiedSnapshot {
    let action = if report.was_there { CopyAction::Skipped } else { CopyAction::Copied };
    CopiedSnapshot {
        copy: Some(report.copy),
        base: report.base,
        resumed: report.resumed,
        read_bytes: report.read_bytes,
        stored_bytes: report.stored_bytes,
        ..unchanged(snapshot, action)
    }
}

/// Returns a snapshot that cannot be copied, while others can; any other error
/// comes back.
fn left_out(snapshot: &Snapshot, error: CopyError) -> Result<CopiedSnapshot, CopyError> {
    let (action, error) = match error {
        CopyError::Source(error) if error.kind() == Kind::Damaged => (CopyAction::Failed, error),
        CopyError::Source(error) if error.kind() == Kind::NotFound => (CopyAction::Skipped, error),
        error => return Err(error),
    };
    Ok(CopiedSnapshot { error: Some(error.to_string()), ..unchanged(snapshot, action) })
}
