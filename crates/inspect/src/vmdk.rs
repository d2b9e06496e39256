//! VMware's sparse images in one file: `monolithicSparse` and `streamOptimized`.
//!
//! All other kinds consist of files that a text names, and are refused: the text
//! could name any file of the host.

use tintype_types::ByteCount;

use crate::error::{Error, limit, malformed, require, unsupported};
use crate::source::{Reader, field, le32, le64};
use crate::{ImageFormat, MAX_RATIO, MAX_SIZE, MAX_TABLES, Report};

const MAGIC: &[u8] = b"KDMV";
const SECTOR: u64 = 512;
/// The grain directory's place, if it is in the footer.
const AT_END: u64 = u64::MAX;
/// Where the description is, in sectors. QEMU and VMware write it nowhere else.
const DESCRIPTION: u64 = 1;
/// The most bytes of a description, as in QEMU.
const MAX_DESCRIPTION: u64 = (1 << 20) - 1;
/// The largest grain: VMware's have 64 KiB.
const MAX_GRAIN: u64 = 2 << 20;
const COMPRESSED: u32 = 1 << 16;
const HINT: &str = "`qemu-img convert -f vmdk -O qcow2 IMAGE NEW` makes one file of it, if you trust every file that it names";

/// What the header, or the footer, says.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    version: u32,
    is_compressed: bool,
    /// In sectors.
    capacity: u64,
    grain: u64,
    description: u64,
    description_len: u64,
    grains_in_table: u64,
    directory: u64,
}

/// Inspects an image.
pub(crate) fn inspect(reader: &Reader<'_>) -> Result<Report, Error> {
    let start: [u8; 4] = reader.array("the header", 0)?;
    if &start == b"COWD" || &start == b"# Di" {
        return Err(Error::Unsupported {
            what: "it consists of other files, which it names".to_owned(),
            hint: Some(HINT),
        });
    }
    let mut header = Header::read(reader, 0)?;
    describe(reader, &header)?;
    if header.directory == AT_END {
        header = footer(reader, &header)?;
    }
    grains(reader, &header)?;
    Ok(Report::plain(ImageFormat::Vmdk, ByteCount(header.capacity * SECTOR)))
}

impl Header {
    fn read(reader: &Reader<'_>, at: u64) -> Result<Self, Error> {
        let bytes: [u8; 512] = reader.array("the header", at)?;
        require(bytes.starts_with(MAGIC), "it is not a sparse vmdk: its first bytes are others")?;
        let flags = le32(&bytes, 8);
        let compression = u16::from_le_bytes(field(&bytes, 77));
        let header = Self {
            version: le32(&bytes, 4),
            is_compressed: flags & COMPRESSED != 0,
            capacity: le64(&bytes, 12),
            grain: le64(&bytes, 20),
            description: le64(&bytes, 28),
            description_len: le64(&bytes, 36),
            grains_in_table: le32(&bytes, 44).into(),
            directory: le64(&bytes, 56),
        };
        let version = header.version;
        require(matches!(version, 1..=3), format!("version {version} of vmdk is not known"))?;
        require(field(&bytes, 73) == *b"\n \r\n", "its line ends were changed on the way here")?;
        require(compression <= 1, format!("compression of the unknown type {compression}"))?;
        // Without a capacity, QEMU reads a text that names other files.
        require(header.capacity > 0, "a disk without a size")?;
        limit("the disk has sectors", header.capacity, MAX_SIZE.get() / SECTOR)?;
        let grain = header.grain;
        let is_grain = grain.is_power_of_two() && (8..=MAX_GRAIN / SECTOR).contains(&grain);
        require(is_grain, format!("grains of {grain} sectors"))?;
        let grains = header.grains_in_table;
        require((1..=512).contains(&grains), format!("tables of {grains} grains"))?;
        Ok(header)
    }

    fn grain_bytes(&self) -> u64 {
        self.grain * SECTOR
    }
}

/// Reads the footer of a stream, which says where the grains are.
fn footer(reader: &Reader<'_>, header: &Header) -> Result<Header, Error> {
    const FOOTER_MARKER: u32 = 3;
    let len = reader.len();
    require(len >= 4 * SECTOR && len.is_multiple_of(SECTOR), "the stream has no footer")?;
    let marker: [u8; 512] = reader.array("the footer's marker", len - 3 * SECTOR)?;
    let is_marker = le32(&marker, 8) == 0 && le32(&marker, 12) == FOOTER_MARKER;
    require(is_marker && marker[16..] == [0; 496], "the stream has no footer")?;
    let end: [u8; 512] = reader.array("the end of the stream", len - SECTOR)?;
    require(end == [0; 512], "the stream has no end")?;
    let footer = Header::read(reader, len - 2 * SECTOR)?;
    require(footer.directory != AT_END, "the footer names another footer")?;
    let agrees = Header { directory: AT_END, ..footer };
    require(agrees == *header, "the footer contradicts the header")?;
    Ok(Header { directory: footer.directory, ..agrees })
}

/// Reads the description, whose every line has to be understood.
fn describe(reader: &Reader<'_>, header: &Header) -> Result<(), Error> {
    require(header.description == DESCRIPTION, "the description is not where it belongs")?;
    let len = header.description_len.saturating_mul(SECTOR);
    limit("the description has bytes", len, MAX_DESCRIPTION)?;
    let mut bytes = vec![0; usize::try_from(len).expect("the limit is small")];
    reader.read("the description", DESCRIPTION * SECTOR, &mut bytes)?;
    let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    require(text.is_ascii(), "the description is not text")?;
    let text = String::from_utf8_lossy(text).to_ascii_lowercase();
    let mut extents = Vec::new();
    let (mut kind, mut parent) = (None, None);
    for line in text.lines().map(str::trim) {
        match line.split_once('=') {
            _ if line.is_empty() || line.starts_with('#') || line.starts_with("ddb") => {}
            Some((key, value)) if !key.contains(' ') => {
                let place = match key {
                    "createtype" => &mut kind,
                    "parentcid" => &mut parent,
                    "parentfilenamehint" => return Err(unsupported("it needs a parent image")),
                    _ => continue,
                };
                require(place.is_none(), format!("the description says `{key}` twice"))?;
                *place = Some(value.trim().to_owned());
            }
            _ => extents.push(line),
        }
    }
    match kind.as_deref() {
        Some("\"monolithicsparse\"" | "\"streamoptimized\"") => {}
        other => {
            let other: String = other.unwrap_or("none").chars().take(64).collect();
            let what = format!("it is of the kind {other}, which can name other files");
            return Err(Error::Unsupported { what, hint: Some(HINT) });
        }
    }
    if parent.as_deref() != Some("ffffffff") {
        return Err(unsupported("it needs a parent image"));
    }
    one_extent(&extents)
}

/// The one extent is this file itself, whatever it is called there.
fn one_extent(extents: &[&str]) -> Result<(), Error> {
    let [extent] = extents else {
        return Err(malformed(format!("the description has {} extents", extents.len())));
    };
    let mut words = extent.splitn(4, ' ');
    let has_access = matches!(words.next(), Some("rw" | "rdonly" | "noaccess"));
    let has_sectors = words.next().is_some_and(|number| number.parse::<u64>().is_ok());
    let is_sparse = words.next() == Some("sparse");
    let is_known = has_access && has_sectors && is_sparse;
    require(is_known, "the description has a line that is not known")?;
    let has_path = words.next().is_none_or(|name| name.contains(['/', '\\']));
    if has_path {
        return Err(unsupported("it names a file elsewhere"));
    }
    Ok(())
}

/// Checks where the grains are.
fn grains(reader: &Reader<'_>, header: &Header) -> Result<(), Error> {
    let per_table = header.grains_in_table;
    let tables = header.capacity.div_ceil(header.grain * per_table);
    let table_bytes = per_table * 4;
    limit("the directory has bytes", tables * 4, MAX_TABLES / 16)?;
    let place = |sectors: u64| {
        sectors.checked_mul(SECTOR).ok_or_else(|| malformed("a table is beyond any file"))
    };
    let (mut read, mut present) = (0_u64, 0_u64);
    reader.entries("the grain directory", place(header.directory)?, tables, |_, entry| {
        let table = u64::from(u32::from_le_bytes(entry));
        if table == 0 {
            return Ok(());
        }
        read += table_bytes;
        limit("the tables have bytes", read, MAX_TABLES)?;
        reader.entries("a grain table", place(table)?, per_table, |_, grain| {
            let grain = u64::from(u32::from_le_bytes(grain));
            // 1 is a grain of zeros.
            if grain > 1 {
                present += 1;
                require(grain * SECTOR < reader.len(), "a grain is beyond the end of the file")?;
            }
            Ok(())
        })
    })?;
    let bytes = present.saturating_mul(header.grain_bytes());
    let ratio = if header.is_compressed { MAX_RATIO } else { 1 };
    let most = reader.len().saturating_mul(ratio).saturating_add(header.grain_bytes());
    limit("the disk has bytes in grains", bytes, most)
}
