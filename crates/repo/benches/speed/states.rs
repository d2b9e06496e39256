//! The states that are measured: files with holes, read like the engine reads disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use crate::Outcome;

const PIECE: usize = 1 << 20;

/// Memory and disk of one moment. The disk comes first.
pub(crate) struct State {
    pub(crate) images: [Image; 2],
}

/// One image and where it has data.
pub(crate) struct Image {
    pub(crate) name: &'static str,
    pub(crate) size: u64,
    file: File,
    data: Vec<(u64, u64)>,
}

impl State {
    pub(crate) fn open(folder: &Path, moment: u32) -> Outcome<Self> {
        let open = |name: &'static str| Image::open(&folder.join(format!("{name}-{moment}")), name);
        Ok(Self { images: [open("disk")?, open("memory")?] })
    }

    /// Returns the bytes that are in no hole of a file.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.images.iter().map(Image::data_bytes).sum()
    }
}

impl Image {
    fn open(path: &Path, name: &'static str) -> Outcome<Self> {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut data = Vec::new();
        let mut at = 0;
        while let Ok(start) = seek(&file, SeekFrom::Data(at)) {
            at = seek(&file, SeekFrom::Hole(start))?;
            data.push((start, at));
        }
        Ok(Self { name, size, file, data })
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.data.iter().map(|(start, end)| end - start).sum()
    }

    /// Gives all data in pieces that do not cross a multiple of 1 MiB.
    pub(crate) fn read(&self, mut each: impl FnMut(u64, &[u8]) -> Outcome<()>) -> Outcome<()> {
        let mut buffer = vec![0; PIECE];
        for &(start, end) in &self.data {
            let mut at = start;
            while at < end {
                let piece = u64::try_from(PIECE)?;
                let next = ((at / piece + 1) * piece).min(end);
                let bytes = &mut buffer[..usize::try_from(next - at)?];
                self.file.read_exact_at(bytes, at)?;
                each(at, bytes)?;
                at = next;
            }
        }
        Ok(())
    }
}
