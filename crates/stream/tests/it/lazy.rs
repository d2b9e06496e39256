//! Real QEMU that runs before its memory has arrived.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::json;
use tintype_stream::{PostcopyWriter, RamBlockId, ReturnMessage, ReturnPathParser};
use tintype_types::BlockIndex;

use crate::memory::Saved;
use crate::qemu::{self, Qemu};

/// A sender of one connection.
struct Sender<'s> {
    saved: &'s Saved,
    writer: PostcopyWriter<'s>,
    socket: UnixStream,
    parser: ReturnPathParser,
    answers: Vec<u8>,
    requests: usize,
}

impl<'s> Sender<'s> {
    fn new(saved: &'s Saved, socket: UnixStream) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        Self {
            saved,
            writer: PostcopyWriter::new(&saved.state),
            socket,
            parser: ReturnPathParser::new(&saved.state),
            answers: Vec::new(),
            requests: 0,
        }
    }

    /// Reads messages until `wanted` says so, or for this long; serves requests.
    fn serve(&mut self, time: Duration, wanted: impl Fn(&ReturnMessage<'_>) -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < time {
            let answers = std::mem::take(&mut self.answers);
            let mut rest = answers.as_slice();
            let mut found = false;
            while let Some((message, len)) = self.parser.next(rest).unwrap() {
                match message {
                    ReturnMessage::RequestPages { block, first, count } => {
                        self.requests += 1;
                        for page in first.0..first.0 + count {
                            self.send(block, BlockIndex(page));
                        }
                    }
                    ReturnMessage::ReceivedBitmap { block, bitmap } => {
                        self.writer.received(block, bitmap);
                    }
                    _ => {}
                }
                rest = &rest[len..];
                found = wanted(&message);
                if found {
                    break;
                }
            }
            self.answers = rest.to_vec();
            if found {
                return true;
            }
            let mut buffer = [0; 4096];
            match self.socket.read(&mut buffer) {
                Ok(count) => self.answers.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        false
    }

    fn send(&mut self, block: RamBlockId, page: BlockIndex) {
        let bytes = &self.saved.pages[&(block, page)];
        let mut out = Vec::new();
        if bytes.iter().all(|&byte| byte == 0) {
            self.writer.zero_page(&mut out, block, page).unwrap();
        } else {
            self.writer.page(&mut out, block, page, bytes).unwrap();
        }
        self.socket.write_all(&out).unwrap();
    }

    fn send_rest(mut self) {
        let wanted = |key: &&(RamBlockId, BlockIndex)| self.writer.wants(key.0, key.1);
        let rest: Vec<_> = self.saved.pages.keys().filter(wanted).copied().collect();
        for (block, page) in rest {
            self.send(block, page);
        }
        let shut = |message: &ReturnMessage<'_>| *message == ReturnMessage::Shut { failed: false };
        let mut out = Vec::new();
        let writer = std::mem::replace(&mut self.writer, PostcopyWriter::new(&self.saved.state));
        writer.finish(&mut out).unwrap();
        self.socket.write_all(&out).unwrap();
        // What was asked for meanwhile is on its way and must not come twice.
        for &(block, page) in self.saved.pages.keys() {
            self.writer.zero_page(&mut Vec::new(), block, page).unwrap();
        }
        assert!(self.serve(Duration::from_secs(30), shut));
    }
}

/// Restores a running VM lazily, losing the connection this often meanwhile.
fn check(machine: &str, losses: usize) {
    if !qemu::is_installed() {
        return;
    }
    let mut source = Qemu::start(&["-M", machine]);
    source.wait_for_guest();
    let saved = Saved::parse(&source.capture(), 1 << 20);
    let before = qemu::counters(&saved.block("pc.ram"));

    let mut target = Qemu::start(&["-M", machine, "-incoming", "defer"]);
    target.set_capabilities(&["postcopy-ram"]);
    let mut sender = Sender::new(&saved, target.receive("migrate-incoming"));
    let mut out = Vec::new();
    sender.writer.start(&mut out).unwrap();
    sender.socket.write_all(&out).unwrap();
    let loaded = ReturnMessage::Pong(PostcopyWriter::LOADED_PING);
    assert!(sender.serve(Duration::from_secs(30), |message| *message == loaded));
    sender.serve(Duration::from_millis(200), |_| false);
    assert!(sender.requests > 0);
    assert_eq!(target.status(), "running");
    for _ in 0..losses {
        sender.socket.shutdown(std::net::Shutdown::Both).unwrap();
        target.wait_for_migration("postcopy-paused");
        sender = Sender::new(&saved, target.receive("migrate-recover"));
        let mut out = Vec::new();
        sender.writer.ask_received(&mut out);
        sender.socket.write_all(&out).unwrap();
        let last = saved.state.ram_blocks().len() - 1;
        let is_last = |message: &ReturnMessage<'_>| matches!(message, ReturnMessage::ReceivedBitmap { block, .. } if block.index() == last);
        assert!(sender.serve(Duration::from_secs(30), is_last));
        let mut out = Vec::new();
        sender.writer.resume(&mut out);
        sender.socket.write_all(&out).unwrap();
        let resumed = |message: &ReturnMessage<'_>| *message == ReturnMessage::ResumeAck;
        assert!(sender.serve(Duration::from_secs(30), resumed));
        sender.serve(Duration::from_millis(100), |_| false);
    }
    sender.send_rest();
    target.wait_for_migration("completed");
    target.ask("stop", json!({}));
    let memory = target.memory(16 << 20);
    let after = qemu::counters(&memory);
    qemu::assert_one_instant(&after);
    assert!(after[0] > before[0]);
    assert!(memory[1 << 20..] == saved.block("pc.ram")[1 << 20..]);
}

#[test]
fn q35_runs_before_its_memory_arrives() {
    check("q35", 0);
}

#[test]
fn pc_survives_lost_connections() {
    check("pc", 2);
}
