//! Writes a snapshot for other tools: a disk as an image, disks as a chain of images,
//! the memory as an ELF core, or all of it as an archive that any tar reads.
//!
//! Every byte is checked as it is read. What is written has another name until it is
//! durable, so there is all of it or nothing.

mod archive;
mod disk;
mod elf;
mod registers;
mod target;

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tintype_repo::Repository;
use tintype_types::SnapshotId;

use crate::Engine;
use crate::details::{SavedDisk, Snapshot};
use crate::error::{Error, Result};
use crate::snapshots::hold;
use target::Target;

/// As what a snapshot is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A disk, as QEMU's own format.
    Qcow2,
    /// A disk, byte by byte, with holes.
    Raw,
    /// Everything, as an archive.
    Tar,
    /// The memory with the registers, as a debugger opens it.
    ElfCore,
}

/// What to export, and where.
pub struct ExportParams<'p> {
    /// The snapshot.
    pub snapshot: String,
    /// As what.
    pub format: ExportFormat,
    /// Where; nothing may be there.
    pub to: PathBuf,
    /// Where an archive goes instead.
    pub stream: Option<&'p mut dyn Write>,
    /// The disk, if there are several.
    pub disk: Option<String>,
    /// Whether the snapshots that it comes from are written too, as the files below it.
    pub chain: bool,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExportReport {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The disk, if it is one.
    pub disk: Option<String>,
    /// What was written; of a chain the lowest file first.
    pub files: Vec<PathBuf>,
}

impl Engine {
    /// Exports a snapshot.
    pub fn export(&self, params: ExportParams<'_>) -> Result<ExportReport> {
        let repository = self.repository()?;
        let mut snapshot = self.find_snapshot(&repository, &params.snapshot, None)?;
        let _held = hold(&repository, &mut snapshot)?;
        let cannot = || format!("cannot export `{}`", snapshot.record.name);
        self.export_it(&repository, &snapshot, params).map_err(|error| {
            let error = if error.kind() == crate::ErrorKind::Failed {
                Error::failed(cannot()).because(error)
            } else {
                error
            };
            error.state_unless_known("nothing was written").hint_if_full()
        })
    }

    fn export_it(
        &self,
        repository: &Repository,
        snapshot: &Snapshot,
        params: ExportParams<'_>,
    ) -> Result<ExportReport> {
        let id = snapshot.record.id;
        if params.chain && params.format != ExportFormat::Qcow2 {
            return Err(Error::invalid("only qcow2 has files below a file")
                .hint("--chain goes with --format qcow2"));
        }
        if params.format == ExportFormat::Tar {
            let archive = archive::Archive { engine: self, repository, snapshot };
            let files = match params.stream {
                Some(stream) => {
                    archive.write(stream)?;
                    Vec::new()
                }
                None => {
                    let target = Target::of(&params.to)?;
                    let mut file = target.make_file()?;
                    archive.write(&mut file)?;
                    vec![target.finish()?]
                }
            };
            return Ok(ExportReport { snapshot: id, disk: None, files });
        }
        if params.format == ExportFormat::ElfCore {
            let core = elf::Core { engine: self, repository, snapshot };
            core.refuse_unfit()?;
            let target = Target::of(&params.to)?;
            core.write(&target.make_file()?)?;
            return Ok(ExportReport { snapshot: id, disk: None, files: vec![target.finish()?] });
        }
        let saved = chosen_disk(snapshot, params.disk.as_deref())?;
        let name = saved.disk.name.clone();
        let work = disk::DiskExport { engine: self, repository, disk: &name };
        let files = if params.chain {
            work.chain(snapshot, &params.to)?
        } else {
            let root = snapshot.promised_image(&saved.image)?;
            let target = Target::of(&params.to)?;
            match params.format {
                ExportFormat::Raw => work.raw(root, &target.make_file()?)?,
                _ => work.qcow2(root, target.partial())?,
            }
            vec![target.finish()?]
        };
        Ok(ExportReport { snapshot: id, disk: Some(name), files })
    }

    /// Returns a snapshot and those that it comes from, the first one first.
    pub(crate) fn lineage(
        &self,
        repository: &Repository,
        last: &Snapshot,
    ) -> Result<Vec<Snapshot>> {
        let mut line = vec![last.clone()];
        while let Some(parent) = line.last().and_then(|snapshot| snapshot.record.parent) {
            let is_known = line.iter().any(|snapshot| snapshot.record.id == parent);
            match repository.snapshot(parent) {
                Ok(record) if !is_known => line.push(Snapshot::read(record)?),
                // It was deleted, and each is complete by itself.
                _ => break,
            }
        }
        line.reverse();
        Ok(line)
    }
}

/// Returns the disk that is meant.
fn chosen_disk<'s>(snapshot: &'s Snapshot, name: Option<&str>) -> Result<&'s SavedDisk> {
    let disks = &snapshot.details.disks;
    let names: Vec<&str> = disks.iter().map(|saved| saved.disk.name.as_str()).collect();
    let meant = match name {
        Some(name) => disks.iter().find(|saved| saved.disk.name == name),
        None if disks.len() == 1 => disks.first(),
        None => None,
    };
    meant.ok_or_else(|| {
        let what = match name {
            Some(name) => format!("the snapshot has no disk `{name}`"),
            None => format!("the snapshot has {} disks, and one goes to a file", disks.len()),
        };
        Error::invalid(what).hint(format!("--disk names one of: {}", names.join(", ")))
    })
}

/// Makes of any name one that is that of a file.
pub(crate) fn file_name(name: &str) -> String {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || "._-".contains(letter) { letter } else { '_' }
    };
    let name: String = name.chars().map(plain).take(80).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    if name.is_empty() { "unnamed".to_owned() } else { name.to_owned() }
}

/// Returns the folder that a file is made in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn names_of_files_lead_nowhere() {
        let check = |name: &str, expected: &str| assert_eq!(file_name(name), expected);
        check("pc.ram", "pc.ram");
        check("/rom@etc/acpi/tables", "rom_etc_acpi_tables");
        check("../../x", "x");
        check("..", "unnamed");
    }
}
