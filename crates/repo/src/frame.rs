//! Frames: the unit of compression and reading.
//!
//! ```text
//! 0  magic    4  "TFRM"
//! 4  kind     1  1 blocks, 2 node, 3 blob chunk
//! 5  codec    1  0 raw, 1 zstd
//! 6  number   2  the frame's number in its segment
//! 8  stored   4  bytes after this header
//! 12 raw      4  bytes when decoded
//! 16 checksum 8  start of the BLAKE3 of the stored bytes
//! ```
//!
//! In a repository that hides its content, what is stored is sealed under the
//! segment's key: the nonce is the number, and bound to it are kind, codec and
//! the decoded length.
//!
//! The checksum finds damage without any key; what a reader trusts is the id
//! of the decoded bytes, which is checked elsewhere.

use std::cell::RefCell;

use tintype_types::BLOCK_SIZE;
use zstd::bulk::{Compressor, Decompressor};

use crate::wire::{Fields, Malformed};

/// The length of a frame's header.
pub(crate) const HEADER_LEN: usize = 24;
/// The most blocks of a frame.
pub(crate) const MAX_BLOCKS: usize = 32;
/// The most decoded bytes of a frame of any kind.
pub(crate) const MAX_RAW: usize = 1 << 20;

const MAGIC: [u8; 4] = *b"TFRM";
/// The level of zstd. Of a guest's memory and disk, in frames of 128 KiB, level 1
/// keeps 3 % more in 7 % less time; level 3 keeps 2 % less in a third more.
const LEVEL: i32 = 2;
/// The level at which `gc --recompress` tries again. Of the same, in percent of what
/// level 2 keeps, and in MB/s a core: level 9 keeps 91 at 70, 12 keeps 90 at 20, 15
/// keeps 85 at 7 to 11, 19 keeps 83 at 3 to 4. Level 15 is decoded at three quarters
/// of the speed of level 2, level 9 at nine tenths.
pub(crate) const STRONG_LEVEL: u8 = 15;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameKind {
    Blocks = 1,
    Node = 2,
    Blob = 3,
}

impl FrameKind {
    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            1 => Ok(FrameKind::Blocks),
            2 => Ok(FrameKind::Node),
            3 => Ok(FrameKind::Blob),
            _ => Err(Malformed("a frame has an unknown kind")),
        }
    }
}

/// How a frame's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Codec {
    Raw = 0,
    Zstd = 1,
}

impl Codec {
    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Zstd),
            _ => Err(Malformed("a frame has an unknown codec")),
        }
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub kind: FrameKind,
    pub codec: Codec,
    pub number: u16,
    pub stored: u32,
    pub raw: u32,
    pub checksum: [u8; 8],
}

impl FrameHeader {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC);
        out[4] = self.kind as u8;
        out[5] = self.codec as u8;
        out[6..8].copy_from_slice(&self.number.to_le_bytes());
        out[8..12].copy_from_slice(&self.stored.to_le_bytes());
        out[12..16].copy_from_slice(&self.raw.to_le_bytes());
        out[16..].copy_from_slice(&self.checksum);
        out
    }

    /// Reads the header at the start of a frame's bytes and checks that the
    /// rest of the bytes has the length that it says.
    pub(crate) fn decode(frame: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(frame);
        if fields.array()? != MAGIC {
            return Err(Malformed("there is no frame"));
        }
        let header = Self {
            kind: FrameKind::from_byte(fields.u8()?)?,
            codec: Codec::from_byte(fields.u8()?)?,
            number: fields.u16()?,
            stored: fields.u32()?,
            raw: fields.u32()?,
            checksum: fields.array()?,
        };
        let stored = &frame[HEADER_LEN..];
        if usize::try_from(header.stored) != Ok(stored.len()) {
            return Err(Malformed("a frame has the wrong length"));
        }
        Ok(header)
    }

    /// Checks that the bytes after the header are those that were stored.
    pub(crate) fn check(&self, stored: &[u8]) -> Result<(), Malformed> {
        if checksum(stored) != self.checksum {
            return Err(Malformed("the checksum of a frame does not match"));
        }
        Ok(())
    }
}

impl FrameHeader {
    /// Returns what a sealed frame is bound to, beside its segment and number.
    pub(crate) fn bound(kind: FrameKind, codec: Codec, raw: u32) -> [u8; 6] {
        let [a, b, c, d] = raw.to_le_bytes();
        [kind as u8, codec as u8, a, b, c, d]
    }
}

/// Returns the first of frames that follow each other, as long as its header says.
pub(crate) fn first(frames: &[u8]) -> Option<&[u8]> {
    let header = frames.first_chunk::<HEADER_LEN>().filter(|header| header.starts_with(&MAGIC))?;
    let stored = u32::from_le_bytes(*header[8..].first_chunk()?);
    frames.get(..HEADER_LEN.checked_add(usize::try_from(stored).ok()?)?)
}

/// Returns the checksum of a frame's stored bytes.
pub(crate) fn checksum(stored: &[u8]) -> [u8; 8] {
    *blake3::hash(stored).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

/// Compresses frames and proves each one by decoding it again.
pub(crate) struct Encoder {
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
    packed: Vec<u8>,
    proof: Vec<u8>,
    /// Whether the last frame was stored raw: what follows is often like it.
    doubtful: bool,
}

impl Encoder {
    /// Makes an encoder for one thread.
    pub(crate) fn new() -> Self {
        Self::of_level(LEVEL)
    }

    /// Makes one that takes its time to store less.
    pub(crate) fn strong() -> Self {
        Self::of_level(STRONG_LEVEL.into())
    }

    fn of_level(level: i32) -> Self {
        Self {
            compressor: Compressor::new(level).expect("zstd has this level"),
            decompressor: Decompressor::new().expect("zstd needs no more than memory"),
            packed: vec![0; zstd::zstd_safe::compress_bound(MAX_BLOCKS * BLOCK_SIZE)],
            proof: Vec::new(),
            doubtful: false,
        }
    }

    /// Encodes the bytes; returns the smaller of them and their zstd form,
    /// the latter only if it decodes to the same bytes.
    pub(crate) fn encode<'a>(&'a mut self, raw: &'a [u8]) -> (Codec, &'a [u8]) {
        let packed = self.pack(raw);
        self.doubtful = packed.is_none();
        match packed {
            Some(len) => (Codec::Zstd, &self.packed[..len]),
            None => (Codec::Raw, raw),
        }
    }

    /// Returns the zstd form of the bytes, if it is shorter by a thirty-second than
    /// what there is, and decodes to the same bytes.
    pub(crate) fn shorten(&mut self, raw: &[u8], there: usize) -> Option<&[u8]> {
        let len = self.pack(raw)?;
        (len + len / 32 < there).then(|| &self.packed[..len])
    }

    /// Compresses the bytes into `packed` and returns the length, if it is
    /// worthwhile and decodes to the same bytes.
    fn pack(&mut self, raw: &[u8]) -> Option<usize> {
        if self.doubtful && !self.worthwhile(raw) {
            return None;
        }
        self.packed.resize(zstd::zstd_safe::compress_bound(raw.len()).max(self.packed.len()), 0);
        let len = self.compressor.compress_to_buffer(raw, &mut self.packed[..]).ok()?;
        if len + len / 32 >= raw.len() {
            return None;
        }
        self.proof.resize(raw.len().max(self.proof.len()), 0);
        let proof = &mut self.proof[..raw.len()];
        match self.decompressor.decompress_to_buffer(&self.packed[..len], proof) {
            Ok(decoded) if decoded == raw.len() && *proof == *raw => Some(len),
            _ => {
                tracing::error!("zstd did not give back what it was given; stored raw");
                None
            }
        }
    }

    /// Tries the first block: data that zstd shortens by less than a
    /// twentieth is not worth the time.
    fn worthwhile(&mut self, raw: &[u8]) -> bool {
        if raw.len() < 4 * BLOCK_SIZE {
            return true;
        }
        match self.compressor.compress_to_buffer(&raw[..BLOCK_SIZE], &mut self.packed[..]) {
            Ok(len) => len + BLOCK_SIZE / 20 <= BLOCK_SIZE,
            Err(_) => false,
        }
    }
}

thread_local! {
    static DECOMPRESSOR: RefCell<Decompressor<'static>> =
        RefCell::new(Decompressor::new().expect("zstd needs no more than memory"));
}

/// Decodes the stored bytes of a frame to exactly `raw` bytes.
pub(crate) fn decode(codec: Codec, stored: &[u8], raw: u32) -> Result<Vec<u8>, Malformed> {
    let raw = usize::try_from(raw).unwrap_or(usize::MAX);
    if raw > MAX_RAW {
        return Err(Malformed("a frame is larger than a frame can be"));
    }
    let mut bytes = vec![0; raw];
    decode_to(codec, stored, &mut bytes)?;
    Ok(bytes)
}

/// Decodes the stored bytes of a frame to just as many bytes as there is room for.
pub(crate) fn decode_to(codec: Codec, stored: &[u8], room: &mut [u8]) -> Result<(), Malformed> {
    const WRONG: Malformed = Malformed("a frame decodes to the wrong length");
    match codec {
        Codec::Raw if stored.len() != room.len() => Err(WRONG),
        Codec::Raw => {
            room.copy_from_slice(stored);
            Ok(())
        }
        Codec::Zstd => DECOMPRESSOR
            .with_borrow_mut(|decompressor| decompressor.decompress_to_buffer(stored, &mut *room))
            .map_err(|_| Malformed("zstd cannot decode it"))
            .and_then(|len| if len == room.len() { Ok(()) } else { Err(WRONG) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: &[u8], expected: Codec) {
        let mut encoder = Encoder::new();
        let (codec, stored) = encoder.encode(raw);
        assert_eq!(codec, expected);
        let len = u32::try_from(raw.len()).unwrap();
        assert_eq!(decode(codec, stored, len).unwrap(), raw);
        let mut room = vec![1; raw.len() + 1];
        decode_to(codec, stored, &mut room[..raw.len()]).unwrap();
        assert_eq!(room[..raw.len()], *raw);
        assert!(decode_to(codec, stored, &mut room).is_err());
        assert!(decode_to(codec, stored, &mut room[..raw.len() - 1]).is_err());
        assert!(decode(codec, stored, len + 1).is_err());
        assert!(decode(codec, &stored[..stored.len() - 1], len).is_err());
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn frames_decode_to_what_was_encoded() {
        check(&[7; 65536], Codec::Zstd);
        check(&[7; 4096], Codec::Zstd);
        check(&noise(65536), Codec::Raw);
        check(&noise(4096), Codec::Raw);
        check(&[3; MAX_RAW], Codec::Zstd);
    }

    #[test]
    fn what_is_encoded_anew_is_shorter_or_not_taken() {
        let mut text = noise(16 * BLOCK_SIZE);
        text.iter_mut().for_each(|byte| *byte = b"etaoinshrdlu    "[usize::from(*byte % 16)]);
        let (mut fast, mut strong) = (Encoder::new(), Encoder::strong());
        let (_, there) = fast.encode(&text);
        let short = strong.shorten(&text, there.len()).expect("it is shorter").to_vec();
        assert!(short.len() < there.len());
        let len = u32::try_from(text.len()).unwrap();
        assert_eq!(decode(Codec::Zstd, &short, len).unwrap(), text);
        assert_eq!(strong.shorten(&text, short.len()), None);
        assert_eq!(strong.shorten(&noise(16 * BLOCK_SIZE), 16 * BLOCK_SIZE), None);
    }

    #[test]
    fn a_bomb_is_refused_before_memory_is_taken() {
        assert!(decode(Codec::Zstd, &[0; 10], u32::MAX).is_err());
    }
}
