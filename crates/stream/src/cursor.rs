//! Reads big-endian numbers and names from the bytes that have arrived so far.
//!
//! It never copies and never consumes: a caller that runs short forgets the
//! cursor and starts again when there is more.

use crate::Error;

/// Why a step cannot be taken.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The input must hold this many bytes, counted from where the cursor began.
    Short(usize),
    /// The input is wrong.
    Bad(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Bad(error)
    }
}

#[derive(Debug)]
pub(crate) struct Cursor<'b> {
    input: &'b [u8],
    position: usize,
}

impl<'b> Cursor<'b> {
    pub(crate) fn new(input: &'b [u8]) -> Self {
        Self { input, position: 0 }
    }

    /// Returns how many bytes were read.
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<&'b [u8; N], Halt> {
        let rest = self.input.get(self.position..).unwrap_or_default();
        let array = rest.first_chunk::<N>().ok_or(Halt::Short(self.position.saturating_add(N)))?;
        self.position += N;
        Ok(array)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'b [u8], Halt> {
        let end = self.position.saturating_add(len);
        let bytes = self.input.get(self.position..end).ok_or(Halt::Short(end))?;
        self.position = end;
        Ok(bytes)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Halt> {
        self.array().map(|&[byte]| byte)
    }

    pub(crate) fn be16(&mut self) -> Result<u16, Halt> {
        self.array().map(|bytes| u16::from_be_bytes(*bytes))
    }

    pub(crate) fn be32(&mut self) -> Result<u32, Halt> {
        self.array().map(|bytes| u32::from_be_bytes(*bytes))
    }

    pub(crate) fn be64(&mut self) -> Result<u64, Halt> {
        self.array().map(|bytes| u64::from_be_bytes(*bytes))
    }

    /// Reads the bytes of a name that has its length in front, in one byte.
    pub(crate) fn name(&mut self) -> Result<&'b [u8], Halt> {
        let len = self.u8()?;
        self.bytes(usize::from(len))
    }
}

/// Takes the bytes of a name as text, if they are printable.
pub(crate) fn printable(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}
