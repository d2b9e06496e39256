//! qcow2, versions 2 and 3, as `docs/interop/qcow2.rst` of QEMU describes it.

mod header;
mod snapshots;
mod tables;

use crate::error::Error;
use crate::source::Reader;
use crate::{ImageFormat, Report};

pub use snapshots::InternalSnapshot;

/// Inspects an image.
pub(crate) fn inspect(reader: &Reader<'_>) -> Result<Report, Error> {
    let header = header::Header::read(reader)?;
    let (snapshots, table_len) = snapshots::read(reader, &header)?;
    tables::check(reader, &header, &snapshots, table_len)?;
    Ok(Report { format: ImageFormat::Qcow2, size: header.size, backing: header.backing, snapshots })
}
