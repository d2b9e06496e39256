//! Random repositories, read by both readers and compared with what was
//! written: images of all sizes, sparse, dense, noise, text and repetition, in
//! generations, of several VMs, with deletions, collections, moves and sessions that
//! were given up, open and sealed in each way.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use age::secrecy::ExposeSecret;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use tintype_repo::{
    Encryption, ImageParams, ImageReader, ImageWriter, InitParams, Label, NamedImage, Repository,
    Session, SessionParams, SnapshotRecord, Unwritten,
};
use tintype_types::{ByteCount, Extent, VmId};

use crate::judge::{SCRIPT, can_judge};
use crate::support::{BLOCK, Dice, draft, eager, eager_and_strong, on_all_cores, soak};

const SIZE: u64 = BLOCK as u64;
/// Imports what stretches a passphrase, as the second reader does.
const ARGON2: &str = "
try:
    import cryptography.hazmat.primitives.kdf.argon2
except ImportError:
    import argon2, cryptography";
/// Blocks of a leaf of an image map.
const LEAF: u64 = 4096;
/// Repositories that one Python process reads.
const BATCH: u64 = 10;

/// An image as it was written: its blocks that are not zero.
#[derive(Debug, Clone, Default)]
struct Picture {
    size: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

/// A snapshot and what was written to it.
#[derive(Debug, Clone)]
struct Written {
    record: SnapshotRecord,
    label: Option<Label>,
    images: Vec<Picture>,
    blobs: Vec<Vec<u8>>,
}

/// What the second reader says of a snapshot.
#[derive(Debug, Deserialize, PartialEq)]
struct Digests {
    record: SnapshotRecord,
    label: Option<Label>,
    images: Vec<String>,
    blobs: Vec<String>,
}

/// A repository on its way through random operations.
struct Scene<'a> {
    dice: &'a mut Dice,
    repository: Repository,
    there: Vec<Written>,
    deleted: Vec<Written>,
}

#[test]
fn both_readers_read_random_repositories_alike() {
    if !can_judge(ARGON2) {
        return;
    }
    let soak = soak("repositories", 60);
    let batches: Vec<u64> = (0..soak.count.div_ceil(BATCH)).collect();
    let read = on_all_cores(&batches, |batch| {
        let seeds = batch * BATCH..soak.count.min((batch + 1) * BATCH);
        read_batch(seeds.map(|number| soak.seed.wrapping_add(number)))
    });
    let snapshots: usize = read.iter().sum();
    eprintln!("soak: {} repositories with {snapshots} snapshots, read alike", soak.count);
    assert!(snapshots > 0 || soak.count < BATCH);
}

/// Makes a repository of each seed and has them all read; returns the number
/// of snapshots.
fn read_batch(seeds: impl Iterator<Item = u64>) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let keys = ["key", "words", "identity"].map(|name| folder.path().join(name));
    fs::write(&keys[1], "correct horse\n").unwrap();
    let identity = age::x25519::Identity::generate();
    fs::write(&keys[2], identity.to_string().expose_secret()).unwrap();
    let recipient = Encryption::AgeRecipient(identity.to_public().to_string());
    let mut expected = Vec::new();
    let mut command = Command::new("python3");
    command.arg(SCRIPT).arg("--key-file").arg(&keys[0]).arg("--passphrase-file").arg(&keys[1]);
    command.arg("--age-identity").arg(&keys[2]);
    for (number, seed) in seeds.enumerate() {
        let path = folder.path().join(format!("{seed:016x}"));
        command.arg(&path).args((number == 0).then_some("digest"));
        expected.push((seed, fill(&path, seed, &keys, &recipient)));
    }
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors} after {} of {:?}", output.stdout.len(), expected[0]);
    let read = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Vec<Digests>>();
    let read: Vec<_> = read.map(Result::unwrap).collect();
    assert_eq!(read.len(), expected.len());
    for (read, (seed, expected)) in read.iter().zip(&expected) {
        assert!(read == expected, "TINTYPE_SOAK_SEED={seed}: {read:?} is not {expected:?}");
    }
    read.iter().map(Vec::len).sum()
}

/// Makes a repository; returns what a reader has to find.
fn fill(path: &Path, seed: u64, keys: &[PathBuf; 3], recipient: &Encryption) -> Vec<Digests> {
    let mut dice = Dice::new(seed);
    let words = Encryption::Passphrase("correct horse".to_owned());
    let lost = Encryption::KeyFile(path.with_extension("lost"));
    let mut way = match dice.roll(12) {
        0 => words,
        1 => lost.clone(),
        2..=5 => Encryption::KeyFile(keys[0].clone()),
        _ => Encryption::None,
    };
    let mut params = InitParams::default();
    params.encryption = way.clone();
    let repository = Repository::init(path, params).unwrap();
    if way == lost {
        repository.add_key(recipient).unwrap();
        way = Encryption::AgeIdentity(keys[2].clone());
    }
    let mut scene = Scene { dice: &mut dice, repository, there: Vec::new(), deleted: Vec::new() };
    for _ in 0..2 + scene.dice.roll(9) {
        scene.step();
    }
    let written = scene.there;
    let repository = Repository::open_with(path, &[way]).unwrap();
    let listing = repository.snapshots().unwrap();
    assert_eq!(listing.damaged, [], "TINTYPE_SOAK_SEED={seed}");
    let records: Vec<_> = written.iter().map(|written| &written.record).collect();
    assert_eq!(listing.records.iter().collect::<Vec<_>>(), records, "TINTYPE_SOAK_SEED={seed}");
    written.iter().for_each(|written| check_own_reader(&repository, written, seed));
    written.iter().map(Written::digests).collect()
}

fn check_own_reader(repository: &Repository, written: &Written, seed: u64) {
    for (image, picture) in written.record.images.iter().zip(&written.images) {
        let reader = repository.open_image(&image.root).unwrap();
        let found = Picture::of(&reader).digest();
        assert_eq!(found, picture.digest(), "TINTYPE_SOAK_SEED={seed}: {}", written.record.id);
    }
    for ((_, blob), bytes) in written.record.blobs.iter().zip(&written.blobs) {
        assert!(repository.read_blob(blob).unwrap() == *bytes, "TINTYPE_SOAK_SEED={seed}");
    }
}

impl Written {
    fn digests(&self) -> Digests {
        Digests {
            record: self.record.clone(),
            label: self.label.clone(),
            images: self.images.iter().map(Picture::digest).collect(),
            blobs: self.blobs.iter().map(|bytes| sha256(&[bytes])).collect(),
        }
    }
}

impl Picture {
    /// Reads an image with the reader of this crate.
    fn of(reader: &ImageReader) -> Self {
        let mut picture = Self { size: reader.size().get(), blocks: BTreeMap::new() };
        for extent in reader.data_extents() {
            let extent = extent.unwrap();
            for offset in (extent.offset..extent.end()).step_by(BLOCK) {
                let len = SIZE.min(picture.size - offset);
                let mut bytes = vec![0; len as usize];
                reader.read_at(offset, &mut bytes).unwrap();
                picture.put(offset, bytes);
            }
        }
        picture
    }

    fn put(&mut self, offset: u64, bytes: Vec<u8>) {
        match bytes.iter().any(|byte| *byte != 0) {
            true => self.blocks.insert(offset / SIZE, bytes),
            false => self.blocks.remove(&(offset / SIZE)),
        };
    }

    fn resize(&mut self, size: u64) {
        let last = size / SIZE;
        self.blocks.split_off(&size.div_ceil(SIZE));
        // What a larger image has behind the end of its parent is zero.
        if let Some(mut bytes) = self.blocks.remove(&last) {
            bytes.truncate((size % SIZE) as usize);
            self.put(last * SIZE, bytes);
        }
        if let Some((index, bytes)) = self.blocks.pop_last() {
            let mut bytes = bytes;
            bytes.resize(SIZE.min(size - index * SIZE) as usize, 0);
            self.put(index * SIZE, bytes);
        }
        self.size = size;
    }

    fn digest(&self) -> String {
        let size = self.size.to_le_bytes();
        let offsets: Vec<_> =
            self.blocks.keys().map(|index| (index * SIZE).to_le_bytes()).collect();
        let mut parts: Vec<&[u8]> = vec![&size];
        for (offset, bytes) in offsets.iter().zip(self.blocks.values()) {
            parts.extend([offset.as_slice(), bytes]);
        }
        sha256(&parts)
    }
}

fn sha256(parts: &[&[u8]]) -> String {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Scene<'_> {
    fn step(&mut self) {
        match self.dice.roll(10) {
            0 if !self.there.is_empty() => {
                let victim = self.dice.pick(self.there.len());
                let written = self.there.remove(victim);
                self.repository.remove(written.record.id).unwrap();
                self.deleted.push(written);
            }
            1 if !self.deleted.is_empty() => {
                let written = self.deleted.remove(self.dice.pick(self.deleted.len()));
                self.repository.undo_remove(written.record.id).unwrap();
                self.there.push(written);
                self.there.sort_by_key(|written| written.record.sequence);
            }
            2 => {
                let params = if self.dice.roll(2) == 0 { eager() } else { eager_and_strong() };
                self.repository.gc(params, &()).unwrap();
                self.deleted.clear();
                self.there.iter_mut().for_each(|written| {
                    written.record = self.repository.snapshot(written.record.id).unwrap();
                });
            }
            3 => drop(self.write()),
            4 if !self.there.is_empty() => self.label(),
            _ => self.take(),
        }
    }

    fn label(&mut self) {
        let (at, number) = (self.dice.pick(self.there.len()), self.dice.roll(99));
        let written = &mut self.there[at];
        let change = |label: &mut Label| match number % 4 {
            0 => label.name = Some(format!("renamed-{number}").parse().unwrap()),
            1 => label.message = Some(format!("ß\u{1f4be}\n{number}")),
            2 => label.tags = Some(vec![("number".to_owned(), number.to_string())]),
            _ => label.pinned = !label.pinned,
        };
        let (_, label) = self
            .repository
            .relabel(written.record.id, |label| {
                *label = written.label.clone().unwrap_or_default();
                change(label);
            })
            .unwrap();
        written.label =
            Some(label).filter(|label| written.label.is_some() || *label != Label::default());
    }

    fn take(&mut self) {
        let (session, written) = self.write();
        let (images, blobs, vm) = written;
        let mut draft = draft(Vec::new());
        draft.vm = vm;
        draft.details = serde_json::json!({ "text": "ß\u{1f4be}\n", "number": self.dice.roll(99) });
        draft.parent = self.there.last().map(|written| written.record.id);
        draft.images = images.iter().map(|(name, root, _)| named(name, root.clone())).collect();
        draft.blobs = blobs.iter().map(|(name, id, _)| (name.clone(), id.clone())).collect();
        let record = session.commit(draft).unwrap();
        let images = images.into_iter().map(|(_, _, picture)| picture).collect();
        let blobs = blobs.into_iter().map(|(_, _, bytes)| bytes).collect();
        self.there.push(Written { record, label: None, images, blobs });
    }
}

fn named(name: &str, root: tintype_repo::ImageRoot) -> NamedImage {
    NamedImage { name: name.to_owned(), root }
}

/// What a session has written before its commit.
type Parts = (
    Vec<(String, tintype_repo::ImageRoot, Picture)>,
    Vec<(String, tintype_repo::BlobId, Vec<u8>)>,
    VmId,
);

impl Scene<'_> {
    /// Writes the images and blobs of one of three VMs.
    fn write(&mut self) -> (Session, Parts) {
        let vm = VmId::from_bytes([self.dice.roll(3) as u8; 16]);
        let mut params = SessionParams::default();
        params.threads = Some(1);
        let session = self.repository.begin(params).unwrap();
        let before = self.there.iter().rev().find(|written| written.record.vm == vm).cloned();
        let mut images = Vec::new();
        for number in 0..1 + self.dice.pick(2) {
            let parent = before.as_ref().and_then(|written| {
                let image = written.record.images.get(number)?;
                Some((image.root.clone(), written.images[number].clone()))
            });
            let (root, picture) = self.image(&session, parent);
            images.push((format!("../disk {number}"), root, picture));
        }
        let mut blobs = Vec::new();
        for number in 0..self.dice.roll(2) {
            let len = self.dice.pick(3) * self.dice.pick(6000);
            let bytes: Vec<u8> =
                (0..len.div_ceil(BLOCK)).flat_map(|_| self.block()).take(len).collect();
            blobs.push((number.to_string(), session.blob(&bytes).unwrap(), bytes));
        }
        (session, (images, blobs, vm))
    }

    fn image(
        &mut self,
        session: &Session,
        parent: Option<(tintype_repo::ImageRoot, Picture)>,
    ) -> (tintype_repo::ImageRoot, Picture) {
        let size = match (self.dice.roll(6), &parent) {
            (1..=4, Some((_, picture))) => picture.size,
            (0, _) => self.dice.roll(40 * SIZE),
            (1, _) => self.dice.roll(3 * LEAF * SIZE),
            (2, _) => self.dice.roll(1 << 43),
            _ => (1 + self.dice.roll(600)) * SIZE,
        };
        let over_parent = self.dice.roll(4) > 0;
        let unwritten = if over_parent { Unwritten::Parent } else { Unwritten::Zero };
        let mut picture = Picture { size, ..Picture::default() };
        let mut root = None;
        if let Some((parent, blocks)) = parent {
            root = Some(parent);
            if over_parent {
                picture = blocks;
                picture.resize(size);
            }
        }
        let params = ImageParams { size: ByteCount(size), parent: root, unwritten };
        let mut writer = session.image(params).unwrap();
        for _ in 0..1 + self.dice.roll(4) {
            self.change(&mut writer, &mut picture);
        }
        (writer.finish().unwrap(), picture)
    }

    /// Writes some blocks, or zeroes, somewhere.
    fn change(&mut self, writer: &mut ImageWriter, picture: &mut Picture) {
        let blocks = picture.size.div_ceil(SIZE);
        if blocks == 0 {
            return;
        }
        let first = match self.dice.roll(3) {
            0 => self.dice.roll(blocks.min(40)),
            1 => self.dice.roll(blocks.min(LEAF + 20)),
            _ => self.dice.roll(blocks),
        };
        let count = 1 + self.dice.roll((blocks - first).min(12));
        let (start, end) = (first * SIZE, picture.size.min((first + count) * SIZE));
        if self.dice.roll(5) == 0 {
            writer.write_zeroes(Extent { offset: start, len: end - start }).unwrap();
            picture.blocks.retain(|index, _| !(first..first + count).contains(index));
            return;
        }
        let mut bytes: Vec<u8> = (0..count).flat_map(|_| self.block()).collect();
        bytes.truncate((end - start) as usize);
        writer.write(start, &bytes).unwrap();
        for (index, block) in (first..).zip(bytes.chunks(BLOCK)) {
            picture.put(index * SIZE, block.to_vec());
        }
    }

    /// A block of zeroes, noise, text, or one of a few that come again and again.
    fn block(&mut self) -> Vec<u8> {
        match self.dice.roll(6) {
            0 => vec![0; BLOCK],
            1 => self.dice.noise(BLOCK),
            2 | 3 => self.dice.noise(24).repeat(BLOCK / 24 + 1)[..BLOCK].to_vec(),
            _ => Dice::new(self.dice.roll(8)).noise(BLOCK),
        }
    }
}
