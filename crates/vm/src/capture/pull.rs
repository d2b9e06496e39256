//! Reads a disk as it was at its instant: all of it, or what a bitmap says was
//! written since the snapshot before.
//!
//! Zeros are always those that QEMU tells of now, also where the bitmap is clean: a
//! disk that was cut and grown again is zero there without a mark
//! (`bdrv_co_truncate` in QEMU's block/io.c).

use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tintype_nbd::codec::StatusFlags;
use tintype_nbd::{Client, ConnectParams, Content, PullParams};
use tintype_types::{ByteCount, Extent};

use super::disks::{KeptDisk, within};
use super::sample::Sample;
use super::sink::{DiskRead, Reading};
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// How much is asked of QEMU at once about where a disk has data.
const STATUS_SPAN: u64 = 1 << 30;

/// One disk being read.
struct Pull<'d> {
    disk: &'d KeptDisk,
    client: Client,
    cancel: &'d Cancel,
}

/// Where a span of a disk has what.
#[derive(Debug, Default, PartialEq, Eq)]
struct Layout {
    zeros: Vec<Extent>,
    data: Vec<Extent>,
}

impl KeptDisk {
    /// Reads the disk to its end. `seed` chooses what is read of what is clean.
    pub(super) fn pull(&self, socket: &Path, cancel: &Cancel, seed: u64) -> Result<DiskRead> {
        let mut params = ConnectParams::new(&self.number.to_string());
        params.timeout = Duration::from_secs(60);
        params.contexts = self.earlier.iter().map(|_| self.context()).collect();
        let client = Client::connect(socket, &params).map_err(|error| self.unreadable(error))?;
        let size = client.size().get();
        if size != self.disk.size.get() {
            let reason = format!("its size is {size} B and was {} B", self.disk.size.get());
            return Err(Error::Disk { disk: self.disk.name.clone(), reason, source: None });
        }
        let mut pull = Pull { disk: self, client, cancel };
        let (mut why, mut unrecorded) = (self.earlier.as_ref().err().cloned(), None);
        if why.is_none() {
            unrecorded = pull.changes(seed)?;
            why = unrecorded.map(|_| "a write to its image was not recorded".to_owned());
        }
        if why.is_some() {
            pull.everything()?;
        }
        // A write of the guest that waited too long has broken the snapshot, and
        // its old bytes may have come too late to be old. Reading tells.
        let probe = size.min(512);
        pull.read(Extent { offset: 0, len: probe })?;
        let reading = if why.is_some() { Reading::Full } else { Reading::Incremental };
        let read_bytes = ByteCount(self.arrived.load(Ordering::Relaxed));
        Ok(DiskRead { reading, why, unrecorded, read_bytes })
    }

    /// Tells of bytes that were read whether they were there before. What the guest has
    /// overwritten is passed over: these are not the bytes of the instant then.
    fn is_unchanged(&self, extent: Extent, bytes: &[u8]) -> Result<bool> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_overwritten = state.saved.missing(extent) != [extent];
        // The guest's writes wait for this lock, and must not wait for a repository.
        drop(state);
        match &self.earlier {
            Ok(earlier) if !is_overwritten => {
                earlier.content.has(extent.offset, bytes).map_err(Error::Sink)
            }
            _ => Ok(true),
        }
    }

    fn unreadable(&self, error: tintype_nbd::Error) -> Error {
        Error::Disk {
            disk: self.disk.name.clone(),
            reason: "QEMU could not read it as it was".to_owned(),
            source: Some(Box::new(error)),
        }
    }
}

impl Pull<'_> {
    /// Reads all that is not zero.
    fn everything(&mut self) -> Result<()> {
        for span in self.spans() {
            let Layout { zeros, data } = self.layout(span)?;
            self.keep_zeros(zeros)?;
            self.keep_data(data)?;
        }
        Ok(())
    }

    /// Reads what was written since the snapshot before, and a sample of the rest.
    /// Returns where that differs though it should not.
    fn changes(&mut self, seed: u64) -> Result<Option<u64>> {
        let mut sample = Sample::new(self.client.size(), seed);
        for span in self.spans() {
            let Layout { zeros, data } = self.layout(span)?;
            self.keep_zeros(zeros)?;
            let dirty = self.dirty(span)?;
            let (changed, clean) = split(&data, &dirty);
            clean.into_iter().for_each(|extent| sample.offer(extent));
            self.keep_data(changed)?;
        }
        for block in sample.blocks() {
            self.cancel.check()?;
            let bytes = self.read(block)?;
            self.disk.arrived.fetch_add(block.len, Ordering::Relaxed);
            if !self.disk.is_unchanged(block, &bytes)? {
                return Ok(Some(block.offset));
            }
        }
        Ok(None)
    }

    fn spans(&self) -> impl Iterator<Item = Extent> + use<> {
        (Extent { offset: 0, len: self.client.size().get() }).pieces(STATUS_SPAN)
    }

    fn layout(&mut self, span: Extent) -> Result<Layout> {
        self.cancel.check()?;
        let status = self.client.block_status(span).map_err(|error| self.disk.unreadable(error))?;
        let mut layout = Layout::default();
        for status in status {
            let is_zero = status.flags.has(StatusFlags::ZERO);
            let list = if is_zero { &mut layout.zeros } else { &mut layout.data };
            list.push(status.extent);
        }
        Ok(layout)
    }

    fn dirty(&mut self, span: Extent) -> Result<Vec<Extent>> {
        let status = self.client.status_of(&self.disk.context(), span);
        let status = status.map_err(|error| self.disk.unreadable(error))?;
        Ok(status.into_iter().filter(|part| part.is_dirty()).map(|part| part.extent).collect())
    }

    fn keep_zeros(&self, zeros: Vec<Extent>) -> Result<()> {
        zeros.into_iter().try_for_each(|extent| self.disk.keep(extent, Content::Zero))
    }

    fn keep_data(&mut self, data: Vec<Extent>) -> Result<()> {
        let Self { disk, client, cancel } = self;
        let pulled = client.pull(data, &PullParams::default(), |extent, content| {
            cancel.check().map_err(PullError::Ours)?;
            disk.keep(extent, content).map_err(PullError::Ours)
        });
        pulled.map_err(|error| match error {
            PullError::Ours(error) => error,
            PullError::Nbd(error) => disk.unreadable(error),
        })
    }

    fn read(&mut self, extent: Extent) -> Result<Vec<u8>> {
        let mut bytes = vec![0; within(extent, extent).len()];
        let read = self.client.read_at(extent.offset, &mut bytes);
        read.map_err(|error| self.disk.unreadable(error))?;
        Ok(bytes)
    }
}

/// Parts extents into what is in others and what is not. Both are in order, and
/// neither overlaps itself.
fn split(data: &[Extent], dirty: &[Extent]) -> (Vec<Extent>, Vec<Extent>) {
    let (mut inside, mut outside) = (Vec::new(), Vec::new());
    let push = |list: &mut Vec<Extent>, from: u64, to: u64| {
        if from < to {
            list.push(Extent { offset: from, len: to - from });
        }
    };
    let mut next = 0;
    for extent in data {
        let mut at = extent.offset;
        while next < dirty.len() && dirty[next].end() <= at {
            next += 1;
        }
        for dirty in dirty[next..].iter().take_while(|dirty| dirty.offset < extent.end()) {
            let (from, to) = (dirty.offset.max(at), dirty.end().min(extent.end()));
            push(&mut outside, at, from);
            push(&mut inside, from, to);
            at = to;
        }
        push(&mut outside, at, extent.end());
    }
    (inside, outside)
}

enum PullError {
    Ours(Error),
    Nbd(tintype_nbd::Error),
}

impl From<tintype_nbd::Error> for PullError {
    fn from(error: tintype_nbd::Error) -> Self {
        Self::Nbd(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_parted_by_the_bitmap() {
        let extents = |list: &[(u64, u64)]| -> Vec<Extent> {
            list.iter().map(|&(from, to)| Extent { offset: from, len: to - from }).collect()
        };
        let check = |data: &[(u64, u64)],
                     dirty: &[(u64, u64)],
                     inside: &[(u64, u64)],
                     outside: &[(u64, u64)]| {
            let parted = split(&extents(data), &extents(dirty));
            assert_eq!(parted, (extents(inside), extents(outside)), "{data:?} by {dirty:?}");
        };
        check(&[], &[(0, 9)], &[], &[]);
        check(&[(0, 9)], &[], &[], &[(0, 9)]);
        check(&[(0, 9)], &[(0, 9)], &[(0, 9)], &[]);
        check(&[(2, 9)], &[(0, 3), (4, 5), (8, 12)], &[(2, 3), (4, 5), (8, 9)], &[(3, 4), (5, 8)]);
        check(&[(0, 2), (4, 6), (8, 9)], &[(1, 5)], &[(1, 2), (4, 5)], &[(0, 1), (5, 6), (8, 9)]);
        check(&[(4, 6)], &[(0, 2), (2, 4), (6, 8)], &[], &[(4, 6)]);
    }
}
