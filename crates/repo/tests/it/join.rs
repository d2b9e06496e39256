//! Equal blocks are stored once, wherever they are: the page cache of a guest
//! and its disk, and what an earlier session or another VM stored.

use tintype_types::ByteCount;

use crate::support::{BLOCK, Dice, begin, draft, new_repository, read_all, write_image};

/// A disk of noise, and a memory that has runs of its blocks in any order
/// between blocks of its own. Returns how many blocks are the memory's own.
fn disk_and_memory(seed: u64) -> (Vec<u8>, Vec<u8>, u64) {
    let mut dice = Dice::new(seed);
    let disk = dice.noise(8 << 20);
    let (mut memory, mut own) = (Vec::new(), 0);
    while memory.len() < 4 << 20 {
        let len = (1 + dice.pick(40)) * BLOCK;
        if dice.roll(5) == 0 {
            memory.extend(dice.noise(BLOCK));
            own += 1;
        } else {
            let start = dice.pick((disk.len() - len) / BLOCK) * BLOCK;
            memory.extend_from_slice(&disk[start..start + len]);
        }
    }
    (disk, memory, own)
}

#[test]
fn page_cache_is_stored_with_the_disk() {
    let (_folder, repository) = new_repository();
    let (disk, memory, own) = disk_and_memory(1);
    let session = begin(&repository);
    let roots = [write_image(&session, &disk, None), write_image(&session, &memory, None)];
    let stats = session.stats();
    let blocks = (disk.len() + memory.len()) as u64 / BLOCK as u64;
    assert_eq!(stats.new_blocks + stats.joined_blocks, blocks);
    // Regions that would refer to more than four frames have some blocks again.
    let least = (disk.len() / BLOCK) as u64 + own;
    assert!(stats.new_blocks < least + blocks / 20, "{stats:?}, {own} of its own");
    let [first, second] = roots.clone();
    session.commit(draft(vec![("disk", first), ("ram", second)])).unwrap();
    assert_eq!(read_all(&repository, &roots[0]), disk);
    assert_eq!(read_all(&repository, &roots[1]), memory);
}

#[test]
fn what_another_vm_stored_is_not_stored_again() {
    let (_folder, repository) = new_repository();
    let disk = Dice::new(2).noise(16 << 20);
    let session = begin(&repository);
    let root = write_image(&session, &disk, None);
    session.commit(draft(vec![("disk", root)])).unwrap();

    // The same elsewhere on another disk, found by hooks: one block in 256.
    let moved = [&disk[9 * BLOCK..], &disk[..9 * BLOCK]].concat();
    let session = begin(&repository);
    let root = write_image(&session, &moved, None);
    let stats = session.stats();
    session.commit(draft(vec![("disk", root.clone())])).unwrap();
    assert_eq!(read_all(&repository, &root), moved);
    assert!(stats.joined_blocks > stats.new_blocks, "{stats:?}");
    assert!(stats.stored_bytes < ByteCount(disk.len() as u64 / 2), "{stats:?}");
}
