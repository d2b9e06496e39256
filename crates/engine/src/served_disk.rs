//! A disk of a snapshot as an export for the guest that lacks it. What cannot be verified
//! is an error, and is remembered: it may be mended.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tintype_nbd::{Export, Payload};
use tintype_repo::ImageReader;
use tintype_types::Extent;

use crate::error::{Error, Result};

/// How many places that cannot be read are kept.
const MAX_BROKEN: usize = 16;

/// A disk of a snapshot as an export. What cannot be verified is an error.
pub(crate) struct ServedDisk {
    size: u64,
    read: Mutex<Reading>,
}

/// Where a disk is read, and what could not be.
struct Reading {
    reader: ImageReader,
    broken: Vec<(Extent, String)>,
}

impl ServedDisk {
    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves what a reader reads.
    pub(crate) fn new(reader: ImageReader) -> Self {
        let size = reader.size().get();
        Self { size, read: Mutex::new(Reading { reader, broken: Vec::new() }) }
    }

    /// Returns why some of it cannot be read.
    pub(crate) fn broken(&self) -> Option<String> {
        self.reading().broken.first().map(|(_, why)| why.clone())
    }

    /// Forgets what could not be read before an offset: it is not needed any more.
    pub(crate) fn passed(&self, offset: u64) {
        self.reading().broken.retain(|(extent, _)| extent.end() > offset);
    }

    /// Uses another reader from now on if that one can read what this one could not.
    pub(crate) fn heal(&self, reader: ImageReader) -> Result<(), tintype_repo::Error> {
        let broken = self.reading().broken.clone();
        for (extent, _) in &broken {
            let mut bytes = vec![0; usize::try_from(extent.len).unwrap_or(0)];
            reader.read_at(extent.offset, &mut bytes)?;
        }
        let mut reading = self.reading();
        reading.reader = reader;
        reading.broken.clear();
        Ok(())
    }
}

impl Export for ServedDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        true
    }

    /// Nobody may ask for it: what cannot be asked cannot fail. While QEMU copies from an
    /// export, a guest's read succeeds without any bytes if the block status fails below
    /// it, as it does while the export is away (`cor_co_preadv_part` in
    /// block/copy-on-read.c takes it for the end of the disk).
    fn tells_block_status(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let reader = self.reading().reader.clone();
        reader.read_at(offset, buffer).map_err(|error| {
            let why = Error::failed("some of the disks of the snapshot cannot be read");
            let why = why.because(error).with_causes();
            let mut reading = self.reading();
            if reading.broken.len() < MAX_BROKEN {
                let extent = Extent { offset, len: buffer.len() as u64 };
                reading.broken.push((extent, why.clone()));
            }
            io::Error::other(why)
        })
    }

    fn write(&self, _offset: u64, _data: Payload) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn write_zeroes(&self, _extent: Extent) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
}
