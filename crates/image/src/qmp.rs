//! Just enough QMP: one command at a time, its answer, and a deadline.
//!
//! Events are skipped. A line that is longer than any sensible answer ends the
//! connection.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use serde_json::{Value, json};

/// The longest line; descriptions of long backing chains are some hundred KiB.
const MAX_LINE: usize = 16 << 20;

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// QEMU says no.
    Refused(String),
    /// QEMU has closed the monitor.
    Closed,
    /// No answer came in time.
    TimedOut,
    /// What came is not QMP.
    Nonsense(&'static str),
    /// The socket failed.
    Io(io::Error),
}

/// A monitor connection.
pub(crate) struct Qmp {
    stream: UnixStream,
    timeout: Duration,
    inbox: Vec<u8>,
}

impl Qmp {
    /// Takes over a monitor; each command may take as long as `timeout`.
    pub(crate) fn new(stream: UnixStream, timeout: Duration) -> Self {
        Self { stream, timeout, inbox: Vec::new() }
    }

    /// Waits for the greeting and enters command mode.
    pub(crate) fn greet(&mut self) -> Result<(), Failure> {
        let greeting = self.receive(Instant::now() + self.timeout)?;
        if greeting.get("QMP").is_none() {
            return Err(Failure::Nonsense("no greeting"));
        }
        self.call("qmp_capabilities", &json!({})).map(|_| ())
    }

    /// Sends a command and returns what its answer returns.
    pub(crate) fn call(&mut self, command: &str, arguments: &Value) -> Result<Value, Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        self.stream.set_write_timeout(Some(self.timeout)).map_err(Failure::Io)?;
        self.send(line.as_bytes()).map_err(failure)?;
        loop {
            let mut answer = self.receive(deadline)?;
            if let Some(error) = answer.get("error") {
                let message = error.get("desc").and_then(Value::as_str);
                return Err(Failure::Refused(message.unwrap_or("no reason given").to_owned()));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if answer.get("event").is_none() {
                return Err(Failure::Nonsense("neither an answer nor an event"));
            }
        }
    }

    /// Waits until QEMU closes the monitor, which it does after its images.
    pub(crate) fn wait_closed(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        loop {
            match self.receive(deadline) {
                Ok(_) => {}
                Err(Failure::Closed) => return Ok(()),
                Err(other) => return Err(other),
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut left = bytes;
        while !left.is_empty() {
            match send(&self.stream, left, SendFlags::NOSIGNAL) {
                Ok(count) => left = &left[count..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> Result<Value, Failure> {
        let mut seen = 0;
        loop {
            if let Some(at) = self.inbox[seen..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.inbox.drain(..=seen + at).collect();
                return serde_json::from_slice(&line).map_err(|_| Failure::Nonsense("no JSON"));
            }
            seen = self.inbox.len();
            if seen > MAX_LINE {
                return Err(Failure::Nonsense("a line without an end"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::TimedOut);
            }
            self.stream.set_read_timeout(Some(left)).map_err(Failure::Io)?;
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Failure::Closed),
                Ok(count) => self.inbox.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failure(error)),
            }
        }
    }
}

fn failure(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Failure::TimedOut,
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Failure::Closed,
        _ => Failure::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Says `lines` to a client that calls one command.
    fn check(lines: &str, expected: impl Fn(Result<Value, Failure>) -> bool) {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(lines.as_bytes()).unwrap();
        far.shutdown(std::net::Shutdown::Write).unwrap();
        let outcome = Qmp::new(near, Duration::from_secs(5)).call("x", &json!({}));
        assert!(expected(outcome), "{lines}");
    }

    #[test]
    fn answers_are_told_from_events() {
        check("{\"event\":\"E\"}\n{\"return\":7}\n", |answer| answer.unwrap() == 7);
        check(
            "{\"error\":{\"desc\":\"no\"}}\n",
            |answer| matches!(answer, Err(Failure::Refused(message)) if message == "no"),
        );
        check("{\"error\":5}\n", |answer| matches!(answer, Err(Failure::Refused(_))));
        check("", |answer| matches!(answer, Err(Failure::Closed)));
        check("{\"return\":7}", |answer| matches!(answer, Err(Failure::Closed)));
        check("what\n", |answer| matches!(answer, Err(Failure::Nonsense(_))));
        check("{}\n", |answer| matches!(answer, Err(Failure::Nonsense(_))));
        check("[[[[\n", |answer| matches!(answer, Err(Failure::Nonsense(_))));
    }

    #[test]
    fn a_line_without_end_and_silence_are_errors() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || while far.write_all(&[b'x'; 65_536]).is_ok() {});
        let mut qmp = Qmp::new(near, Duration::from_secs(60));
        assert!(matches!(qmp.greet(), Err(Failure::Nonsense(_))));
        drop(qmp);
        writer.join().unwrap();
        let (near, _far) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::new(near, Duration::from_millis(50));
        assert!(matches!(qmp.greet(), Err(Failure::TimedOut)));
    }
}
