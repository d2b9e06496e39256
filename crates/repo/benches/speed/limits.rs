//! What the machine can do: copy, hash, compress and decompress the same data with
//! the same libraries and nothing else around.

use std::collections::HashMap;
use std::hint::black_box;
use std::thread;

use zstd::bulk::{Compressor, Decompressor};

use crate::states::State;
use crate::{Outcome, said, timed};

const BLOCK: usize = 4096;
/// The most blocks that the repository compresses together.
const FRAME: usize = 32 * BLOCK;
/// The level that it compresses at.
const LEVEL: i32 = 2;

/// Measures all limits on the data of the first state.
pub(crate) fn measure(first: &State, second: &State) -> Outcome<()> {
    let frames = frames(first)?;
    let bytes = total(&frames);
    let mut copy = vec![0; FRAME];
    timed("limit: copy, a core", || {
        for frame in &frames {
            copy[..frame.len()].copy_from_slice(frame);
            black_box(&mut copy);
        }
        Ok((bytes, ()))
    })?;
    timed("limit: hash, a core", || {
        for block in frames.iter().flat_map(|frame| frame.chunks(BLOCK)) {
            black_box(blake3::keyed_hash(&[7; 32], block));
        }
        Ok((bytes, ()))
    })?;
    let packed = timed("limit: compress, all cores", || Ok((bytes, compress(&frames)?)))?;
    timed("limit: decompress, all cores", || Ok((bytes, decompress(&packed)?)))?;
    said("frames compressed alone", precise(total(&packed)));
    let changed = changed(first, second)?;
    said("changed blocks", precise(total(&changed)));
    said("changed blocks compressed alone", precise(total(&compress(&changed)?)));
    Ok(())
}

/// Returns the blocks that are not zero, those of each 128 KiB together.
fn frames(state: &State) -> Outcome<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for image in &state.images {
        image.read(|_, bytes| {
            for region in bytes.chunks(FRAME) {
                let blocks = region.chunks(BLOCK).filter(|block| block.iter().any(|b| *b != 0));
                frames.push(blocks.flatten().copied().collect());
            }
            Ok(())
        })?;
    }
    frames.retain(|frame: &Vec<u8>| !frame.is_empty());
    Ok(frames)
}

/// Returns the blocks of the second state that are not zero and not at the same
/// place in the first, 32 together.
fn changed(first: &State, second: &State) -> Outcome<Vec<Vec<u8>>> {
    let mut changed: Vec<Vec<u8>> = Vec::new();
    for (old, new) in first.images.iter().zip(&second.images) {
        let mut known = HashMap::new();
        old.read(|offset, bytes| {
            known.extend((offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK).map(blake3::hash)));
            Ok(())
        })?;
        new.read(|offset, bytes| {
            for (at, block) in (offset..).step_by(BLOCK).zip(bytes.chunks(BLOCK)) {
                let zero = block.iter().all(|byte| *byte == 0);
                if zero || known.get(&at) == Some(&blake3::hash(block)) {
                    continue;
                }
                match changed.last_mut() {
                    Some(last) if last.len() < FRAME => last.extend_from_slice(block),
                    _ => changed.push(block.to_vec()),
                }
            }
            Ok(())
        })?;
    }
    Ok(changed)
}

fn compress(frames: &[Vec<u8>]) -> Outcome<Vec<Vec<u8>>> {
    on_all_cores(frames, |frames| {
        let mut compressor = Compressor::new(LEVEL)?;
        frames.iter().map(|frame| compressor.compress(frame)).collect()
    })
}

fn decompress(packed: &[Vec<u8>]) -> Outcome<()> {
    on_all_cores(packed, |packed| {
        let mut decompressor = Decompressor::new()?;
        let mut buffer = vec![0; FRAME];
        for frame in packed {
            decompressor.decompress_to_buffer(frame, &mut buffer)?;
            black_box(&mut buffer);
        }
        Ok(Vec::new())
    })
    .map(drop)
}

/// Gives each core its share, and joins what they return in order.
fn on_all_cores(
    frames: &[Vec<u8>],
    work: impl Fn(&[Vec<u8>]) -> std::io::Result<Vec<Vec<u8>>> + Sync,
) -> Outcome<Vec<Vec<u8>>> {
    let cores = thread::available_parallelism()?.get();
    let share = frames.len().div_ceil(cores).max(1);
    thread::scope(|scope| {
        let threads: Vec<_> =
            frames.chunks(share).map(|share| scope.spawn(|| work(share))).collect();
        let mut all = Vec::new();
        for thread in threads {
            all.extend(thread.join().map_err(|_| "a thread panicked")??);
        }
        Ok(all)
    })
}

fn total(frames: &[Vec<u8>]) -> u64 {
    frames.iter().map(|frame| u64::try_from(frame.len()).unwrap_or(u64::MAX)).sum()
}

#[expect(clippy::cast_precision_loss, reason = "nobody measures 2^52 bytes")]
pub(crate) fn precise(bytes: u64) -> f64 {
    bytes as f64
}
