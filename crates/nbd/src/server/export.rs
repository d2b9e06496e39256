//! What a server serves: the trait that a backend implements, the buffers that it
//! is given, and an export in memory.

use std::io;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tintype_types::Extent;

use crate::client::Status;
use crate::codec::StatusFlags;

/// A disk, as a server sees it.
///
/// Connections call it from their threads, several at once. Ranges have been
/// checked against [`Export::size`] and are never empty. An error reaches the
/// peer as the nearest of the protocol's error numbers (see
/// [`crate::codec::Errno::from_io`]); a panic ends the connection. Calls must
/// come to an end, since [`crate::Server::stop`] waits for them.
pub trait Export: Send + Sync {
    /// Returns the size in bytes. It must not change.
    fn size(&self) -> u64;

    /// Returns whether all writes fail.
    fn read_only(&self) -> bool {
        false
    }

    /// Reads as many bytes as `buffer` has. The buffer may hold old bytes.
    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes bytes. The peer waits for this call, and behind QEMU's
    /// copy-before-write filter so does the guest: keep `data` and return, rather
    /// than work.
    fn write(&self, offset: u64, data: Payload) -> io::Result<()>;

    /// Makes bytes read as zeros.
    fn write_zeroes(&self, extent: Extent) -> io::Result<()>;

    /// Takes note that bytes are no longer needed. Does nothing by default.
    fn trim(&self, _extent: Extent) -> io::Result<()> {
        Ok(())
    }

    /// Makes durable all writes that have returned, on any connection.
    fn flush(&self) -> io::Result<()>;

    /// Returns whether peers may ask for the block status at all. It must not change.
    fn tells_block_status(&self) -> bool {
        true
    }

    /// Returns what is known about bytes from the start of `extent` on, in order
    /// and without gaps: at least one entry, not necessarily to the end.
    /// By default all bytes are data.
    fn block_status(&self, extent: Extent) -> io::Result<Vec<Status>> {
        Ok(vec![Status { extent, flags: StatusFlags::default() }])
    }
}

/// The bytes of one write. The buffer goes back to the server when it is dropped,
/// on whichever thread, so that a steady stream of writes allocates nothing.
pub struct Payload {
    buffer: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Payload {
    /// Returns the bytes for filling in.
    pub(super) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.buffer));
    }
}

/// Spare buffers.
#[derive(Default)]
pub(super) struct Pool {
    spare: Mutex<Vec<Vec<u8>>>,
}

impl Pool {
    /// How many spare buffers are kept.
    const MAX_SPARE: usize = 32;
    /// Larger buffers are not kept. QEMU's block jobs write at most 1 MiB at once.
    const MAX_SPARE_LEN: usize = 2 << 20;

    /// Returns a buffer of `len` bytes with any content.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Payload {
        let mut buffer = self.spare().pop().unwrap_or_default();
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        Payload { buffer, len, pool: Arc::clone(self) }
    }

    fn put(&self, buffer: Vec<u8>) {
        let mut spare = self.spare();
        if spare.len() < Self::MAX_SPARE && buffer.len() <= Self::MAX_SPARE_LEN {
            spare.push(buffer);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        // A list of spare buffers is good whatever its last user did.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An export in memory: for tests, and for small disks.
pub struct MemoryExport {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
}

impl MemoryExport {
    /// Serves bytes that can be written.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Mutex::new(bytes), read_only: false }
    }

    /// Serves bytes that cannot be written.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        Self { bytes: Mutex::new(bytes), read_only: true }
    }

    /// Returns a copy of the bytes as they are now.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Export for MemoryExport {
    fn size(&self) -> u64 {
        u64::try_from(self.lock().len()).expect("an address has at most 64 bits here")
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = index(offset);
        buffer.copy_from_slice(&self.lock()[start..start + buffer.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: Payload) -> io::Result<()> {
        let start = index(offset);
        self.lock()[start..start + data.len()].copy_from_slice(&data);
        Ok(())
    }

    fn write_zeroes(&self, extent: Extent) -> io::Result<()> {
        self.lock()[index(extent.offset)..index(extent.end())].fill(0);
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn block_status(&self, extent: Extent) -> io::Result<Vec<Status>> {
        let bytes = self.lock();
        let is_zero = |piece: Extent| {
            bytes[index(piece.offset)..index(piece.end())].iter().all(|&byte| byte == 0)
        };
        let mut found: Vec<Status> = Vec::new();
        for piece in extent.pieces(4096) {
            let flags = if is_zero(piece) { StatusFlags::ZERO } else { StatusFlags::default() };
            match found.last_mut() {
                Some(last) if last.flags == flags => last.extent.len += piece.len,
                _ => found.push(Status { extent: piece, flags }),
            }
        }
        Ok(found)
    }
}

/// Converts an offset within bytes in memory.
fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("the server has checked the range")
}
