//! What a guest needs first when it is loaded lazily, which is sent before it asks: what
//! it wrote last before the instant, which the snapshot says, and from the second load on
//! what it asked for. That is kept in the home, and of no other use: a file that is
//! deleted, damaged or of another version costs some waiting.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tintype_stream::{RamBlock, RamBlockId};
use tintype_types::SnapshotId;

use crate::Engine;
use crate::details::Snapshot;
use crate::home::make_folder;
use crate::pages::{UNIT, Unit};

/// How long after its start what a guest asks for is recorded.
pub(crate) const RECORD_TIME: Duration = Duration::from_secs(10);

/// The most units of a set: 256 MiB of memory.
pub(crate) const MAX_UNITS: usize = 2048;

/// The most units of a block that a snapshot says were written last: 32 MiB of memory.
const MAX_WRITTEN_LAST: usize = 256;

/// The most sets that are kept; the oldest go.
const MAX_SETS: usize = 256;

/// The longest file that is read.
const MAX_FILE: u64 = 1 << 20;

const VERSION: u32 = 1;

/// What is kept of one snapshot.
#[derive(Debug, Serialize, Deserialize)]
struct WorkingSet {
    version: u32,
    /// How often the guest had to wait, the last time.
    requests: u64,
    /// The blocks of memory, by name, that the units are of.
    blocks: Vec<String>,
    /// A place in `blocks`, and a unit of 128 KiB; in the order of the first need.
    units: Vec<(usize, u64)>,
}

/// Notes which units of a block come in the last pass over memory of a take.
#[derive(Default)]
pub(crate) struct WrittenLast(Vec<u64>);

impl WrittenLast {
    /// Notes a page by its place; pages come in order.
    pub(crate) fn note(&mut self, offset: u64) {
        let unit = offset / UNIT;
        if self.0.len() <= MAX_WRITTEN_LAST && self.0.last() != Some(&unit) {
            self.0.push(unit);
        }
    }

    /// Returns the units; none if they are many, for then they tell nothing.
    pub(crate) fn units(self) -> Vec<u64> {
        if self.0.len() > MAX_WRITTEN_LAST { Vec::new() } else { self.0 }
    }
}

impl Engine {
    /// Returns the units of a snapshot's memory that the guest needs first: what it
    /// needed the last time, or, the first time, what it wrote last before the instant.
    pub(crate) fn needed_first(&self, snapshot: &Snapshot, blocks: &[RamBlock]) -> Vec<Unit> {
        self.recorded(snapshot.record.id, blocks).unwrap_or_else(|| written_last(snapshot, blocks))
    }

    fn recorded(&self, snapshot: SnapshotId, blocks: &[RamBlock]) -> Option<Vec<Unit>> {
        let set = read(&self.home.working_set_file(snapshot))?;
        let find = |name: &String| {
            RamBlock::numbered(blocks).find(|(_, block)| block.name == *name).map(|(id, _)| id)
        };
        let known: Vec<Option<RamBlockId>> = set.blocks.iter().map(find).collect();
        let units = set.units.iter().take(MAX_UNITS).filter_map(|&(block, number)| {
            Some(Unit { block: known.get(block).copied().flatten()?, number })
        });
        Some(units.collect())
    }

    /// Keeps what was recorded. If that fails, the next load is not sped up.
    pub(crate) fn keep_recorded(
        &self,
        snapshot: SnapshotId,
        blocks: &[RamBlock],
        units: &[Unit],
        requests: u64,
    ) {
        let set = WorkingSet {
            version: VERSION,
            requests,
            blocks: blocks.iter().map(|block| block.name.clone()).collect(),
            units: units
                .iter()
                .take(MAX_UNITS)
                .map(|unit| (unit.block.index(), unit.number))
                .collect(),
        };
        let folder = self.home.working_sets_folder();
        let path = self.home.working_set_file(snapshot);
        let write = || -> std::io::Result<()> {
            make_folder(&folder).map_err(std::io::Error::other)?;
            let temporary = path.with_extension("new");
            fs::write(&temporary, serde_json::to_vec(&set)?)?;
            fs::rename(&temporary, &path)
        };
        if let Err(error) = write() {
            tracing::info!(%error, "what the guest needed first is not kept");
        }
        forget_oldest(&folder);
    }
}

fn written_last(snapshot: &Snapshot, blocks: &[RamBlock]) -> Vec<Unit> {
    let saved = |name: &str| snapshot.details.memory.iter().find(|saved| saved.name == name);
    RamBlock::numbered(blocks)
        .filter_map(|(id, block)| Some((id, saved(&block.name)?)))
        .flat_map(|(block, saved)| {
            saved.written_last.iter().map(move |&number| Unit { block, number })
        })
        .take(MAX_UNITS)
        .collect()
}

fn read(path: &std::path::Path) -> Option<WorkingSet> {
    let size = fs::metadata(path).ok()?.len();
    let bytes = (size <= MAX_FILE).then(|| fs::read(path).ok())??;
    serde_json::from_slice(&bytes).ok().filter(|set: &WorkingSet| set.version == VERSION)
}

fn forget_oldest(folder: &std::path::Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut sets: Vec<(SystemTime, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    sets.sort();
    for (_, path) in sets.iter().take(sets.len().saturating_sub(MAX_SETS)) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_last_is_noted_unless_it_is_much() {
        let noted = |pages: &[u64]| {
            let mut last = WrittenLast::default();
            pages.iter().for_each(|page| last.note(page * 4096));
            last.units()
        };
        assert_eq!(noted(&[0, 31, 32, 33, 70]), [0, 1, 2]);
        let spread: Vec<u64> = (0..=256).map(|unit| unit * 32).collect();
        assert_eq!(noted(&spread[..256]).len(), 256);
        assert!(noted(&spread).is_empty());
    }

    #[test]
    fn what_is_no_record_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set");
        assert!(read(&path).is_none());
        let check = |text: &str, is_read: bool| {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).is_some(), is_read, "{}", &text[..text.len().min(80)]);
        };
        let set = r#"{"version":1,"requests":7,"blocks":["pc.ram"],"units":[[0,5]]"#;
        check(&format!("{set}}}"), true);
        check(set, false);
        check(&format!("{set}}}").replace(":1", ":2"), false);
        check(&format!("{set}{}}}", " ".repeat(1 << 20)), false);
    }
}
