//! Writes all of a snapshot as a tar archive: the settings as JSON, the disks and the
//! memory byte by byte, the state of the devices and the small files.
//!
//! The format is POSIX ustar, with sizes above 8 GiB in GNU's base 256, as every tar
//! of today reads them. Holes are written out: of formats for them there are several.

use std::io::Write;

use serde_json::json;
use tintype_repo::{ImageRoot, Repository};
use tintype_types::ByteCount;
use tintype_vm::SinkError;

use super::file_name;
use crate::Engine;
use crate::details::{DEVICE_STATE, Snapshot};
use crate::error::{Error, Result};
use crate::observer::Progress;

/// The unit of an archive.
const BLOCK: u64 = 512;
/// What is written between two pieces of data.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
/// The largest size of twelve bytes of octal digits.
const MAX_OCTAL: u64 = 0o777_7777_7777;

/// A snapshot to write.
pub(super) struct Archive<'a> {
    pub(super) engine: &'a Engine,
    pub(super) repository: &'a Repository,
    pub(super) snapshot: &'a Snapshot,
}

/// One member that is an image.
struct Member<'m> {
    name: String,
    /// What it is called in the snapshot.
    image: &'m str,
    root: &'m ImageRoot,
}

impl Archive<'_> {
    /// Writes the archive.
    pub(super) fn write(&self, stream: &mut dyn Write) -> Result<()> {
        self.try_write(stream).map_err(|error| match self.engine.check_interruption() {
            Err(interrupted) => interrupted,
            Ok(()) => Error::step("cannot write the archive")(error),
        })
    }

    fn try_write(&self, stream: &mut dyn Write) -> Result<(), SinkError> {
        let members = self.members();
        let names: Vec<_> = members
            .iter()
            .map(|member| json!({ "member": member.name, "image": member.image }))
            .collect();
        let record = &self.snapshot.record;
        let settings = json!({
            "snapshot": self.snapshot.report(),
            "details": self.snapshot.details,
            "members": names,
        });
        let settings = serde_json::to_vec_pretty(&settings)?;
        self.small(stream, "tintype.json", &settings)?;
        for (name, blob) in &record.blobs {
            let bytes = self.repository.read_blob(blob)?;
            let name = if name == DEVICE_STATE { name.clone() } else { file_name(name) };
            self.small(stream, &name, &bytes)?;
        }
        let total = ByteCount(members.iter().map(|member| member.root.size().get()).sum());
        let mut before = 0;
        for member in &members {
            self.image(stream, member, before, total)?;
            before += member.root.size().get();
        }
        // Two empty blocks end an archive.
        stream.write_all(&ZEROS[..1024])?;
        Ok(stream.flush()?)
    }

    /// Returns all images with names that are those of files, each another one.
    fn members(&self) -> Vec<Member<'_>> {
        let mut members: Vec<Member<'_>> = Vec::new();
        for image in &self.snapshot.record.images {
            let (folder, rest) = image.name.split_once('/').unwrap_or(("", &image.name));
            let ending = if folder == "disk" { ".raw" } else { "" };
            let folder = match folder {
                "" => String::new(),
                "disk" => "disks/".to_owned(),
                other => format!("{}/", file_name(other)),
            };
            let own = file_name(rest);
            let plain = format!("{folder}{own}{ending}");
            let numbered = (2..).map(|number| format!("{folder}{own}-{number}{ending}"));
            let is_free = |name: &String| members.iter().all(|other| other.name != *name);
            let name = std::iter::once(plain).chain(numbered).find(is_free);
            let name = name.expect("one of endlessly many names is free");
            members.push(Member { name, image: &image.name, root: &image.root });
        }
        members
    }

    fn small(&self, stream: &mut dyn Write, name: &str, bytes: &[u8]) -> Result<(), SinkError> {
        let len = bytes.len() as u64;
        stream.write_all(&self.header(name, len))?;
        stream.write_all(bytes)?;
        pad(stream, len)
    }

    fn image(
        &self,
        stream: &mut dyn Write,
        member: &Member<'_>,
        before: u64,
        total: ByteCount,
    ) -> Result<(), SinkError> {
        let size = member.root.size().get();
        stream.write_all(&self.header(&member.name, size))?;
        let mut at = 0;
        for piece in self.repository.open_image(member.root)?.sequence() {
            let (offset, bytes) = piece?;
            self.zeros(stream, offset - at)?;
            stream.write_all(&bytes)?;
            at = offset + bytes.len() as u64;
            let (done, total) = (ByteCount(before + at), Some(total));
            self.engine.config.observer.progress(Progress { activity: "writing", done, total });
            self.engine.config.cancel.check()?;
        }
        self.zeros(stream, size - at)?;
        pad(stream, size)
    }

    fn zeros(&self, stream: &mut dyn Write, mut len: u64) -> Result<(), SinkError> {
        while len > 0 {
            let some = len.min(ZEROS.len() as u64);
            stream.write_all(&ZEROS[..usize::try_from(some)?])?;
            self.engine.config.cancel.check()?;
            len -= some;
        }
        Ok(())
    }

    /// Returns the header of a member.
    fn header(&self, name: &str, size: u64) -> [u8; 512] {
        let created = self.snapshot.record.created.as_second();
        header(name, size, u64::try_from(created).unwrap_or_default())
    }
}

fn header(name: &str, size: u64, time: u64) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    let name = name.as_bytes();
    put(0, &name[..name.len().min(100)]);
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        // The highest bit tells base 256.
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, format!("{:011o}\0", time.min(MAX_OCTAL)).as_bytes());
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

/// Fills the last block of a member.
fn pad(stream: &mut dyn Write, len: u64) -> Result<(), SinkError> {
    let rest = usize::try_from(len.next_multiple_of(BLOCK) - len)?;
    Ok(stream.write_all(&ZEROS[..rest])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_beyond_octal_digits_are_written_in_base_256() {
        let at = |size: u64| header("x", size, 0)[124..136].to_vec();
        assert_eq!(at(513), b"00000001001\0");
        assert_eq!(at(MAX_OCTAL), b"77777777777\0");
        assert_eq!(at(MAX_OCTAL + 1), [0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
    }
}
