//! The serial line of a guest: one shell command in, its output and status out.
//!
//! The guest's half is `crates/xtask/src/guests/agent.sh`, and says what goes over
//! the line. The line outlives the QEMU process: when another one takes its place
//! at the same socket, as after a revert, the next command goes there.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Error;

/// The longest command: a terminal line has 4,096 bytes, and `RUN` and token need some.
const MAX_COMMAND: usize = 3900;

/// How much of what came from the guest is shown when something goes wrong.
const TAIL: usize = 2000;

/// How long one look at the socket takes when nothing comes.
const GLANCE: Duration = Duration::from_millis(20);

/// What a command in the guest did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit status as the shell has it; 0 is success.
    pub status: i32,
    /// What it wrote to standard output and standard error.
    pub output: String,
}

/// The host's end of a guest's serial line.
#[derive(Debug)]
pub struct Serial {
    path: PathBuf,
    stream: Option<UnixStream>,
    /// What came and is not consumed yet.
    received: Vec<u8>,
    /// The end of everything that came.
    tail: Vec<u8>,
    commands: u32,
}

/// What became of the wait for something.
enum Wait {
    /// It came; this was before it.
    Found(Vec<u8>),
    Late,
    Broken,
}

impl Serial {
    /// Returns the line behind a socket that QEMU listens on; connects when needed.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            stream: None,
            received: Vec::new(),
            tail: Vec::new(),
            commands: 0,
        }
    }

    /// Returns the socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until a guest that is booting says that it takes commands.
    ///
    /// It says so once: connect before it has booted. Later, see [`Serial::wait_answer`].
    pub fn wait_ready(&mut self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            self.connect(deadline)?;
            if let Wait::Found(_) = self.wait_for("READY\n", deadline) {
                return Ok(());
            }
        }
        Err(self.late("say READY", within))
    }

    /// Connects anew and waits until a guest that runs already answers a command.
    ///
    /// For a guest that was put back, cloned or restored, while or after its QEMU starts.
    pub fn wait_answer(&mut self, within: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + within;
        self.disconnect();
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            // A guest that is still paused, or in another command, answers later.
            if self.run("true", left.min(Duration::from_secs(5))).is_ok() {
                return Ok(());
            }
        }
        Err(self.late("answer", within))
    }

    /// Runs a shell command in the guest and waits for its end.
    ///
    /// A command that is to go on in the background needs `&` and its three streams
    /// redirected. Fails if the line breaks meanwhile; a line that broke before the
    /// command was sent is connected anew.
    pub fn run(&mut self, command: &str, within: Duration) -> Result<Answer, Error> {
        if command.len() > MAX_COMMAND || command.contains(['\n', '\0']) || command.is_empty() {
            return Err(Error::Command { command: command.to_owned(), max: MAX_COMMAND });
        }
        let deadline = Instant::now() + within;
        self.drain();
        self.connect(deadline)?;
        let token = self.next_token();
        self.send(&format!("RUN {token} {command}\n"), command)?;
        self.expect(&format!("BEGIN {token}\n"), command, deadline, within)?;
        let output = self.expect(&format!("DONE {token} "), command, deadline, within)?;
        let status = self.expect("\n", command, deadline, within)?;
        Ok(Answer {
            status: String::from_utf8_lossy(&status).trim().parse().unwrap_or(-1),
            output: String::from_utf8_lossy(&output).into_owned(),
        })
    }

    /// Runs a shell command that has to succeed, and returns what it wrote.
    ///
    /// # Panics
    ///
    /// If it does not: made for tests.
    pub fn must_run(&mut self, command: &str, within: Duration) -> String {
        match self.run(command, within) {
            Ok(Answer { status: 0, output }) => output,
            Ok(Answer { status, output }) => {
                panic!("`{command}` ended with status {status} in the guest:\n{output}")
            }
            Err(error) => panic!("`{command}` did not end in the guest: {error}"),
        }
    }

    /// Gives up the connection, if there is one; the next command makes another.
    pub fn disconnect(&mut self) {
        self.stream = None;
        self.received.clear();
    }

    /// Reads what has come without being asked for and forgets it, so that the end
    /// of an old QEMU is noticed before a command is sent to it.
    fn drain(&mut self) {
        while let Some(stream) = &self.stream {
            let quiet = stream.set_nonblocking(true).is_err() || !self.receive();
            if let Some(stream) = &self.stream
                && stream.set_nonblocking(false).is_err()
            {
                self.stream = None;
            }
            if quiet {
                break;
            }
        }
        self.received.clear();
    }

    fn connect(&mut self, deadline: Instant) -> Result<(), Error> {
        while self.stream.is_none() {
            match self.try_connect() {
                Ok(()) => {}
                Err(source) if Instant::now() >= deadline => {
                    return Err(Error::file("connect to", &self.path)(source));
                }
                Err(_) => sleep(GLANCE),
            }
        }
        Ok(())
    }

    fn try_connect(&mut self) -> std::io::Result<()> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(GLANCE))?;
        // Control-U deletes what an earlier client may have left in the line.
        stream.write_all(b"\x15\n")?;
        self.received.clear();
        self.stream = Some(stream);
        Ok(())
    }

    fn send(&mut self, line: &str, command: &str) -> Result<(), Error> {
        let sent = self.stream.as_mut().map(|stream| stream.write_all(line.as_bytes()));
        if let Some(Ok(())) = sent {
            return Ok(());
        }
        self.stream = None;
        Err(self.broken(command))
    }

    fn expect(
        &mut self,
        text: &str,
        command: &str,
        deadline: Instant,
        within: Duration,
    ) -> Result<Vec<u8>, Error> {
        match self.wait_for(text, deadline) {
            Wait::Found(before) => Ok(before),
            Wait::Late => Err(self.late(&format!("end `{command}`"), within)),
            Wait::Broken => Err(self.broken(command)),
        }
    }

    /// Consumes what comes up to and with `text`.
    fn wait_for(&mut self, text: &str, deadline: Instant) -> Wait {
        let mut searched = 0;
        loop {
            if let Some(at) = find(&self.received[searched..], text.as_bytes()) {
                let mut before: Vec<u8> =
                    self.received.drain(..searched + at + text.len()).collect();
                before.truncate(searched + at);
                return Wait::Found(before);
            }
            searched = self.received.len().saturating_sub(text.len());
            if self.stream.is_none() {
                return Wait::Broken;
            }
            if Instant::now() >= deadline {
                return Wait::Late;
            }
            self.receive();
        }
    }

    /// Takes in what is there; waits a glance for it on a blocking socket. Returns
    /// whether something came; drops the connection at its end.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4096];
        let Some(stream) = &mut self.stream else { return false };
        match stream.read(&mut buffer) {
            Ok(0) => self.stream = None,
            Ok(count) => {
                let came = || buffer[..count].iter().copied().filter(|byte| *byte != b'\r');
                self.received.extend(came());
                self.tail.extend(came());
                self.tail.drain(..self.tail.len().saturating_sub(TAIL));
                return true;
            }
            Err(error) if is_pause(error.kind()) => {}
            Err(_) => self.stream = None,
        }
        false
    }

    fn next_token(&mut self) -> String {
        self.commands += 1;
        // The process id keeps two programs that use one line after the other apart.
        format!("{}.{}", std::process::id(), self.commands)
    }

    fn late(&self, expected: &str, within: Duration) -> Error {
        Error::Late { expected: expected.to_owned(), within, tail: self.tail() }
    }

    fn broken(&self, command: &str) -> Error {
        Error::Broken { command: command.to_owned(), tail: self.tail() }
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.tail).into_owned()
    }
}

fn is_pause(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(5);

    /// Runs `true` against a guest that answers a request with `script`, in which
    /// `@` is the token, and compares.
    fn check(script: &'static str, expected: Option<(i32, &str)>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial");
        let listener = UnixListener::bind(&path).unwrap();
        let guest = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b" true\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            let request = String::from_utf8(request).unwrap();
            let token = request.split(' ').nth(1).unwrap();
            stream.write_all(script.replace('@', token).as_bytes()).unwrap();
        });
        let answer = Serial::at(&path).run("true", WITHIN);
        guest.join().unwrap();
        let expected = expected.map(|(status, output)| Answer { status, output: output.into() });
        assert_eq!(answer.ok(), expected, "{script:?}");
    }

    #[test]
    fn answers_are_told_from_the_rest() {
        check("BEGIN @\nDONE @ 0\n", Some((0, "")));
        check("BEGIN @\na\nb\nDONE @ 7\n", Some((7, "a\nb\n")));
        check("BEGIN @\r\nno newlineDONE @ 1\r\n", Some((1, "no newline")));
        check("old\nDONE 1.1 0\nREADY\nBEGIN @\nnew\nDONE @ 0\n", Some((0, "new\n")));
        check("BEGIN @\npart", None);
        check("", None);
    }

    #[test]
    fn what_is_not_one_line_is_not_sent() {
        let mut serial = Serial::at(Path::new("/nowhere"));
        for command in ["", "a\nb", &"a".repeat(MAX_COMMAND + 1)] {
            assert!(matches!(serial.run(command, WITHIN), Err(Error::Command { .. })));
        }
    }
}
