//! Parsing must not be what a capture waits for.

use std::time::Instant;

use tintype_stream::{Limits, Parser, Step, Window};

use crate::synthetic::Synthetic;

const PAGES: u64 = 64 << 10;

/// Far below what any machine does, and far above what any guest sends.
const FLOOR_GB_PER_S: f64 = 2.0;

#[test]
fn pages_are_parsed_faster_than_they_can_come() {
    let mut stream = Synthetic::start()
        .section(1, 2, "ram", 4)
        .be64(PAGES << 12 | 0x04)
        .name("pc.ram")
        .be64(PAGES << 12)
        .be64(0x10)
        .footer(2)
        .pages(2)
        .be64(0x08)
        .name("pc.ram")
        .raw(&[1; 4096]);
    for page in 1..PAGES {
        stream = stream.be64(page << 12 | 0x28).raw(&[2; 4096]);
    }
    let stream = stream.end_of_pages().0;

    let start = Instant::now();
    let mut parser = Parser::new(Limits::default());
    let mut at = 0;
    while let Step::Event { consumed, .. } = parser.next(&stream[at..]).unwrap() {
        at += consumed;
    }
    report("in place", at, start);

    let start = Instant::now();
    let mut parser = Parser::new(Limits::default());
    let mut window = Window::new(1 << 20);
    let mut arrived = 0;
    while arrived < stream.len() {
        let spare = window.spare();
        let count = spare.len().min(stream.len() - arrived);
        spare[..count].copy_from_slice(&stream[arrived..arrived + count]);
        arrived += count;
        window.filled(count);
        loop {
            match parser.next(window.bytes()).unwrap() {
                Step::Event { consumed, .. } => window.consume(consumed),
                Step::NeedMore { consumed, .. } => {
                    window.consume(consumed);
                    break;
                }
            }
        }
    }
    report("through a window", arrived, start);
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn report(how: &str, bytes: usize, start: Instant) {
    let speed = bytes as f64 / start.elapsed().as_secs_f64() / 1e9;
    eprintln!("pages are parsed {how} at {speed:.1} GB/s");
    assert!(speed > FLOOR_GB_PER_S, "{how}: {speed:.1} GB/s");
}
