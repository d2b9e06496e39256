//! Where a counter's blocks are kept: a raw disk, past every cache of the guest,
//! or a vector in tests.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};

use crate::block::{BLOCK_SIZE, Block};

/// Keeps blocks by their number.
pub(crate) trait Store {
    /// Reads a block from the medium, not from a cache in this system.
    fn read(&self, number: u64, block: &mut Block) -> io::Result<()>;
    /// Writes a block; it may be lost in a power failure until the next flush.
    fn write(&mut self, number: u64, block: &Block) -> io::Result<()>;
    /// Makes what was written survive a power failure.
    fn flush(&mut self) -> io::Result<()>;
}

/// A block device, or a file, that is read and written directly.
pub(crate) struct Disk(File);

impl Disk {
    /// Opens a device for direct transfers.
    pub(crate) fn open(path: &str) -> Result<Self, String> {
        rustix::fs::open(path, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())
            .map(|descriptor| Self(descriptor.into()))
            .map_err(|error| format!("cannot open {path}: {error}"))
    }
}

impl Store for Disk {
    fn read(&self, number: u64, block: &mut Block) -> io::Result<()> {
        self.0.read_exact_at(&mut block.0, offset(number)?)
    }

    fn write(&mut self, number: u64, block: &Block) -> io::Result<()> {
        self.0.write_all_at(&block.0, offset(number)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

fn offset(number: u64) -> io::Result<u64> {
    let size = u64::try_from(BLOCK_SIZE).unwrap_or(u64::MAX);
    number.checked_mul(size).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
impl Store for Vec<Block> {
    fn read(&self, number: u64, block: &mut Block) -> io::Result<()> {
        block.clone_from(&self[usize::try_from(number).unwrap()]);
        Ok(())
    }

    fn write(&mut self, number: u64, block: &Block) -> io::Result<()> {
        self[usize::try_from(number).unwrap()].clone_from(block);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
