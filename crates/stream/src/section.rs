//! Device sections: their headers, and how to tell where one ends.
//!
//! A device section has no length. QEMU's receiver finds the end because it has
//! the device's code; here it is found by the description and by the footer.
//! Nothing depends on it but inspection: a restore sends all sections as they are.

use crate::cursor::{Cursor, Halt, printable};
use crate::{Description, DeviceDescription, Error, wire};

/// `virtio-mem` sends the layout of its memory before the pages.
const EARLY_SECTION: &str = "virtio-mem-device-early";
const FOOTER_LEN: usize = 5;

/// One device section of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section<'s> {
    /// The number that the section's footer repeats.
    pub id: u32,
    /// The section's name, such as `0000:00:02.0/virtio-blk`.
    pub name: &'s str,
    /// Tells sections of one name apart.
    pub instance: u32,
    /// The version of the device's format.
    pub version: u32,
    /// The device's state, without the section's header and footer.
    pub state: &'s [u8],
}

/// The header of a section that says whose state follows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SectionHeader<'b> {
    pub(crate) id: u32,
    pub(crate) name: &'b str,
    pub(crate) instance: u32,
    pub(crate) version: u32,
}

impl<'b> SectionHeader<'b> {
    /// Reads a header from its type on, which the caller has looked at.
    pub(crate) fn read(cursor: &mut Cursor<'b>, offset: u64) -> Result<Self, Halt> {
        let _kind = cursor.u8()?;
        let id = cursor.be32()?;
        let name = cursor.name()?;
        let instance = cursor.be32()?;
        let version = cursor.be32()?;
        let Some(name) = printable(name) else {
            let fault = format!("section name {:?}", String::from_utf8_lossy(name));
            return Err(Error::Malformed { offset, fault }.into());
        };
        Ok(Self { id, name, instance, version })
    }
}

/// Returns the length of a device section that comes before the pages, if it is
/// the one whose format is known: four numbers and a size, then a bit for each
/// block of the region (`vmstate_virtio_mem_device_early` in `hw/virtio/virtio-mem.c`).
pub(crate) fn early_body_len(name: &str, cursor: &mut Cursor<'_>) -> Result<Option<u64>, Halt> {
    if !is_early(name) {
        return Ok(None);
    }
    let _address = cursor.be64()?;
    let region_size = cursor.be64()?;
    let block_size = cursor.be64()?;
    let Some(blocks) = region_size.checked_div(block_size) else { return Ok(None) };
    Ok(Some(8 + 8 + 8 + 4 + 8 + blocks.div_ceil(64) * 8))
}

fn is_early(name: &str) -> bool {
    name == EARLY_SECTION
        || name.strip_suffix(EARLY_SECTION).is_some_and(|path| path.ends_with('/'))
}

/// Splits device sections that stand back to back.
pub(crate) fn split_sections<'s>(
    mut bytes: &'s [u8],
    description: &Description,
) -> Result<Vec<Section<'s>>, Error> {
    let late = |device: &&DeviceDescription| !is_early(&device.name);
    let mut devices = description.devices.iter().filter(late).peekable();
    let mut sections = Vec::new();
    while let Some(device) = devices.next() {
        let disagree =
            |fault: &str| Error::Sections { fault: format!("{:?} {fault}", device.name) };
        let mut cursor = Cursor::new(bytes);
        let header = match SectionHeader::read(&mut cursor, 0) {
            Ok(header) if describes(device, &header) => header,
            _ => return Err(disagree("is not where it belongs")),
        };
        let body = &bytes[cursor.position()..];
        let len = state_len(body, header.id, device, devices.peek().copied())
            .ok_or_else(|| disagree("has no end"))?;
        let SectionHeader { id, name, instance, version } = header;
        sections.push(Section { id, name, instance, version, state: &body[..len] });
        bytes = &body[len + FOOTER_LEN..];
    }
    match bytes {
        [] => Ok(sections),
        _ => Err(Error::Sections { fault: format!("{} bytes follow the last one", bytes.len()) }),
    }
}

fn describes(device: &DeviceDescription, header: &SectionHeader<'_>) -> bool {
    device.name == header.name && device.instance == header.instance
}

/// Returns the length of a device's state: the described one if its footer is
/// there, else the first that has one.
fn state_len(
    body: &[u8],
    id: u32,
    device: &DeviceDescription,
    next: Option<&DeviceDescription>,
) -> Option<usize> {
    let described = usize::try_from(device.length).ok();
    described
        .filter(|&len| ends_at(body, len, id, next))
        .or_else(|| (0..body.len()).find(|&len| ends_at(body, len, id, next)))
}

/// Says if a footer of this section is here, and the next section behind it.
fn ends_at(body: &[u8], len: usize, id: u32, next: Option<&DeviceDescription>) -> bool {
    let Some([wire::FOOTER, rest @ ..]) = body.get(len..) else { return false };
    let Some(behind) = rest.strip_prefix(id.to_be_bytes().as_slice()) else { return false };
    match next {
        None => behind.is_empty(),
        Some(next) => {
            behind.first() == Some(&wire::SECTION_FULL)
                && SectionHeader::read(&mut Cursor::new(behind), 0)
                    .is_ok_and(|header| describes(next, &header))
        }
    }
}
