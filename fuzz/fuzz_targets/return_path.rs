//! Any bytes as the answers of a receiver.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tintype_stream::{DeviceState, Limits, PostcopyWriter, ReturnMessage, ReturnPathParser};
use tintype_types::BlockIndex;

/// A VM with two blocks of four and one page.
const STATE: &[u8] = include_bytes!("../corpus/stream/device-state");

fuzz_target!(|data: &[u8]| {
    let state = DeviceState::from_bytes(&STATE[1..], Limits::default()).expect("a valid state");
    let mut parser = ReturnPathParser::new(&state);
    let mut writer = PostcopyWriter::new(&state);
    let mut rest = data;
    while let Ok(Some((message, taken))) = parser.next(rest) {
        assert!(taken > 0);
        rest = &rest[taken..];
        match message {
            ReturnMessage::RequestPages { block, first, count } => {
                for page in first.0..first.0 + count {
                    let wanted = writer.wants(block, BlockIndex(page));
                    let written = writer.zero_page(&mut Vec::new(), block, BlockIndex(page));
                    assert_eq!(written.expect("requests are within blocks"), wanted);
                }
            }
            ReturnMessage::ReceivedBitmap { block, bitmap } => writer.received(block, bitmap),
            _ => {}
        }
    }
});
