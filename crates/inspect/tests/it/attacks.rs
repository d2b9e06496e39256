//! Attacks that were made on others, one by one: each is refused, and says why.

use tintype_inspect::ImageFormat::{self, Qcow2, Vhd, Vhdx, Vmdk};
use tintype_inspect::{Error, MAX_SIZE, ReadAt, inspect};

use crate::tools::{be64, place, put};

type Spoil = fn(&mut Vec<u8>);

/// What is wrong, how it is made so, and a word of the refusal.
type Attack = (&'static str, Spoil, &'static str);

const QCOW2: &[Attack] = &[
    ("another magic", |b| put(b, 0, b"QFI\xfa"), "not qcow2"),
    ("version 4", |b| put(b, 4, &[0, 0, 0, 4]), "version 4"),
    ("clusters of 256 bytes", |b| put(b, 20, &[0, 0, 0, 8]), "clusters"),
    ("clusters of 2^200 bytes", |b| put(b, 20, &[0, 0, 0, 200]), "clusters"),
    ("encrypted", |b| put(b, 32, &[0, 0, 0, 2]), "encrypted"),
    ("2^63 bytes", |b| put(b, 24, &[0x80, 0, 0, 0, 0, 0, 0, 0]), "limit"),
    ("all bytes", |b| put(b, 24, &[0xff; 8]), "limit"),
    ("a first level of 2^32", |b| put(b, 36, &[0xff; 4]), "limit"),
    ("no first level", |b| put(b, 36, &[0; 4]), "too short"),
    ("the first level in the header", |b| put(b, 40, &[0; 8]), "in the header"),
    ("the first level nowhere", |b| put(b, 40, &[0xff; 8]), "start at a cluster"),
    ("the first level far away", |b| put(b, 40, &(1_u64 << 60).to_be_bytes()), "beyond"),
    ("reference counts of 2^32", |b| put(b, 56, &[0xff; 4]), "limit"),
    ("reference counts at the first level", |b| b.copy_within(40..48, 48), "overlap"),
    ("counts of 2^7 bits", |b| put(b, 96, &[0, 0, 0, 7]), "64 bits"),
    ("a header of 0 bytes", |b| put(b, 100, &[0; 4]), "a header of"),
    ("a header of 2^32 bytes", |b| put(b, 100, &[0xff, 0xff, 0xff, 0xf8]), "a header of"),
    ("a data file", |b| b[79] |= 4, "another file"),
    ("a corrupt image", |b| b[79] |= 2, "corrupt"),
    ("feature 5", |b| b[79] |= 32, "not known"),
    ("feature 63", |b| b[72] |= 128, "not known"),
    ("zstd that is none", |b| b[79] |= 8, "contradicts"),
    ("zstd in secret", |b| b[104] = 1, "contradicts"),
    ("compression 77", |b| b[104] = 77, "unknown type"),
    ("an endless extension", |b| put(b, 112, &[1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff]), "longer"),
    ("a data file's name", |b| put(b, 112, b"DATA\0\0\0\x0b/etc/passwd"), "another file"),
    ("an encryption header", |b| put(b, 112, &[5, 0x37, 0xbe, 0x77, 0, 0, 0, 16]), "encrypted"),
    ("a long backing format", |b| put(b, 112, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 1, 0]), "limit"),
    ("a backing file elsewhere", |b| backing(b, 1 << 40, 11), "first cluster"),
    ("a backing file in the header", |b| backing(b, 8, 11), "first cluster"),
    ("a backing file without a name", |b| backing(b, 4096, 0), "first cluster"),
    ("a backing file's name of 2^32", |b| backing(b, 4096, u32::MAX), "limit"),
    ("a backing file's name with a zero", |b| backing(b, 8192, 11), "not text"),
    ("snapshots without end", |b| put(b, 60, &[0xff; 4]), "limit"),
    ("snapshots in the header", |b| put(b, 60, &[0, 0, 0, 1]), "start at a cluster"),
    ("a loop of tables", |b| in_first_level(b, |b, l1| entry(b, l1, l1 as u64)), "overlap"),
    ("a table in the header", |b| in_first_level(b, |b, l1| entry(b, l1, 0x200)), "at a cluster"),
    (
        "a table that is used twice",
        |b| {
            in_first_level(b, |b, l1| {
                let table = be64(b, l1);
                put(b, 24, &(1_u64 << 30).to_be_bytes());
                put(b, 36, &[0, 0, 0, 2]);
                entry(b, l1 + 8, table);
            })
        },
        "twice",
    ),
    ("a table beyond the end", |b| in_first_level(b, |b, l1| entry(b, l1, 1 << 50)), "beyond"),
    ("unknown bits of the first level", |b| in_first_level(b, |b, l1| b[l1] |= 0x40), "not known"),
    ("data beyond the end", |b| in_second_level(b, |b, l2| entry(b, l2, 1 << 50)), "beyond"),
    ("data in the header's place", |b| in_second_level(b, |b, l2| entry(b, l2, 0x200)), "start at"),
    ("data in the table's place", |b| in_second_level(b, |b, l2| entry(b, l2, l2 as u64)), "table"),
    (
        "data that is used twice",
        |b| {
            in_second_level(b, |b, l2| {
                let data = be64(b, l2 + 48 * 8);
                entry(b, l2, data);
            })
        },
        "overlap",
    ),
    ("unknown bits of data", |b| in_second_level(b, |b, l2| b[l2 + 7] |= 2), "not known"),
    (
        "compressed data beyond the end",
        |b| {
            in_second_level(b, |b, l2| {
                entry(b, l2, 1 << 62 | 1 << 50);
            })
        },
        "beyond",
    ),
    (
        "compressed data in a table",
        |b| {
            in_second_level(b, |b, l2| {
                entry(b, l2, 1 << 62 | l2 as u64);
            })
        },
        "table",
    ),
    (
        "a bomb of compressed data",
        |b| {
            in_second_level(b, |b, l2| {
                let data = be64(b, l2 + 48 * 8) & 0xff_ffff;
                b.truncate(usize::try_from(data).unwrap() + 512);
                put(b, 24, &(1_u64 << 29).to_be_bytes());
                for number in 0..8192 {
                    entry(b, l2 + number * 8, 1 << 62 | data);
                }
            })
        },
        "compressed bytes",
    ),
    ("a disk with a partition table outside", |b| put(b, 510, &[0x55, 0xaa]), "partitioned"),
    ("an ISO image as well", |b| put(b, 32769, b"CD001"), "ISO"),
    ("a VDI image as well", |b| put(b, 0x40, &[0x7f, 0x10, 0xda, 0xbe]), "VDI"),
    ("nothing", Vec::clear, "ends at byte 0"),
    ("half a header", |b| b.truncate(50), "ends at byte 50"),
    ("no tables", |b| b.truncate(512), "ends at byte 512"),
];

const SNAPSHOTS: &[Attack] = &[
    ("a huge disk", |b| in_snapshot(b, |b, at| put(b, at + 48, &[0xff; 8])), "limit"),
    ("a huge state", |b| in_snapshot(b, |b, at| put(b, at + 40, &[0xff; 8])), "limit"),
    (
        "a state of a megabyte",
        |b| {
            in_snapshot(b, |b, at| {
                put(b, at + 40, &(1_u64 << 20).to_be_bytes());
            })
        },
        "too short",
    ),
    ("more than is known", |b| in_snapshot(b, |b, at| put(b, at + 36, &[0xff; 4])), "limit"),
    ("a table in the header", |b| in_snapshot(b, |b, at| put(b, at, &[0; 8])), "in the header"),
    (
        "a table over another",
        |b| {
            in_snapshot(b, |b, at| {
                let own = b[40..48].to_vec();
                put(b, at, &own);
            })
        },
        "overlap",
    ),
    ("a table of 2^32", |b| in_snapshot(b, |b, at| put(b, at + 8, &[0xff; 4])), "limit"),
    ("no table", |b| in_snapshot(b, |b, at| put(b, at + 8, &[0; 4])), "too short"),
    (
        "a name to the end",
        |b| {
            in_snapshot(b, |b, at| {
                let end = usize::try_from(at).unwrap() + 100;
                put(b, at + 14, &[0xff, 0xff]);
                b.truncate(end);
            })
        },
        "",
    ),
];

const VMDK: &[Attack] = &[
    ("another magic", |b| put(b, 0, b"VMDK"), "not a sparse"),
    ("a text", |b| *b = b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/passwd\"".repeat(20), "files"),
    ("an old kind", |b| put(b, 0, b"COWD"), "files"),
    ("version 4", |b| b[4] = 4, "version 4"),
    ("no size", |b| put(b, 12, &[0; 8]), "without a size"),
    ("all sectors", |b| put(b, 12, &[0xff; 8]), "limit"),
    ("grains of 3 sectors", |b| b[20] = 3, "grains"),
    ("huge grains", |b| put(b, 20, &[0, 0, 0, 0, 1, 0, 0, 0]), "grains"),
    ("a description elsewhere", |b| b[28] = 2, "where it belongs"),
    ("a huge description", |b| put(b, 36, &[0xff; 8]), "limit"),
    ("tables of 2^32", |b| put(b, 44, &[0xff; 4]), "tables of"),
    ("a directory beyond the end", |b| put(b, 56, &[0, 0, 0, 1, 0, 0, 0, 0]), "ends at"),
    ("changed line ends", |b| b[73] = b'\r', "line ends"),
    ("compression 9", |b| b[77] = 9, "unknown type"),
    ("a footer that is not there", |b| put(b, 56, &[0xff; 8]), ""),
    ("a flat extent", |b| word(b, "SPARSE", "FLAT  "), "not known"),
    ("an extent elsewhere", |b| word(b, "\"image", "\"/mage"), "elsewhere"),
    ("another kind", |b| word(b, "monolithicSparse", "monolithicFlat\"\n"), "kind"),
    ("no kind", |b| word(b, "createType", "createTypo"), "kind"),
    ("a parent", |b| word(b, "parentCID=ffffffff", "parentCID=fffffff1"), "parent"),
    ("a line of its own", |b| word(b, "# Extent", "  Extent"), "extents"),
    ("two kinds", |b| word(b, "CID=", "createType="), ""),
    ("no text", |b| b[600] = 0xff, "not text"),
    ("a partition table", |b| put(b, 510, &[0x55, 0xaa]), "partitioned"),
    ("half a header", |b| b.truncate(300), "ends at"),
];

const VHD_DYNAMIC: &[Attack] = &[
    ("no checksum", |b| b[64] ^= 1, "checksum"),
    ("version 2", |b| footer(b, 12, &[0, 2, 0, 0]), "version"),
    ("all bytes", |b| footer(b, 48, &[0xff; 8]), "limit"),
    ("differences", |b| footer(b, 60, &[0, 0, 0, 4]), "parent"),
    ("a fixed size in front", |b| footer(b, 60, &[0, 0, 0, 2]), "where none belongs"),
    ("type 9", |b| footer(b, 60, &[0, 0, 0, 9]), "type 9"),
    ("a header beyond the end", |b| footer(b, 16, &[0, 0, 0, 1, 0, 0, 0, 0]), "ends at"),
    ("no dynamic header", |b| put(b, 512, b"cxsparsf"), "is not one"),
    ("a changed dynamic header", |b| b[512 + 28] ^= 1, "checksum"),
    ("blocks of 2^32", |b| dynamic(b, 32, &[0xff; 4]), "blocks of"),
    ("too few blocks", |b| dynamic(b, 28, &[0, 0, 0, 1]), "too short"),
    ("all blocks", |b| dynamic(b, 28, &[0xff; 4]), "limit"),
    ("a table beyond the end", |b| dynamic(b, 16, &[0x7f; 8]), "ends at"),
    ("a block beyond the end", |b| put(b, 1536, &[0x7f; 4]), "beyond"),
    ("an ISO image as well", |b| put(b, 32769, b"NSR03"), "ISO"),
    ("a stub", |b| b.truncate(100), "too short"),
];

const VHDX: &[Attack] = &[
    ("another magic", |b| put(b, 0, b"vhdxfilf"), "not a vhdx"),
    (
        "no headers",
        |b| {
            b[(64 << 10) + 100] ^= 1;
            b[(128 << 10) + 100] ^= 1;
        },
        "both headers",
    ),
    (
        "a log",
        |b| {
            for at in [64_u64 << 10, 128 << 10] {
                crc(b, at, 4096, 48, &[7; 16])
            }
        },
        "log",
    ),
    (
        "version 2",
        |b| {
            for at in [64_u64 << 10, 128 << 10] {
                crc(b, at, 4096, 66, &[2, 0])
            }
        },
        "version 2",
    ),
    ("a changed region table", |b| b[(192 << 10) + 20] ^= 1, "damaged"),
    ("regions without end", |b| region(b, 8, &[0xff; 4]), "limit"),
    ("no regions", |b| region(b, 8, &[0; 4]), "no metadata"),
    (
        "an unknown region",
        |b| {
            region(b, 16, &[9; 16]);
            region(b, 44, &[1]);
        },
        "not known",
    ),
    ("a region beyond the end", |b| region(b, 32, &[0, 0, 0x10, 0, 1, 0, 0, 0]), "beyond"),
    ("a region in the header", |b| region(b, 32, &[0; 8]), "mebibyte"),
    (
        "a region twice",
        |b| {
            let first: Vec<u8> = b[(192 << 10) + 16..][..32].to_vec();
            region(b, 48, &first);
        },
        "twice",
    ),
    (
        "no sectors",
        |b| {
            let at = u64::try_from(find(b, b"metadata")).unwrap();
            put(b, at + 10, &[1, 0]);
        },
        "not complete",
    ),
    (
        "a parent locator",
        |b| {
            let at = u64::try_from(find(b, b"metadata")).unwrap() + 32 + 4 * 32;
            let guid = [
                0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34,
                0xab, 0x0c,
            ];
            put(b, at, &guid);
        },
        "parent",
    ),
    ("a stub", |b| b.truncate(70 << 10), "ends at"),
];

/// Names a backing file, and writes its name where it fits.
fn backing(bytes: &mut [u8], at: u64, len: u32) {
    put(bytes, 8, &at.to_be_bytes());
    put(bytes, 16, &len.to_be_bytes());
    put(bytes, 4096, b"/etc/passwd");
}

fn entry(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn in_first_level(bytes: &mut Vec<u8>, change: fn(&mut Vec<u8>, usize)) {
    let l1 = usize::try_from(be64(bytes, 40)).unwrap();
    change(bytes, l1);
}

fn in_second_level(bytes: &mut Vec<u8>, change: fn(&mut Vec<u8>, usize)) {
    let l1 = usize::try_from(be64(bytes, 40)).unwrap();
    let l2 = usize::try_from(be64(bytes, l1) & 0xff_ffff_ffff).unwrap();
    change(bytes, l2);
}

fn in_snapshot(bytes: &mut Vec<u8>, change: fn(&mut Vec<u8>, u64)) {
    let at = be64(bytes, 64);
    change(bytes, at);
}

fn find(bytes: &[u8], word: &[u8]) -> usize {
    bytes.windows(word.len()).position(|window| window == word).unwrap()
}

fn word(bytes: &mut [u8], old: &str, new: &str) {
    let at = find(bytes, old.as_bytes());
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
}

fn footer(bytes: &mut [u8], at: u64, new: &[u8]) {
    put(bytes, at, new);
    sum(&mut bytes[..512], 64);
}

fn dynamic(bytes: &mut [u8], at: u64, new: &[u8]) {
    put(bytes, 512 + at, new);
    sum(&mut bytes[512..1536], 36);
}

fn sum(header: &mut [u8], at: usize) {
    header[at..at + 4].fill(0);
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
}

fn region(bytes: &mut [u8], at: u64, new: &[u8]) {
    crc(bytes, 192 << 10, 64 << 10, at, new);
}

/// Changes a structure of a VHDX and makes its checksum right.
fn crc(bytes: &mut [u8], start: u64, len: usize, at: u64, new: &[u8]) {
    put(bytes, start + at, new);
    let start = usize::try_from(start).unwrap();
    let part = &mut bytes[start..start + len];
    part[4..8].fill(0);
    let crc = part.iter().fold(u32::MAX, |crc, byte| {
        let step = |crc: u32, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        (0..8).fold(crc ^ u32::from(*byte), step)
    });
    part[4..8].copy_from_slice(&(!crc).to_le_bytes());
}

/// Returns all attacks, as images.
pub(crate) fn all(
    place: &crate::tools::Place,
) -> Vec<(String, ImageFormat, Vec<u8>, &'static str)> {
    let read = |driver: &str, options: &[&str]| {
        std::fs::read(place.image("image", driver, options)).unwrap()
    };
    let with_snapshots = {
        let path = place.image("image", "qcow2", &[]);
        let name = path.to_str().unwrap();
        crate::tools::run("qemu-img", &["snapshot", "-c", "one", "-f", "qcow2", name]);
        std::fs::read(&path).unwrap()
    };
    let bases = [
        (Qcow2, read("qcow2", &[]), QCOW2),
        (Qcow2, with_snapshots, SNAPSHOTS),
        (Vmdk, read("vmdk", &[]), VMDK),
        (Vhd, read("vpc", &["-o", "force_size=on"]), VHD_DYNAMIC),
        (Vhdx, read("vhdx", &[]), VHDX),
    ];
    let mut all = Vec::new();
    for (format, base, attacks) in bases {
        for (name, spoil, expected) in attacks {
            let mut bytes = base.clone();
            spoil(&mut bytes);
            all.push((format!("{format}: {name}"), format, bytes, *expected));
        }
    }
    all
}

#[test]
fn every_attack_is_refused_with_a_reason() {
    let Some(place) = place() else { return };
    let mut wrong = Vec::new();
    for (name, format, bytes, expected) in all(&place) {
        let began = std::time::Instant::now();
        match inspect(&bytes, format) {
            Ok(report) => wrong.push(format!("{name} is accepted: {report:?}")),
            Err(error) if error.to_string().contains(expected) => {}
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
        assert!(began.elapsed().as_secs() < 1, "{name} takes {:?}", began.elapsed());
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A file of any size that holds the same eight bytes again and again, but for a start.
struct Endless {
    start: Vec<u8>,
    len: u64,
    entry: fn(u64) -> u64,
}

impl ReadAt for Endless {
    fn size(&self) -> std::io::Result<u64> {
        Ok(self.len)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        for (at, byte) in (offset..).zip(buffer) {
            let word = (self.entry)(at / 8).to_be_bytes();
            let known = usize::try_from(at).ok().and_then(|at| self.start.get(at));
            *byte = known.copied().unwrap_or(word[usize::try_from(at % 8).unwrap()]);
        }
        Ok(())
    }
}

/// A qcow2 header with all that is large in it.
fn header(l1_entries: u32) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 10];
    put(&mut bytes, 0, b"QFI\xfb\0\0\0\x03");
    put(&mut bytes, 20, &[0, 0, 0, 16]);
    put(&mut bytes, 24, &(MAX_SIZE.get() >> 6).to_be_bytes());
    put(&mut bytes, 36, &l1_entries.to_be_bytes());
    put(&mut bytes, 40, &(1_u64 << 20).to_be_bytes());
    put(&mut bytes, 48, &(1_u64 << 16).to_be_bytes());
    put(&mut bytes, 56, &[0, 0, 0, 1]);
    put(&mut bytes, 96, &[0, 0, 0, 4, 0, 0, 0, 104]);
    bytes
}

#[test]
fn huge_files_cost_little() {
    // Every entry of the first level is a table, each elsewhere, in a file of 8 TiB.
    let entry = |number: u64| (number << 16).wrapping_add(1 << 33) & 0x00ff_ffff_ffff_0000;
    let tables = Endless { start: header(1 << 22), len: 8 << 40, entry };
    let too_long = Endless { start: header(1 << 22), len: u64::MAX, entry };
    let all_zero = Endless { start: header(1 << 22), len: 1 << 40, entry: |_| 0 };
    let check = |name: &str, file: &Endless, is_good: fn(&Result<(), Error>) -> bool| {
        let began = std::time::Instant::now();
        let inspected = inspect(file, Qcow2).map(|_| ());
        assert!(is_good(&inspected), "{name}: {inspected:?}");
        eprintln!("{name}: {:?}", began.elapsed());
    };
    check("tables", &tables, |inspected| matches!(inspected, Err(Error::TooLarge { .. })));
    check("too long", &too_long, |inspected| matches!(inspected, Err(Error::TooLarge { .. })));
    check("zeros", &all_zero, Result::is_ok);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 << 10, "{peak} KiB of memory were used");
}
