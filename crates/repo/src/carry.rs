//! Carries the bytes of an image from one repository to another: what it has
//! beyond another image that is there already, in order, so that what is
//! carried so far is told by one offset.

use std::collections::VecDeque;
use std::iter::Peekable;

use tintype_types::{ByteCount, Extent};

use crate::copy::CopyError::{self, Source, Target};
use crate::reader::ImageReader;
use crate::sequence::PIECE;
use crate::supervisor::Supervisor;
use crate::tree::{ImageRoot, LEAF_SIZE};
use crate::writer::ImageWriter;
use crate::{Error, diff};

/// Pieces that are read ahead in one go.
const BATCH: usize = 1024;

/// A range of an image that is to be carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Piece {
    /// It is zero.
    Zero(Extent),
    /// It has data, at most 1 MiB.
    Data(Extent),
}

impl Piece {
    fn extent(self) -> Extent {
        match self {
            Piece::Zero(extent) | Piece::Data(extent) => extent,
        }
    }

    /// Returns how many bytes have to be read for it.
    pub(crate) fn to_read(self) -> u64 {
        match self {
            Piece::Zero(_) => 0,
            Piece::Data(extent) => extent.len,
        }
    }
}

type Extents = Box<dyn Iterator<Item = Result<Extent, Error>>>;

/// What is to be carried of an image, in order.
pub(crate) struct Pieces {
    reader: ImageReader,
    from: u64,
    extents: Extents,
    /// What is left of an extent.
    rest: Option<Extent>,
    /// The leaf that was looked at last, and where it has data.
    leaf: Option<(u64, Vec<Extent>)>,
    found: VecDeque<Piece>,
}

impl Pieces {
    /// Returns what an image has from an offset on, or where it differs from a
    /// base.
    pub(crate) fn new(
        reader: &ImageReader,
        root: &ImageRoot,
        base: Option<&ImageRoot>,
        from: u64,
    ) -> Result<Self, Error> {
        let extents: Extents = match base {
            None => Box::new(reader.data_extents_from(from)),
            Some(base) => Box::new(diff::diff(reader.vault(), base, root)?.into_iter().map(Ok)),
        };
        let reader = reader.clone();
        Ok(Self { reader, from, extents, rest: None, leaf: None, found: VecDeque::new() })
    }

    /// Looks at the next part of an extent, within one leaf.
    fn advance(&mut self, extent: Extent) -> Result<(), Error> {
        let end = self.reader.size().get().min(extent.end());
        let start = extent.offset.max(self.from);
        if start >= end {
            return Ok(());
        }
        let (index, cut) = (start / LEAF_SIZE, end.min((start / LEAF_SIZE + 1) * LEAF_SIZE));
        self.rest = (cut < end).then_some(Extent { offset: cut, len: end - cut });
        if self.leaf.as_ref().is_none_or(|(last, _)| *last != index) {
            let mut data = Vec::new();
            self.reader.leaf_extents(index, &mut data)?;
            self.leaf = Some((index, data));
        }
        let data = self.leaf.as_ref().map_or(&[][..], |(_, data)| data);
        split(Extent { offset: start, len: cut - start }, data, &mut self.found);
        Ok(())
    }
}

/// Adds the pieces of an extent, of which some ranges have data.
fn split(extent: Extent, data: &[Extent], pieces: &mut VecDeque<Piece>) {
    let mut at = extent.offset;
    let zero_to = |at: u64, end: u64, pieces: &mut VecDeque<Piece>| {
        if at < end {
            pieces.push_back(Piece::Zero(Extent { offset: at, len: end - at }));
        }
    };
    let first = data.partition_point(|data| data.end() <= extent.offset);
    for data in data[first..].iter().take_while(|data| data.offset < extent.end()) {
        let (from, end) = (data.offset.max(at), data.end().min(extent.end()));
        zero_to(at, from, pieces);
        at = from;
        while at < end {
            let len = (end - at).min(PIECE - at % PIECE);
            pieces.push_back(Piece::Data(Extent { offset: at, len }));
            at += len;
        }
    }
    zero_to(at, extent.end(), pieces);
}

impl Iterator for Pieces {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(piece) = self.found.pop_front() {
                return Some(Ok(piece));
            }
            let extent = match self.rest.take() {
                Some(rest) => Ok(rest),
                None => self.extents.next()?,
            };
            if let Err(error) = extent.and_then(|extent| self.advance(extent)) {
                return Some(Err(error));
            }
        }
    }
}

/// Who hears how far it is.
pub(crate) struct Meter<'s> {
    pub supervisor: &'s dyn Supervisor,
    /// Bytes of the images before this one, and of all.
    pub before: u64,
    pub total: u64,
}

/// Writes pieces until they end or `budget` bytes were read; what is read comes
/// off it. Returns the offset of the piece that comes next, if there is one.
pub(crate) fn carry(
    reader: &ImageReader,
    pieces: &mut Peekable<Pieces>,
    writer: &mut ImageWriter,
    budget: &mut u64,
    meter: &Meter<'_>,
) -> Result<Option<u64>, CopyError> {
    loop {
        let mut batch = Vec::new();
        // An error comes out even if the budget is used up.
        while batch.len() < BATCH && (*budget > 0 || matches!(pieces.peek(), Some(Err(_)))) {
            let Some(piece) = pieces.next().transpose().map_err(Source)? else { break };
            *budget = budget.saturating_sub(piece.to_read());
            batch.push(piece);
        }
        let Some(last) = batch.last() else {
            return match pieces.peek() {
                None => Ok(None),
                Some(Ok(piece)) => Ok(Some(piece.extent().offset)),
                Some(Err(_)) => continue,
            };
        };
        let reached = meter.before + last.extent().end();
        write(reader, &batch, writer, meter.supervisor)?;
        meter.supervisor.advance(ByteCount(reached), ByteCount(meter.total));
    }
}

fn write(
    reader: &ImageReader,
    batch: &[Piece],
    writer: &mut ImageWriter,
    supervisor: &dyn Supervisor,
) -> Result<(), CopyError> {
    let data = batch.iter().filter(|piece| piece.to_read() > 0).map(|piece| piece.extent());
    let mut read = reader.sequence_of(data.collect());
    for piece in batch {
        supervisor.check().map_err(Source)?;
        match piece {
            Piece::Zero(extent) => writer.write_zeroes(*extent).map_err(Target)?,
            Piece::Data(extent) => {
                let (offset, bytes) = read.next().expect("each piece is read").map_err(Source)?;
                debug_assert_eq!(offset, extent.offset);
                writer.write(offset, &bytes).map_err(Target)?;
            }
        }
    }
    Ok(())
}
