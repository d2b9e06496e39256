//! What a stream may not have, and what the error says about it.

use tintype_stream::{Error, ErrorKind, Limits, Parser, Step};
use tintype_types::ByteCount;

use crate::synthetic::{DESCRIPTION, Synthetic};

fn parse(stream: &[u8], limits: Limits) -> Result<(), Error> {
    let mut parser = Parser::new(limits);
    let mut rest = stream;
    while let Step::Event { consumed, .. } = parser.next(rest)? {
        rest = &rest[consumed..];
    }
    parser.finish()?.sections().map(drop)
}

/// Checks that the stream fails in this way, with this in the message.
#[track_caller]
fn check(stream: Synthetic, kind: ErrorKind, fact: &str) {
    let error = parse(&stream.0, Limits::default()).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(fact), "{error}");
}

/// The start of a RAM section, up to its table's size.
fn table(total: u64) -> Synthetic {
    Synthetic::start().section(1, 2, "ram", 4).be64(total | 0x04)
}

fn page(flags: u64) -> Synthetic {
    Synthetic::start().ram_setup().pages(2).be64(flags)
}

#[test]
fn what_is_not_a_stream() {
    check(Synthetic::default().raw(b"QFI\xfb\0\0\0\x03"), ErrorKind::NotAStream, "[51, 46, 49");
    check(Synthetic::default().raw(b"QEVM").be32(2), ErrorKind::NotAStream, "version 3");
    check(Synthetic::default(), ErrorKind::Truncated, "byte 0");
}

#[test]
fn configurations() {
    use ErrorKind::{Malformed, TooLarge, Unsupported};
    let start = || Synthetic::default().raw(b"QEVM").be32(3);
    let subsection = |name: &str| Synthetic::start().raw(&[5]).name(name).be32(1);
    check(start().raw(&[1]), Malformed, "0x01 where the configuration belongs");
    check(start().raw(&[7]).be32(256), TooLarge, "limit is 255");
    check(start().raw(&[7]).be32(2).raw(b"a\n"), Malformed, r"a\n");
    check(subsection("configuration/target-page-bits").be32(14), Unsupported, "2^14");
    let shared = subsection("configuration/capabilities").be32(1).name("x-ignore-shared");
    check(shared, Unsupported, "x-ignore-shared");
    check(subsection("configuration/new"), Unsupported, "configuration/new");
}

#[test]
fn sections() {
    use ErrorKind::{Malformed, Unsupported};
    let start = Synthetic::start;
    check(start().section(1, 7, "0000:00:04.0/vfio", 1), Unsupported, "0000:00:04.0/vfio");
    check(start().section(1, 2, "ram", 3), Unsupported, "version 3 of RAM");
    check(start().ram_setup().section(1, 3, "ram", 4), Malformed, "second RAM section");
    check(start().raw(&[9]), Malformed, "0x09");
    check(start().raw(&[0]), Malformed, "0x00");
    check(start().pages(2), Malformed, "section 2, which is not RAM");
    check(start().ram_setup().raw(&[3]).be32(5), Malformed, "section 5");
    check(start().ram_setup().section(4, 3, "timer", 1), Unsupported, "early section \"timer\"");
    check(page(0x10).raw(&[4]), Malformed, "footer belongs");
    check(page(0x10).footer(3), Malformed, "footer of 3");
}

#[test]
fn commands() {
    use ErrorKind::{Malformed, Unsupported};
    let command = |id, payload: &[u8]| Synthetic::start().command(id, payload);
    check(command(3, &[0; 16]), Unsupported, "POSTCOPY_ADVISE");
    check(command(8, &[]), Unsupported, "ENABLE_COLO");
    check(command(7, &[0; 4]), Unsupported, "PACKAGED");
    check(command(2, &[0; 3]), Malformed, "command 2 of 3 bytes");
    check(command(0, &[]), Malformed, "command 0");
    check(command(12, &[]), Malformed, "command 12");
    check(command(11, &[]).command(11, &[]), Malformed, "second switchover");
}

#[test]
fn tables() {
    use ErrorKind::{Malformed, TooLarge};
    check(table(1 << 45), TooLarge, "limit is 17592186044416");
    check(table(0x1000).name("a").be64(0x2000), Malformed, "longer than all RAM");
    check(table(0x1000).name("a").be64(0x800), Malformed, "\"a\" has 2048 bytes");
    check(table(0x1000).name("").be64(0x1000), Malformed, "RAM block name");
    check(table(0x1000).name("\u{7f}").be64(0x1000), Malformed, r"\u{7f}");
    check(table(0x2000).name("a").be64(0).name("a").be64(0x1000), Malformed, "second RAM block");
    check(table(0x1000).name("a").be64(0x1000).be64(0x0800), Malformed, "record 0x800");
    let mut many = table(0x1000);
    for number in 0..=4096 {
        many = many.name(&number.to_string()).be64(0);
    }
    check(many, TooLarge, "limit is 4096");
}

#[test]
fn pages() {
    use ErrorKind::{Malformed, Unsupported};
    check(page(0x1000 | 0x28), Malformed, "before any block");
    check(page(0x08).name("vga"), Malformed, "\"vga\"");
    check(page(0x4000 | 0x08).name("pc.ram"), Malformed, "page 4 is outside");
    check(page(!0xfff | 0x02).name("rom"), Malformed, "outside");
    check(page(0x02).name("rom").raw(&[1]), Unsupported, "not zero");
    check(page(0x40), Unsupported, "xbzrle");
    check(page(0x100), Unsupported, "compress");
    check(page(0x200), Unsupported, "multifd");
    check(page(0x80), Unsupported, "RDMA");
    check(page(0x0a), Malformed, "record 0xa");
    check(page(0x04), Malformed, "record 0x4");
    check(page(0x1010), Malformed, "record 0x1010");
}

#[test]
fn ends() {
    use ErrorKind::{Malformed, Truncated, Unsupported};
    let devices = || {
        let pages = Synthetic::start().ram_setup().pages(2).end_of_pages();
        pages.device(3, "timer", &[1; 8]).device(4, "old", &[2; 3])
    };
    let full = || devices().device(9, "0000:00:02.0/disk", &[0; 22]);
    assert!(parse(&full().end(DESCRIPTION).0, Limits::default()).is_ok());
    check(full().raw(&[0]), Truncated, "device sections");
    check(full().end(DESCRIPTION).raw(b"x"), Truncated, "device sections");
    check(full().end("{}"), Malformed, "description");
    check(full().end(r#"{"page_size":4096,"devices":7}"#), Malformed, "description");
    check(full().end(&DESCRIPTION.replace("4096", "8192")), Unsupported, "page size of 8192");
    check(devices().end(DESCRIPTION), Malformed, "\"old\" has no end");
    let other = Synthetic::start().ram_setup().pages(2).end_of_pages().device(3, "clock", &[]);
    check(other.end(DESCRIPTION), Malformed, "\"timer\" is not where");
    check(full().device(10, "more", &[]).end(DESCRIPTION), Malformed, "has no end");
    let lost_footer = devices().section(4, 9, "0000:00:02.0/disk", 1).raw(&[0; 30]);
    check(lost_footer.end(DESCRIPTION), Malformed, "\"0000:00:02.0/disk\" has no end");
}

#[test]
fn limits() {
    let limits = Limits { max_device_state: ByteCount(64), ..Limits::default() };
    let error = parse(&Synthetic::start().ram_setup().0, limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}
