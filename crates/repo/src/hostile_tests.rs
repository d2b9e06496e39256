//! Repositories whose maker means harm, and knows the key: every tag and every
//! id in them is right. What must hold of each: everything that can be asked
//! of it ends soon, in bounded memory, without a panic, and touches nothing
//! outside; what is a lie is an error.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};
use tintype_types::{ByteCount, SnapshotId};

use crate::crash_tests::eager;
use crate::frame::{Codec, FrameHeader, FrameKind, HEADER_LEN, checksum};
use crate::node::{Entry, Inner, Leaf, Part};
use crate::pointer::{FramePointer, NodePointer, Place, SegmentName};
use crate::record::{Moved, Outcome, SnapshotRecord, outcome_key};
use crate::run::{self, Change, Run};
use crate::segment::{self, Identity, SegmentKind, Table, index32};
use crate::signed;
use crate::store::Put;
use crate::tree::ImageRoot;
use crate::{
    BlobId, Encryption, Error, GcParams, ImageParams, InitParams, NamedImage, Repository,
    SessionParams, SnapshotDraft, Unwritten, VerifyLevel,
};

/// The most memory that any of these repositories may cost.
const MEMORY: u64 = 320 << 20;
/// The most time, on a machine that is busy: most of it waits for the disk.
const TIME: Duration = Duration::from_secs(60);

/// What makes a repository hostile, in the folder of the forge.
struct Attack {
    name: &'static str,
    forge: fn(&mut Forge),
    /// Whether it is a lie, which verification or opening has to notice.
    is_lie: bool,
}

const ATTACKS: &[Attack] = &[
    Attack { name: "nothing", forge: |_| {}, is_lie: false },
    Attack { name: "zstd bomb", forge: zstd_bomb, is_lie: true },
    Attack { name: "claims gigabytes", forge: claims_gigabytes, is_lie: true },
    Attack { name: "absurd counts in a node", forge: absurd_counts, is_lie: true },
    Attack { name: "runs without end", forge: runs_without_end, is_lie: true },
    Attack { name: "impossible heights", forge: impossible_heights, is_lie: true },
    Attack { name: "exabytes in six nodes", forge: exabytes, is_lie: false },
    Attack { name: "blob of other chunks", forge: blob_of_other_chunks, is_lie: true },
    Attack { name: "frame with too few blocks", forge: too_few_blocks, is_lie: true },
    Attack { name: "frames without a table", forge: frames_without_a_table, is_lie: true },
    Attack { name: "last numbers", forge: last_numbers, is_lie: false },
    Attack { name: "files of nothing", forge: sparse_files, is_lie: true },
    Attack { name: "pipes and links", forge: pipes_and_links, is_lie: true },
    Attack { name: "names that climb", forge: names_that_climb, is_lie: false },
    Attack { name: "a record of brackets", forge: record_of_brackets, is_lie: true },
    Attack { name: "huge listings", forge: huge_listings, is_lie: true },
    Attack { name: "moves that lie", forge: moves_that_lie, is_lie: true },
    Attack { name: "moves of moves", forge: moves_of_moves, is_lie: false },
    Attack { name: "costly passphrase", forge: costly_passphrase, is_lie: true },
];

/// Makes objects that no session would make.
struct Forge {
    root: std::path::PathBuf,
    repository: Repository,
    session: SnapshotId,
    segments: u32,
    bytes: Vec<u8>,
    table: Table,
}

impl Forge {
    fn new(root: &Path) -> Self {
        let repository = Repository::init(root, InitParams::default()).unwrap();
        let session = SnapshotId::random();
        let (root, bytes, table) = (root.to_owned(), Vec::new(), Table::default());
        let mut forge = Self { root, repository, session, segments: 0, bytes, table };
        forge.next_segment();
        forge
    }

    fn name(&self) -> SegmentName {
        SegmentName { session: self.session, number: self.segments }
    }

    fn next_segment(&mut self) {
        self.segments += 1;
        self.table = Table::default();
        self.bytes = segment::header(SegmentKind::Data, 0, self.name(), self.repository.id());
    }

    fn store_segment(&mut self) {
        segment::finish(&mut self.bytes, &self.table);
        let put = self.repository.vault.store.put_if_absent(&self.name().key(), &self.bytes);
        assert_eq!(put.unwrap(), Put::Created);
        self.next_segment();
    }

    /// Appends a frame that says what it likes.
    fn frame(&mut self, codec: Codec, stored: &[u8], raw: u32, id: Identity<'_>) -> Place {
        let number = u16::try_from(self.table.entries().len()).unwrap();
        let kind = match id {
            Identity::Blocks(_) => FrameKind::Blocks,
            Identity::Node(kind, _) => kind,
        };
        let (offset, len) = (index32(self.bytes.len()), index32(stored.len()));
        let checksum = checksum(stored);
        let header = FrameHeader { kind, codec, number, stored: len, raw, checksum };
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(stored);
        self.table.push(codec, offset, len, raw, id);
        Place { segment: self.name(), number, offset, len: len + index32(HEADER_LEN) }
    }

    fn put(&mut self, kind: FrameKind, bytes: &[u8]) -> NodePointer {
        let id = self.repository.vault.keys.node_id(kind as u8, bytes);
        let raw = index32(bytes.len());
        NodePointer { place: self.frame(Codec::Raw, bytes, raw, Identity::Node(kind, id)), id }
    }

    fn node(&mut self, bytes: &[u8]) -> NodePointer {
        self.put(FrameKind::Node, bytes)
    }

    /// Stores the segment and a record of one image and one blob.
    fn commit(&mut self, root: ImageRoot, blob: Option<BlobId>) {
        self.store_segment();
        let record = SnapshotRecord {
            id: self.session,
            sequence: u64::MAX,
            created: jiff::Timestamp::MAX,
            vm: tintype_types::VmId::from_bytes([1; 16]),
            vm_name: tintype_types::VmName::new("web").unwrap(),
            name: tintype_types::SnapshotName::new("one").unwrap(),
            parent: None,
            images: vec![NamedImage { name: "../../../\0outside".to_owned(), root }],
            blobs: blob.into_iter().map(|blob| ("/etc/passwd".to_owned(), blob)).collect(),
            details: crate::record::Opaque::new(&serde_json::Value::Null),
            origin: None,
            part: None,
            stats: crate::SessionStats::default(),
        };
        let vault = Arc::clone(&self.repository.vault);
        let key = outcome_key(self.session);
        let bytes = Outcome::Committed(Box::new(record)).encode(&vault.keys, vault.id, &key);
        assert_eq!(vault.store.put_if_absent(&key, &bytes).unwrap(), Put::Created);
        self.session = SnapshotId::random();
        self.next_segment();
    }

    fn commit_image(&mut self, size: u64, height: u8, base: NodePointer) {
        let root = ImageRoot { size: ByteCount(size), height, base: Some(base), runs: Vec::new() };
        self.commit(root, None);
    }

    /// Stores a leaf that has all its blocks in one frame of one block.
    fn leaf(&mut self, blocks_claimed: u8) -> NodePointer {
        let block = [7; 4096];
        let id = [self.repository.vault.keys.block_id(&block)];
        let place = self.frame(Codec::Raw, &block, 4096, Identity::Blocks(&id));
        let id = self.repository.vault.keys.frame_id(&id);
        let frame = FramePointer { place, blocks: blocks_claimed, id };
        let mask = u16::MAX >> (16 - blocks_claimed);
        let part = Part { frame, first: 0, mask, used: mask };
        let leaf = Leaf { regions: vec![Entry { parts: vec![part] }; 256] };
        self.node(&leaf.encode())
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn sparse(&self, path: &str, len: u64) {
        self.write(path, b"");
        let file = fs::OpenOptions::new().write(true).open(self.root.join(path)).unwrap();
        file.set_len(len).unwrap();
    }
}

fn zstd_bomb(forge: &mut Forge) {
    let bomb = zstd::bulk::compress(&vec![0; 512 << 20], 1).unwrap();
    let id = forge.repository.vault.keys.node_id(FrameKind::Node as u8, &[0; 4]);
    let node = Identity::Node(FrameKind::Node, id);
    let place = forge.frame(Codec::Zstd, &bomb, 1 << 20, node);
    forge.commit_image(1 << 30, 1, NodePointer { place, id });
}

fn claims_gigabytes(forge: &mut Forge) {
    let id = forge.repository.vault.keys.node_id(FrameKind::Node as u8, &[0; 4]);
    let node = Identity::Node(FrameKind::Node, id);
    let place = forge.frame(Codec::Zstd, &[0; 64], u32::MAX, node);
    forge.commit_image(1 << 30, 1, NodePointer { place, id });
    let claimed = Place { len: u32::MAX, offset: u32::MAX, ..place };
    forge.commit_image(1 << 30, 1, NodePointer { place: claimed, id });
}

fn absurd_counts(forge: &mut Forge) {
    let many_segments = forge.node(&[1, 0, 255, 255]);
    forge.commit_image(1 << 20, 0, many_segments);
    let many_parts = forge.node(&[1, 0, 0, 0, 0, 255]);
    forge.commit_image(1 << 20, 0, many_parts);
    let mut list = vec![4, 0];
    list.extend_from_slice(&u64::MAX.to_le_bytes());
    let list = forge.node(&list);
    let blob = BlobId { len: u64::MAX, list };
    forge.commit(ImageRoot::zero(ByteCount(0)), Some(blob));
}

/// Leaves of runs that say that a leaf of the image is another such leaf.
fn runs_without_end(forge: &mut Forge) {
    let mut pointer = forge.leaf(1);
    for number in 1..100_000 {
        let change = Change::Whole(Some(pointer));
        let forging = std::cell::RefCell::new(&mut *forge);
        let run = run::write(&[(0, change)].into(), &|bytes| forging.borrow_mut().node(bytes));
        pointer = run.root;
        if number % 30_000 == 0 {
            forge.store_segment();
        }
    }
    let runs = vec![Run { height: 0, root: pointer, leaves: 1 }];
    forge.commit(ImageRoot { size: ByteCount(1 << 24), height: 0, base: None, runs }, None);
}

fn impossible_heights(forge: &mut Forge) {
    for (height, run_height, count, size) in
        [(255, 0, 0, 1 << 20), (0, 200, 1, 1 << 20), (0, 0, 1000, 1 << 20), (5, 0, 0, u64::MAX)]
    {
        let leaf = forge.leaf(1);
        let run = Run { height: run_height, root: leaf, leaves: u64::MAX };
        let runs = vec![run; count];
        forge.commit(ImageRoot { size: ByteCount(size), height, base: Some(leaf), runs }, None);
    }
}

/// A map whose nodes name the same child 256 times.
fn exabytes(forge: &mut Forge) {
    let mut pointer = forge.leaf(1);
    for level in 1..=5 {
        pointer = forge.node(&Inner { level, children: vec![Some(pointer); 256] }.encode());
    }
    forge.commit_image(1 << 62, 5, pointer);
}

/// 16,000 times the same chunk of 1 MiB, in a blob of 4 GB.
fn blob_of_other_chunks(forge: &mut Forge) {
    let chunk = forge.put(FrameKind::Blob, &vec![1; 1 << 20]);
    let count: u64 = 16_000;
    let len = count << 18;
    let mut list = vec![4, 0];
    list.extend_from_slice(&len.to_le_bytes());
    for _ in 0..count {
        chunk.place.segment.encode(&mut list);
        list.extend_from_slice(&chunk.place.number.to_le_bytes());
        list.extend_from_slice(&chunk.place.offset.to_le_bytes());
        list.extend_from_slice(&chunk.place.len.to_le_bytes());
        list.extend_from_slice(&chunk.id.0);
    }
    let list = forge.node(&list);
    forge.commit(ImageRoot::zero(ByteCount(0)), Some(BlobId { len, list }));
}

fn too_few_blocks(forge: &mut Forge) {
    let leaf = forge.leaf(16);
    forge.commit_image(1 << 24, 0, leaf);
}

/// Frames of more blocks than one can have, which no table describes.
fn frames_without_a_table(forge: &mut Forge) {
    let many = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap();
    let id = [forge.repository.vault.keys.block_id(&[0; 4096])];
    for _ in 0..1000 {
        forge.frame(Codec::Zstd, &many, 1 << 20, Identity::Blocks(&id));
    }
    let leaf = forge.leaf(1);
    forge.table = Table::default();
    forge.commit_image(1 << 24, 0, leaf);
}

fn last_numbers(forge: &mut Forge) {
    let leaf = forge.leaf(1);
    forge.commit_image(1 << 24, 0, leaf);
    for name in ["18446744073709551615.done", "99999999.done", "99999999999999999999", "1", "x"] {
        forge.write(&format!("ep/{name}"), b"");
    }
    forge.write(&format!("gone/{}-4294967296", SnapshotId::random()), b"");
    forge.write("slot/18446744073709551615/x", b"");
}

fn sparse_files(forge: &mut Forge) {
    let leaf = forge.leaf(1);
    let session = forge.session;
    forge.commit_image(1 << 24, 0, leaf);
    forge.sparse(&format!("idx/{session}"), 3 << 30);
    forge.sparse(&format!("outcome/{}", SnapshotId::random()), 1 << 40);
    forge.sparse(&SegmentName { session, number: 1 }.key(), 1 << 40);
}

fn pipes_and_links(forge: &mut Forge) {
    let leaf = forge.leaf(1);
    let segment = forge.root.join(forge.name().key());
    let session = forge.session;
    forge.commit_image(1 << 24, 0, leaf);
    fs::remove_file(&segment).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &segment, 0o600.into()).unwrap();
    let random = || SnapshotId::random().to_string();
    symlink("/dev/zero", forge.root.join("outcome").join(random())).unwrap();
    let pipe = forge.root.join("outcome").join(random());
    rustix::fs::mkfifoat(rustix::fs::CWD, pipe, 0o600.into()).unwrap();
    fs::create_dir(forge.root.join("idx")).unwrap();
    symlink("/dev/zero", forge.root.join("idx").join(session.to_string())).unwrap();
    symlink("..", forge.root.join("seg/loop")).unwrap();
    symlink("../../outside", forge.root.join("tmp/outside")).unwrap();
}

fn names_that_climb(forge: &mut Forge) {
    let leaf = forge.leaf(1);
    forge.commit_image(1 << 24, 0, leaf);
    for folder in ["outcome", "gone", "ep", "slot", "idx", "seg", "seg/00", "keys", "tmp"] {
        for name in ["...", " ", "-", ".end", ".final", "a\nb", "\u{202e}", &"x".repeat(255)] {
            forge.write(&format!("{folder}/nested/{name}"), b"x");
        }
    }
    // An epoch in the middle of its work, whose tag is right.
    let lines = ["seg/../../outside", "../outside", "/outside", "seg/00/\0"].map(str::to_owned);
    for key in ["ep/00000001", "ep/00000001.final"] {
        let object = signed::encode(&forge.repository.vault, key, "epoch", &lines);
        forge.write(key, &object);
    }
}

fn record_of_brackets(forge: &mut Forge) {
    let session = forge.session;
    let keys = &forge.repository.vault.keys;
    for (start, repeated, session) in
        [("", "[", session), ("{\"details\":[", "[],", SnapshotId::random())]
    {
        let key = outcome_key(session);
        let text = repeated.repeat((4 << 20) / repeated.len() - 200);
        let text = format!("tintype outcome 1 committed\n{start}{text}\n");
        let tag = keys.record_tag(forge.repository.id(), &key, text.as_bytes());
        let tag = crate::pointer::hex(&tag);
        forge.write(&key, format!("{text}{tag}\n").as_bytes());
    }
}

/// Puts an outcome that moves what it likes.
fn put_moves(forge: &Forge, moved: Vec<Moved>) {
    let vault = &forge.repository.vault;
    let key = outcome_key(SnapshotId::random());
    let bytes = Outcome::Moved(moved).encode(&vault.keys, vault.id, &key);
    assert_eq!(vault.store.put_if_absent(&key, &bytes).unwrap(), Put::Created);
}

/// Other images, impossible ones, ones that are nowhere, and twice the same.
fn moves_that_lie(forge: &mut Forge) {
    for lie in 0..5_u8 {
        let (snapshot, leaf) = (forge.session, forge.leaf(1));
        forge.commit_image(1 << 24, 0, leaf);
        let record = forge.repository.snapshot(snapshot).unwrap();
        let (mut images, blobs) = (record.images, record.blobs);
        let mut version = u32::MAX;
        match lie {
            0 => images[0].name.push('x'),
            1 => images[0].root.size = ByteCount(1 << 61),
            2 => images[0].root.height = 255,
            3 => {
                let base = images[0].root.base.as_mut().unwrap();
                base.place.segment.session = SnapshotId::random();
            }
            _ => version = 0,
        }
        let moved = Moved { snapshot, version, images, blobs };
        put_moves(forge, vec![moved.clone(); if lie == 0 { 2 } else { 1 }]);
        put_moves(forge, vec![moved]);
    }
}

/// Half of what is moved is not there, the rest is moved a thousand times.
fn moves_of_moves(forge: &mut Forge) {
    let (snapshot, leaf) = (forge.session, forge.leaf(1));
    forge.commit_image(1 << 24, 0, leaf);
    let SnapshotRecord { images, blobs, .. } = forge.repository.snapshot(snapshot).unwrap();
    for version in 1..1_000 {
        let of = |snapshot| {
            let (images, blobs) = (images.clone(), blobs.clone());
            Moved { snapshot, version: version / 2 + 1, images, blobs }
        };
        put_moves(forge, vec![of(snapshot), of(SnapshotId::random())]);
    }
}

fn huge_listings(forge: &mut Forge) {
    for folder in ["outcome", "seg/00", "gone", "idx"] {
        for _ in 0..5000 {
            forge.write(&format!("{folder}/{}", SnapshotId::random()), b"");
        }
    }
}

fn costly_passphrase(forge: &mut Forge) {
    // The slot that costs nothing would open it.
    fs::remove_dir_all(forge.root.join("keys")).unwrap();
    let sealed = "00".repeat(60);
    for (memory, passes, lanes) in [(u32::MAX, 1, 1), (4 << 20, 1, 1), (64, u32::MAX, 1)] {
        let text = format!(
            "{{\"kind\":\"passphrase\",\"salt\":\"{}\",\"memory_kib\":{memory},\
             \"passes\":{passes},\"lanes\":{lanes},\"sealed\":\"{sealed}\"}}",
            "00".repeat(16),
        );
        forge.write(&format!("keys/{}", SnapshotId::random()), text.as_bytes());
    }
}

/// Asks everything that can be asked; returns what the first error was.
fn ask_everything(path: &Path) -> Result<(), Error> {
    let words = Encryption::Passphrase("words".to_owned());
    let repository = Repository::open_with(path, &[words])?;
    let mut errors = Vec::new();
    let mut note = |result: Result<(), Error>| errors.extend(result.err());
    let listing = repository.snapshots()?;
    listing.damaged.into_iter().take(1).for_each(|damage| note(Err(Error::Damaged(damage))));
    let mut damaged = 0;
    for level in [VerifyLevel::Quick, VerifyLevel::ReadData] {
        match repository.verify(&[], level, &()) {
            Ok(report) => {
                damaged = report.damaged.len();
                report.damaged.into_iter().for_each(|d| note(Err(Error::Damaged(d))));
            }
            Err(error) => note(Err(error)),
        }
    }
    note(repository.shares().map(drop));
    for record in &listing.records {
        note(repository.pin(record.id).map(drop));
        for (_, blob) in &record.blobs {
            note(repository.read_blob(blob).map(drop));
        }
        for image in &record.images {
            note(read_image(&repository, &image.root));
            note(take(&repository, &image.root).map(drop));
        }
    }
    // Each object that is put back is synced, which takes as long as it takes.
    if damaged < 100 {
        note(repository.repair(None, &()).map(drop));
    }
    note(repository.gc(GcParams { dry_run: true, ..eager() }, &()).map(drop));
    note(repository.gc(eager(), &()).map(drop));
    errors.into_iter().next().map_or(Ok(()), Err)
}

fn read_image(repository: &Repository, root: &ImageRoot) -> Result<(), Error> {
    let reader = repository.open_image(root)?;
    let len = reader.size().get().min(1 << 16);
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    reader.read_at(0, &mut bytes)?;
    reader.read_at(reader.size().get() - len, &mut bytes)?;
    reader.data_extents().take(10_000).try_for_each(|extent| extent.map(drop))?;
    reader.sequence().take(50).try_for_each(|piece| piece.map(drop))?;
    if reader.size().get() < 1 << 40 {
        let zero = ImageRoot::zero(reader.size());
        repository.diff(root, &zero)?;
        repository.diff(&zero, root)?;
    }
    Ok(())
}

/// Takes a snapshot over the hostile one.
fn take(repository: &Repository, parent: &ImageRoot) -> Result<SnapshotRecord, Error> {
    let session = repository.begin(SessionParams::default())?;
    let (size, parent) = (parent.size, Some(parent.clone()));
    let mut writer = session.image(ImageParams { size, parent, unwritten: Unwritten::Parent })?;
    if size.get() >= 4096 {
        writer.write(0, &[1; 4096])?;
    }
    let images = vec![NamedImage { name: "ram".to_owned(), root: writer.finish()? }];
    session.commit(SnapshotDraft {
        name: tintype_types::SnapshotName::new("two").unwrap(),
        images,
        ..SnapshotDraft::plain(serde_json::Value::Null)
    })
}

const CHILD: &str = "TINTYPE_REPO_TEST_HOSTILE";

/// Not a test of its own: what the children of the test below run, each with
/// one repository, so that memory can be measured.
#[test]
fn child_that_asks() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let limit = Some(8 << 30);
    setrlimit(Resource::As, Rlimit { current: limit, maximum: limit }).unwrap();
    match ask_everything(Path::new(&path)) {
        Ok(()) => println!("said: nothing"),
        Err(error) => println!("said: {error}"),
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
}

#[test]
fn hostile_repositories_are_harmless() {
    for attack in ATTACKS {
        let folder = tempfile::tempdir().unwrap();
        let outside = folder.path().join("outside");
        fs::write(&outside, "precious").unwrap();
        let root = folder.path().join("repository");
        (attack.forge)(&mut Forge::new(&root));
        let start = Instant::now();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["hostile_tests::child_that_asks", "--exact", "--nocapture"])
            .env(CHILD, &root)
            .output()
            .unwrap();
        let time = start.elapsed();
        let (name, text) = (attack.name, String::from_utf8_lossy(&output.stdout).into_owned());
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {:?} {text} {errors}", output.status);
        let after = |what: &str| {
            text.lines().find_map(|line| line.split_once(what)).map(|(_, rest)| rest.trim())
        };
        let memory: u64 = after("VmHWM:").unwrap().trim_end_matches(" kB").parse().unwrap();
        let said = after("said: ").unwrap();
        eprintln!("{name}: {} MiB, {} ms, {said}", memory >> 10, time.as_millis());
        assert!(memory << 10 < MEMORY, "{name}: {memory} kB");
        assert!(time < TIME, "{name}: {time:?}");
        assert!(!attack.is_lie || said != "nothing", "{name} is not noticed");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "precious", "{name}");
    }
}
