//! The small files that a VM's settings name: kernel, initial RAM disk,
//! firmware, and the state of its TPMs. A snapshot keeps their contents, because a reboot after a revert
//! reads them again.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tintype_repo::Repository;
use tintype_types::ByteCount;
use tintype_vm::{CommandLine, Inventory, SinkError, Tpm, arguments};

use crate::details::{SavedFile, Snapshot};
use crate::error::{Error, Result};
use crate::home::{make_folder, write_durably};
use crate::sink::SessionSink;

/// Larger files are not small: they are named, and not kept.
const MAX_FILE: u64 = 512 << 20;

/// How much of a file is read at once; a multiple of a block.
const PIECE: usize = 1 << 20;

/// Keeps the files that a command line names, and those of its TPMs. Names that
/// are no file here are QEMU's own data, and come with QEMU.
pub(crate) fn save(
    sink: &SessionSink<'_>,
    line: &CommandLine,
    inventory: &Inventory,
    tpms: &[Tpm],
) -> Result<Vec<SavedFile>, SinkError> {
    let firmware = inventory
        .disks
        .iter()
        .filter(|disk| disk.read_only && disk.device.starts_with("/machine/system.flash"))
        .filter_map(|disk| disk.file.as_ref()?.to_str().map(str::to_owned));
    let states = tpms.iter().filter_map(|tpm| tpm.folder.as_deref()).flat_map(files_in);
    let names = arguments::named_files(&line.arguments).into_iter().chain(firmware).chain(states);
    let mut saved: Vec<SavedFile> = Vec::new();
    for name in names {
        let path = line.directory.join(&name);
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let known = saved.iter().any(|file| file.name == name);
        if known || !metadata.is_file() || metadata.len() > MAX_FILE {
            continue;
        }
        let image = format!("file/{name}");
        save_one(sink, &path, metadata.len(), &image)?;
        saved.push(SavedFile { name, path, image });
    }
    Ok(saved)
}

fn files_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.path().to_str().map(str::to_owned)).collect()
}

/// Starts the TPMs of a snapshot that do not run. The state that they keep in
/// files is put back where the snapshot has no memory, which has it otherwise.
pub(crate) fn start_tpms(repository: &Repository, snapshot: &Snapshot) -> Result<()> {
    for tpm in &snapshot.details.tpms {
        let put_back = || match &tpm.folder {
            Some(folder) if snapshot.details.memory.is_empty() => {
                let files = snapshot.details.files.iter();
                for file in files.filter(|file| file.path.parent() == Some(folder)) {
                    let written = contents(repository, snapshot, file)
                        .and_then(|bytes| write_durably(&file.path, &bytes));
                    written.map_err(|error| tintype_vm::Error::unsupported(error.to_string()))?;
                }
                Ok(())
            }
            _ => Ok(()),
        };
        tpm.ensure_running(put_back)
            .map_err(Error::step("cannot start the TPM of the snapshot"))?;
    }
    Ok(())
}

fn save_one(sink: &SessionSink<'_>, path: &Path, len: u64, image: &str) -> Result<(), SinkError> {
    let mut writer = sink.begin(image, ByteCount(len))?;
    let mut file = File::open(path)?.take(len);
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < len {
        let want = usize::try_from((len - offset).min(PIECE as u64))?;
        file.read_exact(&mut piece[..want])?;
        writer.write(offset, &piece[..want])?;
        offset += want as u64;
    }
    sink.add(image.to_owned(), writer.finish()?);
    Ok(())
}

/// Returns the snapshot's command line with each file that is no longer what it
/// was exchanged for the snapshot's own, written to `folder`.
pub(crate) fn command_line_with_files(
    repository: &Repository,
    snapshot: &Snapshot,
    folder: &Path,
) -> Result<CommandLine> {
    let mut replaced = Vec::new();
    let tpms = &snapshot.details.tpms;
    let of_tpm =
        |file: &&SavedFile| tpms.iter().any(|tpm| tpm.folder.as_deref() == file.path.parent());
    for file in snapshot.details.files.iter().filter(|file| !of_tpm(file)) {
        if is_unchanged(repository, snapshot, file)? {
            continue;
        }
        let own = own_place(folder, snapshot, file)?;
        write_durably(&own, &contents(repository, snapshot, file)?)?;
        replaced.push((file.name.clone(), own.display().to_string()));
    }
    let line = &snapshot.details.command_line;
    Ok(CommandLine {
        arguments: arguments::with_files_replaced(&line.arguments, &replaced),
        ..line.clone()
    })
}

/// Tells whether a file is what it was, by the ids of its blocks. What the snapshot has
/// of it is not read.
pub(crate) fn is_unchanged(
    repository: &Repository,
    snapshot: &Snapshot,
    file: &SavedFile,
) -> Result<bool> {
    let cannot = || format!("cannot compare the file `{}` with that of the snapshot", file.name);
    let root = snapshot.promised_image(&file.image)?;
    let reader = repository.open_image(root).map_err(Error::step(cannot()))?;
    let size = root.size().get();
    let Ok(mut now) = File::open(&file.path) else { return Ok(false) };
    if !now.metadata().is_ok_and(|metadata| metadata.len() == size) {
        return Ok(false);
    }
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    while offset < size {
        let want = usize::try_from((size - offset).min(PIECE as u64)).unwrap_or(PIECE);
        let piece = &mut piece[..want];
        if now.read_exact(piece).is_err()
            || !reader.differing(offset, piece).map_err(Error::step(cannot()))?.is_empty()
        {
            return Ok(false);
        }
        offset += want as u64;
    }
    Ok(true)
}

fn own_place(folder: &Path, snapshot: &Snapshot, file: &SavedFile) -> Result<PathBuf> {
    make_folder(folder)?;
    let number = snapshot.details.files.iter().position(|other| other == file).unwrap_or_default();
    Ok(folder.join(format!("{}-{number}", snapshot.record.id)))
}

/// Reads a file of a snapshot.
pub(crate) fn contents(
    repository: &Repository,
    snapshot: &Snapshot,
    file: &SavedFile,
) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>, SinkError> {
        let root = snapshot.promised_image(&file.image)?;
        let reader = repository.open_image(root)?;
        if reader.size().get() > MAX_FILE {
            return Err("it is larger than such a file can be".into());
        }
        let mut bytes = vec![0; usize::try_from(reader.size().get())?];
        reader.read_at(0, &mut bytes)?;
        Ok(bytes)
    };
    read().map_err(Error::step(format!("cannot read the file `{}` of the snapshot", file.name)))
}
