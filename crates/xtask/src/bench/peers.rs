//! restic and borg, as Debian packages them, backing up files beside us.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::failure::Failure;
use crate::process::{capture, run};

/// A program for backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tool {
    Restic,
    Borg,
}

/// A repository of such a program.
pub(super) struct Peer {
    tool: Tool,
    work: PathBuf,
}

impl Peer {
    /// Makes a repository in a folder.
    pub(super) fn init(tool: Tool, work: &Path) -> Result<Self, Failure> {
        let peer = Self { tool, work: work.to_owned() };
        let mut command = peer.command();
        match tool {
            Tool::Restic => run(command.arg("init"))?,
            Tool::Borg => {
                run(command.args(["init", "--encryption", "repokey"]).arg(peer.folder()))?;
            }
        }
        Ok(peer)
    }

    /// Backs up some files of a folder, and returns the seconds that took.
    pub(super) fn back_up(
        &self,
        name: &str,
        from: &Path,
        files: &[String],
    ) -> Result<f64, Failure> {
        let mut command = self.command();
        command.current_dir(from);
        match self.tool {
            Tool::Restic => command.arg("backup"),
            Tool::Borg => {
                let archive = format!("{}::{name}", self.folder().display());
                command.args(["create", "--compression", "zstd,1", &archive])
            }
        };
        let start = Instant::now();
        run(command.args(files))?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Returns the bytes that it keeps.
    pub(super) fn kept(&self) -> Result<f64, Failure> {
        bytes_of(&self.folder())
    }

    pub(super) fn name(&self) -> &'static str {
        match self.tool {
            Tool::Restic => "restic",
            Tool::Borg => "borg, zstd 1",
        }
    }

    fn folder(&self) -> PathBuf {
        self.work.join(match self.tool {
            Tool::Restic => "restic",
            Tool::Borg => "borg",
        })
    }

    fn command(&self) -> Command {
        match self.tool {
            Tool::Restic => {
                let mut command = Command::new("restic");
                command.env("RESTIC_PASSWORD", "bench");
                command.env("RESTIC_CACHE_DIR", self.work.join("restic-cache"));
                command.arg("--repo").arg(self.folder());
                command
            }
            Tool::Borg => {
                let mut command = Command::new("borg");
                command.env("BORG_PASSPHRASE", "bench");
                command.env("BORG_BASE_DIR", self.work.join("borg-base"));
                command
            }
        }
    }
}

/// Returns the bytes of all files below a folder.
pub(super) fn bytes_of(folder: &Path) -> Result<f64, Failure> {
    let text = capture(Command::new("du").args(["--bytes", "--summarize"]).arg(folder))?;
    let bytes = text.split_whitespace().next().and_then(|word| word.parse().ok());
    bytes.ok_or_else(|| Failure::Other(format!("`du` does not know {}", folder.display())))
}
