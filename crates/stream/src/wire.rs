//! The numbers of the format, with the names QEMU gives them.
//!
//! `migration/savevm.h` has the section types, `migration/ram.h` the flags.

/// `QEVM`, which opens every stream.
pub(crate) const MAGIC: [u8; 4] = *b"QEVM";
/// The only version that QEMU has written since 2009.
pub(crate) const VERSION: [u8; 4] = [0, 0, 0, 3];

pub(crate) const EOF: u8 = 0x00;
pub(crate) const SECTION_START: u8 = 0x01;
pub(crate) const SECTION_PART: u8 = 0x02;
pub(crate) const SECTION_END: u8 = 0x03;
pub(crate) const SECTION_FULL: u8 = 0x04;
pub(crate) const SUBSECTION: u8 = 0x05;
pub(crate) const DESCRIPTION: u8 = 0x06;
pub(crate) const CONFIGURATION: u8 = 0x07;
pub(crate) const COMMAND: u8 = 0x08;
pub(crate) const FOOTER: u8 = 0x7e;

/// The name of the section that holds memory, and the version of its format.
pub(crate) const RAM_SECTION: &str = "ram";
pub(crate) const RAM_VERSION: u32 = 4;

/// Flags live in the low bits of a record's address.
pub(crate) const FLAGS_MASK: u64 = 0xfff;
pub(crate) const ZERO: u64 = 0x002;
pub(crate) const MEM_SIZE: u64 = 0x004;
pub(crate) const PAGE: u64 = 0x008;
pub(crate) const EOS: u64 = 0x010;
pub(crate) const CONTINUE: u64 = 0x020;
pub(crate) const XBZRLE: u64 = 0x040;
pub(crate) const HOOK: u64 = 0x080;
pub(crate) const COMPRESS_PAGE: u64 = 0x100;
pub(crate) const MULTIFD_FLUSH: u64 = 0x200;

/// Appends the mark that ends every section.
pub(crate) fn put_footer(out: &mut Vec<u8>, section: u32) {
    out.push(FOOTER);
    out.extend_from_slice(&section.to_be_bytes());
}

/// Appends the header of a section that continues or ends an earlier one.
pub(crate) fn put_continued_section(out: &mut Vec<u8>, kind: u8, section: u32) {
    out.push(kind);
    out.extend_from_slice(&section.to_be_bytes());
}

/// Appends a name with its length in front.
pub(crate) fn put_name(out: &mut Vec<u8>, name: &str) {
    out.push(u8::try_from(name.len()).expect("names are read from a length of one byte"));
    out.extend_from_slice(name.as_bytes());
}

/// Appends the record that ends the pages of a section, and the section's footer.
pub(crate) fn put_end_of_pages(out: &mut Vec<u8>, section: u32) {
    out.extend_from_slice(&EOS.to_be_bytes());
    put_footer(out, section);
}
