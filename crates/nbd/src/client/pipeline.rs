//! Writes much in little time: several writes in flight on one connection.

use std::collections::BTreeMap;

use tintype_types::Extent;

use super::reply::{Refusal, keep, receive_ack};
use super::{Client, len_of};
use crate::codec::{Command, in_memory};
use crate::error::{Error, Fault, Operation, Violation};

/// Writes whose replies are still to come.
///
/// Replies are small, so a server that has them waiting does not stop reading
/// what is written. An error is returned by whichever call takes the reply in,
/// at the latest by [`WritePipeline::finish`]; a pipeline that is dropped
/// without it makes its connection useless.
pub struct WritePipeline<'a> {
    client: &'a mut Client,
    window: usize,
    in_flight: BTreeMap<u64, InFlight>,
}

struct InFlight {
    operation: Operation,
    refusal: Option<Refusal>,
}

impl Client {
    /// Starts to write with up to `window` requests in flight.
    pub fn pipeline(&mut self, window: usize) -> WritePipeline<'_> {
        WritePipeline { client: self, window: window.max(1), in_flight: BTreeMap::new() }
    }
}

impl WritePipeline<'_> {
    /// Writes bytes; waits only when the window is full.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut at = offset;
        for piece in bytes.chunks(in_memory(self.client.max_payload())) {
            self.submit(Command::Write, Extent { offset: at, len: len_of(piece) }, piece)?;
            at += len_of(piece);
        }
        Ok(())
    }

    /// Makes bytes read as zeros; waits only when the window is full.
    pub fn write_zeroes(&mut self, extent: Extent) -> Result<(), Error> {
        extent
            .pieces(super::MAX_EFFECT_LEN)
            .try_for_each(|piece| self.submit(Command::WriteZeroes, piece, &[]))
    }

    /// Waits until all is answered. The writes are durable only after
    /// [`Client::flush`].
    pub fn finish(mut self) -> Result<(), Error> {
        let mut outcome = Ok(());
        while !self.in_flight.is_empty() && !self.client.broken {
            outcome = outcome.and(self.receive());
        }
        outcome
    }

    fn submit(&mut self, command: Command, extent: Extent, data: &[u8]) -> Result<(), Error> {
        while self.in_flight.len() >= self.window {
            self.receive()?;
        }
        let operation = self.client.check(command, extent.offset, extent.len)?;
        let sent = self.client.request(command, extent, data).map(Ok);
        let handle = self.client.settle(operation, sent)?;
        self.in_flight.insert(handle, InFlight { operation, refusal: None });
        Ok(())
    }

    /// Takes in one reply.
    fn receive(&mut self) -> Result<(), Error> {
        let oldest = self.in_flight.values().next().expect("something is in flight").operation;
        let landed = self.receive_whole().map(Ok);
        let landed = self.client.settle(oldest, landed)?;
        landed.refusal.map_or(Ok(()), |refusal| Err(refusal.of(landed.operation)))
    }

    fn receive_whole(&mut self) -> Result<InFlight, Fault> {
        loop {
            let part = receive_ack(&mut self.client.wire, self.client.export.structured)?;
            let unknown = Violation::UnknownHandle { handle: part.handle };
            let entry = self.in_flight.get_mut(&part.handle).ok_or(unknown.clone())?;
            keep(&mut entry.refusal, part.refusal)?;
            if part.done {
                return self.in_flight.remove(&part.handle).ok_or(unknown.into());
            }
        }
    }
}

impl Drop for WritePipeline<'_> {
    fn drop(&mut self) {
        self.client.broken |= !self.in_flight.is_empty();
    }
}
