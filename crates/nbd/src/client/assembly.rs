//! Puts the chunks of one read's reply together.
//!
//! The chunks may come in any order; they must cover the request exactly once.

use std::ops::Range;

use tintype_types::Extent;

use super::reply::{Refusal, keep, receive_end};
use crate::codec::{Chunk, ChunkKind, DataReply, HoleReply, ReplyStart, in_memory};
use crate::error::{Fault, Violation};
use crate::wire::Wire;

/// More chunks than any server sends for one request: one for each 512 bytes of 32 MiB.
const MAX_PARTS: usize = 64 << 10;

/// The reply to one read, as far as it has come.
pub(super) struct Assembly {
    request: Extent,
    structured: bool,
    parts: Vec<Part>,
    refusal: Option<Refusal>,
}

/// Bytes of the request, from its start, that a chunk covered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    start: usize,
    end: usize,
    zero: bool,
}

/// A run of bytes of a finished read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// The place within the export.
    pub(super) extent: Extent,
    /// Whether all of it reads as zeros; then the buffer does not hold it.
    pub(super) zero: bool,
}

impl Assembly {
    /// Waits for the reply to a read of `request`.
    pub(super) fn new(request: Extent, structured: bool) -> Self {
        Self { request, structured, parts: Vec::new(), refusal: None }
    }

    /// Returns what was asked for.
    pub(super) fn request(&self) -> Extent {
        self.request
    }

    /// Takes the next part of the reply and puts its data where it belongs in
    /// `buffer`, which is as long as the request. Returns whether it was the last.
    pub(super) fn accept(
        &mut self,
        start: ReplyStart,
        wire: &mut Wire,
        buffer: &mut [u8],
    ) -> Result<bool, Fault> {
        match start {
            ReplyStart::Simple { .. } if self.structured => Err(Violation::SimpleReply.into()),
            ReplyStart::Chunk(_) if !self.structured => Err(Violation::StructuredReply.into()),
            ReplyStart::Simple { errno, .. } => {
                self.refusal = Refusal::from_errno(errno);
                if self.refusal.is_none() {
                    wire.receive(buffer)?;
                    self.parts.push(Part { start: 0, end: buffer.len(), zero: false });
                }
                Ok(true)
            }
            ReplyStart::Chunk(chunk) => self.accept_chunk(&chunk, wire, buffer),
        }
    }

    fn accept_chunk(
        &mut self,
        chunk: &Chunk,
        wire: &mut Wire,
        buffer: &mut [u8],
    ) -> Result<bool, Fault> {
        match chunk.kind {
            ChunkKind::Data => {
                let len = in_memory(chunk.len)
                    .checked_sub(DataReply::LEN)
                    .ok_or(Violation::UnexpectedChunk { kind: chunk.kind })?;
                let offset = DataReply::decode(&wire.receive_array()?).offset;
                let part = self.add(offset, len, false)?;
                wire.receive(&mut buffer[part.start..part.end])?;
            }
            ChunkKind::Hole => {
                if in_memory(chunk.len) != HoleReply::LEN {
                    return Err(Violation::UnexpectedChunk { kind: chunk.kind }.into());
                }
                let hole = HoleReply::decode(&wire.receive_array::<{ HoleReply::LEN }>()?)?;
                self.add(hole.offset, in_memory(hole.len), true)?;
            }
            _ => {
                keep(&mut self.refusal, receive_end(wire, chunk)?)?;
            }
        }
        Ok(chunk.done)
    }

    fn add(&mut self, offset: u64, len: usize, zero: bool) -> Result<Part, Violation> {
        let room = in_memory_u64(self.request.len);
        let start = offset.checked_sub(self.request.offset).map(in_memory_u64);
        let part = start
            .and_then(|start| Some(Part { start, end: start.checked_add(len)?, zero }))
            .filter(|part| len > 0 && part.end <= room)
            .ok_or(Violation::OutsideRequest {
                offset,
                len: u64::try_from(len).unwrap_or(u64::MAX),
            })?;
        match self.parts.last_mut() {
            Some(last) if last.end == part.start && last.zero == zero => last.end = part.end,
            _ => self.parts.push(part),
        }
        if self.parts.len() > MAX_PARTS {
            return Err(Violation::BadCover);
        }
        Ok(part)
    }

    /// Checks that the chunks cover the request exactly once.
    pub(super) fn check_cover(&mut self) -> Result<Result<(), Refusal>, Fault> {
        if let Some(refusal) = self.refusal.take() {
            return Ok(Err(refusal));
        }
        self.parts.sort_unstable_by_key(|part| part.start);
        let mut at = 0;
        for part in &self.parts {
            if part.start != at {
                return Err(Violation::BadCover.into());
            }
            at = part.end;
        }
        if at == in_memory_u64(self.request.len) {
            Ok(Ok(()))
        } else {
            Err(Violation::BadCover.into())
        }
    }

    /// Writes the zeros of a covered request to the buffer.
    pub(super) fn fill_zeros(&self, buffer: &mut [u8]) {
        for part in self.parts.iter().filter(|part| part.zero) {
            buffer[part.start..part.end].fill(0);
        }
    }

    /// Returns the runs of data and of zeros of a covered request, in order, which
    /// part only at multiples of `grain` within the export. Zeros that share a
    /// grain with data are written to the buffer.
    pub(super) fn runs(&self, grain: u64, buffer: &mut [u8]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        for part in &self.parts {
            let (start, end) = (self.place(part.start), self.place(part.end));
            let zeros = if part.zero { self.whole_grains(start, end, grain) } else { end..end };
            if part.zero {
                buffer[part.start..self.index(zeros.start)].fill(0);
                buffer[self.index(zeros.end)..part.end].fill(0);
            }
            push_run(&mut runs, start..zeros.start, false);
            push_run(&mut runs, zeros.clone(), true);
            push_run(&mut runs, zeros.end..end, false);
        }
        runs
    }

    /// Returns the whole grains within a range; a grain that the request cuts off is
    /// whole. Without any, returns the empty range at the end.
    fn whole_grains(&self, start: u64, end: u64, grain: u64) -> Range<u64> {
        let at_start = start == self.request.offset;
        let first = if at_start { start } else { start.div_ceil(grain).saturating_mul(grain) };
        let last = if end == self.request.end() { end } else { end - end % grain };
        if first < last { first..last } else { end..end }
    }

    /// Returns the place in the export of an index in the buffer.
    fn place(&self, index: usize) -> u64 {
        self.request.offset + u64::try_from(index).expect("it is less than the request's length")
    }

    /// Returns the index in the buffer of a place in the export.
    fn index(&self, place: u64) -> usize {
        in_memory_u64(place - self.request.offset)
    }
}

fn push_run(runs: &mut Vec<Run>, place: Range<u64>, zero: bool) {
    if place.is_empty() {
        return;
    }
    let len = place.end - place.start;
    match runs.last_mut() {
        Some(last) if last.zero == zero => last.extent.len += len,
        _ => runs.push(Run { extent: Extent { offset: place.start, len }, zero }),
    }
}

/// Converts a length or distance to one in memory; what does not fit becomes the
/// largest, which no request reaches.
fn in_memory_u64(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts are `(start, end, zero)`, runs are `(offset, len, zero)`.
    fn check(
        request: Extent,
        grain: u64,
        parts: &[(usize, usize, bool)],
        expected: Option<&[(u64, u64, bool)]>,
    ) {
        let mut assembly = Assembly::new(request, true);
        for &(start, end, zero) in parts {
            let offset = assembly.place(start);
            assembly.add(offset, end - start, zero).unwrap();
        }
        let mut buffer = vec![0xaa; in_memory_u64(request.len)];
        let expected: Option<Vec<_>> = expected.map(|runs| {
            runs.iter()
                .map(|&(offset, len, zero)| Run { extent: Extent { offset, len }, zero })
                .collect()
        });
        let runs = assembly.check_cover().ok().map(|cover| {
            cover.unwrap();
            assembly.runs(grain, &mut buffer)
        });
        assert_eq!(runs, expected, "{parts:?}");
        for run in runs.iter().flatten().filter(|run| !run.zero) {
            for &(start, end, _) in parts.iter().filter(|part| part.2) {
                let bytes = start.max(assembly.index(run.extent.offset))
                    ..end.min(assembly.index(run.extent.end()));
                assert!(
                    bytes.is_empty() || buffer[bytes].iter().all(|&byte| byte == 0),
                    "{parts:?}"
                );
            }
        }
    }

    #[test]
    fn runs_part_at_grains() {
        let at = |offset, len| Extent { offset, len };
        check(at(0, 16), 4, &[(0, 16, false)], Some(&[(0, 16, false)]));
        check(at(0, 16), 4, &[(0, 16, true)], Some(&[(0, 16, true)]));
        check(at(0, 16), 4, &[(8, 16, true), (0, 8, false)], Some(&[(0, 8, false), (8, 8, true)]));
        check(at(0, 16), 4, &[(0, 6, false), (6, 16, true)], Some(&[(0, 8, false), (8, 8, true)]));
        check(at(0, 16), 4, &[(0, 6, true), (6, 16, false)], Some(&[(0, 4, true), (4, 12, false)]));
        check(at(0, 8), 4, &[(0, 1, false), (1, 7, true), (7, 8, false)], Some(&[(0, 8, false)]));
        check(at(0, 7), 4, &[(0, 4, false), (4, 7, true)], Some(&[(0, 4, false), (4, 3, true)]));
        check(at(2, 6), 4, &[(0, 6, true)], Some(&[(2, 6, true)]));
        check(at(2, 6), 4, &[(0, 3, true), (3, 6, false)], Some(&[(2, 2, true), (4, 4, false)]));
        check(at(2, 6), 1, &[(0, 3, true), (3, 6, false)], Some(&[(2, 3, true), (5, 3, false)]));
        check(at(2, 2), 4, &[(0, 1, true), (1, 2, false)], Some(&[(2, 2, false)]));
    }

    #[test]
    fn a_bad_cover_is_refused() {
        let request = Extent { offset: 100, len: 10 };
        check(request, 1, &[], None);
        check(request, 1, &[(0, 9, false)], None);
        check(request, 1, &[(1, 10, false)], None);
        check(request, 1, &[(0, 5, false), (6, 10, true)], None);
        check(request, 1, &[(0, 6, false), (5, 10, true)], None);
        check(request, 1, &[(0, 10, false), (0, 10, false)], None);
    }

    #[test]
    fn a_chunk_outside_the_request_is_refused() {
        let mut assembly = Assembly::new(Extent { offset: 100, len: 10 }, true);
        for (offset, len) in [(99, 1), (100, 11), (110, 1), (100, 0), (u64::MAX, 2), (0, 1)] {
            assert!(assembly.add(offset, len, false).is_err(), "{offset} {len}");
        }
    }
}
