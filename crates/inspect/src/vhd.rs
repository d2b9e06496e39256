//! Virtual PC's images: of a fixed size and growing. Those of differences need a
//! parent, which QEMU does not open either.

use tintype_types::ByteCount;

use crate::error::{Error, limit, malformed, require, unsupported};
use crate::source::{Reader, be32, be64};
use crate::{ImageFormat, MAX_SIZE, MAX_TABLES, Report};

const COOKIE: &[u8] = b"conectix";
const FOOTER: u64 = 512;
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCING: u32 = 4;
/// A block that was never written.
const ABSENT: u32 = u32::MAX;

/// Inspects an image.
pub(crate) fn inspect(reader: &Reader<'_>) -> Result<Report, Error> {
    let end = reader.len().checked_sub(FOOTER).ok_or_else(|| malformed("it is too short"))?;
    let start: [u8; 512] = reader.array("the first sector", 0)?;
    // With this start QEMU takes it for a growing image, whatever the footer says.
    let grows = start.starts_with(COOKIE);
    let footer = if grows { start } else { reader.array("the footer", end)? };
    require(footer.starts_with(COOKIE), "it is not a vhd: it has no footer")?;
    require(sum(&footer, 64), "the footer's checksum is wrong")?;
    let version = be32(&footer, 12);
    require(version == 0x0001_0000, format!("version {version:#x} of vhd is not known"))?;
    let size = be64(&footer, 48);
    limit("the disk has bytes", size, MAX_SIZE.get())?;
    match (be32(&footer, 60), grows) {
        (FIXED, false) => {
            require(size <= end, "the disk is larger than the file")?;
        }
        (DYNAMIC, true) => dynamic(reader, be64(&footer, 16), size)?,
        (DIFFERENCING, _) => return Err(unsupported("it needs a parent image")),
        (kind @ (FIXED | DYNAMIC), _) => {
            return Err(malformed(format!("a footer of type {kind} where none belongs")));
        }
        (kind, _) => return Err(malformed(format!("the type {kind} of vhd is not known"))),
    }
    Ok(Report::plain(ImageFormat::Vhd, ByteCount(size)))
}

/// Checks the table of a growing image.
fn dynamic(reader: &Reader<'_>, header_at: u64, size: u64) -> Result<(), Error> {
    let header: [u8; 1024] = reader.array("the dynamic header", header_at)?;
    require(header.starts_with(b"cxsparse"), "the dynamic header is not one")?;
    require(sum(&header, 36), "the dynamic header's checksum is wrong")?;
    let block = u64::from(be32(&header, 32));
    let is_block = block.is_power_of_two() && (4096..=(256 << 20)).contains(&block);
    require(is_block, format!("blocks of {block} bytes"))?;
    let count = u64::from(be32(&header, 28));
    limit("the table has bytes", count * 4, MAX_TABLES / 8)?;
    require(count * block >= size, "the table is too short for the disk")?;
    let mut present = 0_u64;
    reader.entries("the table of blocks", be64(&header, 16), count, |_, entry| {
        let sector = u32::from_be_bytes(entry);
        if sector == ABSENT {
            return Ok(());
        }
        present += 1;
        require(u64::from(sector) * 512 < reader.len(), "a block is beyond the end of the file")
    })?;
    let most = reader.len().saturating_add(block);
    limit("the disk has bytes in blocks", present.saturating_mul(block), most)
}

/// Checks the sum over a header, which is at `at` in it. The fuzzer need not find it.
fn sum(header: &[u8], at: usize) -> bool {
    let others = header.iter().enumerate().filter(|(place, _)| !(at..at + 4).contains(place));
    let sum = others.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)));
    cfg!(fuzzing) || !sum == be32(header, at)
}
