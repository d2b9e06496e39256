//! Reads the memory stream of a guest from QEMU and feeds its pages to a sink.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crossbeam_channel::Sender;
use tintype_stream::{DeviceState, Event, Limits, Parser, Step, Window};

use super::sink::{CaptureSink, MemorySink};
use crate::cancel::Cancel;
use crate::error::{Error, Result};

/// How much is read from QEMU at once.
const READ_SIZE: usize = 4 << 20;

/// How often a silent stream is left to look for a cancellation.
const LOOK_UP: Duration = Duration::from_millis(200);

/// How long QEMU may send nothing. It sends pages, or dirty pages are few.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// What happens in the stream that the control of the capture waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Milestone {
    /// The first pages come: a copy-on-write capture has protected all memory.
    Pages,
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
                            }
                            Event::RamSection { .. } if !saw_pages => {
                                saw_pages = true;
                                let _ = self.milestones.send(Milestone::Pages);
                            }
                            event => feed(pages.as_mut(), &event)?,
                        }
                        window.consume(consumed);
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

    /// Reads what has come; `false` at the end of the stream.
    fn fill(&mut self, window: &mut Window) -> Result<bool> {
        let mut silence = Duration::ZERO;
        loop {
            self.cancel.check()?;
            self.abandoned.check()?;
            match self.stream.read(window.spare()) {
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

fn feed(pages: Option<&mut Box<dyn MemorySink>>, event: &Event<'_>) -> Result<()> {
    let Some(pages) = pages else { return Ok(()) };
    match event {
        Event::Page { block, page, bytes } => {
            pages.page(block.index(), page.offset(), bytes.as_slice()).map_err(Error::Sink)
        }
        Event::ZeroPage { block, page } => {
            pages.zero_page(block.index(), page.offset()).map_err(Error::Sink)
        }
        _ => Ok(()),
    }
}
