//! Any bytes as an image of VMware, Virtual PC or Hyper-V; the first byte says which.
//! Those of Hyper-V have their parts far from each other, and get one piece for each.
#![no_main]

use std::io;

use tintype_inspect::{ImageFormat, ReadAt, inspect};

const PIECE: usize = 4096;
const PLACES: [u64; 6] = [0, 64 << 10, 128 << 10, 192 << 10, 2 << 20, 3 << 20];

/// Pieces at their places, and zeros between.
struct Parts<'p>(&'p [u8]);

impl ReadAt for Parts<'_> {
    fn size(&self) -> io::Result<u64> {
        Ok(4 << 20)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        for (place, piece) in PLACES.iter().zip(self.0.chunks(PIECE)) {
            for (at, byte) in (*place..).zip(piece) {
                let within = at.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
                if let Some(there) = within.and_then(|at| buffer.get_mut(at)) {
                    *there = *byte;
                }
            }
        }
        Ok(())
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, image)) = data.split_first() else { return };
    let _ = match kind % 3 {
        0 => inspect(&image.to_vec(), ImageFormat::Vmdk),
        1 => inspect(&image.to_vec(), ImageFormat::Vhd),
        _ => inspect(&Parts(image), ImageFormat::Vhdx),
    };
});
