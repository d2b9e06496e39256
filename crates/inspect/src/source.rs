//! The bytes of an image, wherever they are.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{Error, malformed};

/// Bytes that can be read from any place.
pub trait ReadAt {
    /// Returns how many bytes there are.
    fn size(&self) -> io::Result<u64>;

    /// Reads as many bytes as `buffer` has.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_exact_at(offset, buffer)
    }
}

/// How much of a table is read at once.
const PIECE: u64 = 64 << 10;

/// Reads within an image, and nowhere else.
pub(crate) struct Reader<'s> {
    source: &'s dyn ReadAt,
    len: u64,
}

impl<'s> Reader<'s> {
    pub(crate) fn new(source: &'s dyn ReadAt) -> Result<Self, Error> {
        let len = source.size().map_err(Error::Read)?;
        Ok(Self { source, len })
    }

    /// Returns how many bytes the file has.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Tells whether a part lies within the file.
    pub(crate) fn holds(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= self.len)
    }

    /// Reads a part that must lie within the file.
    pub(crate) fn read(&self, what: &str, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        if !self.holds(offset, buffer.len() as u64) {
            return Err(malformed(format!(
                "{what} is at byte {offset}, and the file ends at byte {}",
                self.len
            )));
        }
        self.source.read_exact_at(offset, buffer).map_err(Error::Read)
    }

    /// Reads a part of a fixed size.
    pub(crate) fn array<const N: usize>(&self, what: &str, offset: u64) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.read(what, offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a table piece by piece, and hands each entry of `N` bytes to `each`,
    /// with its number.
    pub(crate) fn entries<const N: usize>(
        &self,
        what: &str,
        offset: u64,
        count: u64,
        mut each: impl FnMut(u64, [u8; N]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let size = N as u64;
        let mut buffer = Vec::new();
        let mut done = 0;
        while done < count {
            let some = (count - done).min(PIECE / size);
            let len = usize::try_from(some * size).expect("a piece is small");
            buffer.resize(len, 0);
            let at = done.checked_mul(size).and_then(|skip| offset.checked_add(skip));
            let at = at.ok_or_else(|| malformed(format!("{what} is beyond any file")))?;
            self.read(what, at, &mut buffer)?;
            for (number, entry) in buffer.as_chunks().0.iter().enumerate() {
                each(done + number as u64, *entry)?;
            }
            done += some;
        }
        Ok(())
    }
}

/// Takes `N` bytes out of a header that has them.
pub(crate) fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    *header[at..].first_chunk().expect("the header was read as long as its fields reach")
}

pub(crate) fn be32(header: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(field(header, at))
}

pub(crate) fn be64(header: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(field(header, at))
}

pub(crate) fn le32(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(header, at))
}

pub(crate) fn le64(header: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(header, at))
}
