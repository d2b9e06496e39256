//! Peers that break the rules: an error or a closed connection at worst.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tintype_nbd::codec::{
    Chunk, ChunkKind, ClientFlags, Command, CommandFlags, ContextRequest, ExportRequest, Greeting,
    Info, OptionHeader, OptionKind, OptionReplyHeader, OptionReplyKind, ReplyStart, Request,
};
use tintype_nbd::{Client, ConnectParams, ErrorKind, MemoryExport, ServerConfig};

use crate::tools::{Numbers, Served};

fn served() -> Served {
    let config = ServerConfig {
        handshake_timeout: Duration::from_millis(300),
        max_connections: 4,
        ..ServerConfig::default()
    };
    Served::with(Arc::new(MemoryExport::new(vec![7; 1 << 20])), &config)
}

/// Connects and takes in the greeting.
fn greeted(served: &Served) -> UnixStream {
    let mut stream = UnixStream::connect(&served.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut greeting = [0; Greeting::LEN];
    stream.read_exact(&mut greeting).unwrap();
    Greeting::decode(&greeting).unwrap();
    stream
}

fn option(stream: &mut UnixStream, kind: OptionKind, data: &[u8]) {
    let len = u32::try_from(data.len()).unwrap();
    stream.write_all(&OptionHeader { kind, len }.encode()).unwrap();
    stream.write_all(data).unwrap();
}

fn reply(stream: &mut UnixStream) -> OptionReplyKind {
    let mut bytes = [0; OptionReplyHeader::LEN];
    stream.read_exact(&mut bytes).unwrap();
    let header = OptionReplyHeader::decode(&bytes).unwrap();
    stream.read_exact(&mut vec![0; usize::try_from(header.len).unwrap()]).unwrap();
    header.kind
}

/// Enters the transmission phase with simple replies.
fn entered(served: &Served) -> UnixStream {
    let mut stream = greeted(served);
    stream.write_all(&ClientFlags(3).encode()).unwrap();
    option(&mut stream, OptionKind::ExportName, b"disk");
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

#[track_caller]
fn assert_closed(mut stream: UnixStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
}

fn request(command: Command, offset: u64, len: u32) -> [u8; Request::LEN] {
    Request { flags: CommandFlags::default(), command, handle: 1, offset, len }.encode()
}

fn errno(stream: &mut UnixStream) -> u32 {
    let mut bytes = [0; ReplyStart::SIMPLE_LEN];
    stream.read_exact(&mut bytes).unwrap();
    match ReplyStart::decode(&bytes).unwrap() {
        ReplyStart::Simple { errno, .. } => errno.0,
        ReplyStart::Chunk(chunk) => panic!("{chunk:?}"),
    }
}

#[test]
fn handshakes_that_go_nowhere_end() {
    let served = served();
    let start = Instant::now();
    assert_closed(greeted(&served));
    assert!(start.elapsed() < Duration::from_secs(5));
    let mut trickling = greeted(&served);
    while trickling.write_all(&[0]).is_ok() {
        assert!(start.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn garbage_in_the_handshake_ends_it() {
    let served = served();
    let mut numbers = Numbers(77);
    for _ in 0..50 {
        let mut stream = greeted(&served);
        let _ = stream.write_all(&numbers.bytes(200));
        assert_closed(stream);
    }
    let mut stream = greeted(&served);
    stream.write_all(&ClientFlags(4).encode()).unwrap();
    assert_closed(stream);
    let mut stream = greeted(&served);
    stream.write_all(&ClientFlags(3).encode()).unwrap();
    stream.write_all(&OptionHeader { kind: OptionKind::Go, len: u32::MAX }.encode()).unwrap();
    assert_closed(stream);
    let mut stream = greeted(&served);
    stream.write_all(&ClientFlags(3).encode()).unwrap();
    option(&mut stream, OptionKind::ExportName, b"other");
    assert_closed(stream);
    served.client().flush().unwrap();
}

#[test]
fn bad_options_are_refused_and_the_handshake_goes_on() {
    let served = served();
    let mut stream = greeted(&served);
    stream.write_all(&ClientFlags(3).encode()).unwrap();
    let export = |name: &str| ExportRequest { name: name.to_owned(), infos: vec![] }.encode();
    let contexts = ContextRequest { export: "disk".to_owned(), queries: vec![] }.encode();
    for (kind, data, expected) in [
        (OptionKind::Go, vec![], OptionReplyKind::Invalid),
        (OptionKind::Go, vec![0xff; 100], OptionReplyKind::Invalid),
        (OptionKind::Go, export("other"), OptionReplyKind::UnknownExport),
        (OptionKind::Info, export("other"), OptionReplyKind::UnknownExport),
        (OptionKind::List, vec![1], OptionReplyKind::Invalid),
        (OptionKind::StructuredReply, vec![1], OptionReplyKind::Invalid),
        (OptionKind::StartTls, vec![], OptionReplyKind::Unsupported),
        (OptionKind::ExtendedHeaders, vec![], OptionReplyKind::Unsupported),
        (OptionKind::Other(99), vec![1; 60_000], OptionReplyKind::Unsupported),
        (OptionKind::SetMetaContext, contexts.clone(), OptionReplyKind::Invalid),
        (OptionKind::StructuredReply, vec![], OptionReplyKind::Ack),
        (OptionKind::SetMetaContext, contexts.clone(), OptionReplyKind::Ack),
        (OptionKind::ListMetaContext, contexts, OptionReplyKind::MetaContext),
        (OptionKind::Abort, vec![], OptionReplyKind::Ack),
    ] {
        option(&mut stream, kind, &data);
        assert_eq!(reply(&mut stream), expected, "{kind:?}");
        if expected == OptionReplyKind::MetaContext {
            assert_eq!(reply(&mut stream), OptionReplyKind::Ack);
        }
    }
    assert_closed(stream);
}

#[test]
fn bad_requests_are_answered() {
    let served = served();
    let mut stream = entered(&served);
    for (command, offset, len, expected) in [
        (Command::Read, 0, u32::MAX, 22),
        (Command::Read, u64::MAX, 1, 22),
        (Command::Read, 1 << 20, 1, 22),
        (Command::WriteZeroes, 1 << 20, 1, 28),
        (Command::Trim, u64::MAX, u32::MAX, 28),
        (Command::BlockStatus, 0, 512, 22),
        (Command::Cache, 0, 512, 22),
        (Command::Other(77), 0, 512, 22),
        (Command::Trim, 0, 0, 0),
        (Command::Flush, 0, 0, 0),
    ] {
        stream.write_all(&request(command, offset, len)).unwrap();
        assert_eq!(errno(&mut stream), expected, "{command} {offset} {len}");
    }
    let flags = CommandFlags(1 << 9);
    let odd = Request { flags, command: Command::Flush, handle: 1, offset: 0, len: 0 };
    stream.write_all(&odd.encode()).unwrap();
    assert_eq!(errno(&mut stream), 22);
    stream.write_all(&request(Command::Write, 1 << 20, 3)).unwrap();
    stream.write_all(&[1, 2, 3]).unwrap();
    assert_eq!(errno(&mut stream), 28);
    stream.write_all(&request(Command::Write, 0, u32::MAX)).unwrap();
    assert_closed(stream);
}

#[test]
fn garbage_requests_end_the_connection() {
    let served = served();
    let mut numbers = Numbers(78);
    for _ in 0..20 {
        let mut stream = entered(&served);
        let _ = stream.write_all(&numbers.bytes(100));
        assert_closed(stream);
    }
}

#[test]
fn half_open_peers_take_no_more_than_their_places() {
    let mut served = served();
    let mut stuck = entered(&served);
    stuck.write_all(&request(Command::Write, 0, 1 << 20)).unwrap();
    stuck.write_all(&[1; 1000]).unwrap();
    let mut deaf = entered(&served);
    for _ in 0..40 {
        let _ = deaf.write_all(&request(Command::Read, 0, 1 << 20));
    }
    let idle = [entered(&served), entered(&served)];
    let mut extra = UnixStream::connect(&served.socket).unwrap();
    assert_eq!(extra.read(&mut [0; 1]).unwrap(), 0, "closed without a greeting");
    drop(idle);
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut client = loop {
        match Client::connect(&served.socket, &ConnectParams::new("disk")) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    client.flush().unwrap();
    let start = Instant::now();
    served.server.take().unwrap().stop();
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// A server that answers the handshake and then says what it is told to.
fn lying_server(after: Vec<u8>, structured: bool) -> UnixStream {
    let (near, mut far) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let ack = |option| {
            OptionReplyHeader { option, kind: OptionReplyKind::Ack, len: 0 }.encode().to_vec()
        };
        let mut say = Greeting { flags: 3 }.encode().to_vec();
        let first = if structured { OptionReplyKind::Ack } else { OptionReplyKind::Unsupported };
        let option = OptionKind::StructuredReply;
        say.extend(OptionReplyHeader { option, kind: first, len: 0 }.encode());
        if structured {
            say.extend(ack(OptionKind::SetMetaContext));
        }
        let info = Info::Export { size: 1 << 20, flags: tintype_nbd::codec::ExportFlags(0x65) };
        let info = info.encode();
        let len = u32::try_from(info.len()).unwrap();
        let kind = OptionReplyKind::Info;
        say.extend(OptionReplyHeader { option: OptionKind::Go, kind, len }.encode());
        say.extend(info);
        say.extend(ack(OptionKind::Go));
        say.extend(after);
        let _ = far.write_all(&say);
        let _ = far.shutdown(std::net::Shutdown::Write);
        let _ = far.read_to_end(&mut Vec::new());
    });
    near
}

fn chunk(done: bool, kind: ChunkKind, len: u32, payload: &[u8]) -> Vec<u8> {
    [&Chunk { done, kind, handle: 1, len }.encode()[..], payload].concat()
}

#[test]
fn lies_of_a_server_are_errors() {
    let check = |after: Vec<u8>, structured: bool, expected: ErrorKind| {
        let stream = lying_server(after, structured);
        let mut client = Client::from_stream(stream, &ConnectParams::new("disk")).unwrap();
        let error = client.read_at(0, &mut [0; 4096]).unwrap_err();
        assert_eq!(error.kind(), expected, "{error}: {:?}", std::error::Error::source(&error));
    };
    let protocol = ErrorKind::Protocol;
    let hole = |offset: u64, len: u32| [&offset.to_be_bytes()[..], &len.to_be_bytes()].concat();
    check(vec![], true, ErrorKind::Disconnected);
    check(vec![0; 40], true, protocol);
    check(ReplyStart::encode_simple(tintype_nbd::codec::Errno(0), 1).to_vec(), true, protocol);
    check(ReplyStart::encode_simple(tintype_nbd::codec::Errno(5), 2).to_vec(), false, protocol);
    check(
        ReplyStart::encode_simple(tintype_nbd::codec::Errno(5), 1).to_vec(),
        false,
        ErrorKind::Remote,
    );
    check(chunk(true, ChunkKind::None, 0, &[]), false, protocol);
    check(chunk(true, ChunkKind::None, 0, &[]), true, protocol);
    check(chunk(false, ChunkKind::None, 0, &[]), true, protocol);
    check(chunk(true, ChunkKind::Hole, 12, &hole(0, 4097)), true, protocol);
    check(chunk(true, ChunkKind::Hole, 12, &hole(0, 4095)), true, protocol);
    check(chunk(true, ChunkKind::Hole, 12, &hole(u64::MAX, 1)), true, protocol);
    check(chunk(true, ChunkKind::Hole, 13, &hole(0, 4096)), true, protocol);
    check(chunk(true, ChunkKind::Data, 8, &[0; 8]), true, protocol);
    check(chunk(true, ChunkKind::Data, 4, &[0; 8]), true, protocol);
    check(chunk(true, ChunkKind::Data, u32::MAX, &[0; 100]), true, protocol);
    check(chunk(true, ChunkKind::Error, u32::MAX, &[0; 100]), true, protocol);
    check(chunk(true, ChunkKind::Error, 6, &[0; 6]), true, protocol);
    check(chunk(true, ChunkKind::Error, 6, &[0, 0, 0, 5, 0, 9]), true, protocol);
    check(chunk(true, ChunkKind::Error, 6, &[0, 0, 0, 5, 0, 0]), true, ErrorKind::Remote);
    check(chunk(true, ChunkKind::Other(0x8077), 6, &[0, 0, 0, 5, 0, 0]), true, ErrorKind::Remote);
    check(chunk(true, ChunkKind::BlockStatus, 12, &[0; 12]), true, protocol);
    let error = chunk(false, ChunkKind::Error, 6, &[0, 0, 0, 5, 0, 0]);
    check(error.repeat(1000), true, protocol);
    let twice = [
        chunk(false, ChunkKind::Hole, 12, &hole(0, 4096)),
        chunk(true, ChunkKind::Hole, 12, &hole(0, 4096)),
    ];
    check(twice.concat(), true, protocol);
}

#[test]
fn a_server_that_says_nothing_times_out() {
    let (near, _far) = UnixStream::pair().unwrap();
    let timeout = Duration::from_millis(100);
    let params = ConnectParams { timeout, ..ConnectParams::new("disk") };
    let error = Client::from_stream(near, &params).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let (near, mut far) = UnixStream::pair().unwrap();
    far.write_all(&Numbers(1).bytes(1000)).unwrap();
    let error = Client::from_stream(near, &params).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Protocol);
}
