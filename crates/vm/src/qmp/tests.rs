//! A monitor that misbehaves in every way gets an error, never a hang or a panic.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::error::ErrorKind;

/// Runs `peer` as a monitor that has greeted and negotiated.
fn monitor(peer: impl FnOnce(BufReader<UnixStream>, UnixStream) + Send + 'static) -> Qmp {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        stream.write_all(b"{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n").unwrap();
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        stream.write_all(b"{\"return\": {}, \"id\": 1}\r\n").unwrap();
        peer(lines, stream);
    });
    Qmp::connect(&path).unwrap()
}

/// What `execute` says when the monitor answers the first command with `answer`.
fn check(answer: &'static [u8], expected: Result<Value, ErrorKind>) {
    let mut qmp = monitor(move |mut lines, mut stream| {
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        stream.write_all(answer).unwrap();
        // Hold the socket open until the client goes.
        let _ = lines.read_line(&mut line);
    });
    let got = qmp.execute_within("x", json!({}), Duration::from_millis(200));
    assert_eq!(
        got.map_err(|error| error.kind()),
        expected,
        "{:?}",
        String::from_utf8_lossy(answer)
    );
}

#[test]
fn every_answer_has_its_meaning() {
    check(b"{\"return\": 7, \"id\": 2}\n", Ok(json!(7)));
    check(b"{\"return\": 6, \"id\": 1}\n{\"return\": 7, \"id\": 2}\n", Ok(json!(7)));
    check(
        b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n",
        Err(ErrorKind::Refused),
    );
    check(b"{\"id\": 2}\n", Err(ErrorKind::Protocol));
    check(b"garbage\n", Err(ErrorKind::Protocol));
    check(b"[]\n", Err(ErrorKind::Protocol));
    check(b"{\"event\": \"STOP\"}\n", Err(ErrorKind::Protocol));
    check(b"", Err(ErrorKind::Timeout));
    check(b"{\"return\": 7, \"id\": 2}", Err(ErrorKind::Timeout));
}

#[test]
fn a_bomb_of_depth_is_an_error() {
    let mut qmp = monitor(|_, mut stream| {
        let _ = stream.write_all(&[b"[".repeat(1 << 20), b"\n".to_vec()].concat());
    });
    assert_eq!(qmp.execute("x", json!({})).unwrap_err().kind(), ErrorKind::Protocol);
}

#[test]
fn a_monitor_that_closes_is_gone() {
    let mut qmp = monitor(|_, stream| drop(stream));
    assert_eq!(qmp.execute("x", json!({})).unwrap_err().kind(), ErrorKind::Gone);
}

#[test]
fn events_keep_their_order_and_their_time() {
    let mut qmp = monitor(|mut lines, mut stream| {
        let event = |name, us| {
            format!(
                "{{\"event\": \"{name}\", \"timestamp\": {{\"seconds\": 2, \"microseconds\": {us}}}}}\n"
            )
        };
        let flood: String = (0..10_000).map(|_| event("NOISE", 0)).collect();
        stream.write_all((flood + &event("STOP", 5) + &event("RESUME", 9)).as_bytes()).unwrap();
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        stream.write_all(b"{\"return\": {}, \"id\": 2}\n").unwrap();
        let _ = lines.read_line(&mut line);
    });
    qmp.execute("x", json!({})).unwrap();
    let resume = qmp.wait_event("resume", Duration::ZERO, |e| e.name == "RESUME").unwrap();
    let stop = qmp.take_event(|e| e.name == "STOP").unwrap();
    assert_eq!(resume.timestamp_us - stop.timestamp_us, 4);
    assert!(qmp.events.len() <= MAX_EVENTS);
}

#[test]
fn a_held_monitor_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qmp");
    let _listener = UnixListener::bind(&path).unwrap();
    let Err(error) = Qmp::connect(&path) else { panic!("nobody greeted") };
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    assert!(error.to_string().contains("another client holds this monitor"));
}
