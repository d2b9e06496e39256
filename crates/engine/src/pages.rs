//! Sends the pages of a snapshot to a guest that runs already: those that it waits
//! for first, with what is around them, and the others behind.
//!
//! ```text
//!  guest's faults ─ return path ─▶ ┌───────┐ ─ worker ─ read, check ─┐
//!                                  │ Board │                         ├─▶ writer ─▶ QEMU
//!  recorded, data, zeros: in order │       │ ─ worker ─ read, check ─┘
//! ```
//!
//! Memory is sent in units of 128 KiB, which is what the repository compresses
//! together. Each unit is claimed by one worker once. What cannot be read is left
//! out and named in the end: nobody gets other bytes for it, nor zeros.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tintype_repo::{DataExtents, ImageReader};
use tintype_stream::{
    DeviceState, PostcopyWriter, RamBlock, RamBlockId, ReturnMessage, ReturnPathParser,
};
use tintype_types::{BLOCK_SIZE, BlockIndex, ByteCount};

use crate::error::{Error, Result};

/// Pages of a unit.
const UNIT_PAGES: u64 = 32;

/// Bytes of a unit.
pub(crate) const UNIT: u64 = UNIT_PAGES * BLOCK_SIZE as u64;

/// How many units after one that was asked for are sent early.
const AHEAD: u64 = 2;

/// Threads that read, decompress and send.
const WORKERS: usize = 2;

/// Units that a worker takes at once when nobody waits for them.
const SWEEP: u64 = 4;

/// In the beginning the guest needs much at once, and every page that it has not asked
/// for delays those that it has: for so long nothing else is sent.
const BEGINNING: Duration = Duration::from_secs(1);

/// Unless it has asked for nothing for so long.
const LULL: Duration = Duration::from_millis(5);

/// How much of the return path is read at once.
const READ_SIZE: usize = 16 << 10;

/// A unit of memory: a block and a place in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Unit {
    pub(crate) block: RamBlockId,
    pub(crate) number: u64,
}

/// The memory of a snapshot, open for reading.
pub(crate) struct Source<'s> {
    pub(crate) state: &'s DeviceState,
    /// One for each block of memory, in the order of the device state.
    pub(crate) readers: Vec<ImageReader>,
}

/// Hears how far it is. Called from several threads, often.
pub(crate) trait Listener: Sync {
    /// The guest has its devices, and can run.
    fn loaded(&self);
    /// So many bytes of so many are there; the guest has asked for pages so often.
    fn advance(&self, done: ByteCount, total: ByteCount, requests: u64);
    /// The guest waits for this unit.
    fn wanted(&self, unit: Unit);
}

/// How serving a connection ended.
#[derive(Debug)]
pub(crate) enum End {
    /// All pages are there: the guest needs nobody any more.
    Complete,
    /// The connection was lost.
    Lost,
    /// Only what cannot be read is missing.
    Damaged(Error),
}

/// What serves one connection.
pub(crate) struct Pump<'p> {
    source: &'p Source<'p>,
    stream: &'p UnixStream,
    listener: &'p dyn Listener,
    writer: Mutex<Sender<'p>>,
    board: Mutex<Board>,
    changed: Condvar,
    sweep: Mutex<Sweep>,
}

/// The writer with the buffer that it fills.
struct Sender<'p> {
    writer: PostcopyWriter<'p>,
    out: Vec<u8>,
}

/// What is to be sent, and what was.
struct Board {
    /// What the guest waits for.
    asked: VecDeque<(Unit, BlockIndex)>,
    /// What it is likely to want soon.
    soon: VecDeque<Unit>,
    /// For each block, which of its units were given to a worker.
    claimed: Vec<Vec<bool>>,
    /// Workers that have a unit.
    busy: usize,
    swept: bool,
    done: u64,
    total: u64,
    requests: u64,
    /// When the last of them came.
    requested_at: Option<Instant>,
    /// When the guest had its devices.
    loaded_at: Option<Instant>,
    shut: Option<bool>,
    lost: bool,
    damage: Option<Error>,
}

/// The order of what nobody has asked for: all data, then everything, of which only
/// zeros are left. They are looked at like all else: no order makes a page zero.
struct Sweep {
    /// The block whose data comes next, and what its map has still to tell.
    block: usize,
    data: Option<DataExtents>,
    /// Units of that block that are known to have data.
    extent: Range<u64>,
    /// Where all units have got to: a block and a unit of it.
    all: (usize, u64),
}

/// What a worker does next.
struct Job {
    units: Vec<Unit>,
    /// The page that goes first.
    first: Option<BlockIndex>,
}

impl<'p> Pump<'p> {
    /// Prepares to serve a connection; what was recorded is sent first.
    pub(crate) fn new(
        source: &'p Source<'p>,
        stream: &'p UnixStream,
        listener: &'p dyn Listener,
        recorded: &[Unit],
    ) -> Self {
        let blocks = source.state.ram_blocks();
        let units = |block: &RamBlock| {
            vec![false; usize::try_from(block.pages().div_ceil(UNIT_PAGES)).unwrap_or(0)]
        };
        let board = Board {
            asked: VecDeque::new(),
            soon: recorded.iter().copied().collect(),
            claimed: blocks.iter().map(units).collect(),
            busy: 0,
            swept: false,
            done: 0,
            total: blocks.iter().map(|block| block.length.get()).sum(),
            requests: 0,
            requested_at: None,
            loaded_at: None,
            shut: None,
            lost: false,
            damage: None,
        };
        let sweep = Sweep { block: 0, data: None, extent: 0..0, all: (0, 0) };
        Self {
            source,
            stream,
            listener,
            writer: Mutex::new(Sender {
                writer: PostcopyWriter::new(source.state),
                out: Vec::new(),
            }),
            board: Mutex::new(board),
            changed: Condvar::new(),
            sweep: Mutex::new(sweep),
        }
    }

    /// Begins a new guest, or goes on with one whose sender was lost, and serves it
    /// to the end.
    pub(crate) fn run(self, is_new: bool) -> Result<End> {
        let mut parser = ReturnPathParser::new(self.source.state);
        let mut answers = Vec::new();
        let begun = match is_new {
            true => self.begin()?,
            false => self.go_on(&mut parser, &mut answers),
        };
        if begun.is_err() {
            return Ok(End::Lost);
        }
        let end = thread::scope(|scope| {
            let receiver = scope.spawn(|| self.receive(parser, answers));
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(|| self.work())).collect();
            for worker in workers {
                let _ = worker.join();
            }
            let end = self.finish();
            let _ = self.stream.shutdown(Shutdown::Both);
            let _ = receiver.join();
            end
        });
        Ok(end)
    }

    /// Sends what makes the guest run.
    fn begin(&self) -> Result<io::Result<()>> {
        let mut out = Vec::new();
        lock(&self.writer)
            .writer
            .start(&mut out)
            .map_err(Error::step("the devices of the snapshot cannot be sent"))?;
        let mut stream = self.stream;
        Ok(stream.write_all(&out))
    }

    /// Asks what has arrived, and makes the guest go on.
    fn go_on(&self, parser: &mut ReturnPathParser, answers: &mut Vec<u8>) -> io::Result<()> {
        let mut stream = self.stream;
        let mut out = Vec::new();
        lock(&self.writer).writer.ask_received(&mut out);
        stream.write_all(&out)?;
        let mut left = self.source.state.ram_blocks().len();
        let mut resumed = false;
        while !resumed {
            let mut bytes = std::mem::take(answers);
            let mut at = 0;
            while let Some((message, len)) = parser.next(&bytes[at..]).map_err(io::Error::other)? {
                match message {
                    ReturnMessage::ReceivedBitmap { block, bitmap } => {
                        lock(&self.writer).writer.received(block, bitmap);
                        left = left.saturating_sub(1);
                        if left == 0 {
                            let mut out = Vec::new();
                            lock(&self.writer).writer.resume(&mut out);
                            stream.write_all(&out)?;
                        }
                    }
                    ReturnMessage::ResumeAck => resumed = true,
                    other => self.hear(&other),
                }
                at += len;
            }
            bytes.drain(..at);
            *answers = bytes;
            if !resumed {
                read_more(self.stream, answers)?;
            }
        }
        self.count_received();
        lock(&self.board).loaded_at = Some(Instant::now());
        self.listener.loaded();
        Ok(())
    }

    /// Counts what a sender before this one has sent.
    fn count_received(&self) {
        let writer = lock(&self.writer);
        let missing = RamBlock::numbered(self.source.state.ram_blocks())
            .map(|(block, _)| writer.writer.missing(block) * BLOCK_SIZE as u64);
        let missing: u64 = missing.sum();
        let mut board = lock(&self.board);
        board.done = board.total.saturating_sub(missing);
    }

    /// Reads the return path until it ends.
    fn receive(&self, mut parser: ReturnPathParser, mut answers: Vec<u8>) {
        loop {
            let mut at = 0;
            loop {
                match parser.next(&answers[at..]) {
                    Ok(Some((message, len))) => {
                        self.hear(&message);
                        at += len;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "QEMU's return path is broken");
                        return self.lose();
                    }
                }
            }
            answers.drain(..at);
            if read_more(self.stream, &mut answers).is_err() {
                return self.lose();
            }
        }
    }

    fn hear(&self, message: &ReturnMessage<'_>) {
        match *message {
            ReturnMessage::RequestPages { block, first, count } => {
                let (from, to) = (first.0 / UNIT_PAGES, (first.0 + count - 1) / UNIT_PAGES);
                let mut board = lock(&self.board);
                board.requests += 1;
                board.requested_at = Some(Instant::now());
                for number in from..=to {
                    let unit = Unit { block, number };
                    let page = BlockIndex(first.0.max(number * UNIT_PAGES));
                    board.asked.push_back((unit, page));
                    board
                        .soon
                        .extend((1..=AHEAD).map(|more| Unit { block, number: number + more }));
                    self.listener.wanted(unit);
                }
            }
            ReturnMessage::Pong(PostcopyWriter::LOADED_PING) => {
                lock(&self.board).loaded_at = Some(Instant::now());
                self.listener.loaded();
            }
            ReturnMessage::Shut { failed } => lock(&self.board).shut = Some(failed),
            _ => {}
        }
        self.changed.notify_all();
    }

    fn lose(&self) {
        lock(&self.board).lost = true;
        self.changed.notify_all();
    }

    fn work(&self) {
        while let Some(job) = self.next_job() {
            for unit in &job.units {
                let sent = self.send(*unit, job.first);
                if sent.is_err() {
                    self.lose();
                }
            }
            let mut board = lock(&self.board);
            board.busy -= 1;
            let (done, total) = (ByteCount(board.done), ByteCount(board.total));
            let requests = board.requests;
            drop(board);
            self.changed.notify_all();
            self.listener.advance(done, total, requests);
        }
    }

    /// Chooses what a worker does next; `None` when nothing is left for it.
    fn next_job(&self) -> Option<Job> {
        let mut board = lock(&self.board);
        loop {
            if board.lost {
                return None;
            }
            if let Some(job) = board.urgent() {
                board.busy += 1;
                return Some(job);
            }
            if board.swept && board.busy == 0 {
                return None;
            }
            if board.loaded_at.is_some() && !board.swept {
                let patience = board.patience();
                if !patience.is_zero() {
                    let waited = self.changed.wait_timeout(board, patience);
                    board = waited.unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
                drop(board);
                let found = self.sweep_on();
                board = lock(&self.board);
                match found {
                    None => board.swept = true,
                    Some(mut job) => {
                        job.units.retain(|unit| board.claim(*unit));
                        if !job.units.is_empty() {
                            board.busy += 1;
                            return Some(job);
                        }
                    }
                }
                self.changed.notify_all();
                continue;
            }
            board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Finds the next units in the order of memory.
    fn sweep_on(&self) -> Option<Job> {
        let mut sweep = lock(&self.sweep);
        let data = sweep.data(self.source, |error| self.note_damage(error));
        let units = data.or_else(|| sweep.all(self.source))?;
        Some(Job { units, first: None })
    }

    /// Reads a unit and sends what of it is still missing.
    fn send(&self, unit: Unit, first: Option<BlockIndex>) -> io::Result<()> {
        let from = unit.number * UNIT_PAGES;
        let Some(block) = self.source.state.ram_blocks().get(unit.block.index()) else {
            return Ok(());
        };
        let count = UNIT_PAGES.min(block.pages().saturating_sub(from));
        let mut bytes = vec![0; usize::try_from(count).unwrap_or(0) * BLOCK_SIZE];
        let mut unreadable = Vec::new();
        let reader = &self.source.readers[unit.block.index()];
        if reader.read_at(from * BLOCK_SIZE as u64, &mut bytes).is_err() {
            unreadable = self.read_singly(reader, from, &mut bytes);
        }
        let mut sender = lock(&self.writer);
        let sender = &mut *sender;
        sender.out.clear();
        let mut sent = 0;
        let rest = (from..from + count).filter(|page| first != Some(BlockIndex(*page)));
        for page in first.map(|page| page.0).into_iter().chain(rest) {
            let Some(at) = page.checked_sub(from).filter(|at| *at < count) else { continue };
            if unreadable.contains(&page) {
                continue;
            }
            let at = usize::try_from(at).unwrap_or(0);
            let content = &bytes.as_chunks::<BLOCK_SIZE>().0[at];
            let (out, page) = (&mut sender.out, BlockIndex(page));
            let added = match content.iter().all(|byte| *byte == 0) {
                true => sender.writer.zero_page(out, unit.block, page),
                false => sender.writer.page(out, unit.block, page, content),
            };
            sent += u64::from(added.map_err(io::Error::other)?);
        }
        let mut stream = self.stream;
        stream.write_all(&sender.out)?;
        lock(&self.board).done += sent * BLOCK_SIZE as u64;
        Ok(())
    }

    /// Reads what can be read of a damaged unit, and returns the other pages.
    fn read_singly(&self, reader: &ImageReader, from: u64, bytes: &mut [u8]) -> Vec<u64> {
        let mut unreadable = Vec::new();
        for (page, bytes) in (from..).zip(bytes.as_chunks_mut::<BLOCK_SIZE>().0) {
            if let Err(error) = reader.read_at(page * BLOCK_SIZE as u64, bytes) {
                unreadable.push(page);
                self.note_damage(error);
            }
        }
        unreadable
    }

    fn note_damage(&self, error: tintype_repo::Error) {
        let mut board = lock(&self.board);
        if board.damage.is_none() {
            board.damage = Some(
                Error::failed("some of the memory of the snapshot cannot be read").because(error),
            );
        }
    }

    /// Ends the connection, well if all is there.
    fn finish(&self) -> End {
        let mut board = lock(&self.board);
        if board.lost {
            return End::Lost;
        }
        if let Some(damage) = board.damage.take() {
            return End::Damaged(damage);
        }
        drop(board);
        let nothing = PostcopyWriter::new(self.source.state);
        let writer = std::mem::replace(&mut lock(&self.writer).writer, nothing);
        let mut out = Vec::new();
        if let Err(error) = writer.finish(&mut out) {
            return End::Damaged(Error::failed("the memory is not complete").because(error));
        }
        let mut stream = self.stream;
        if stream.write_all(&out).is_err() {
            return End::Lost;
        }
        let mut board = lock(&self.board);
        while board.shut.is_none() && !board.lost {
            board = self.changed.wait(board).unwrap_or_else(PoisonError::into_inner);
        }
        if board.shut == Some(false) { End::Complete } else { End::Lost }
    }
}

impl Board {
    /// Returns how long to wait for the guest before what nobody has asked for is sent.
    fn patience(&self) -> Duration {
        let begins = self.loaded_at.is_none_or(|at| at.elapsed() < BEGINNING);
        let since = self.requested_at.filter(|_| begins).map(|at| at.elapsed());
        since.map_or(Duration::ZERO, |since| LULL.saturating_sub(since))
    }

    /// Gives a unit to whoever asks first.
    fn claim(&mut self, unit: Unit) -> bool {
        let place = usize::try_from(unit.number).unwrap_or(usize::MAX);
        let units = self.claimed.get_mut(unit.block.index());
        let Some(is_claimed) = units.and_then(|units| units.get_mut(place)) else { return false };
        !std::mem::replace(is_claimed, true)
    }

    /// Takes what the guest waits for, or is likely to want soon.
    fn urgent(&mut self) -> Option<Job> {
        while let Some((unit, page)) = self.asked.pop_front() {
            if self.claim(unit) {
                return Some(Job { units: vec![unit], first: Some(page) });
            }
        }
        while let Some(unit) = self.soon.pop_front() {
            if self.claim(unit) {
                return Some(Job { units: vec![unit], first: None });
            }
        }
        None
    }
}

impl Sweep {
    /// Returns the next units with data; `None` when there are none left.
    fn data(
        &mut self,
        source: &Source<'_>,
        mut damage: impl FnMut(tintype_repo::Error),
    ) -> Option<Vec<Unit>> {
        loop {
            if !self.extent.is_empty() {
                let block = RamBlockId(u16::try_from(self.block).ok()?);
                let until = self.extent.end.min(self.extent.start + SWEEP);
                let taken = self.extent.start..until;
                self.extent.start = until;
                return Some(taken.map(|number| Unit { block, number }).collect());
            }
            let reader = source.readers.get(self.block)?;
            match self.data.get_or_insert_with(|| reader.data_extents()).next() {
                Some(Ok(extent)) => self.extent = extent.offset / UNIT..extent.end().div_ceil(UNIT),
                ended => {
                    if let Some(Err(error)) = ended {
                        damage(error);
                    }
                    self.data = None;
                    self.block += 1;
                }
            }
        }
    }

    /// Returns the next units of all.
    fn all(&mut self, source: &Source<'_>) -> Option<Vec<Unit>> {
        loop {
            let (block, next) = self.all;
            let end = source.state.ram_blocks().get(block)?.pages().div_ceil(UNIT_PAGES);
            if next < end {
                let until = end.min(next + SWEEP);
                self.all = (block, until);
                let block = RamBlockId(u16::try_from(block).ok()?);
                return Some((next..until).map(|number| Unit { block, number }).collect());
            }
            self.all = (block + 1, 0);
        }
    }
}

fn read_more(mut stream: &UnixStream, answers: &mut Vec<u8>) -> io::Result<()> {
    let mut piece = [0; READ_SIZE];
    match stream.read(&mut piece) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(count) => {
            answers.extend_from_slice(&piece[..count]);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        Err(error) => Err(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
