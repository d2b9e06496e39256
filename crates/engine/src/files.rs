//! The small files that a VM's settings name: kernel, initial RAM disk,
//! firmware. A snapshot keeps their contents, because a reboot after a revert
//! reads them again.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tintype_repo::Repository;
use tintype_types::ByteCount;
use tintype_vm::{CommandLine, Inventory, SinkError, arguments};

use crate::details::{SavedFile, Snapshot};
use crate::error::{Error, Result};
use crate::home::{make_folder, write_durably};
use crate::sink::SessionSink;

/// Larger files are not small: they are named, and not kept.
const MAX_FILE: u64 = 512 << 20;

/// How much of a file is read at once; a multiple of a block.
const PIECE: usize = 1 << 20;

/// Keeps the files that a command line names. Names that are no file here are
/// QEMU's own data, and come with QEMU.
pub(crate) fn save(
    sink: &SessionSink<'_>,
    line: &CommandLine,
    inventory: &Inventory,
) -> Result<Vec<SavedFile>, SinkError> {
    let firmware = inventory
        .disks
        .iter()
        .filter(|disk| disk.read_only && disk.device.starts_with("/machine/system.flash"));
    let firmware = firmware.filter_map(|disk| disk.file.as_ref()?.to_str().map(str::to_owned));
    let mut saved: Vec<SavedFile> = Vec::new();
    for name in arguments::named_files(&line.arguments).into_iter().chain(firmware) {
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
    for file in &snapshot.details.files {
        let bytes = contents(repository, snapshot, file)?;
        if fs::read(&file.path).is_ok_and(|now| now == bytes) {
            continue;
        }
        let own = own_place(folder, snapshot, file)?;
        write_durably(&own, &bytes)?;
        replaced.push((file.name.clone(), own.display().to_string()));
    }
    let line = &snapshot.details.command_line;
    Ok(CommandLine {
        arguments: arguments::with_files_replaced(&line.arguments, &replaced),
        ..line.clone()
    })
}

fn own_place(folder: &Path, snapshot: &Snapshot, file: &SavedFile) -> Result<PathBuf> {
    make_folder(folder)?;
    let number = snapshot.details.files.iter().position(|other| other == file).unwrap_or_default();
    Ok(folder.join(format!("{}-{number}", snapshot.record.id)))
}

fn contents(repository: &Repository, snapshot: &Snapshot, file: &SavedFile) -> Result<Vec<u8>> {
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
