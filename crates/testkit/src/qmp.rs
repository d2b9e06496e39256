//! A small QMP client (docs/interop/qmp-spec.rst in QEMU), so that tests can steer
//! QEMU without the code that they test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::Error;

/// How long QEMU may take to answer.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection to QEMU's monitor, which serves one client at a time: drop it to
/// let another one in.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to a monitor's socket, which may be a moment away.
    pub fn connect(path: &Path) -> Result<Self, Error> {
        let deadline = Instant::now() + ANSWER;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(source) if Instant::now() >= deadline => {
                    return Err(Error::file("connect to", path)(source));
                }
                Err(_) => sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(ANSWER)).map_err(Error::file("set up", path))?;
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.read("greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command and returns what it returned. Events on the way are kept.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, Error> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let failed = |message: String| Error::Qmp { command: command.to_owned(), message };
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
        loop {
            let mut answer = self.read(command)?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(failed(error["desc"].as_str().unwrap_or_default().to_owned()));
            }
            self.events.push(answer);
        }
    }

    /// Returns the events that came between answers so far, oldest first.
    pub fn events(&self) -> &[Value] {
        &self.events
    }

    /// Waits until the migration that runs, in or out, has completed.
    pub fn wait_migrated(&mut self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        loop {
            let state = self.execute("query-migrate", json!({}))?;
            let failed = |message: &str| Error::Qmp {
                command: "migrate".to_owned(),
                message: format!("{message}: {state}"),
            };
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => return Err(failed("did not complete")),
                _ if Instant::now() >= deadline => return Err(failed("did not complete in time")),
                _ => sleep(Duration::from_millis(5)),
            }
        }
    }

    fn read(&mut self, command: &str) -> Result<Value, Error> {
        let failed = |message: String| Error::Qmp { command: command.to_owned(), message };
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(failed("QEMU has ended".to_owned())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| failed(error.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
