//! Replies to block status requests.

use tintype_types::Extent;

use super::reply::{Refusal, keep, receive_end};
use crate::codec::{BlockStatusReply, ChunkKind, ReplyStart, StatusFlags, in_memory};
use crate::error::{Fault, Violation};
use crate::wire::Wire;

/// QEMU sends at most 128 Ki descriptors at once (`NBD_MAX_BLOCK_STATUS_EXTENTS`).
const MAX_STATUS_LEN: u32 = 2 << 20;

/// What a metadata context says about a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// The bytes.
    pub extent: Extent,
    /// What it says.
    pub flags: StatusFlags,
}

impl Status {
    /// Tells whether a context `qemu:dirty-bitmap:NAME` calls the bytes dirty.
    pub fn is_dirty(&self) -> bool {
        self.flags.has(StatusFlags::DIRTY)
    }

    /// Tells whether the context `base:allocation` says that the bytes read as zeros.
    pub fn reads_as_zeroes(&self) -> bool {
        self.flags.has(StatusFlags::ZERO)
    }
}

/// The reply to a block status request, as far as it has come.
pub(super) struct StatusReply {
    extent: Extent,
    context: u32,
    found: Option<Vec<Status>>,
    /// The contexts that have come; each comes once.
    seen: Vec<u32>,
    refusal: Option<Refusal>,
}

impl StatusReply {
    /// Waits for what `context` says about `extent`.
    pub(super) fn new(extent: Extent, context: u32) -> Self {
        Self { extent, context, found: None, seen: Vec::new(), refusal: None }
    }

    /// Takes a part of the reply; returns whether it was the last.
    pub(super) fn accept(&mut self, start: ReplyStart, wire: &mut Wire) -> Result<bool, Fault> {
        let chunk = match start {
            ReplyStart::Simple { errno, .. } => {
                self.refusal = Refusal::from_errno(errno);
                let violation = Violation::SimpleReply;
                return if self.refusal.is_some() { Ok(true) } else { Err(violation.into()) };
            }
            ReplyStart::Chunk(chunk) => chunk,
        };
        if chunk.kind != ChunkKind::BlockStatus {
            keep(&mut self.refusal, receive_end(wire, &chunk)?)?;
            return Ok(chunk.done);
        }
        if chunk.len > MAX_STATUS_LEN {
            return Err(Violation::TooLong { len: chunk.len }.into());
        }
        let reply = BlockStatusReply::decode(&wire.receive_vec(in_memory(chunk.len))?)?;
        if self.seen.contains(&reply.context) {
            return Err(Violation::SecondStatus { context: reply.context }.into());
        }
        self.seen.push(reply.context);
        if reply.context == self.context {
            self.found = Some(self.statuses(&reply));
        }
        Ok(chunk.done)
    }

    /// Gives the descriptors their places, and cuts off what reaches past the request.
    fn statuses(&self, reply: &BlockStatusReply) -> Vec<Status> {
        let mut at = self.extent.offset;
        let mut found = Vec::with_capacity(reply.descriptors.len());
        for descriptor in &reply.descriptors {
            let len = u64::from(descriptor.len).min(self.extent.end() - at);
            if len == 0 {
                break;
            }
            found.push(Status { extent: Extent { offset: at, len }, flags: descriptor.flags });
            at += len;
        }
        found
    }

    /// Returns what the context says, or the server's error.
    pub(super) fn finish(self) -> Result<Result<Vec<Status>, Refusal>, Fault> {
        match (self.refusal, self.found) {
            (Some(refusal), _) => Ok(Err(refusal)),
            (None, Some(found)) => Ok(Ok(found)),
            (None, None) => Err(Violation::NoStatus.into()),
        }
    }
}
