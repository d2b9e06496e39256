//! Images of two formats at once: one for whoever inspects them, another for whoever
//! opens them.

use crate::ImageFormat;
use crate::error::{Error, malformed};
use crate::source::{Reader, field, le32};

/// Where the first descriptor of an ISO 9660 or UDF file system is.
const VOLUME_DESCRIPTOR: u64 = 32 << 10;

/// Refuses an image that is of a second format besides its own. Only signatures that
/// no image of the format has by itself are looked for.
pub(crate) fn refuse(reader: &Reader<'_>, format: ImageFormat) -> Result<(), Error> {
    let second = |name: &str| Err(malformed(format!("it is {name} as well as {format}")));
    if reader.holds(0, 512) {
        let start: [u8; 512] = reader.array("its start", 0)?;
        // The first sector of a VHD of a fixed size is the guest's own.
        if format == ImageFormat::Vhd && !start.starts_with(b"conectix") {
            return Ok(());
        }
        if le32(&start, 0x40) == 0xbeda_107f {
            return second("a VDI image");
        }
        // A FAT file system ends its first sector like a partition table.
        let is_fat = start[0x10] == 2 && start[0x15] == 0xf8;
        if field(&start, 510) == [0x55, 0xaa] && !is_fat {
            return second("a partitioned disk");
        }
    }
    if reader.holds(VOLUME_DESCRIPTOR, 6) {
        let descriptor: [u8; 6] = reader.array("its volume descriptor", VOLUME_DESCRIPTOR)?;
        if matches!(&descriptor[1..], b"CD001" | b"NSR02" | b"NSR03") {
            return second("an ISO image");
        }
    }
    Ok(())
}
