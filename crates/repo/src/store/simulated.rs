//! A disk in memory that fails like the worst that POSIX allows.
//!
//! What was not synced may be lost at a crash, each 512 bytes and each name by
//! itself; a sync that fails loses what it should have made durable although
//! reads still show it; operations fail from a given one on, or once. It does
//! not lie: what a successful sync made durable stays.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, Found, NewFile};
use super::local::folder_of;

const SECTOR: usize = 512;

/// How operations fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The power goes: this operation and all later ones fail.
    Crash,
    /// An input or output error, once.
    ErrorOnce,
    /// No space, from this operation on, for everything that writes.
    Full,
}

/// A deterministic source of choices.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub u64);

impl Dice {
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        // splitmix64 (public domain, Sebastiano Vigna).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(crate) fn pick(&mut self, sides: usize) -> usize {
        usize::try_from(self.roll(u64::try_from(sides).expect("it fits"))).expect("it fits")
    }
}

#[derive(Debug, Clone, Default)]
struct Content {
    durable: Vec<u8>,
    visible: Vec<u8>,
    /// Whether unsynced sectors may still reach the disk.
    may_reach: bool,
    locks: usize,
}

type Inode = usize;

/// One change of a folder that is not durable yet.
#[derive(Debug, Clone)]
enum Change {
    Add(String, Option<Inode>),
    Remove(String),
}

#[derive(Debug, Clone, Default)]
struct State {
    files: Vec<Content>,
    /// Names as seen; `None` is a folder. The root has no name.
    visible: BTreeMap<String, Option<Inode>>,
    durable: BTreeMap<String, Option<Inode>>,
    pending: BTreeMap<String, Vec<Change>>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
}

/// A disk; clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    inode: Inode,
}

impl SimulatedDisk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the disk locked")
    }

    /// Lets the `number`-th changing operation from now on fail.
    pub(crate) fn fail_at(&self, number: u64, fault: Fault) {
        let mut state = self.lock();
        state.fault = Some((state.operations + number, fault));
    }

    /// Ends all faults but a crash; returns whether one struck.
    pub(crate) fn end_faults(&self) -> bool {
        let mut state = self.lock();
        let operations = state.operations;
        state.fault.take().is_some_and(|(at, _)| operations >= at)
    }

    /// Returns another disk with the same durable and visible state.
    pub(crate) fn copy(&self) -> Self {
        Self { state: Arc::new(Mutex::new(self.lock().clone())) }
    }

    /// Returns a disk as it may be after the power came back.
    pub(crate) fn after_power_loss(&self, dice: &mut Dice) -> Self {
        let mut state = self.lock().clone();
        for changes in std::mem::take(&mut state.pending).into_values() {
            for change in changes {
                if dice.roll(2) == 0 {
                    change.apply(&mut state.durable);
                }
            }
        }
        // What lies in a folder that was lost is lost too.
        let names: BTreeSet<String> = state.durable.keys().cloned().collect();
        let reachable =
            |path: &str| path.rsplit_once('/').is_none_or(|(folder, _)| names.contains(folder));
        state.durable.retain(|path, _| reachable(path) && reachable(folder_of(path)));
        for content in &mut state.files {
            if content.may_reach {
                tear(content, dice);
            }
            content.visible = content.durable.clone();
            content.may_reach = false;
            content.locks = 0;
        }
        state.visible = state.durable.clone();
        state.fault = None;
        state.crashed = false;
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

/// Lets some unsynced sectors reach the disk.
fn tear(content: &mut Content, dice: &mut Dice) {
    if dice.roll(3) == 0 {
        return;
    }
    let keep_all = dice.roll(3) == 0;
    content.durable.resize(content.visible.len(), 0);
    let Content { durable, visible, .. } = content;
    for (old, new) in durable.chunks_mut(SECTOR).zip(visible.chunks(SECTOR)) {
        if keep_all || dice.roll(2) == 0 {
            old.copy_from_slice(new);
        }
    }
}

impl Change {
    fn apply(self, names: &mut BTreeMap<String, Option<Inode>>) {
        match self {
            Change::Add(path, inode) => _ = names.insert(path, inode),
            Change::Remove(path) => _ = names.remove(&path),
        }
    }
}

impl State {
    fn check_alive(&self) -> io::Result<()> {
        if self.crashed { Err(io::Error::other("the power is gone")) } else { Ok(()) }
    }

    /// Counts a changing operation and lets it fail if it is its turn.
    fn change(&mut self) -> io::Result<()> {
        self.check_alive()?;
        self.operations += 1;
        match self.fault {
            Some((at, Fault::Crash)) if self.operations >= at => {
                self.crashed = true;
                self.check_alive()
            }
            Some((at, Fault::ErrorOnce)) if self.operations == at => {
                Err(io::Error::other("input/output error"))
            }
            Some((at, Fault::Full)) if self.operations >= at => Err(ErrorKind::StorageFull.into()),
            _ => Ok(()),
        }
    }

    fn rename(&mut self, change: Change) {
        let (Change::Add(path, _) | Change::Remove(path)) = &change;
        let folder = folder_of(path).to_owned();
        self.pending.entry(folder).or_default().push(change.clone());
        change.apply(&mut self.visible);
    }

    fn file(&self, path: &str) -> io::Result<&Content> {
        self.check_alive()?;
        match self.visible.get(path) {
            Some(Some(inode)) => Ok(&self.files[*inode]),
            Some(None) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }
}

fn read(content: &Content, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    let start = usize::try_from(offset).map_err(io::Error::other)?;
    let bytes = content.visible.get(start..start + buffer.len());
    buffer.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
    Ok(())
}

impl NewFile for SimulatedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let failed = state.change();
        let content = &mut state.files[self.inode];
        content.may_reach = true;
        // A write that fails may have written some of it.
        let written = if failed.is_ok() { bytes.len() } else { bytes.len() / 2 };
        content.visible.extend_from_slice(&bytes[..written]);
        failed
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let failed = state.change();
        let crashed = state.crashed;
        let content = &mut state.files[self.inode];
        if failed.is_ok() {
            content.durable = content.visible.clone();
        }
        // After an error the system takes the pages for clean and forgets them.
        content.may_reach &= crashed;
        failed
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.disk.lock();
        state.check_alive()?;
        read(&state.files[self.inode], offset, buffer)
    }
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        let content = &mut state.files[self.inode];
        content.locks = content.locks.saturating_sub(1);
    }
}

impl Disk for SimulatedDisk {
    fn create(&self, path: &str) -> io::Result<Box<dyn NewFile>> {
        let mut state = self.lock();
        state.change()?;
        if state.visible.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let inode = state.files.len();
        state.files.push(Content { may_reach: true, locks: 1, ..Content::default() });
        state.rename(Change::Add(path.to_owned(), Some(inode)));
        Ok(Box::new(SimulatedFile { disk: self.clone(), inode }))
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        let inode = *state.visible.get(from).ok_or(ErrorKind::NotFound)?;
        if state.visible.contains_key(to) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.rename(Change::Add(to.to_owned(), inode));
        state.rename(Change::Remove(from.to_owned()));
        Ok(())
    }

    fn rename_over(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        let inode = *state.visible.get(from).ok_or(ErrorKind::NotFound)?;
        state.rename(Change::Add(to.to_owned(), inode));
        state.rename(Change::Remove(from.to_owned()));
        Ok(())
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        if state.visible.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        state.rename(Change::Add(path.to_owned(), None));
        Ok(())
    }

    fn sync_folder(&self, path: &str) -> io::Result<()> {
        let mut state = self.lock();
        state.change()?;
        for change in state.pending.remove(path).unwrap_or_default() {
            change.apply(&mut state.durable);
        }
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let mut state = self.lock();
        // Removing needs no space.
        if !matches!(state.fault, Some((_, Fault::Full))) {
            state.change()?;
        }
        state.file(path)?;
        state.rename(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn find(&self, path: &str) -> io::Result<Option<Found>> {
        let state = self.lock();
        state.check_alive()?;
        Ok(state.visible.get(path).map(|inode| state.found(*inode)))
    }

    fn list(&self, path: &str) -> io::Result<Vec<(String, Found)>> {
        let state = self.lock();
        state.check_alive()?;
        if !path.is_empty() && !state.visible.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        let inside = state.visible.iter().filter(|(name, _)| folder_of(name) == path);
        let name = |full: &str| full.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(inside.map(|(full, inode)| (name(full), state.found(*inode))).collect())
    }

    fn read(&self, path: &str, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        read(self.lock().file(path)?, offset, &mut bytes).map(|()| bytes)
    }

    fn read_all(&self, path: &str, _max: u64) -> io::Result<Vec<u8>> {
        Ok(self.lock().file(path)?.visible.clone())
    }

    fn is_locked(&self, path: &str) -> io::Result<bool> {
        Ok(self.lock().file(path)?.locks > 0)
    }

    fn keep_reserve(&self) -> io::Result<()> {
        Ok(())
    }

    fn use_reserve(&self) -> io::Result<bool> {
        Ok(false)
    }
}

impl State {
    fn found(&self, inode: Option<Inode>) -> Found {
        inode.map_or(Found::Folder, |inode| {
            let len = self.files[inode].visible.len();
            Found::File(u64::try_from(len).expect("a usize fits in 64 bits"))
        })
    }
}
