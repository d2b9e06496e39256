//! Input that is cut, damaged or made up: at worst an error, never a panic, and
//! never more memory than the limits allow.

use proptest::prelude::*;
use tintype_stream::{DeviceState, Error, ErrorKind, Event, Limits, Parser, Step};
use tintype_types::ByteCount;

use crate::synthetic::{BLOCKS, Synthetic, small};

const TIGHT: Limits =
    Limits { max_ram_blocks: 8, max_ram: ByteCount(1 << 20), max_device_state: ByteCount(8192) };

/// What a parser told, without what depends on how the stream was cut.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    events: Vec<String>,
    device_bytes: usize,
}

/// Parses a stream that arrives in these pieces.
fn parse<'b>(
    pieces: impl IntoIterator<Item = &'b [u8]>,
    limits: Limits,
) -> Result<(Told, DeviceState), Error> {
    let mut parser = Parser::new(limits);
    let mut told = Told::default();
    let mut input = Vec::new();
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match parser.next(&input)? {
                Step::Event { consumed, event } => {
                    match event {
                        Event::DeviceBytes { count } => told.device_bytes += count,
                        Event::Page { block, page, bytes } => {
                            let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
                            told.events.push(format!("{block:?} {page:?} {sum}"));
                        }
                        event => told.events.push(format!("{event:?}")),
                    }
                    input.drain(..consumed);
                }
                Step::NeedMore { consumed, at_least } => {
                    input.drain(..consumed);
                    assert!(at_least > input.len());
                    assert!(at_least <= tintype_stream::MAX_STEP);
                    break;
                }
            }
        }
    }
    parser.finish().map(|state| (told, state))
}

/// Does everything that can be done with a stream that may be anything.
fn survive(stream: &[u8]) {
    if let Ok((_, state)) = parse([stream], TIGHT) {
        assert!(state.as_bytes().len() <= 8192 + 32);
        let _ = state.sections();
        assert_eq!(DeviceState::from_bytes(state.as_bytes(), Limits::default()).unwrap(), state);
    }
}

#[test]
fn a_stream_that_is_cut_is_not_a_snapshot() {
    let stream = small().0;
    for end in 0..stream.len() {
        let error = parse([&stream[..end]], TIGHT).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Truncated, "at {end}: {error}");
    }
    let (told, state) = parse([stream.as_slice()], TIGHT).unwrap();
    assert_eq!(told.events.len(), 14);
    let names: Vec<_> = state.sections().unwrap().iter().map(|section| section.name).collect();
    assert_eq!(names, ["timer", "old", "0000:00:02.0/disk"]);
    assert_eq!(state.ram_blocks().len(), BLOCKS.len());
}

#[test]
fn any_byte_may_be_wrong() {
    let stream = small().0;
    for at in 0..stream.len() {
        let mut damaged = stream.clone();
        for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
            damaged[at] = stream[at] ^ flip;
            survive(&damaged);
        }
    }
}

#[test]
fn any_byte_may_be_missing_or_doubled() {
    let stream = small().0;
    for at in 0..stream.len() {
        survive(&[&stream[..at], &stream[at + 1..]].concat());
        survive(&[&stream[..at], &stream[at..=at], &stream[at..]].concat());
    }
}

#[test]
fn a_device_state_is_nothing_else() {
    let stream = small().0;
    let (_, state) = parse([stream.as_slice()], TIGHT).unwrap();
    let bytes = state.as_bytes();
    assert!(DeviceState::from_bytes(&stream, TIGHT).is_err());
    for at in 0..bytes.len() {
        assert!(DeviceState::from_bytes(&bytes[..at], TIGHT).is_err());
    }
    // Between the configuration and the set-up of RAM.
    let with_ping = [&bytes[..58], &[8, 0, 2, 0, 4, 0, 0, 0, 1], &bytes[58..]].concat();
    assert!(parse([with_ping.as_slice()], TIGHT).is_ok());
    assert!(DeviceState::from_bytes(&with_ping, TIGHT).is_err());
}

proptest! {
    #[test]
    fn it_does_not_matter_how_a_stream_is_cut(cuts: Vec<prop::sample::Index>) {
        let stream = small().0;
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.sort_unstable();
        let starts = [0].into_iter().chain(cuts.iter().copied());
        let ends = cuts.iter().copied().chain([stream.len()]);
        let pieces = starts.zip(ends).map(|(start, end)| &stream[start..end]);
        let whole = parse([stream.as_slice()], TIGHT).unwrap();
        prop_assert_eq!(parse(pieces, TIGHT).unwrap(), whole);
    }

    #[test]
    fn anything_may_follow(at: prop::sample::Index, noise: Vec<u8>) {
        let mut stream = small().0;
        stream.truncate(at.index(stream.len() + 1));
        stream.extend(noise);
        survive(&stream);
    }

    #[test]
    fn descriptions_may_be_anything(text in "[\\[{\"a-z0-9,:}\\]]{0,64}", name in "[a-z]{1,8}") {
        let stream = Synthetic::start().ram_setup().pages(3).end_of_pages().device(3, &name, &[1]);
        survive(&stream.clone().end(&text).0);
        let text = format!(
            r#"{{"page_size":4096,"devices":[{{"name":"{name}","instance_id":0,"fields":{text}}}]}}"#
        );
        survive(&stream.end(&text).0);
    }
}

#[test]
fn byte_by_byte_is_the_same() {
    let stream = small().0;
    let whole = parse([stream.as_slice()], TIGHT).unwrap();
    assert_eq!(parse(stream.chunks(1), TIGHT).unwrap(), whole);
}
