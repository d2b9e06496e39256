//! Good images with bytes changed by chance: whatever becomes of them, the inspector
//! returns, soon, and never panics. `cargo xtask fuzz` looks for the same with a guide.

use tintype_inspect::{ImageFormat, inspect};

use crate::tools::{Numbers, Place, place, put};

/// How often each image is changed.
const EACH: u64 = 30;

/// An image: its format, QEMU's driver, options, and the places that say something.
type Base = (ImageFormat, &'static str, &'static [&'static str], &'static [(u64, u64)]);

/// Returns images that were changed by chance in the places that say something.
pub(crate) fn mutants(place: &Place, seed: u64) -> Vec<(ImageFormat, Vec<u8>)> {
    use ImageFormat::{Qcow2, Vhd, Vhdx, Vmdk};
    let bases: [Base; 6] = [
        (Qcow2, "qcow2", &[], &[(0, 120), (0, 512), (3 << 16, 64), (4 << 16, 512)]),
        (Qcow2, "qcow2", &["-o", "compat=0.10"], &[(0, 72), (0, 512), (3 << 16, 64)]),
        (Vmdk, "vmdk", &[], &[(0, 80), (512, 300), (0, 512)]),
        (Vmdk, "vmdk", &["-o", "subformat=streamOptimized"], &[(0, 80), (512, 300)]),
        (Vhd, "vpc", &["-o", "force_size=on"], &[(0, 100), (512, 60), (1536, 16)]),
        (Vhdx, "vhdx", &[], &[(0, 512), (64 << 10, 80), (192 << 10, 80), (2 << 20, 300)]),
    ];
    let mut numbers = Numbers(seed | 1);
    let mut mutants = Vec::new();
    for (format, driver, options, places) in bases {
        let base = std::fs::read(place.image("image", driver, options)).unwrap();
        for _ in 0..EACH {
            let mut bytes = base.clone();
            for _ in 0..=numbers.below(3) {
                change(&mut bytes, places, &mut numbers);
            }
            mutants.push((format, bytes));
        }
    }
    mutants
}

fn change(bytes: &mut Vec<u8>, places: &[(u64, u64)], numbers: &mut Numbers) {
    let (start, len) = places[usize::try_from(numbers.below(places.len() as u64)).unwrap()];
    let at = start + numbers.below(len);
    let end = bytes.len() as u64;
    match numbers.below(8) {
        0..3 if at < end => bytes[usize::try_from(at).unwrap()] ^= 1 << numbers.below(8),
        3 if at + 8 < end => put(bytes, at & !7, &numbers.below(u64::MAX).to_be_bytes()),
        4 if at + 8 < end => put(bytes, at & !3, &[0xff; 4]),
        5 if at + 8 < end => put(bytes, at & !7, &(1_u64 << numbers.below(64)).to_be_bytes()),
        6 if end > 32775 => {
            let marks: [(u64, &[u8]); 3] =
                [(510, &[0x55, 0xaa]), (32769, b"CD001"), (0x40, &[0x7f, 0x10, 0xda, 0xbe])];
            let (at, mark) = marks[usize::try_from(numbers.below(3)).unwrap()];
            put(bytes, at, mark);
        }
        _ => bytes.truncate(usize::try_from(numbers.below(end.max(1))).unwrap()),
    }
}

#[test]
fn changed_images_never_break_the_inspector() {
    let Some(place) = place() else { return };
    let seed = crate::judge::seed();
    let mutants = mutants(&place, seed);
    let mut accepted = 0;
    for (format, bytes) in &mutants {
        for as_format in ImageFormat::ALL {
            let is_accepted = inspect(bytes, as_format).is_ok();
            accepted += usize::from(is_accepted && as_format == *format);
        }
    }
    eprintln!("{accepted} of {} changed images are accepted, seed {seed}", mutants.len());
    assert!(accepted < mutants.len(), "changes were made");
}
