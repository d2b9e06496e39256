//! Any bytes as a migration stream: an error or a state, however they are cut;
//! and a state comes back from its own bytes and from a restore made of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tintype_stream::{
    DeviceState, Error, Limits, Parser, PostcopyWriter, RamBlock, RestoreWriter, Step,
};
use tintype_types::{BlockIndex, ByteCount};

const LIMITS: Limits = Limits {
    max_ram_blocks: 16,
    max_ram: ByteCount(1 << 20),
    max_device_state: ByteCount(1 << 16),
};

fuzz_target!(|data: &[u8]| {
    let Some((&cut, stream)) = data.split_first() else { return };
    let whole = parse(stream, stream.len().max(1));
    let pieces = parse(stream, usize::from(cut) + 1);
    assert_eq!(whole.as_ref().ok(), pieces.as_ref().ok());
    let Ok(state) = whole else { return };
    assert!(state.as_bytes().len() <= (1 << 16) + 64);
    let _ = state.sections();
    let again = DeviceState::from_bytes(state.as_bytes(), Limits::default());
    assert_eq!(again.as_ref().ok(), Some(&state));
    let restored = restore(&state).expect("every page is written");
    assert_eq!(parse(&restored, restored.len()).ok(), Some(state));
});

fn parse(stream: &[u8], piece: usize) -> Result<DeviceState, Error> {
    let mut parser = Parser::new(LIMITS);
    let mut input = Vec::new();
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        let mut taken = 0;
        loop {
            match parser.next(&input[taken..])? {
                Step::Event { consumed, .. } => taken += consumed,
                Step::NeedMore { consumed, at_least } => {
                    taken += consumed;
                    assert!(at_least > input.len() - taken);
                    break;
                }
            }
        }
        input.drain(..taken);
    }
    parser.finish()
}

fn restore(state: &DeviceState) -> Result<Vec<u8>, Error> {
    let mut eager = RestoreWriter::new(state);
    let mut lazy = PostcopyWriter::new(state);
    let (mut out, mut lazy_out) = (Vec::new(), Vec::new());
    eager.start(&mut out);
    lazy.start(&mut lazy_out)?;
    for (block, known) in RamBlock::numbered(state.ram_blocks()) {
        for page in (0..known.pages()).map(BlockIndex) {
            eager.zero_page(&mut out, block, page)?;
            lazy.zero_page(&mut lazy_out, block, page)?;
        }
    }
    lazy.finish(&mut lazy_out)?;
    eager.finish(&mut out)?;
    Ok(out)
}
