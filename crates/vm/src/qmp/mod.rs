//! The QEMU Machine Protocol, as a client: one command at a time, every wait
//! with a deadline, events kept in order with QEMU's own timestamps.
//!
//! Written here and not taken from the `qapi` crate, because a monitor is an
//! untrusted peer on the way to a paused guest: lines and queues are bounded,
//! no wait is without an end, and commands newer than any generated schema
//! (`blockdev-set-active`) are asked for by capability. Specification: QEMU
//! `docs/interop/qmp-spec.rst`.

mod shallow;
pub(crate) mod wire;

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fd::BorrowedFd;
use rustix::net::sockopt::socket_peercred;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use shallow::Shallow;
use wire::{Wire, WireError};

/// How long a command may take when nothing else is said.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// How long a command may take after one was not answered in time, until QEMU
/// answers again. So a QEMU that hangs costs one deadline, and not one for each
/// command that would tidy up.
const SILENT_DEADLINE: Duration = Duration::from_secs(2);

/// How long a monitor may take to greet: longer means that another client holds it.
const GREETING_DEADLINE: Duration = Duration::from_secs(5);

/// Events kept while nobody waits for them; the oldest go first.
const MAX_EVENTS: usize = 4096;

/// One event of QEMU.
#[derive(Debug, Clone)]
pub struct Event {
    /// Its name: `STOP`.
    pub name: String,
    /// Its data, `Null` if it has none.
    pub data: Value,
    /// When it happened by QEMU's clock, in microseconds since 1970.
    pub timestamp_us: i64,
}

impl Event {
    /// Tells whether this is the event `name` whose `key` is `value`.
    pub fn is(&self, name: &str, key: &str, value: &str) -> bool {
        self.name == name && self.data.get(key).and_then(Value::as_str) == Some(value)
    }
}

/// A connection to one QEMU's monitor.
pub struct Qmp {
    wire: Wire,
    events: VecDeque<Event>,
    next_id: u64,
    peer: i32,
    /// The last command was not answered in time.
    silent: bool,
}

impl Qmp {
    /// Connects to a monitor socket and negotiates.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)
            .map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        let peer = socket_peercred(&stream)
            .map_err(|source| Error::Connect { path: path.to_owned(), source: source.into() })?
            .pid
            .as_raw_pid();
        let wire = Wire::new(stream);
        let mut qmp = Self { wire, events: VecDeque::new(), next_id: 0, peer, silent: false };
        let greeting = match qmp.wire.read_line(Instant::now() + GREETING_DEADLINE) {
            Ok(line) => parse(&line)?,
            Err(WireError::Deadline) => {
                return Err(Error::NoGreeting { path: path.to_owned(), waited: GREETING_DEADLINE });
            }
            Err(error) => return Err(lift(error, "the greeting", GREETING_DEADLINE)),
        };
        if !greeting.contains_key("QMP") {
            return Err(Error::protocol("a greeting without `QMP`"));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Returns the process id of the peer, as the kernel knows it.
    pub fn peer(&self) -> i32 {
        self.peer
    }

    /// Runs a command with the default deadline and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.execute_within(command, arguments, DEFAULT_DEADLINE)
    }

    /// Runs a command that may take `limit`.
    pub fn execute_within(
        &mut self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value> {
        let id = self.send(command, arguments)?;
        self.answer(command, id, limit)
    }

    /// Runs commands back to back: all are sent before the first answer is
    /// read, and QEMU runs them in order. The first refusal is returned, after
    /// all answers were read. This is for the paused guest: one round trip.
    pub fn execute_all(&mut self, commands: &[(&str, Value)]) -> Result<()> {
        let ids: Vec<_> = commands
            .iter()
            .map(|(command, arguments)| Ok((*command, self.send(command, arguments.clone())?)))
            .collect::<Result<_>>()?;
        let mut first_error = None;
        for (command, id) in ids {
            match self.answer(command, id, DEFAULT_DEADLINE) {
                Err(error @ Error::Refused { .. }) => drop(first_error.get_or_insert(error)),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Hands a file descriptor to QEMU, which knows it by `name` from now on; a
    /// descriptor that had this name is closed. So private sockets need no path,
    /// and no right to one.
    pub fn pass_descriptor(&mut self, name: &str, descriptor: BorrowedFd<'_>) -> Result<()> {
        let (id, line) = self.line("getfd", json!({"fdname": name}));
        self.wire
            .write_with_descriptor(line.as_bytes(), descriptor, Instant::now() + DEFAULT_DEADLINE)
            .map_err(|error| lift(error, "getfd", DEFAULT_DEADLINE))?;
        self.answer("getfd", id, DEFAULT_DEADLINE).map(drop)
    }

    /// Takes the oldest kept event that `wanted` accepts, or waits for one.
    /// Events that are not wanted stay in order.
    pub fn wait_event(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event> {
        if let Some(at) = self.events.iter().position(&mut wanted) {
            return Ok(self.events.remove(at).expect("the position was just found"));
        }
        let deadline = Instant::now() + limit;
        loop {
            let message = self.read(what, deadline, limit)?;
            if let Some(event) = event_of(message)? {
                if wanted(&event) {
                    return Ok(event);
                }
                self.keep(event);
            }
        }
    }

    /// Takes the oldest kept event that `wanted` accepts, without waiting.
    pub fn take_event(&mut self, wanted: impl FnMut(&Event) -> bool) -> Option<Event> {
        let at = self.events.iter().position(wanted)?;
        self.events.remove(at)
    }

    /// Forgets all events that were kept.
    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    fn line(&mut self, command: &str, arguments: Value) -> (u64, String) {
        self.next_id += 1;
        let id = self.next_id;
        let line = json!({"execute": command, "arguments": arguments, "id": id});
        tracing::trace!(target: "tintype::qmp", "-> {line}");
        (id, format!("{line}\n"))
    }

    fn send(&mut self, command: &str, arguments: Value) -> Result<u64> {
        let (id, line) = self.line(command, arguments);
        self.wire
            .write_all(line.as_bytes(), Instant::now() + DEFAULT_DEADLINE)
            .map_err(|error| lift(error, command, DEFAULT_DEADLINE))?;
        Ok(id)
    }

    fn answer(&mut self, command: &str, id: u64, limit: Duration) -> Result<Value> {
        let limit = if self.silent { limit.min(SILENT_DEADLINE) } else { limit };
        let deadline = Instant::now() + limit;
        loop {
            let read = self.read(command, deadline, limit);
            self.silent = matches!(read, Err(Error::Timeout { .. }));
            let mut message = read?;
            if message.contains_key("event") {
                if let Some(event) = event_of(message)? {
                    self.keep(event);
                }
            } else if message.get("id").and_then(Value::as_u64).is_none_or(|other| other < id) {
                // The late answer to a command whose deadline passed.
                tracing::debug!(target: "tintype::qmp", "an answer that nobody waits for");
            } else if let Some(value) = message.remove("return") {
                return Ok(value);
            } else if let Some(error) = message.remove("error") {
                return Err(refusal(command, &error));
            } else {
                return Err(Error::protocol(format!("an answer to `{command}` without result")));
            }
        }
    }

    fn read(
        &mut self,
        what: &str,
        deadline: Instant,
        limit: Duration,
    ) -> Result<Map<String, Value>> {
        let line = self.wire.read_line(deadline).map_err(|error| lift(error, what, limit))?;
        tracing::trace!(target: "tintype::qmp", "<- {}", String::from_utf8_lossy(&line).trim_end());
        parse(&line)
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }
}

fn parse(line: &[u8]) -> Result<Map<String, Value>> {
    serde_json::from_slice(line).map(|Shallow(message)| message).map_err(|error| {
        let start = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        // A stranger's words do not get to steer a terminal.
        Error::protocol(format!("{error} in `{}`", start.trim_end().escape_debug()))
    })
}

fn event_of(mut message: Map<String, Value>) -> Result<Option<Event>> {
    let Some(Value::String(name)) = message.remove("event") else { return Ok(None) };
    let time = |part: &str| message.get("timestamp").and_then(|t| t.get(part)?.as_i64());
    let timestamp_us = match (time("seconds"), time("microseconds")) {
        (Some(seconds), Some(micros)) => {
            seconds.checked_mul(1_000_000).and_then(|us| us.checked_add(micros))
        }
        _ => None,
    }
    .ok_or_else(|| Error::protocol(format!("the event `{name}` without a time")))?;
    let data = message.remove("data").unwrap_or(Value::Null);
    Ok(Some(Event { name, data, timestamp_us }))
}

fn refusal(command: &str, error: &Value) -> Error {
    let part = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    Error::Refused { command: command.to_owned(), class: part("class"), description: part("desc") }
}

fn lift(error: WireError, during: &str, waited: Duration) -> Error {
    match error {
        WireError::Deadline => Error::Timeout { what: format!("answer `{during}`"), waited },
        WireError::Closed => Error::Gone { during: during.to_owned() },
        WireError::TooLong => Error::protocol("a line without end"),
        WireError::Io(source) => {
            Error::System { operation: format!("talk to QEMU during `{during}`"), source }
        }
    }
}

#[cfg(test)]
mod tests;
