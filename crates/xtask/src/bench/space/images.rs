//! The guest's memory and disk as files, for programs that back up files.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::super::guest::Subject;
use super::MEMORY_MIB;
use crate::failure::Failure;
use crate::process::run;

/// What is saved.
pub(super) const NAMES: [&str; 2] = ["disk", "memory"];

/// Where it is saved, over what was there before.
pub(super) struct Images(PathBuf);

impl Images {
    pub(super) fn within(folder: &Path) -> Result<Self, Failure> {
        let images = folder.join("images");
        std::fs::create_dir(&images).map_err(Failure::file("make", &images))?;
        Ok(Self(images))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// Saves both, while the guest stands still.
    pub(super) fn save(&self, subject: &Subject) -> Result<(), Failure> {
        let [disk, memory] = NAMES.map(|name| self.0.join(name));
        let mut qmp = subject.qmp()?;
        qmp.execute("stop", json!({}))?;
        let size = u64::from(MEMORY_MIB) << 20;
        qmp.execute("pmemsave", json!({"val": 0, "size": size, "filename": memory}))?;
        let mut copy = Command::new("cp");
        run(copy.args(["--sparse=always", "--"]).arg(&subject.disks()[0]).arg(disk))?;
        qmp.execute("cont", json!({}))?;
        Ok(())
    }
}
