//! Hyper-V's images. One whose log is not empty has to be repaired before it means
//! anything, and one of differences needs a parent: both are refused.

use tintype_types::ByteCount;

use crate::error::{Error, limit, malformed, require, unsupported};
use crate::source::{Reader, field, le32, le64};
use crate::{ImageFormat, MAX_SIZE, MAX_TABLES, Report};

const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER: usize = 4096;
const REGIONS: u64 = 192 << 10;
const REGION_TABLE: usize = 64 << 10;
const MAX_ENTRIES: u32 = 2047;
const MIB: u64 = 1 << 20;

type Guid = [u8; 16];

const BAT: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: Guid = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);

const PARAMETERS: Guid = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const PAGE_83: Guid = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: Guid = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: Guid = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: Guid = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// Returns a GUID as it is stored.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> Guid {
    let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let d = d.to_be_bytes();
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// What the metadata says.
#[derive(Default)]
struct Disk {
    block: Option<u64>,
    size: Option<u64>,
    logical_sector: Option<u64>,
}

/// Inspects an image.
pub(crate) fn inspect(reader: &Reader<'_>) -> Result<Report, Error> {
    let start: [u8; 8] = reader.array("the file identifier", 0)?;
    require(&start == b"vhdxfile", "it is not a vhdx: its first bytes are others")?;
    refuse_log(reader)?;
    let (metadata, bat) = regions(reader)?;
    let (size, block, sector) = disk(reader, metadata)?;
    blocks(reader, bat, size, block, sector)?;
    Ok(Report::plain(ImageFormat::Vhdx, ByteCount(size)))
}

/// Refuses an image that was not closed: its log has what the tables have not.
fn refuse_log(reader: &Reader<'_>) -> Result<(), Error> {
    let mut current: Option<(u64, [u8; HEADER])> = None;
    for at in HEADERS {
        let header: [u8; HEADER] = reader.array("a header", at)?;
        let sequence = le64(&header, 8);
        let is_newer = current.as_ref().is_none_or(|(other, _)| sequence > *other);
        if header.starts_with(b"head") && is_whole(&header) && is_newer {
            current = Some((sequence, header));
        }
    }
    let (_, header) = current.ok_or_else(|| malformed("both headers are damaged"))?;
    let version = u16::from_le_bytes(field(&header, 66));
    require(version == 1, format!("version {version} of vhdx is not known"))?;
    if field::<16>(&header, 48) != [0; 16] {
        return Err(Error::Unsupported {
            what: "it was not closed: its log has to be replayed".to_owned(),
            hint: Some("`qemu-img check -f vhdx -r all IMAGE` replays it in a copy of the image"),
        });
    }
    Ok(())
}

/// A part of the file.
#[derive(Clone, Copy)]
struct Region {
    offset: u64,
    len: u64,
}

/// Returns where the metadata and the table of blocks are.
fn regions(reader: &Reader<'_>) -> Result<(Region, Region), Error> {
    let mut table = vec![0; REGION_TABLE];
    reader.read("the region table", REGIONS, &mut table)?;
    require(table.starts_with(b"regi") && is_whole(&table), "the region table is damaged")?;
    let count = le32(&table, 8);
    limit("it has regions", count.into(), MAX_ENTRIES.into())?;
    let (mut metadata, mut bat) = (None, None);
    for entry in table[16..].as_chunks::<32>().0.iter().take(count as usize) {
        let region = Region { offset: le64(entry, 16), len: le32(entry, 24).into() };
        let place = match field::<16>(entry, 0) {
            METADATA => &mut metadata,
            BAT => &mut bat,
            _ if le32(entry, 28) & 1 != 0 => {
                return Err(unsupported("it has a required region that is not known"));
            }
            _ => continue,
        };
        let is_aligned = region.offset >= MIB && region.offset.is_multiple_of(MIB);
        require(is_aligned, "a region does not start at a mebibyte")?;
        require(reader.holds(region.offset, region.len), "a region is beyond the end of the file")?;
        require(place.replace(region).is_none(), "it has a region twice")?;
    }
    let missing = || malformed("it has no metadata, or no table of blocks");
    let (metadata, bat): (Region, Region) =
        (metadata.ok_or_else(missing)?, bat.ok_or_else(missing)?);
    let overlaps =
        metadata.offset < bat.offset + bat.len && bat.offset < metadata.offset + metadata.len;
    require(!overlaps, "its regions overlap")?;
    Ok((metadata, bat))
}

/// Returns the size of the disk, of its blocks and of its sectors.
fn disk(reader: &Reader<'_>, region: Region) -> Result<(u64, u64, u64), Error> {
    let head: [u8; 32] = reader.array("the metadata", region.offset)?;
    require(head.starts_with(b"metadata"), "the metadata is damaged")?;
    let count = u16::from_le_bytes(field(&head, 10));
    limit("it has metadata items", count.into(), MAX_ENTRIES.into())?;
    let mut found = Disk::default();
    reader.entries::<32>("the metadata", region.offset + 32, count.into(), |_, entry| {
        let (at, len) = (u64::from(le32(&entry, 16)), u64::from(le32(&entry, 20)));
        let is_user = le32(&entry, 24) & 1 != 0;
        require(at + len <= region.len, "a metadata item is beyond its region")?;
        let place = region.offset + at;
        match field::<16>(&entry, 0) {
            _ if is_user => Ok(()),
            PARAMETERS => {
                let bytes: [u8; 8] = reader.array("the file parameters", place)?;
                if le32(&bytes, 4) & 2 != 0 {
                    return Err(unsupported("it needs a parent image"));
                }
                once(&mut found.block, le32(&bytes, 0).into())
            }
            DISK_SIZE => {
                once(&mut found.size, u64::from_le_bytes(reader.array("the size", place)?))
            }
            LOGICAL_SECTOR => {
                let size = u32::from_le_bytes(reader.array("the sector size", place)?);
                once(&mut found.logical_sector, size.into())
            }
            PAGE_83 | PHYSICAL_SECTOR => Ok(()),
            PARENT_LOCATOR => Err(unsupported("it needs a parent image")),
            _ if le32(&entry, 24) & 4 != 0 => {
                Err(unsupported("it has required metadata that is not known"))
            }
            _ => Ok(()),
        }
    })?;
    let Disk { block: Some(block), size: Some(size), logical_sector: Some(sector) } = found else {
        return Err(malformed("the metadata is not complete"));
    };
    let is_block = block.is_power_of_two() && (MIB..=256 * MIB).contains(&block);
    require(is_block, format!("blocks of {block} bytes"))?;
    require(matches!(sector, 512 | 4096), format!("sectors of {sector} bytes"))?;
    limit("the disk has bytes", size, MAX_SIZE.get())?;
    require(size.is_multiple_of(sector), "the disk ends within a sector")?;
    Ok((size, block, sector))
}

fn once(place: &mut Option<u64>, value: u64) -> Result<(), Error> {
    require(place.replace(value).is_none(), "it has a metadata item twice")
}

/// Checks the table of blocks. After so many blocks as make 2^23 sectors there is
/// one entry for a bitmap, which only an image with a parent uses.
fn blocks(
    reader: &Reader<'_>,
    bat: Region,
    size: u64,
    block: u64,
    sector: u64,
) -> Result<(), Error> {
    const PRESENT: u64 = 6;
    const PARTLY: u64 = 7;
    let ratio = (sector << 23) / block;
    let count = size.div_ceil(block);
    let entries = count + count.saturating_sub(1) / ratio;
    require(entries * 8 <= bat.len, "the table of blocks is too short for the disk")?;
    limit("the table has bytes", entries * 8, MAX_TABLES)?;
    let mut present = 0_u64;
    reader.entries("the table of blocks", bat.offset, entries, |number, entry| {
        let entry = u64::from_le_bytes(entry);
        let place = entry >> 20 << 20;
        let is_bitmap = (number + 1).is_multiple_of(ratio + 1);
        match entry & 7 {
            PARTLY => Err(unsupported("it needs a parent image")),
            PRESENT if !is_bitmap => {
                present += 1;
                require(place >= MIB, "a block is in the place of the header")?;
                require(place < reader.len(), "a block is beyond the end of the file")
            }
            _ => Ok(()),
        }
    })?;
    let most = reader.len().saturating_add(block);
    limit("the disk has bytes in blocks", present.saturating_mul(block), most)
}

/// Checks the CRC-32C of a structure, which is in bytes 4 to 7 of it. The fuzzer need not
/// find it.
fn is_whole(bytes: &[u8]) -> bool {
    let mut crc = u32::MAX;
    for (at, byte) in bytes.iter().enumerate() {
        let byte = if (4..8).contains(&at) { 0 } else { *byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    cfg!(fuzzing) || !crc == le32(bytes, 4)
}
