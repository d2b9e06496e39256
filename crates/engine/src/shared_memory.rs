//! The main memory of a snapshot as one file that several QEMUs map privately:
//! they share its pages until their guests write to them.
//!
//! The file has a name only while clones are started. What keeps it is that a
//! QEMU has it mapped, so it goes with the last of them, however that one ends.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use tempfile::TempDir;
use tintype_repo::Repository;
use tintype_types::ByteCount;

use crate::Engine;
use crate::details::{MemoryBlock, Snapshot};
use crate::error::{Error, Result};

/// A file with the main memory of a snapshot.
pub(crate) struct SharedMemory {
    /// QEMU's name for the block.
    pub(crate) block: String,
    size: ByteCount,
    path: PathBuf,
    _folder: TempDir,
}

impl SharedMemory {
    /// Returns the arguments that make a QEMU map it, for one start.
    pub(crate) fn arguments(&self) -> [String; 4] {
        let Self { block, size, path, .. } = self;
        let path = path.display().to_string().replace(',', ",,");
        let object = format!(
            "memory-backend-file,id={block},size={},mem-path={path},share=off,\
             x-use-canonical-path-for-ramblock-id=off",
            size.get()
        );
        let machine = format!("memory-backend={block}");
        ["-object".to_owned(), object, "-machine".to_owned(), machine]
    }
}

impl Engine {
    /// Writes the main memory of a snapshot to a file.
    pub(crate) fn share_memory(
        &self,
        repository: &Repository,
        snapshot: &Snapshot,
    ) -> Result<SharedMemory> {
        let MemoryBlock { name: block, image, .. } = main_memory(snapshot)?;
        let cannot = || "cannot write the memory that the clones share";
        let root = snapshot.promised_image(image)?;
        let reader = repository.open_image(root).map_err(Error::step(cannot()))?;
        let folder = self.home.short_lived_folder()?;
        let path = folder.path().join("memory");
        let file = File::create_new(&path).map_err(Error::io("make", &path))?;
        let size = ByteCount(root.size().get());
        file.set_len(size.get()).map_err(Error::io("write", &path))?;
        for piece in reader.sequence() {
            let (offset, bytes) = piece.map_err(Error::step(cannot()))?;
            file.write_all_at(&bytes, offset).map_err(Error::io("write", &path))?;
        }
        Ok(SharedMemory { block: block.clone(), size, path, _folder: folder })
    }
}

/// Finds the block that QEMU's `-m` makes: it has all of the memory, and the name
/// that the machine gives it (`pc.ram`, `mach-virt.ram`).
fn main_memory(snapshot: &Snapshot) -> Result<&MemoryBlock> {
    let refused = |why: &str| {
        Error::refused("the memory of the snapshot cannot be shared")
            .because(why)
            .hint("clone it without --share-memory")
    };
    let words = &snapshot.details.command_line.arguments;
    if words.iter().any(|word| word.contains("memory-backend") || word.contains("memdev")) {
        return Err(refused("the VM's memory is described by an object of its own"));
    }
    let all = snapshot.details.inventory.memory;
    let is_main = |block: &&MemoryBlock| {
        let size = snapshot.image(&block.image).map(|root| root.size().get());
        block.name.ends_with(".ram") && size == Some(all.get())
    };
    let found = snapshot.details.memory.iter().find(is_main);
    found.ok_or_else(|| refused("it is not one block of memory"))
}
