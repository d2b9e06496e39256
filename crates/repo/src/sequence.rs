//! All data of an image in order, read ahead of the caller by several threads.
//!
//! A thread reads a window at a time. A new frame has blocks of one window only
//! (`weave.rs`), so what the threads read at the same time hardly ever meets, and a frame
//! that one window uses up is decoded once, mostly right where its bytes are wanted, and
//! not kept. Memory that was handed out is used again: new memory costs more than a copy.

use std::collections::HashMap;
use std::iter;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use crossbeam_channel::Receiver;
use tintype_types::{BLOCK_SIZE, Extent};

use crate::Error;
use crate::node::Part;
use crate::pages::WINDOW_SIZE;
use crate::parallel;
use crate::pointer::FramePointer;
use crate::reader::{ImageReader, REGION_SIZE, Served, served};
use crate::tree::LEAF_SIZE;

/// The longest piece of a [`Sequence`].
pub(crate) const PIECE: u64 = 1 << 20;
/// Windows that each thread reads ahead.
const AHEAD: usize = 2;
/// Memory of windows that each thread keeps: those ahead, and one that the caller has.
const SPARE: usize = AHEAD + 1;
/// What the threads are called.
const NAME: &str = "repo-read";

/// All data of an image in order: offset and bytes, at most 1 MiB each, with
/// holes left out. Ends after the first error.
#[derive(Debug)]
pub struct Sequence {
    /// One queue a thread; window n comes from queue n modulo their number.
    queues: Vec<Receiver<Result<Vec<Piece>, Error>>>,
    next: usize,
    /// What is left of the last window.
    rest: std::vec::IntoIter<Piece>,
}

/// Bytes of an image and their offset. To keep them keeps those of 2 MiB around them.
pub type Piece = (u64, Bytes);

impl ImageReader {
    /// Reads all data in order, ahead of the caller and with several threads.
    pub fn sequence(&self) -> Sequence {
        Sequence::start(self, parallel::readers(), extents)
    }

    /// Reads some ranges, of at most 1 MiB each, in the same way.
    pub(crate) fn sequence_of(&self, extents: Vec<Extent>) -> Sequence {
        let extents: Arc<[Extent]> = extents.into();
        Sequence::start(self, parallel::readers(), move |_| {
            let extents = Arc::clone(&extents);
            (0..extents.len()).map(move |number| Ok(extents[number]))
        })
    }
}

impl Sequence {
    /// Each thread reads its share of the windows.
    fn start<P, I>(reader: &ImageReader, threads: usize, extents: P) -> Self
    where
        P: Fn(&ImageReader) -> I + Clone + Send + 'static,
        I: Iterator<Item = Result<Extent, Error>>,
    {
        let queues = (0..threads)
            .map(|number| {
                let (sender, receiver) = crossbeam_channel::bounded(AHEAD);
                let windows = Windows::of(reader.clone());
                let (extents, queue) = (extents.clone(), sender.clone());
                let work = move || {
                    let mine = together(extents(&windows.reader)).skip(number).step_by(threads);
                    let pieces = mine.map(|extents| windows.read(&extents?));
                    // No pieces say that it is the end.
                    for pieces in pieces.chain(iter::once(Ok(Vec::new()))) {
                        if queue.send(pieces).is_err() {
                            return;
                        }
                    }
                };
                if let Err(error) = thread::Builder::new().name(NAME.to_owned()).spawn(work) {
                    // The queue is empty and has room for more than one.
                    let _ =
                        sender.send(Err(Error::io("start a thread for", Path::new(NAME), error)));
                }
                receiver
            })
            .collect();
        Self { queues, next: 0, rest: Vec::new().into_iter() }
    }

    /// Returns the pieces of the next window, none after the last.
    fn next_window(&mut self) -> Result<Vec<Piece>, Error> {
        let Some(queue) = self.queues.get(self.next) else { return Ok(Vec::new()) };
        self.next = (self.next + 1) % self.queues.len();
        queue.recv().unwrap_or_else(|_| {
            let error = std::io::Error::other("a thread has ended too early");
            Err(Error::io("read ahead by", Path::new(NAME), error))
        })
    }
}

impl Iterator for Sequence {
    type Item = Result<Piece, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(piece) = self.rest.next() {
            return Some(Ok(piece));
        }
        let window = self.next_window();
        if !matches!(&window, Ok(pieces) if !pieces.is_empty()) {
            self.queues.clear();
        }
        match window {
            Ok(pieces) => {
                self.rest = pieces.into_iter();
                self.rest.next().map(Ok)
            }
            Err(error) => Some(Err(error)),
        }
    }
}

/// Returns where an image has data, in extents that do not cross a multiple of [`PIECE`].
fn extents(reader: &ImageReader) -> impl Iterator<Item = Result<Extent, Error>> + use<> {
    reader.data_extents().flat_map(|extent| {
        let (extent, error) = match extent {
            Ok(extent) => (Some(extent), None),
            Err(error) => (None, Some(Err(error))),
        };
        error.into_iter().chain(extent.into_iter().flat_map(|e| split(e, PIECE)).map(Ok))
    })
}

/// Splits an extent at all multiples of a size.
fn split(extent: Extent, size: u64) -> impl Iterator<Item = Extent> {
    let mut offset = extent.offset;
    iter::from_fn(move || {
        let len = (size - offset % size).min(extent.end() - offset);
        let piece = Extent { offset, len };
        offset += len;
        (len > 0).then_some(piece)
    })
}

/// Puts the extents together that start in the same window.
fn together(
    extents: impl Iterator<Item = Result<Extent, Error>>,
) -> impl Iterator<Item = Result<Vec<Extent>, Error>> {
    let mut extents = extents.peekable();
    iter::from_fn(move || {
        let first = match extents.next()? {
            Ok(first) => first,
            Err(error) => return Some(Err(error)),
        };
        let window = first.offset / WINDOW_SIZE;
        let starts_here = |next: &Result<Extent, Error>| {
            next.as_ref().is_ok_and(|next| next.offset / WINDOW_SIZE == window)
        };
        let mut together = vec![first];
        while let Some(Ok(next)) = extents.next_if(starts_here) {
            together.push(next);
        }
        Some(Ok(together))
    })
}

/// Reads windows, one after the other.
struct Windows {
    reader: ImageReader,
    spare: Spare,
}

impl Windows {
    fn of(reader: ImageReader) -> Self {
        Self { reader, spare: Spare::default() }
    }

    /// Reads some extents, frame by frame.
    fn read(&self, extents: &[Extent]) -> Result<Vec<Piece>, Error> {
        let frames = self.frames(extents)?;
        let len = extents.iter().map(|extent| to_usize(extent.len)).sum();
        let served: usize = frames.iter().flat_map(Wanted::ranges).map(|served| served.len).sum();
        let mut memory = self.spare.take();
        if served < len {
            // The rest is zero.
            memory.clear();
        }
        memory.resize(len, 0);
        for frame in &frames {
            self.fill(frame, &mut memory)?;
        }
        let mut rest = Bytes::from_owner(Lent { memory, home: self.spare.clone() });
        let pieces = extents.iter().map(|e| (e.offset, rest.split_to(to_usize(e.len))));
        Ok(pieces.collect())
    }

    /// Returns the frames that serve some extents, whose bytes follow each other.
    fn frames(&self, extents: &[Extent]) -> Result<Vec<Wanted>, Error> {
        let (mut frames, mut numbers) = (Vec::<Wanted>::new(), HashMap::new());
        let mut at = 0;
        for range in extents.iter().flat_map(|extent| split(*extent, REGION_SIZE)) {
            let (start, len) = (to_usize(range.offset % REGION_SIZE), to_usize(range.len));
            let leaf = self.reader.map().leaf(range.offset / LEAF_SIZE)?;
            let region = to_usize(range.offset % LEAF_SIZE / REGION_SIZE);
            let parts = leaf.iter().flat_map(|leaf| &leaf.regions[region].parts);
            for part in parts.filter(|part| served(part, start, len).next().is_some()) {
                let number = *numbers.entry(part.frame).or_insert(frames.len());
                if number == frames.len() {
                    frames.push(Wanted { frame: part.frame, uses: Vec::new() });
                }
                frames[number].uses.push(Use { part: *part, start, len, at });
            }
            at += len;
        }
        Ok(frames)
    }

    /// Reads a frame to where it is wanted.
    fn fill(&self, wanted: &Wanted, memory: &mut [u8]) -> Result<(), Error> {
        let vault = self.reader.vault();
        if let Some(at) = wanted.as_it_is() {
            let len = usize::from(wanted.frame.blocks) * BLOCK_SIZE;
            return vault.read_frame_to(&wanted.frame, &mut memory[at..at + len]);
        }
        let bytes = if wanted.ranges().count() < usize::from(wanted.frame.blocks) {
            // Other windows may want the rest.
            vault.frame(&wanted.frame)?
        } else {
            Arc::new(vault.read_frame(&wanted.frame)?)
        };
        for Served { from, to, len } in wanted.ranges() {
            memory[to..to + len].copy_from_slice(&bytes[from..from + len]);
        }
        Ok(())
    }
}

/// A frame, and what of it is wanted.
struct Wanted {
    frame: FramePointer,
    uses: Vec<Use>,
}

/// What is wanted of one region: a range of it, and where that is in memory.
struct Use {
    part: Part,
    start: usize,
    len: usize,
    at: usize,
}

impl Wanted {
    /// Returns what is wanted of each block, and where in memory.
    fn ranges(&self) -> impl Iterator<Item = Served> {
        self.uses.iter().flat_map(|Use { part, start, len, at }| {
            served(part, *start, *len).map(move |served| Served { to: at + served.to, ..served })
        })
    }

    /// Returns where in memory the frame is wanted, if it is wanted just as it is.
    fn as_it_is(&self) -> Option<usize> {
        let first = self.ranges().next()?;
        let at = first.to.checked_sub(first.from)?;
        let mut blocks = 0_usize;
        for Served { from, to, len } in self.ranges() {
            if len < BLOCK_SIZE || to != at + from {
                return None;
            }
            blocks += 1;
        }
        (blocks == usize::from(self.frame.blocks)).then_some(at)
    }
}

/// Memory to use again. What came back last, which the processor knows best, is first.
#[derive(Debug, Clone, Default)]
struct Spare(Arc<Mutex<Vec<Vec<u8>>>>);

impl Spare {
    fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_back(&self, memory: Vec<u8>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE {
            spare.push(memory);
        }
    }
}

/// Memory that goes back to the thread that filled it.
struct Lent {
    memory: Vec<u8>,
    home: Spare,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.memory));
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a window fits in memory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tintype_types::ByteCount;

    use crate::{ImageParams, InitParams, Repository, SessionParams, Unwritten};

    const WINDOW: usize = 2 << 20;

    #[test]
    fn memory_that_is_used_again_shows_nothing_of_before() {
        let folder = tempfile::tempdir().unwrap();
        let repository = Repository::init(folder.path(), InitParams::default()).unwrap();
        let session = repository.begin(SessionParams::default()).unwrap();
        let size = ByteCount(64 * WINDOW_SIZE - 1000);
        let params = ImageParams { size, parent: None, unwritten: Unwritten::Zero };
        let mut writer = session.image(params).unwrap();
        // Some windows are full, the others have two blocks, one of them at the end. Of
        // those that one thread reads, however many there are, some are of each kind.
        let mut content = vec![0; to_usize(size.get())];
        for (number, window) in content.chunks_mut(WINDOW).enumerate() {
            let (seed, last) = (blake3::hash(&number.to_le_bytes()), window.len() - 10);
            match number.count_ones() % 2 {
                0 => blake3::Hasher::new_keyed(seed.as_bytes()).finalize_xof().fill(window),
                _ => [70_000, last].iter().for_each(|at| window[*at] = 7),
            }
        }
        writer.write(0, &content).unwrap();
        let reader = repository.open_image(&writer.finish().unwrap()).unwrap();

        let whole = Extent { offset: 0, len: size.get() };
        let mut checked = 0;
        for piece in reader.sequence_of(split(whole, PIECE).collect()) {
            let (offset, bytes) = piece.unwrap();
            let offset = to_usize(offset);
            assert!(bytes == content[offset..offset + bytes.len()], "the piece at {offset}");
            checked += bytes.len();
        }
        assert_eq!(checked, content.len());
    }
}
