//! The guest agent (qemu-ga) as a client: freeze and thaw file systems, set the
//! clock.
//!
//! The agent is a program of the guest, and so a stranger: it may lie, hang, die,
//! answer late or without end. Every call has a deadline, lines and the noise
//! before an answer are bounded, and what it says is at worst an error. Nothing
//! that it says becomes more than a number or a yes.
//!
//! Protocol: QEMU `qga/qapi-schema.json`. Before each conversation after a doubt
//! comes `guest-sync-delimited`: what was said before its answer is of an earlier one.

mod channel;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::fd::{AsFd, OwnedFd};
use serde_json::{Value, json};

pub use channel::AgentChannel;
pub(crate) use channel::PORT;

use crate::error::{Error, Result};
use crate::qmp::wire::{Wire, WireError};

/// The longest line that is taken of an agent: none that we ask for has 1 KiB.
const MAX_LINE: usize = 64 << 10;

/// How much may come before the answer that is waited for.
const MAX_NOISE: usize = 1 << 20;

/// What an agent resets its parser at, and marks its answer to a sync with.
const DELIMITER: u8 = 0xff;

/// How long a line may take on its way into QEMU.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// What thaws a guest, whatever was said on the channel before.
const BARE_THAW: &[u8] = b"\xff{\"execute\":\"guest-fsfreeze-thaw\"}\n";

/// A conversation with the agent in a guest.
pub struct Agent {
    wire: Wire,
    next_id: u64,
    /// Something may still come that belongs to an earlier question.
    in_doubt: bool,
}

impl Agent {
    /// Connects to the socket of a channel. That says nothing yet of an agent.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .map_err(Error::system(format!("connect to {}", socket.display())))?;
        Ok(Self::over(stream))
    }

    /// Takes over a conversation on a connected socket.
    pub fn over(stream: UnixStream) -> Self {
        Self { wire: Wire::bounded(stream, MAX_LINE), next_id: first_id(), in_doubt: true }
    }

    /// Returns the connection for another process, which may write on it.
    pub fn share(&self) -> Result<OwnedFd> {
        let shared = self.wire.stream().as_fd().try_clone_to_owned();
        shared.map_err(Error::system("share the channel of the guest agent"))
    }

    /// Finds out whether an agent answers.
    pub fn sync(&mut self, limit: Duration) -> Result<()> {
        self.in_doubt = true;
        self.settle(Instant::now() + limit)
    }

    /// Tells whether file systems are frozen.
    pub fn is_frozen(&mut self, limit: Duration) -> Result<bool> {
        let status = self.call("guest-fsfreeze-status", json!({}), limit)?;
        match status.as_str() {
            Some("frozen") => Ok(true),
            Some("thawed") => Ok(false),
            _ => Err(Error::agent("says neither `frozen` nor `thawed`")),
        }
    }

    /// Freezes the file systems and returns how many. After an error they may be
    /// frozen or about to be.
    pub fn freeze(&mut self, limit: Duration) -> Result<u64> {
        count(&self.call("guest-fsfreeze-freeze", json!({}), limit)?)
    }

    /// Thaws the file systems and returns how many were frozen.
    pub fn thaw(&mut self, limit: Duration) -> Result<u64> {
        count(&self.call("guest-fsfreeze-thaw", json!({}), limit)?)
    }

    /// Asks for a thaw and does not wait: a guest that stands still gets it in its
    /// first moments. [`Self::thawed`] waits for the answer.
    pub fn ask_thaw(&mut self) -> Result<()> {
        let bytes = if self.in_doubt { BARE_THAW } else { &BARE_THAW[1..] };
        self.write(bytes, Instant::now() + WRITE_LIMIT)
    }

    /// Waits for the answer to [`Self::ask_thaw`]: how many were frozen until then.
    pub fn thawed(&mut self, limit: Duration) -> Result<u64> {
        if self.in_doubt {
            return Err(Error::agent("has not answered before"));
        }
        count(&self.answer("guest-fsfreeze-thaw", Instant::now() + limit)?)
    }

    /// Looks whether all is thawed, and thaws it if not, until it is.
    pub fn see_thawed(&mut self, limit: Duration) -> Result<()> {
        // A watchdog may have said something on this channel, too.
        self.in_doubt = true;
        let deadline = Instant::now() + limit;
        while self.is_frozen(limit)? {
            if Instant::now() > deadline {
                return Err(Error::agent("does not thaw the guest"));
            }
            self.thaw(limit)?;
        }
        Ok(())
    }

    /// Sets the guest's clocks, in nanoseconds since 1970.
    pub fn set_time(&mut self, time_ns: i64, limit: Duration) -> Result<()> {
        self.call("guest-set-time", json!({"time": time_ns}), limit).map(drop)
    }

    fn call(&mut self, command: &str, arguments: Value, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        if self.in_doubt {
            self.settle(deadline)?;
        }
        let line = json!({"execute": command, "arguments": arguments});
        self.write(format!("{line}\n").as_bytes(), deadline)?;
        self.answer(command, deadline)
    }

    /// Reads the answer to a command. A refusal is one, all else raises doubts.
    fn answer(&mut self, command: &str, deadline: Instant) -> Result<Value> {
        self.in_doubt = true;
        let line = self.read(deadline)?;
        let answer = serde_json::from_slice::<Value>(&line)
            .map_err(|_| Error::agent(format!("answered `{command}` with what is no JSON")))?;
        if let Some(refusal) = answer.get("error") {
            self.in_doubt = false;
            let why = refusal.get("desc").and_then(Value::as_str).unwrap_or("it does not say why");
            return Err(Error::agent(format!("refused `{command}`: {}", printable(why))));
        }
        let value = answer.get("return").cloned();
        let value =
            value.ok_or_else(|| Error::agent(format!("answered `{command}` with no result")))?;
        self.in_doubt = false;
        Ok(value)
    }

    /// Gets rid of all that was said before: the answer to a sync is known by its
    /// number, and comes after a byte that is in no JSON.
    fn settle(&mut self, deadline: Instant) -> Result<()> {
        self.next_id += 1;
        let id = self.next_id;
        let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": id}});
        let line = [&[DELIMITER], format!("{sync}\n").as_bytes()].concat();
        self.write(&line, deadline)?;
        let mut noise = 0;
        loop {
            let line = self.read(deadline)?;
            noise += line.len();
            let own = line.iter().rposition(|byte| *byte == DELIMITER);
            let answer = own.and_then(|at| serde_json::from_slice::<Value>(&line[at + 1..]).ok());
            if answer.is_some_and(|answer| answer["return"].as_u64() == Some(id)) {
                self.in_doubt = false;
                return Ok(());
            }
            if noise > MAX_NOISE {
                return Err(Error::agent("says a lot, and not what it was asked"));
            }
        }
    }

    fn read(&mut self, deadline: Instant) -> Result<Vec<u8>> {
        self.wire.read_line(deadline).map_err(failure)
    }

    fn write(&mut self, bytes: &[u8], deadline: Instant) -> Result<()> {
        self.wire.write_all(bytes, deadline).map_err(failure)
    }
}

/// Returns a number that no earlier conversation has begun with: an agent that was
/// held up answers those, too.
fn first_id() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since_1970.unwrap_or_default().as_micros()).unwrap_or_default()
}

fn count(answer: &Value) -> Result<u64> {
    answer.as_u64().ok_or_else(|| Error::agent("does not say how many file systems"))
}

/// Makes a stranger's words harmless to a terminal, and short.
fn printable(words: &str) -> String {
    const LONGEST: usize = 200;
    words.chars().take(LONGEST).collect::<String>().escape_debug().to_string()
}

fn failure(error: WireError) -> Error {
    match error {
        WireError::Deadline => Error::agent("does not answer in time"),
        WireError::Closed => Error::agent("is gone: its channel was closed"),
        WireError::TooLong => Error::agent("sends a line without end"),
        WireError::Io(source) => {
            Error::System { operation: "talk to the guest agent".to_owned(), source }
        }
    }
}

#[cfg(test)]
mod tests;
