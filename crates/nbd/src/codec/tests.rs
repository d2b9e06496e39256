//! Every message survives its bytes; every damaged message is an error or
//! another message, never a panic.

use std::fmt::Debug;

use proptest::prelude::*;

use super::*;

/// Checks that a message survives, and that all its truncations and some of its
/// flipped bits decode without a panic.
fn check<T: Debug + PartialEq>(
    message: &T,
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, Malformed>,
) {
    assert_eq!(decode(bytes).as_ref(), Ok(message));
    for len in 0..bytes.len() {
        let _ = decode(&bytes[..len]);
    }
    let mut damaged = bytes.to_vec();
    for at in 0..damaged.len() {
        for bit in [0x01, 0x80, 0xff] {
            damaged[at] ^= bit;
            let _ = decode(&damaged);
            damaged[at] ^= bit;
        }
    }
    damaged.push(0);
    let _ = decode(&damaged);
}

fn name() -> impl Strategy<Value = String> {
    "[a-z:é-]{0,40}"
}

proptest! {
    #[test]
    fn requests(flags: u16, command in 0_u16..12, handle: u64, offset: u64, len: u32) {
        let command = Command::from_number(command);
        let request = Request { flags: CommandFlags(flags), command, handle, offset, len };
        check(&request, &request.encode(), Request::decode);
        prop_assert!(Request::decode(&request.encode()[1..]).is_err());
    }

    #[test]
    fn replies(done: bool, kind: u16, handle: u64, len: u32, errno: u32) {
        let chunk = Chunk { done, kind: ChunkKind::from_number(kind), handle, len };
        check(&ReplyStart::Chunk(chunk), &chunk.encode(), ReplyStart::decode);
        let simple = ReplyStart::Simple { errno: Errno(errno), handle };
        let bytes = ReplyStart::encode_simple(Errno(errno), handle);
        check(&simple, &bytes, ReplyStart::decode);
        prop_assert_eq!(ReplyStart::len_of(&bytes), Ok(ReplyStart::SIMPLE_LEN));
    }

    #[test]
    fn payloads(offset: u64, len: u32, errno in 1_u32.., message in name()) {
        let hole = HoleReply { offset, len };
        check(&hole, &hole.encode(), HoleReply::decode);
        prop_assert_eq!(DataReply::decode(&DataReply { offset }.encode()), DataReply { offset });
        let error = ErrorReply { errno: Errno(errno), message };
        check(&error, &error.encode(), ErrorReply::decode);
    }

    #[test]
    fn block_status(context: u32, status in prop::collection::vec((1_u32.., any::<u32>()), 1..20)) {
        let descriptors = status
            .into_iter()
            .map(|(len, flags)| StatusDescriptor { len, flags: StatusFlags(flags) })
            .collect();
        let reply = BlockStatusReply { context, descriptors };
        check(&reply, &reply.encode(), BlockStatusReply::decode);
    }

    #[test]
    fn handshakes(flags: u16, kind in 0_u32..14, len: u32, reply: u32) {
        let greeting = Greeting { flags };
        check(&greeting, &greeting.encode(), Greeting::decode);
        let header = OptionHeader { kind: OptionKind::from_number(kind), len };
        check(&header, &header.encode(), OptionHeader::decode);
        let kind = OptionReplyKind::from_number(reply);
        let header = OptionReplyHeader { option: header.kind, kind, len };
        check(&header, &header.encode(), OptionReplyHeader::decode);
    }

    #[test]
    fn options(name in name(), infos in prop::collection::vec(0_u16..9, 0..9), id: u32, names in prop::collection::vec(name(), 0..5)) {
        let infos = infos.into_iter().map(InfoKind::from_number).collect();
        let request = ExportRequest { name: name.clone(), infos };
        check(&request, &request.encode(), ExportRequest::decode);
        let request = ContextRequest { export: name.clone(), queries: names };
        check(&request, &request.encode(), ContextRequest::decode);
        let reply = ContextReply { id, name: name.clone() };
        check(&reply, &reply.encode(), ContextReply::decode);
        let reply = ListReply { name };
        check(&reply, &reply.encode(), ListReply::decode);
    }

    #[test]
    fn facts(size: u64, flags: u16, minimum in 0_u32..=25, preferred in 0_u32..7, maximum: u32) {
        let info = Info::Export { size, flags: ExportFlags(flags) };
        check(&info, &info.encode(), Info::decode);
        let minimum = 1 << minimum;
        let sizes = BlockSizes { minimum, preferred: minimum << preferred.min(6), maximum: maximum.max(minimum) };
        check(&Info::BlockSize(sizes), &Info::BlockSize(sizes).encode(), Info::decode);
    }

    #[test]
    fn garbage(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&bytes);
        let _ = ReplyStart::decode(&bytes);
        let _ = HoleReply::decode(&bytes);
        let _ = ErrorReply::decode(&bytes);
        let _ = BlockStatusReply::decode(&bytes);
        let _ = Greeting::decode(&bytes);
        let _ = OptionHeader::decode(&bytes);
        let _ = OptionReplyHeader::decode(&bytes);
        let _ = ExportRequest::decode(&bytes);
        let _ = ContextRequest::decode(&bytes);
        let _ = ContextReply::decode(&bytes);
        let _ = ListReply::decode(&bytes);
        let _ = Info::decode(&bytes);
    }
}

#[test]
fn the_wire_is_that_of_the_specification() {
    let request = Request {
        flags: CommandFlags::FUA,
        command: Command::Write,
        handle: 0x0102_0304_0506_0708,
        offset: 4096,
        len: 512,
    };
    let expected = [
        0x25, 0x60, 0x95, 0x13, 0, 1, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0, 0,
        0, 2, 0,
    ];
    assert_eq!(request.encode(), expected);
    assert_eq!(&Greeting { flags: 3 }.encode()[..], b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn what_the_protocol_forbids_is_refused() {
    let facts = |minimum: u32, preferred: u32, maximum: u32| {
        Info::decode(&Info::BlockSize(BlockSizes { minimum, preferred, maximum }).encode())
    };
    assert!(facts(3, 4096, 4096).is_err());
    assert!(facts(0, 4096, 4096).is_err());
    assert!(facts(4096, 512, 8192).is_err());
    assert!(facts(4096, 4096, 512).is_err());
    assert!(ErrorReply::decode(&[0, 0, 0, 0, 0, 0]).is_err());
    assert!(BlockStatusReply::decode(&[0, 0, 0, 0]).is_err());
    assert!(BlockStatusReply::decode(&[0; 12]).is_err());
    let long = ListReply { name: "x".repeat(MAX_NAME_LEN + 1) };
    assert!(ListReply::decode(&long.encode()).is_err());
    assert!(ListReply::decode(&[0, 0, 0, 1, 0]).is_err());
    let hungry = [&[0, 0, 0, 0][..], &u32::MAX.to_be_bytes()].concat();
    assert!(ContextRequest::decode(&hungry).is_err());
}
