//! Feeds the memory of a snapshot to a QEMU that waits for it, or writes it to a file.

use std::io::Write;

use tintype_repo::{ImageReader, Repository};
use tintype_stream::{DeviceState, Limits, RamBlock, RamBlockId, RestoreWriter};
use tintype_types::{BLOCK_SIZE, BlockIndex};
use tintype_vm::{Cancel, Guest};

use crate::details::Snapshot;
use crate::error::{Error, Result};

/// How much is sent at once.
const SEND_SIZE: usize = 1 << 20;

/// Loads memory and device state. The block `mapped`, if there is one, is in its
/// place already. The guest stands still afterwards.
pub(crate) fn load(
    repository: &Repository,
    guest: &mut Guest,
    snapshot: &Snapshot,
    state: &[u8],
    mapped: Option<&str>,
    cancel: &Cancel,
) -> Result<()> {
    let state = DeviceState::from_bytes(state, Limits::default())
        .map_err(Error::step("the device state of the snapshot is damaged"))?;
    let mut writer = RestoreWriter::new(&state);
    let mut readers = Vec::new();
    for (id, block) in RamBlock::numbered(state.ram_blocks()) {
        if mapped == Some(block.name.as_str()) {
            writer.allow_partial(id);
        } else {
            readers.push((id, block.pages(), open(repository, snapshot, block)?));
        }
    }
    tintype_vm::load(guest, cancel, |stream| send(stream, writer, readers))
}

/// Writes memory and device state as a stream that a QEMU runs when it has loaded it.
pub(crate) fn write(
    repository: &Repository,
    snapshot: &Snapshot,
    state: &[u8],
    stream: &mut dyn Write,
) -> Result<()> {
    let cannot = || "the device state of the snapshot is damaged";
    let mut state =
        DeviceState::from_bytes(state, Limits::default()).map_err(Error::step(cannot()))?;
    if snapshot.details.was_running {
        state.set_running().map_err(Error::step(cannot()))?;
    }
    let mut readers = Vec::new();
    for (id, block) in RamBlock::numbered(state.ram_blocks()) {
        readers.push((id, block.pages(), open(repository, snapshot, block)?));
    }
    send(stream, RestoreWriter::new(&state), readers)
}

/// Opens each block of memory, in the order of the device state.
pub(crate) fn readers(
    repository: &Repository,
    snapshot: &Snapshot,
    state: &DeviceState,
) -> Result<Vec<ImageReader>> {
    state.ram_blocks().iter().map(|block| open(repository, snapshot, block)).collect()
}

fn open(repository: &Repository, snapshot: &Snapshot, block: &RamBlock) -> Result<ImageReader> {
    let saved = snapshot.details.memory.iter().find(|saved| saved.name == block.name);
    let saved = saved.ok_or_else(|| {
        Error::failed(format!("the snapshot has no memory for the block `{}`", block.name))
    })?;
    let root = snapshot.promised_image(&saved.image)?;
    if root.size() != block.length {
        return Err(Error::failed(format!(
            "the memory of the block `{}` has another size",
            block.name
        )));
    }
    repository.open_image(root).map_err(Error::step("cannot open the memory of the snapshot"))
}

fn send(
    stream: &mut dyn Write,
    mut writer: RestoreWriter<'_>,
    readers: Vec<(RamBlockId, u64, ImageReader)>,
) -> Result<()> {
    let mut out = Vec::with_capacity(SEND_SIZE + 2 * BLOCK_SIZE);
    writer.start(&mut out);
    for (block, pages, reader) in readers {
        let mut next = 0;
        for piece in reader.sequence() {
            let (offset, bytes) =
                piece.map_err(Error::step("cannot read the memory of the snapshot"))?;
            let first = BlockIndex::containing(offset).0;
            zeros(&mut writer, &mut out, stream, block, next..first)?;
            next = first;
            for bytes in bytes.chunks(BLOCK_SIZE) {
                let page: &[u8; BLOCK_SIZE] = bytes
                    .try_into()
                    .map_err(|_| Error::failed("a block of memory ends within a page"))?;
                writer
                    .page(&mut out, block, BlockIndex(next), page)
                    .map_err(Error::step("the memory does not fit its blocks"))?;
                next += 1;
                flush_some(stream, &mut out)?;
            }
        }
        zeros(&mut writer, &mut out, stream, block, next..pages)?;
    }
    writer.finish(&mut out).map_err(Error::step("the memory of the snapshot is not complete"))?;
    flush(stream, &mut out)
}

fn zeros(
    writer: &mut RestoreWriter<'_>,
    out: &mut Vec<u8>,
    stream: &mut dyn Write,
    block: RamBlockId,
    pages: std::ops::Range<u64>,
) -> Result<()> {
    for page in pages {
        writer
            .zero_page(out, block, BlockIndex(page))
            .map_err(Error::step("the memory does not fit its blocks"))?;
        flush_some(stream, out)?;
    }
    Ok(())
}

fn flush_some(stream: &mut dyn Write, out: &mut Vec<u8>) -> Result<()> {
    if out.len() < SEND_SIZE { Ok(()) } else { flush(stream, out) }
}

fn flush(stream: &mut dyn Write, out: &mut Vec<u8>) -> Result<()> {
    stream.write_all(out).map_err(Error::step("QEMU does not take its memory"))?;
    out.clear();
    Ok(())
}
