//! Takes the fields of a message off its front, one after another.

use super::{MAX_NAME_LEN, Malformed};

/// The bytes of a message that are still to be decoded.
pub(super) struct Fields<'a> {
    message: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// Starts at the front of `bytes`; `message` names them in errors.
    pub(super) fn new(message: &'static str, bytes: &'a [u8]) -> Self {
        Self { message, rest: bytes }
    }

    /// Takes `len` bytes.
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) =
            self.rest.split_at_checked(len).ok_or(Malformed::Length { message: self.message })?;
        self.rest = rest;
        Ok(bytes)
    }

    /// Takes a 16-bit number.
    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// Takes a 32-bit number.
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// Takes a 64-bit number.
    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// Takes a name that has its 32-bit length before it.
    pub(super) fn name(&mut self) -> Result<String, Malformed> {
        let len = super::in_memory(self.u32()?);
        let bytes = self.bytes(len)?;
        name(self.message, bytes)
    }

    /// Takes all that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Returns how many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.rest.len()
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed::Length { message: self.message }) }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(Malformed::Length { message: self.message })?;
        self.rest = rest;
        Ok(*bytes)
    }
}

/// Makes a checked name of its bytes.
pub(super) fn name(message: &'static str, bytes: &[u8]) -> Result<String, Malformed> {
    let text = std::str::from_utf8(bytes).map_err(|_| Malformed::Name { message })?;
    if text.len() > MAX_NAME_LEN || text.contains('\0') {
        return Err(Malformed::Name { message });
    }
    Ok(text.to_owned())
}

/// Fails unless `found` is the message's magic number.
pub(super) fn check_magic(
    message: &'static str,
    expected: u64,
    found: u64,
) -> Result<(), Malformed> {
    if expected == found { Ok(()) } else { Err(Malformed::Magic { message, found }) }
}
