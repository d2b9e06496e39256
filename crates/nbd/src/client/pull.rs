//! Reads much in little time: several reads in flight on one connection.
//!
//! One thread does it all. The requests are short, so sending a whole window of
//! them never waits for the server to read, and the server works on the next
//! reads while a reply is being received.

use tintype_types::Extent;

use super::Client;
use super::assembly::Assembly;
use super::reply::{handle_of, receive_start};
use crate::codec::Command;
use crate::error::{Error, Fault, Operation, Violation};

/// How to pull.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PullParams {
    /// How many requests to keep in flight. QEMU works on at most 16 at once.
    pub window: usize,
    /// The most bytes that one request reads; it is rounded to a multiple of the grain.
    pub request_len: u32,
    /// Runs of data and of zeros part only at multiples of this many bytes within
    /// the export, except at the ends of what was asked for.
    pub grain: u32,
}

impl Default for PullParams {
    /// 8 requests of up to 2 MiB, and a grain of 4 KiB.
    fn default() -> Self {
        Self { window: 8, request_len: 2 << 20, grain: 4096 }
    }
}

/// What a pulled run of bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// These bytes. Zeros among them are possible.
    Data(&'a [u8]),
    /// Zeros, which the server knew without reading them.
    Zero,
}

/// A read in flight, or a spare one with its buffer.
struct Slot {
    handle: u64,
    assembly: Assembly,
    buffer: Vec<u8>,
}

/// The reads in flight, and the buffers of those that have landed.
#[derive(Default)]
struct Flight {
    busy: Vec<Slot>,
    spare: Vec<Vec<u8>>,
}

impl Client {
    /// Reads all of `extents` and hands what is there to `sink`, in runs of data
    /// and of zeros.
    ///
    /// Each byte of each extent is handed over exactly once. The runs of one request
    /// are in order; those of different requests come as the server answers. When
    /// `sink` or a read fails, no more is handed over, the replies in flight are
    /// taken in, and the first error is returned; the connection stays good unless
    /// it was the connection that failed. QEMU answers a read of a bad sector here by
    /// hanging up; [`Client::read_at`] gets its error. Memory: `window` buffers of
    /// `request_len`.
    pub fn pull<E: From<Error>>(
        &mut self,
        extents: impl IntoIterator<Item = Extent>,
        params: &PullParams,
        mut sink: impl FnMut(Extent, Content<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let grain = u64::from(params.grain.max(1));
        let request_len = self.request_len(params, grain);
        let mut pieces = extents.into_iter().flat_map(|extent| aligned(extent, request_len));
        let mut flight = Flight::default();
        let mut outcome = Ok(());
        loop {
            while outcome.is_ok() && flight.busy.len() < params.window.max(1) {
                let Some(piece) = pieces.next() else { break };
                outcome = self.issue(&mut flight, piece).map_err(E::from);
            }
            if flight.busy.is_empty() || self.broken {
                return outcome;
            }
            let landed = match self.land(&mut flight) {
                Ok(Some(mut slot)) if outcome.is_ok() => {
                    let handed_over = hand_over(&mut slot, grain, &mut sink);
                    flight.spare.push(slot.buffer);
                    handed_over
                }
                Ok(_) => Ok(()),
                Err(error) => Err(error.into()),
            };
            outcome = outcome.and(landed);
        }
    }

    fn request_len(&self, params: &PullParams, grain: u64) -> u64 {
        let len = u64::from(params.request_len.min(self.max_payload())).max(1);
        if len < grain { len } else { len - len % grain }
    }

    fn issue(&mut self, flight: &mut Flight, piece: Extent) -> Result<(), Error> {
        let operation = self.check(Command::Read, piece.offset, piece.len)?;
        let handle = self.request(Command::Read, piece, &[]).map(Ok);
        let handle = self.settle(operation, handle)?;
        let mut buffer = flight.spare.pop().unwrap_or_default();
        buffer.resize(in_memory_u64(piece.len), 0);
        let assembly = Assembly::new(piece, self.export.structured);
        flight.busy.push(Slot { handle, assembly, buffer });
        Ok(())
    }

    /// Receives one part of a reply; returns the read that it completes, covered.
    fn land(&mut self, flight: &mut Flight) -> Result<Option<Slot>, Error> {
        let oldest = flight.busy[0].operation();
        let received = self.receive_part(flight).map(Ok);
        let Some(mut slot) = self.settle(oldest, received)? else { return Ok(None) };
        let cover = slot.assembly.check_cover();
        self.settle(slot.operation(), cover).map(|()| Some(slot))
    }

    fn receive_part(&mut self, flight: &mut Flight) -> Result<Option<Slot>, Fault> {
        let start = receive_start(&mut self.wire)?;
        let handle = handle_of(&start);
        let at = flight
            .busy
            .iter()
            .position(|slot| slot.handle == handle)
            .ok_or(Violation::UnknownHandle { handle })?;
        let slot = &mut flight.busy[at];
        let done = slot.assembly.accept(start, &mut self.wire, &mut slot.buffer)?;
        Ok(done.then(|| flight.busy.remove(at)))
    }
}

impl Slot {
    fn operation(&self) -> Operation {
        let Extent { offset, len } = self.assembly.request();
        Operation { command: Command::Read, offset, len }
    }
}

fn hand_over<E>(
    slot: &mut Slot,
    grain: u64,
    mut sink: impl FnMut(Extent, Content<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let request = slot.assembly.request();
    let runs = slot.assembly.runs(grain, &mut slot.buffer);
    runs.iter().try_for_each(|run| {
        let start = in_memory_u64(run.extent.offset - request.offset);
        let bytes = &slot.buffer[start..start + in_memory_u64(run.extent.len)];
        sink(run.extent, if run.zero { Content::Zero } else { Content::Data(bytes) })
    })
}

/// Splits an extent at the multiples of `len` within the export.
fn aligned(extent: Extent, len: u64) -> impl Iterator<Item = Extent> {
    let mut at = extent.offset;
    std::iter::from_fn(move || {
        let piece = Extent { offset: at, len: (len - at % len).min(extent.end() - at) };
        at += piece.len;
        (piece.len > 0).then_some(piece)
    })
}

/// Converts a length within one request, which is at most 32 MiB.
fn in_memory_u64(len: u64) -> usize {
    usize::try_from(len).expect("requests are at most 32 MiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_part_at_multiples() {
        let check = |offset, len, expected: &[(u64, u64)]| {
            let pieces: Vec<_> =
                aligned(Extent { offset, len }, 8).map(|piece| (piece.offset, piece.len)).collect();
            assert_eq!(pieces, expected, "{len} at {offset}");
        };
        check(0, 16, &[(0, 8), (8, 8)]);
        check(3, 4, &[(3, 4)]);
        check(3, 6, &[(3, 5), (8, 1)]);
        check(8, 0, &[]);
        check(u64::MAX - 2, 2, &[(u64::MAX - 2, 2)]);
    }
}
