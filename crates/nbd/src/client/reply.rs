//! The parts of replies that every request has: their start, their end, errors.

use crate::codec::{Chunk, ChunkKind, Errno, ErrorReply, ReplyStart, in_memory};
use crate::error::{Error, Fault, Operation, Violation};
use crate::wire::Wire;

/// The longest payload of an error chunk: a number, a message of 64 KiB, an offset.
const MAX_ERROR_LEN: u32 = 4 + 2 + 0xffff + 8;

/// A server's error for one request.
#[derive(Debug)]
pub(super) struct Refusal {
    errno: Errno,
    message: String,
}

impl Refusal {
    /// Makes a refusal of a simple reply's number, unless it means success.
    pub(super) fn from_errno(errno: Errno) -> Option<Self> {
        (errno != Errno::OK).then(|| Self { errno, message: String::new() })
    }

    /// Makes the error that a caller sees.
    pub(super) fn of(self, operation: Operation) -> Error {
        Error::Remote { operation, errno: self.errno, message: self.message }
    }
}

/// A part of a reply without data.
pub(super) struct AckPart {
    pub(super) handle: u64,
    /// Whether it was the last part.
    pub(super) done: bool,
    pub(super) refusal: Option<Refusal>,
}

/// Receives a simple reply or one chunk of a reply that has no data.
pub(super) fn receive_ack(wire: &mut Wire, structured: bool) -> Result<AckPart, Fault> {
    let chunk = match receive_start(wire)? {
        ReplyStart::Simple { errno, handle } => {
            let refusal = Refusal::from_errno(errno);
            return Ok(AckPart { handle, done: true, refusal });
        }
        ReplyStart::Chunk(_) if !structured => return Err(Violation::StructuredReply.into()),
        ReplyStart::Chunk(chunk) => chunk,
    };
    let refusal = receive_end(wire, &chunk)?;
    Ok(AckPart { handle: chunk.handle, done: chunk.done, refusal })
}

/// Keeps the error of a reply. A second one breaks the protocol's advice and, without
/// end, would keep us for ever.
pub(super) fn keep(kept: &mut Option<Refusal>, next: Option<Refusal>) -> Result<(), Violation> {
    if kept.is_some() && next.is_some() {
        return Err(Violation::SecondError);
    }
    *kept = kept.take().or(next);
    Ok(())
}

/// Receives the start of the next reply, whichever request it belongs to.
pub(super) fn receive_start(wire: &mut Wire) -> Result<ReplyStart, Fault> {
    let mut bytes = [0; ReplyStart::CHUNK_LEN];
    let (first, rest) = bytes.split_at_mut(ReplyStart::SIMPLE_LEN);
    wire.receive(first)?;
    let first = <&[u8; ReplyStart::SIMPLE_LEN]>::try_from(&*first).expect("it was split there");
    let len = ReplyStart::len_of(first)?;
    wire.receive(&mut rest[..len - ReplyStart::SIMPLE_LEN])?;
    Ok(ReplyStart::decode(&bytes[..len])?)
}

/// Receives the payload of a chunk that has no data: an error, or the bare end.
pub(super) fn receive_end(wire: &mut Wire, chunk: &Chunk) -> Result<Option<Refusal>, Fault> {
    if chunk.kind.is_error() {
        if chunk.len > MAX_ERROR_LEN {
            return Err(Violation::TooLong { len: chunk.len }.into());
        }
        let error = ErrorReply::decode(&wire.receive_vec(in_memory(chunk.len))?)?;
        return Ok(Some(Refusal { errno: error.errno, message: error.message }));
    }
    if chunk.kind != ChunkKind::None || chunk.len != 0 || !chunk.done {
        return Err(Violation::UnexpectedChunk { kind: chunk.kind }.into());
    }
    Ok(None)
}

/// Returns the handle of the request that a reply belongs to.
pub(super) fn handle_of(start: &ReplyStart) -> u64 {
    match start {
        ReplyStart::Simple { handle, .. } => *handle,
        ReplyStart::Chunk(chunk) => chunk.handle,
    }
}

/// Fails if a reply belongs to another request than the only one.
pub(super) fn check_handle(expected: u64, handle: u64) -> Result<(), Fault> {
    if expected == handle { Ok(()) } else { Err(Violation::UnknownHandle { handle }.into()) }
}
