//! Runs the real `tintype` in a home of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long it may take on a busy machine until what a killed command left is repaired.
const REPAIRED: Duration = Duration::from_secs(60);

/// A home and a repository that go away with the test's folder.
pub(crate) struct Tintype {
    home: PathBuf,
}

impl Tintype {
    /// Makes a home within a folder, so that what is started there ends with it.
    pub(crate) fn within(folder: &Path) -> Self {
        Self { home: folder.join("home") }
    }

    /// Returns the command with its home, for a test to add to.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tintype"));
        command.env("TINTYPE_HOME", &self.home);
        for name in ["REPO", "KEY_FILE", "PASSPHRASE_FILE", "PASSPHRASE", "AGE_IDENTITY"] {
            command.env_remove(format!("TINTYPE_{name}"));
        }
        command.env_remove("AWS_ACCESS_KEY_ID");
        command
    }

    /// Runs a command and returns what it said.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().unwrap()
    }

    /// Runs a command that has to succeed, and returns its JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let lines = self.lines(arguments);
        match <[Value; 1]>::try_from(lines) {
            Ok([one]) => one,
            Err(several) => Value::Array(several),
        }
    }

    /// Runs a command that has to succeed and lists things, and returns one JSON for each.
    pub(crate) fn lines(&self, arguments: &[&str]) -> Vec<Value> {
        let output = self.run(&[&["--json"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tintype {arguments:?}: {error}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until somebody has repaired what a killed command left of the VM `web`.
    pub(crate) fn wait_repaired(&self) {
        let intent = self.home.join("vms/web/intent.json");
        let deadline = Instant::now() + REPAIRED;
        while intent.exists() {
            assert!(Instant::now() < deadline, "nobody repairs: {:?}", fs::read_to_string(intent));
            sleep(Duration::from_millis(10));
        }
    }
}
