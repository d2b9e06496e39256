//! Writes to a disk what differs from a snapshot's image, where nobody knows what
//! differs: all of the disk is read, but for what both say are zeros, and of the
//! snapshot what differs by the ids of its blocks.

use std::iter::Peekable;
use std::sync::{Mutex, PoisonError};
use std::thread;

use tintype_image::Image;
use tintype_repo::{DataExtents, ImageReader};
use tintype_types::Extent;
use tintype_vm::SinkError;

use crate::disks::runs;

/// How much is compared at once.
const PIECE: u64 = 1 << 20;

/// What an image is asked about at once: a multiple of that.
const WINDOW: u64 = 64 << 20;

/// Threads that compare.
const THREADS: usize = 2;

/// Makes an image what a reader has, and returns how many bytes were written. Hears
/// how far it is.
pub(crate) fn write_differences(
    image: &Image,
    reader: &ImageReader,
    advance: impl Fn(u64) + Sync,
) -> Result<u64, SinkError> {
    let pieces = Mutex::new(Pieces::new(image, reader));
    let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || -> Result<u64, SinkError> {
        let mut buffers = Buffers::default();
        let mut written = 0;
        while let Some(piece) = next() {
            let piece = piece?;
            written += buffers.compare(image, reader, piece)?;
            advance(piece.end());
        }
        Ok(written)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("no comparison panics")).sum()
    })
}

/// What is compared, and what with.
#[derive(Default)]
struct Buffers {
    wanted: Vec<u8>,
    there: Vec<u8>,
}

impl Buffers {
    fn compare(
        &mut self,
        image: &Image,
        reader: &ImageReader,
        piece: Extent,
    ) -> Result<u64, SinkError> {
        self.there.resize(usize::try_from(piece.len)?, 0);
        image.read_at(piece.offset, &mut self.there)?;
        let mut written = 0;
        for differing in reader.differing(piece.offset, &self.there)? {
            let extent = Extent {
                offset: piece.offset + differing.start as u64,
                len: differing.len() as u64,
            };
            written += extent.len;
            self.wanted.resize(differing.len(), 0);
            reader.read_at(extent.offset, &mut self.wanted)?;
            for (extent, bytes) in runs(extent, &self.wanted) {
                match bytes {
                    Some(bytes) => image.write_at(extent.offset, bytes)?,
                    None => image.write_zeroes(extent)?,
                }
            }
        }
        Ok(written)
    }
}

/// The pieces of a disk that the image or the snapshot have data in, in order.
struct Pieces<'p> {
    image: &'p Image,
    data: Peekable<DataExtents>,
    size: u64,
    /// Where the next piece begins.
    at: u64,
    /// Where the window ends that the image was asked about.
    known: u64,
    /// What of that window does not read as zeros.
    there: Vec<Extent>,
}

impl<'p> Pieces<'p> {
    fn new(image: &'p Image, reader: &ImageReader) -> Self {
        let (data, size) = (reader.data_extents().peekable(), reader.size().get());
        Self { image, data, size, at: 0, known: 0, there: Vec::new() }
    }

    /// Returns whether there is data in a piece.
    fn has_data(&mut self, piece: Extent) -> Result<bool, SinkError> {
        if piece.offset >= self.known {
            self.known = self.size.min(piece.offset + WINDOW);
            let window = Extent { offset: piece.offset, len: self.known - piece.offset };
            let there = self.image.extents(window)?.into_iter();
            self.there =
                there.filter(|part| !part.reads_as_zeroes()).map(|part| part.extent).collect();
        }
        let touches = |extent: &Extent| extent.offset < piece.end() && extent.end() > piece.offset;
        if self.there.iter().any(touches) {
            return Ok(true);
        }
        let over = |data: &Result<Extent, _>| {
            data.as_ref().is_ok_and(|data: &Extent| data.end() <= piece.offset)
        };
        while self.data.next_if(over).is_some() {}
        match self.data.peek() {
            Some(Ok(data)) => Ok(touches(data)),
            Some(Err(_)) => match self.data.next() {
                Some(Err(error)) => Err(error.into()),
                _ => Ok(true),
            },
            None => Ok(false),
        }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Result<Extent, SinkError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.at < self.size {
            let piece = Extent { offset: self.at, len: PIECE.min(self.size - self.at) };
            self.at = piece.end();
            match self.has_data(piece) {
                Ok(true) => return Some(Ok(piece)),
                Ok(false) => {}
                Err(error) => {
                    self.at = self.size;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}
