//! Writes the memory of a snapshot as an ELF core, as gdb, crash and Volatility open
//! it. The layout is that of QEMU's `dump-guest-memory` (`dump/dump.c`): notes with
//! each processor's registers, and the guest's memory at its physical addresses.
//!
//! Where main memory lies is known of the machines `pc` and `q35` alone
//! (`hw/i386/pc_piix.c`, `pc_q35.c`). What ROMs and devices show of memory of their
//! own is not part of it; below 1 MiB a ROM may lie over the memory that is shown.

use std::fs::File;
use std::os::unix::fs::FileExt;

use tintype_repo::{ImageRoot, Repository};
use tintype_stream::{DeviceState, Limits};
use tintype_types::{ByteCount, Extent};
use tintype_vm::{SinkError, arguments};

use super::registers::Registers;
use crate::Engine;
use crate::details::Snapshot;
use crate::disks::runs;
use crate::error::{Error, Result};
use crate::observer::Progress;

const HEADER: u64 = 64;
const SEGMENT: u64 = 56;
const PAGE: u64 = 4096;
/// Where memory goes on that does not fit below devices.
const ABOVE: u64 = 4 << 30;
/// With more, some processors move what is above 4 GiB.
const MAX_MEMORY: u64 = 900 << 30;
/// What the window of the graphics card lies over.
const WINDOW: std::ops::Range<u64> = 0xa_0000..0xc_0000;

/// A snapshot to write.
pub(super) struct Core<'c> {
    pub(super) engine: &'c Engine,
    pub(super) repository: &'c Repository,
    pub(super) snapshot: &'c Snapshot,
}

/// A part of main memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    /// Where the guest sees it.
    address: u64,
    /// Where it is in the image of main memory.
    offset: u64,
    len: u64,
}

impl Core<'_> {
    /// Refuses a snapshot that cannot be written so, before anything is made.
    pub(super) fn refuse_unfit(&self) -> Result<()> {
        self.main_memory().and_then(|root| self.parts(root.size())).map(|_| ())
    }

    /// Writes the core.
    pub(super) fn write(&self, file: &File) -> Result<()> {
        let root = self.main_memory()?;
        let parts = self.parts(root.size())?;
        let notes = self.notes()?;
        let start = (HEADER + SEGMENT * (parts.len() as u64 + 1) + notes.len() as u64)
            .next_multiple_of(PAGE);
        let write = || -> Result<(), SinkError> {
            let total: u64 = parts.iter().map(|part| part.len).sum();
            file.set_len(start + total)?;
            file.write_all_at(&head(&parts, notes.len() as u64, start), 0)?;
            let notes_at = HEADER + SEGMENT * (parts.len() as u64 + 1);
            file.write_all_at(&notes, notes_at)?;
            for piece in self.repository.open_image(root)?.sequence() {
                let (offset, bytes) = piece?;
                self.engine.config.cancel.check()?;
                let (done, total) = (ByteCount(offset), Some(root.size()));
                let progress = Progress { activity: "writing memory", done, total };
                self.engine.config.observer.progress(progress);
                put(file, &parts, start, offset, &bytes)?;
            }
            Ok(())
        };
        write().map_err(|error| match self.engine.check_interruption() {
            Err(interrupted) => interrupted,
            Ok(()) => Error::step("cannot write the memory")(error),
        })
    }

    /// Returns the image of main memory.
    fn main_memory(&self) -> Result<&ImageRoot> {
        let details = &self.snapshot.details;
        if details.memory.is_empty() {
            return Err(self.unfit("the snapshot has no memory"));
        }
        let line = arguments::options(&details.command_line.arguments);
        let machine = line.iter().filter(|option| ["machine", "M"].contains(&option.name.as_str()));
        let backend = machine
            .filter_map(|option| arguments::value_of(option.value.as_deref()?, "memory-backend"))
            .next_back();
        let name = backend.as_deref().unwrap_or("pc.ram");
        let object = format!("/objects/{name}");
        let mut blocks = details.memory.iter();
        let block = blocks.find(|block| block.name == name || block.name == object);
        let root = block.and_then(|block| self.snapshot.image(&block.image));
        root.filter(|root| root.size() == details.inventory.memory)
            .ok_or_else(|| self.unfit("its memory is in several objects, whose order is not known"))
    }

    /// Returns where the guest sees its memory.
    fn parts(&self, size: ByteCount) -> Result<Vec<Part>> {
        let details = &self.snapshot.details;
        let moved =
            details.command_line.arguments.iter().any(|word| word.contains("max-ram-below-4g"));
        parts(&details.inventory.machine, size.get())
            .filter(|_| !moved && size.get() <= MAX_MEMORY)
            .ok_or_else(|| self.unfit("where its machine has its memory is not known"))
    }

    /// Returns the notes: the registers of each processor, twice, as gdb and as QEMU
    /// have them.
    fn notes(&self) -> Result<Vec<u8>> {
        let bytes = self.snapshot.device_state(self.repository)?;
        let state = DeviceState::from_bytes(&bytes, Limits::default())
            .map_err(Error::step("the device state of the snapshot is damaged"))?;
        let processors = Registers::of_all(&state)?;
        if processors.is_empty() {
            self.engine.config.observer.notice(
                "this QEMU describes its processors in a way that is not known: the core has memory and no registers",
            );
        }
        let mut notes = Vec::new();
        for (number, registers) in (1..).zip(&processors) {
            note(&mut notes, b"CORE\0", 1, &registers.status(number));
        }
        for registers in &processors {
            note(&mut notes, b"QEMU\0", 0, &registers.qemu());
        }
        Ok(notes)
    }

    fn unfit(&self, why: &str) -> Error {
        Error::refused(format!("cannot export `{}` as a core", self.snapshot.record.name))
            .because(why.to_owned())
            .state("nothing was written")
            .hint("--format tar writes its memory block by block, if it has any")
    }
}

/// Returns where a machine has its memory; `None` of one that is not known.
fn parts(machine: &str, size: u64) -> Option<Vec<Part>> {
    let below = match machine {
        _ if machine.starts_with("pc-i440fx") && size >= 0xe000_0000 => 0xc000_0000,
        _ if machine.starts_with("pc-i440fx") => size,
        _ if machine.starts_with("pc-q35") && size >= 0xb000_0000 => 0x8000_0000,
        _ if machine.starts_with("pc-q35") => size,
        _ => return None,
    };
    let part =
        |address, offset, end: u64| Part { address, offset, len: end.saturating_sub(offset) };
    let mut parts = vec![
        part(0, 0, WINDOW.start.min(below)),
        part(WINDOW.end, WINDOW.end, below),
        part(ABOVE, below, size),
    ];
    parts.retain(|part| part.len > 0);
    Some(parts)
}

/// Writes bytes of main memory to where they are in the file.
fn put(
    file: &File,
    parts: &[Part],
    start: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<(), SinkError> {
    let mut at = start;
    for part in parts {
        let from = offset.max(part.offset);
        let to = (offset + bytes.len() as u64).min(part.offset + part.len);
        if from < to {
            let some = &bytes[usize::try_from(from - offset)?..usize::try_from(to - offset)?];
            let place = Extent { offset: at + (from - part.offset), len: some.len() as u64 };
            for (extent, bytes) in runs(place, some) {
                if let Some(bytes) = bytes {
                    file.write_all_at(bytes, extent.offset)?;
                }
            }
        }
        at += part.len;
    }
    Ok(())
}

/// Returns the ELF header and the headers of the segments (`elf(5)`).
fn head(parts: &[Part], notes: u64, start: u64) -> Vec<u8> {
    let mut head = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    let count = u16::try_from(parts.len() + 1).expect("there are a few parts");
    // ET_CORE for EM_X86_64, version 1.
    head.extend([4, 0, 62, 0, 1, 0, 0, 0]);
    for word in [0, HEADER, 0] {
        head.extend(word.to_le_bytes());
    }
    head.extend([0; 4]);
    for half in [64, 56, count, 0, 0, 0_u16] {
        head.extend(half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: u64, address: u64, len: u64| {
        head.extend(kind.to_le_bytes());
        head.extend([0; 4]);
        for word in [offset, 0, address, len, len, 0] {
            head.extend(word.to_le_bytes());
        }
    };
    segment(4, HEADER + SEGMENT * u64::from(count), 0, notes);
    let mut at = start;
    for part in parts {
        segment(1, at, part.address, part.len);
        at += part.len;
    }
    head
}

/// Adds a note: lengths, type, and name and content filled up to four bytes.
fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, content: &[u8]) {
    for len in [name.len(), content.len()] {
        notes.extend(u32::try_from(len).expect("notes are small").to_le_bytes());
    }
    notes.extend(kind.to_le_bytes());
    for bytes in [name, content] {
        notes.extend(bytes);
        notes.resize(notes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_where_the_machine_has_it() {
        let check = |machine: &str, size: u64, expected: &[(u64, u64, u64)]| {
            let found: Vec<_> = parts(machine, size)
                .unwrap_or_default()
                .into_iter()
                .map(|part| (part.address, part.offset, part.len))
                .collect();
            assert_eq!(found, expected, "{machine} with {size:#x}");
        };
        let start = (0, 0, 0xa_0000);
        let low = |end: u64| (0xc_0000, 0xc_0000, end - 0xc_0000);
        check("pc-q35-10.0", 1 << 30, &[start, low(1 << 30)]);
        check("pc-q35-10.0", 4 << 30, &[start, low(2 << 30), (4 << 30, 2 << 30, 2 << 30)]);
        check("pc-i440fx-7.2", 0xdfff_f000, &[start, low(0xdfff_f000)]);
        check("pc-i440fx-7.2", 4 << 30, &[start, low(3 << 30), (4 << 30, 3 << 30, 1 << 30)]);
        check("microvm", 1 << 30, &[]);
    }
}
