//! Takes the state of a VM that an internal snapshot holds apart, as it comes:
//! memory to images, and what is left of it to the state of the devices. QEMU's
//! `savevm` writes the stream that a migration is (`qemu_savevm_state` in
//! `migration/savevm.c`).

use tintype_stream::{DeviceState, Event, Limits, Parser, Step, Window};
use tintype_vm::{CaptureSink, MemorySink, SinkError};

/// How much is looked at together.
const WINDOW: usize = 1 << 20;

/// A state on its way.
pub(super) struct StateReader<'s> {
    parser: Parser,
    window: Window,
    sink: &'s dyn CaptureSink,
    pages: Option<Box<dyn MemorySink>>,
}

impl<'s> StateReader<'s> {
    pub(super) fn new(sink: &'s dyn CaptureSink) -> Self {
        let parser = Parser::new(Limits::default());
        Self { parser, window: Window::new(WINDOW), sink, pages: None }
    }

    /// Takes the next bytes.
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Result<(), SinkError> {
        while !bytes.is_empty() {
            let spare = self.window.spare();
            let (now, later) = bytes.split_at(spare.len().min(bytes.len()));
            spare[..now.len()].copy_from_slice(now);
            self.window.filled(now.len());
            bytes = later;
            self.parse()?;
        }
        Ok(())
    }

    fn parse(&mut self) -> Result<(), SinkError> {
        loop {
            match self.parser.next(self.window.bytes())? {
                Step::NeedMore { consumed, .. } => {
                    self.window.consume(consumed);
                    return Ok(());
                }
                Step::Event { consumed, event } => {
                    match (event, &mut self.pages) {
                        (Event::RamSetup, _) => {
                            self.pages = Some(self.sink.memory(self.parser.ram_blocks())?);
                        }
                        (Event::Page { block, page, bytes }, Some(pages)) => {
                            pages.page(block.index(), page.offset(), bytes.as_slice())?;
                        }
                        (Event::ZeroPage { block, page }, Some(pages)) => {
                            pages.zero_page(block.index(), page.offset())?;
                        }
                        _ => {}
                    }
                    self.window.consume(consumed);
                }
            }
        }
    }

    /// Ends with the state of the devices.
    pub(super) fn finish(self) -> Result<DeviceState, SinkError> {
        let state = self.parser.finish()?;
        state.sections()?;
        let pages = self.pages.ok_or("a state without memory")?;
        pages.finish()?;
        Ok(state)
    }
}
