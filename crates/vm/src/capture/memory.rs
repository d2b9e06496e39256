//! Reads the memory stream of a guest from QEMU and feeds its pages to a sink.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use rustix::net::sockopt::set_socket_send_buffer_size;
use tintype_stream::{DeviceState, Event, Limits, Parser, RamBlock, RamPhase, Step, Window};

use super::sink::{CaptureSink, MemorySink};
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// How much is read from QEMU at once.
const READ_SIZE: usize = 4 << 20;

/// How often a silent stream is left to look for a cancellation.
const LOOK_UP: Duration = Duration::from_millis(200);

/// How long QEMU may send nothing. It sends pages, or dirty pages are few.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// How much is read at once before a gate.
const READ_SIZE_BEFORE_GATE: usize = 64 << 10;

/// What the kernel is asked to let QEMU send ahead before a gate; it allows twice that.
const SENT_AHEAD_OF_GATE: usize = 64 << 10;

/// How much of the first pass over memory is left when a reader with a gate stops.
/// QEMU is ahead of the reader by what was sent and what was read and not looked at,
/// 192 KiB at most. Zero pages take 9 bytes each, so that is less than 86 MiB of
/// memory: QEMU cannot have come to the end of the pass.
const LEFT_BEHIND_GATE: u64 = 128 << 20;

/// The least memory for which a gate is worth it: less is read while one waits.
pub(super) const WORTH_A_GATE: u64 = 512 << 20;

/// Keeps QEMU from being far ahead of a reader with a gate, by its end of the stream.
pub(super) fn keep_close(theirs: &UnixStream) -> Result<()> {
    set_socket_send_buffer_size(theirs, SENT_AHEAD_OF_GATE)
        .map_err(|error| Error::system("bound the memory stream")(error.into()))
}

/// What happens in the stream that the control of the capture waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Milestone {
    /// The first pages come: a copy-on-write capture has protected all memory.
    Pages,
    /// The first pass is nearly over, and goes on when the gate is opened.
    Gate,
    /// The stream has ended, well or not: the reader's result says which.
    End,
}

/// What was in a memory stream.
pub(super) struct MemoryReport {
    /// Everything but the pages.
    pub(super) state: DeviceState,
    /// Bytes of the stream.
    pub(super) stream_bytes: u64,
}

/// Reads a stream to its end.
pub(super) struct MemoryReader<'c> {
    pub(super) stream: UnixStream,
    pub(super) sink: &'c dyn CaptureSink,
    pub(super) cancel: Cancel,
    /// Says that nobody needs this memory any more.
    pub(super) abandoned: Cancel,
    pub(super) milestones: Sender<Milestone>,
    /// Stops near the end of the first pass over memory until something comes: QEMU
    /// waits with its next page meanwhile, and so with the instant.
    pub(super) gate: Option<Receiver<()>>,
}

impl MemoryReader<'_> {
    /// Reads and feeds until QEMU closes the stream.
    pub(super) fn run(mut self) -> Result<MemoryReport> {
        let result = self.read();
        // Nobody listens any more if the capture has failed elsewhere.
        let _ = self.milestones.send(Milestone::End);
        result
    }

    fn read(&mut self) -> Result<MemoryReport> {
        self.stream
            .set_read_timeout(Some(LOOK_UP))
            .map_err(Error::system("wait for the memory stream"))?;
        let mut window = Window::new(READ_SIZE);
        let mut parser = Parser::new(Limits::default());
        let mut pages: Option<Box<dyn MemorySink>> = None;
        let mut saw_pages = false;
        let (mut seen, mut before_gate) = (0, u64::MAX);
        while self.fill(&mut window)? {
            loop {
                match parser.next(window.bytes()).map_err(Error::Stream)? {
                    Step::NeedMore { consumed, .. } => {
                        window.consume(consumed);
                        break;
                    }
                    Step::Event { consumed, event } => {
                        match event {
                            Event::RamSetup => {
                                let begun = self.sink.memory(parser.ram_blocks());
                                pages = Some(begun.map_err(Error::Sink)?);
                                before_gate = bytes_before_gate(parser.ram_blocks());
                            }
                            Event::RamSection { phase } => {
                                if !std::mem::replace(&mut saw_pages, true) {
                                    let _ = self.milestones.send(Milestone::Pages);
                                }
                                if let (RamPhase::Last, Some(pages)) = (phase, &mut pages) {
                                    pages.last_pass();
                                }
                            }
                            event => {
                                seen += feed(pages.as_mut(), &event)?;
                            }
                        }
                        window.consume(consumed);
                        if seen >= before_gate {
                            before_gate = u64::MAX;
                            self.wait_at_gate()?;
                        }
                    }
                }
            }
        }
        let stream_bytes = parser.offset();
        let state = parser.finish().map_err(Error::Stream)?;
        let pages = pages.ok_or_else(|| Error::protocol("a memory stream without memory"))?;
        pages.finish().map_err(Error::Sink)?;
        Ok(MemoryReport { state, stream_bytes })
    }

    /// Waits until the gate is opened, or nobody is left to open it.
    fn wait_at_gate(&mut self) -> Result<()> {
        let Some(gate) = self.gate.take() else { return Ok(()) };
        let _ = self.milestones.send(Milestone::Gate);
        while gate.recv_timeout(LOOK_UP) == Err(RecvTimeoutError::Timeout) {
            self.cancel.check()?;
            self.abandoned.check()?;
        }
        Ok(())
    }

    /// Reads what has come; `false` at the end of the stream.
    fn fill(&mut self, window: &mut Window) -> Result<bool> {
        let mut silence = Duration::ZERO;
        loop {
            self.cancel.check()?;
            self.abandoned.check()?;
            let spare = window.spare();
            let most = if self.gate.is_some() { READ_SIZE_BEFORE_GATE } else { spare.len() };
            let at_once = spare.len().min(most);
            match self.stream.read(&mut spare[..at_once]) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    window.filled(count);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    silence += LOOK_UP;
                    if silence >= MAX_SILENCE {
                        let what = "send its memory".to_owned();
                        return Err(Error::Timeout { what, waited: silence });
                    }
                }
                Err(source) => {
                    return Err(Error::System {
                        operation: "read the memory stream".into(),
                        source,
                    });
                }
            }
        }
    }
}

/// Returns how much of memory a reader with a gate reads before it stops.
fn bytes_before_gate(blocks: &[RamBlock]) -> u64 {
    let all: u64 = blocks.iter().map(|block| block.length.get()).sum();
    all.saturating_sub(LEFT_BEHIND_GATE)
}

/// Feeds a page to the sink; returns how many bytes of memory it was.
fn feed(pages: Option<&mut Box<dyn MemorySink>>, event: &Event<'_>) -> Result<u64> {
    const PAGE: u64 = tintype_types::BLOCK_SIZE as u64;
    let Some(pages) = pages else { return Ok(0) };
    let fed = match event {
        Event::Page { block, page, bytes } => {
            pages.page(block.index(), page.offset(), bytes.as_slice())
        }
        Event::ZeroPage { block, page } => pages.zero_page(block.index(), page.offset()),
        _ => return Ok(0),
    };
    fed.map(|()| PAGE).map_err(Error::Sink)
}
