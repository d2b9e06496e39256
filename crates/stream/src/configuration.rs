//! The configuration section: which machine the stream is for, and what its
//! sender had switched on that changes the format.
//!
//! `vmstate_configuration` in `migration/savevm.c`.

use crate::cursor::{Cursor, Halt, printable};
use crate::{Error, wire};

const TARGET_PAGE_BITS: &[u8] = b"configuration/target-page-bits";
const CAPABILITIES: &[u8] = b"configuration/capabilities";
const UUID: &[u8] = b"configuration/uuid";
const PAGE_BITS: u32 = 12;

/// Reads the section up to the machine's name.
pub(crate) fn machine<'b>(cursor: &mut Cursor<'b>, offset: u64) -> Result<&'b str, Halt> {
    let kind = cursor.u8()?;
    if kind != wire::CONFIGURATION {
        let fault = format!("section type {kind:#04x} where the configuration belongs");
        return Err(Error::Malformed { offset, fault }.into());
    }
    let len = cursor.be32()?;
    if len > 255 {
        let what = "the length of the machine type's name is";
        return Err(Error::TooLarge { offset, what, found: len.into(), limit: 255 }.into());
    }
    let name = cursor.bytes(usize::try_from(len).unwrap_or(usize::MAX))?;
    printable(name).ok_or_else(|| {
        let fault = format!("machine type {:?}", String::from_utf8_lossy(name));
        Error::Malformed { offset, fault }.into()
    })
}

/// Reads one subsection, if another one is there, and says if it was.
pub(crate) fn subsection(cursor: &mut Cursor<'_>, offset: u64) -> Result<bool, Halt> {
    if cursor.u8()? != wire::SUBSECTION {
        return Ok(false);
    }
    let name = cursor.name()?;
    let _version = cursor.be32()?;
    let unsupported = |feature: String| Err(Error::Unsupported { offset, feature }.into());
    match name {
        TARGET_PAGE_BITS => match cursor.be32()? {
            PAGE_BITS => Ok(true),
            bits => unsupported(format!("a page size of 2^{bits} bytes")),
        },
        // Only capabilities that change the format are named here.
        CAPABILITIES => match cursor.be32()? {
            0 => Ok(true),
            _ => {
                let capability = String::from_utf8_lossy(cursor.name()?);
                unsupported(format!("the capability {capability:?}"))
            }
        },
        UUID => cursor.array::<16>().map(|_| true),
        _ => unsupported(format!("the subsection {:?}", String::from_utf8_lossy(name))),
    }
}
