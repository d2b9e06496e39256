//! A saved VM held in memory: what a repository would keep.

use std::collections::BTreeMap;

use tintype_stream::{
    DeviceState, Event, Limits, Page, Parser, RamBlock, RamBlockId, RestoreWriter, Step, Window,
};
use tintype_types::BlockIndex;

#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) state: DeviceState,
    pub(crate) pages: BTreeMap<(RamBlockId, BlockIndex), Box<Page>>,
}

impl Saved {
    /// Parses a stream through a window of this capacity.
    pub(crate) fn parse(mut stream: &[u8], capacity: usize) -> Self {
        let mut parser = Parser::new(Limits::default());
        let mut window = Window::new(capacity);
        let mut pages = BTreeMap::new();
        loop {
            let spare = window.spare();
            let count = spare.len().min(stream.len());
            if count == 0 {
                break;
            }
            spare[..count].copy_from_slice(&stream[..count]);
            stream = &stream[count..];
            window.filled(count);
            loop {
                let consumed = match parser.next(window.bytes()).unwrap() {
                    Step::Event { consumed, event } => {
                        match event {
                            Event::Page { block, page, bytes } => {
                                pages.insert((block, page), Box::new(*bytes));
                            }
                            Event::ZeroPage { block, page } => {
                                pages.insert((block, page), Box::new([0; 4096]));
                            }
                            _ => {}
                        }
                        consumed
                    }
                    Step::NeedMore { consumed, .. } => {
                        window.consume(consumed);
                        break;
                    }
                };
                window.consume(consumed);
            }
        }
        assert!(window.bytes().is_empty());
        Self { state: parser.finish().unwrap(), pages }
    }

    /// Returns the stream that restores the VM, but for blocks that are there.
    pub(crate) fn restore(&self, present: &[&str]) -> Vec<u8> {
        let mut writer = RestoreWriter::new(&self.state);
        let mut out = Vec::new();
        writer.start(&mut out);
        for (block, known) in RamBlock::numbered(self.state.ram_blocks()) {
            if present.contains(&known.name.as_str()) {
                writer.allow_partial(block);
                continue;
            }
            for page in (0..known.pages()).map(BlockIndex) {
                match self.pages.get(&(block, page)) {
                    Some(bytes) if bytes.iter().any(|&byte| byte != 0) => {
                        writer.page(&mut out, block, page, bytes).unwrap();
                    }
                    // Memory that is not plugged in is not sent.
                    _ => writer.zero_page(&mut out, block, page).unwrap(),
                }
            }
        }
        writer.finish(&mut out).unwrap();
        out
    }

    /// Returns the contents of a block.
    pub(crate) fn block(&self, name: &str) -> Vec<u8> {
        let index = self.state.ram_blocks().iter().position(|block| block.name == name).unwrap();
        let wanted = |(id, _): &&(RamBlockId, BlockIndex)| id.index() == index;
        self.pages.keys().filter(wanted).flat_map(|key| self.pages[key].to_vec()).collect()
    }
}
