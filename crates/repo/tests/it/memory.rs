//! Huge images in bounded memory, measured in a process of its own.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use tintype_repo::{ImageParams, ImageRoot, Repository, Session, Unwritten};
use tintype_types::{ByteCount, Extent};

use crate::support::{BLOCK, begin, content, draft, new_repository};

const WRITER: &str = "TINTYPE_REPO_TEST_HUGE";
const LIMIT_KIB: u64 = 512 << 10;

/// An image that has data at every `step` only, and is zero elsewhere.
struct Sparse {
    name: &'static str,
    size: u64,
    step: u64,
    /// Bytes at each step.
    len: usize,
}

const IMAGES: [Sparse; 2] = [
    Sparse { name: "disk", size: 10 << 40, step: 256 << 20, len: BLOCK },
    Sparse { name: "memory", size: 64 << 30, step: 16 << 20, len: 32 * BLOCK },
];

impl Sparse {
    fn data(&self, generation: u64) -> Vec<u8> {
        let mut bytes = content(generation, self.len);
        // No block is zero, so that all of it is data.
        bytes.chunks_mut(BLOCK).for_each(|block| block[0] = 1);
        bytes
    }

    /// Writes the whole image; every 16th place has data of its generation.
    fn write(&self, session: &Session, parent: Option<ImageRoot>, generation: u64) -> ImageRoot {
        let size = ByteCount(self.size);
        let params = ImageParams { size, parent, unwritten: Unwritten::Zero };
        let mut writer = session.image(params).unwrap();
        let contents = [0, generation].map(|generation| self.data(generation));
        let len = self.len as u64;
        for (number, offset) in (0_usize..).zip((0..self.size).step_by(self.step as usize)) {
            writer.write(offset, &contents[usize::from(number.is_multiple_of(16))]).unwrap();
            let rest = Extent { offset: offset + len, len: self.step - len };
            writer.write_zeroes(rest).unwrap();
        }
        writer.finish().unwrap()
    }

    fn check(&self, repository: &Repository, root: &ImageRoot, generation: u64) {
        let contents = [0, generation].map(|generation| self.data(generation));
        let mut next = 0;
        for piece in repository.open_image(root).unwrap().sequence() {
            let (offset, bytes) = piece.unwrap();
            let number = offset / self.step;
            assert_eq!(offset, next, "{}", self.name);
            assert!(
                bytes == contents[usize::from(number.is_multiple_of(16))],
                "{} {offset}",
                self.name
            );
            next += self.step;
        }
        assert_eq!(next, self.size, "{}", self.name);
    }
}

/// Not a test of its own: what the child process of the test below runs.
#[test]
fn child_that_takes_huge_images() {
    let Ok(path) = env::var(WRITER) else { return };
    let repository = Repository::open(Path::new(&path)).unwrap();
    let mut parents: [Option<ImageRoot>; 2] = [None, None];
    for generation in 1..=2 {
        let session = begin(&repository);
        let roots = [0, 1].map(|n| IMAGES[n].write(&session, parents[n].take(), generation));
        let images = [0, 1].map(|n| (IMAGES[n].name, roots[n].clone())).to_vec();
        session.commit(draft(images)).unwrap();
        for (image, root) in IMAGES.iter().zip(&roots) {
            image.check(&repository, root, generation);
        }
        parents = roots.map(Some);
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    println!("\n{peak}");
}

#[test]
fn a_disk_of_10_tib_and_64_gib_of_memory_pass_in_512_mib() {
    let (_folder, repository) = new_repository();
    let output = Command::new(env::current_exe().unwrap())
        .args(["memory::child_that_takes_huge_images", "--exact", "--nocapture"])
        .env(WRITER, repository.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak memory {} MiB", peak >> 10);
    assert!(peak <= LIMIT_KIB, "{peak} KiB");
    // It really wrote, and what did not change was not stored again.
    let records = repository.snapshots().unwrap().records;
    let [first, second] = &records[..] else { panic!("{} snapshots", records.len()) };
    assert!(first.stats.read_bytes > ByteCount(512 << 20));
    assert!(second.stats.stored_bytes < first.stats.stored_bytes);
}
