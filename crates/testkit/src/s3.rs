//! Real S3 servers, on this machine only, that end with their test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use tempfile::TempDir;

use crate::Error;
use crate::image::workspace_folder;

/// What the servers run.
const MOTO: &str = include_str!("s3_server.py");
const CEPH: &str = include_str!("ceph_gateway.py");

/// The programs of a Ceph object gateway, in Debian's packages of these names.
const CEPH_PROGRAMS: [&str; 4] = ["ceph", "ceph-mon", "ceph-osd", "radosgw"];

/// What can be wrong with an S3 server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Flaw {
    /// It accepts every put, whatever its condition.
    IgnoresConditions,
    /// It looks whether a name is free, and writes a moment later.
    LooksThenWrites,
}

/// An S3 server in memory. Everything in it goes with it.
#[derive(Debug)]
pub struct S3Server {
    process: Child,
    port: u16,
    control: Mutex<Control>,
    /// What it keeps on the disk.
    _folder: TempDir,
}

#[derive(Debug)]
struct Control {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    buckets: u32,
}

impl S3Server {
    /// Starts a server. The error is [`Error::NoS3`] if there is none on
    /// this machine.
    pub fn start() -> Result<Self, Error> {
        Self::run(MOTO)
    }

    /// Starts a Ceph object gateway with a cluster of one, in memory. It knows
    /// no flaws. The error is as above.
    pub fn start_ceph() -> Result<Self, Error> {
        for program in CEPH_PROGRAMS {
            let path = Path::new("/usr/bin").join(program);
            if !path.is_file() {
                return Err(Error::NoS3 { path });
            }
        }
        Self::run(CEPH)
    }

    fn run(script: &str) -> Result<Self, Error> {
        let python = s3_server_folder().join("bin/python");
        if !python.is_file() {
            return Err(Error::NoS3 { path: python });
        }
        let folder = tempfile::tempdir().map_err(Error::file("make", &std::env::temp_dir()))?;
        let mut command = Command::new(&python);
        command.args(["-c", script]).arg(folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = tempfile::tempfile().map_err(Error::file("make", &std::env::temp_dir()))?;
        let mut process = command.stderr(log).spawn().map_err(Error::file("start", &python))?;
        let commands = process.stdin.take().expect("the input is piped");
        let answers = BufReader::new(process.stdout.take().expect("the output is piped"));
        let mut control = Control { commands, answers, buckets: 0 };
        let port = control.answer()?;
        let port = port.parse().map_err(|_| Error::S3 { said: port })?;
        Ok(Self { process, port, control: Mutex::new(control), _folder: folder })
    }

    /// Returns where it listens, `http://HOST:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Makes a bucket and returns its address, `s3://NAME`.
    pub fn new_bucket(&self) -> Result<String, Error> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.buckets += 1;
        let name = format!("bucket-{}", control.buckets);
        control.tell(&format!("bucket {name}"))?;
        Ok(format!("s3://{name}"))
    }

    /// Lets puts go wrong from now on, or no longer.
    pub fn set_flaw(&self, flaw: Option<S3Flaw>) -> Result<(), Error> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.tell(match flaw {
            None => "sound",
            Some(S3Flaw::IgnoresConditions) => "flaw ignores-conditions",
            Some(S3Flaw::LooksThenWrites) => "flaw looks-then-writes",
        })
    }
}

impl Control {
    fn tell(&mut self, command: &str) -> Result<(), Error> {
        writeln!(self.commands, "{command}")
            .map_err(|error| Error::S3 { said: error.to_string() })?;
        match self.answer()?.as_str() {
            "done" => Ok(()),
            said => Err(Error::S3 { said: said.to_owned() }),
        }
    }

    fn answer(&mut self) -> Result<String, Error> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(1..) => Ok(line.trim_end().to_owned()),
            Ok(0) => Err(Error::S3 { said: "nothing".to_owned() }),
            Err(error) => Err(Error::S3 { said: error.to_string() }),
        }
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the folder that `cargo xtask setup` puts the server in.
pub fn s3_server_folder() -> PathBuf {
    workspace_folder().join("target/moto")
}
