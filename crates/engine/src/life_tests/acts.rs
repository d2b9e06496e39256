//! What happens in a life, each as the command would do it, with the engine and the
//! repository that users have. Only a take writes its disk by itself: there is no VM.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tintype_repo::{
    CompactionParams, Due, GcParams, ImageParams, NamedImage, Repository, SessionParams,
    SnapshotDraft, SnapshotRecord, Unwritten,
};
use tintype_retention::{Count, Policy};
use tintype_types::{ByteCount, SnapshotId, SnapshotName, VmId, VmName};
use tintype_vm::{Cancel, CommandLine, Inventory};

use crate::details::{Details, Purpose};
use crate::grace::DEFAULT_GRACE;
use crate::operations::{Caller, Reversal};
use crate::prune::PruneParams;
use crate::quiesce::Quiesced;
use crate::trash::CollectionParams;
use crate::undo::UndoReport;
use crate::{CopyParams, Engine, EngineConfig, Silence};

const BLOCK: usize = 4096;
const BLOCKS: usize = 48;

/// What holds, or what does not.
pub(super) type Checked<T = ()> = Result<T, String>;

#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }

    pub(super) fn pick<T: Clone>(&mut self, items: &[T]) -> Option<T> {
        let sides = u64::try_from(items.len()).unwrap();
        (sides > 0).then(|| items[usize::try_from(self.roll(sides)).unwrap()].clone())
    }
}

/// One thing that is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Act {
    Take {
        vm: String,
        parent: Option<SnapshotId>,
        seed: u64,
    },
    Remove {
        ids: Vec<SnapshotId>,
    },
    Undo,
    Undelete {
        id: SnapshotId,
    },
    Prune {
        vm: String,
        keep_last: u32,
    },
    Pin {
        id: SnapshotId,
        pinned: bool,
    },
    Rename {
        id: SnapshotId,
        name: String,
    },
    Gc {
        now: bool,
    },
    /// Moves everything that is beside anything that nobody needs.
    Compact,
    Copy,
}

/// A content that differs from another in a few blocks.
pub(super) fn changed(base: Option<&[u8]>, seed: u64) -> Vec<u8> {
    let mut content = base.map_or_else(|| vec![0; BLOCKS * BLOCK], <[u8]>::to_vec);
    let mut dice = Dice(seed);
    let count = if base.is_none() { BLOCKS } else { 12 };
    for number in 0..count {
        let at = if base.is_none() { number } else { usize::try_from(dice.roll(48)).unwrap() };
        // Some blocks are the same in several snapshots.
        let mut of = Dice(if dice.roll(3) == 0 { dice.roll(20) } else { dice.roll(u64::MAX) });
        for word in content[at * BLOCK..(at + 1) * BLOCK].chunks_mut(8).take(64) {
            word.copy_from_slice(&of.roll(u64::MAX).to_le_bytes());
        }
    }
    content
}

fn vm_id(vm: &str) -> VmId {
    VmId::from_bytes([vm.as_bytes()[0]; 16])
}

pub(super) fn read(repository: &Repository, record: &SnapshotRecord) -> Checked<Vec<u8>> {
    let root = &record.images[0].root;
    let mut bytes = vec![0; usize::try_from(root.size().get()).unwrap()];
    let image = repository.open_image(root).map_err(|e| format!("{}: {e:?}", record.id))?;
    image.read_at(0, &mut bytes).map_err(|e| format!("{}: {e:?}", record.id))?;
    Ok(bytes)
}

/// Opens an engine as a command does.
pub(super) fn engine(home: &Path, repository: &Path, now: i64) -> Engine {
    Engine::open(EngineConfig {
        home: home.to_owned(),
        repository: Some(repository.to_owned()),
        s3: None,
        cache_limit: ByteCount(0),
        budget: None,
        grace: DEFAULT_GRACE,
        keys: Vec::new(),
        environment: Vec::new(),
        helper: Vec::new(),
        patience: Duration::ZERO,
        caller: Caller { host: "host".into(), user: "user".into(), words: Vec::new() },
        clock: Arc::new(move || Timestamp::from_second(now).unwrap()),
        cancel: Cancel::default(),
        observer: Arc::new(Silence),
    })
    .unwrap()
}

/// What an act told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) undone: Option<UndoReport>,
    pub(super) error: Option<crate::Error>,
}

/// Does it, as the command would.
pub(super) fn perform(engine: &Engine, other: &Path, act: &Act) -> Told {
    let mut undone = None;
    let done = match act.clone() {
        Act::Take { vm, parent, seed } => take(engine, &vm, parent, seed),
        Act::Remove { ids } => {
            let names: Vec<_> = ids.iter().map(ToString::to_string).collect();
            engine.remove(&names, false).map(drop)
        }
        Act::Undo => engine.undo(None).map(|report| undone = Some(report)),
        Act::Undelete { id } => engine.undelete(&[id.to_string()]).map(drop),
        Act::Prune { vm, keep_last } => {
            let keep_last: Option<Count> = Some(keep_last.to_string().parse().unwrap());
            let policy = Some(Policy { keep_last, ..Policy::default() });
            let params = PruneParams { policy, dry_run: false, trust_clock: true };
            engine.prune(&vm.parse().unwrap(), &params).map(drop)
        }
        Act::Pin { id, pinned } => engine.set_pinned(&id.to_string(), pinned).map(drop),
        Act::Rename { id, name } => {
            engine.rename(&id.to_string(), &SnapshotName::new(&name).unwrap()).map(drop)
        }
        Act::Gc { now } => {
            engine.collect_garbage(CollectionParams { now, ..Default::default() }).map(drop)
        }
        Act::Compact => compact(&engine.repository().unwrap()),
        Act::Copy => {
            let params = CopyParams { to: other.to_owned(), ..CopyParams::default() };
            engine.copy(&params, &mut |_| {}).map(drop)
        }
    };
    Told { undone, error: done.err() }
}

fn compact(repository: &Repository) -> crate::Result<()> {
    let mut compaction = CompactionParams::default();
    (compaction.live_percent, compaction.least_gain) = (100, None);
    let mut params = GcParams::default();
    params.compaction = Some(compaction);
    params.due = Due::Only([].into());
    repository.gc(params, &()).map(drop).map_err(crate::Error::step("cannot compact"))
}

fn take(engine: &Engine, vm: &str, parent: Option<SnapshotId>, seed: u64) -> crate::Result<()> {
    let fail = crate::Error::step("cannot take");
    let repository = engine.repository()?;
    let taken = || -> Result<SnapshotRecord, tintype_repo::Error> {
        let parent = parent.map(|id| repository.snapshot(id)).transpose()?;
        let base = parent.as_ref().map(|record| read(&repository, record).unwrap());
        let content = changed(base.as_deref(), seed);
        let mut params = SessionParams::default();
        params.threads = Some(1);
        let session = repository.begin(params)?;
        let root = parent.as_ref().map(|record| record.images[0].root.clone());
        let size = ByteCount(u64::try_from(content.len()).unwrap());
        let unwritten = if root.is_some() { Unwritten::Parent } else { Unwritten::Zero };
        let mut image = session.image(ImageParams { size, parent: root, unwritten })?;
        image.write(0, &content)?;
        let images = vec![NamedImage { name: "disk/vda".to_owned(), root: image.finish()? }];
        session.commit(SnapshotDraft {
            vm: vm_id(vm),
            vm_name: VmName::new(vm).unwrap(),
            name: SnapshotName::new(&format!("s{seed}")).unwrap(),
            parent: parent.map(|record| record.id),
            created: engine.now(),
            images,
            blobs: Vec::new(),
            details: serde_json::to_value(details()).unwrap(),
        })
    };
    let record = taken().map_err(fail)?;
    let reversal = Reversal::Delete { snapshots: vec![record.id] };
    engine.log_operation(&repository, "take", format!("took {}", record.name), Some(reversal));
    Ok(())
}

fn details() -> Details {
    Details {
        purpose: Purpose::Asked,
        message: String::new(),
        tags: Vec::new(),
        way: None,
        pause_us: 0,
        duration_ms: 0,
        was_running: false,
        memory: Vec::new(),
        disks: Vec::new(),
        command_line: CommandLine {
            program: PathBuf::new(),
            arguments: Vec::new(),
            directory: PathBuf::new(),
            environment: Vec::new(),
        },
        inventory: Inventory {
            qemu_version: String::new(),
            machine: String::new(),
            processor: String::new(),
            processors: 1,
            memory: ByteCount(0),
            disks: Vec::new(),
            network_cards: Vec::new(),
            character_devices: Vec::new(),
            accelerator: "tcg".to_owned(),
        },
        files: Vec::new(),
        media: Vec::new(),
        tpms: Vec::new(),
        quiesced: Quiesced::not("it is a test"),
    }
}
