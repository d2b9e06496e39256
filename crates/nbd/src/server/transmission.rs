//! The server's transmission phase: one request after another, on the thread of
//! the connection.
//!
//! The path of a write is short on purpose, since behind QEMU's copy-before-write
//! filter a guest waits for it: receive into a spare buffer, hand it to the
//! export, reply.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tintype_types::Extent;

use super::export::Pool;
use super::handshake::{ALLOCATION_ID, Session};
use crate::codec::{
    BlockStatusReply, Chunk, ChunkKind, Command, CommandFlags, DataReply, Errno, ErrorReply,
    HoleReply, ReplyStart, Request, StatusDescriptor, in_memory, on_wire,
};
use crate::error::{Fault, Violation};
use crate::wire::Wire;

/// The most descriptors in one block status reply.
const MAX_DESCRIPTORS: usize = 16 << 10;

/// A connection in its transmission phase.
pub(super) struct Transmission<'a> {
    pub(super) wire: Wire,
    pub(super) session: Session,
    pub(super) pool: &'a Arc<Pool>,
    pub(super) stopping: &'a AtomicBool,
    pub(super) max_payload: u32,
}

/// A request that is answered with an error.
struct Denied(Errno, &'static str);

impl From<io::Error> for Denied {
    fn from(error: io::Error) -> Self {
        tracing::debug!(%error, "an NBD export failed a request");
        Self(Errno::from_io(&error), "the export failed")
    }
}

impl Transmission<'_> {
    /// Serves requests until the peer leaves, the server stops, or something breaks.
    pub(super) fn run(mut self) -> Result<(), Fault> {
        let mut bytes = [0; Request::LEN];
        while !self.stopping.load(Ordering::Relaxed) {
            if !self.wire.receive_or_end(&mut bytes)? {
                return Ok(());
            }
            let request = Request::decode(&bytes)?;
            if request.command == Command::Disconnect {
                return Ok(());
            }
            self.serve(&request)?;
        }
        Ok(())
    }

    fn serve(&mut self, request: &Request) -> Result<(), Fault> {
        if request.command == Command::Write && request.len > self.max_payload {
            // The data is on its way and too much to skip, so the connection ends.
            return Err(Violation::TooLong { len: request.len }.into());
        }
        let outcome = match (self.check(request), request.command) {
            (checked, Command::Write) => self.write(request, checked)?,
            (Err(denied), _) => Err(denied),
            (Ok(_), Command::Read) => return self.read(request),
            (Ok(extent), Command::BlockStatus) => return self.block_status(request, extent),
            (Ok(extent), _) => self.effect(request, extent),
        };
        match outcome {
            Ok(()) => Ok(self.wire.send(&mut [IoSlice::new(&ReplyStart::encode_simple(
                Errno::OK,
                request.handle,
            ))])?),
            Err(denied) => self.deny(request, &denied),
        }
    }

    /// Checks all that can be known of a request before its data.
    fn check(&self, request: &Request) -> Result<Extent, Denied> {
        let export = &self.session.export;
        let known = match request.command {
            Command::Read if self.session.structured => CommandFlags::DO_NOT_FRAGMENT,
            Command::WriteZeroes => CommandFlags::NO_HOLE,
            Command::BlockStatus => CommandFlags::ONE_DESCRIPTOR,
            Command::Read | Command::Write | Command::Flush | Command::Trim => {
                CommandFlags::default()
            }
            _ => return Err(Denied(Errno::EINVAL, "the command is not known")),
        };
        let writes =
            matches!(request.command, Command::Write | Command::WriteZeroes | Command::Trim);
        let end = request.offset.checked_add(request.len.into());
        if !request.flags.within(known.with(CommandFlags::FUA)) {
            Err(Denied(Errno::EINVAL, "a flag is not known for the command"))
        } else if writes && export.read_only() {
            Err(Denied(Errno::EPERM, "the export is read-only"))
        } else if end.is_none_or(|end| end > export.size()) {
            let errno = if writes { Errno::ENOSPC } else { Errno::EINVAL };
            Err(Denied(errno, "the request reaches past the end"))
        } else if request.command == Command::Read && request.len > self.max_payload {
            Err(Denied(Errno::EOVERFLOW, "the request is too long"))
        } else {
            Ok(Extent { offset: request.offset, len: request.len.into() })
        }
    }

    fn write(
        &mut self,
        request: &Request,
        checked: Result<Extent, Denied>,
    ) -> Result<Result<(), Denied>, Fault> {
        let mut data = self.pool.take(in_memory(request.len));
        self.wire.receive(data.as_mut())?;
        Ok(checked.and_then(|extent| {
            if extent.len > 0 {
                self.session.export.write(extent.offset, data)?;
            }
            self.flush_if_forced(request)
        }))
    }

    fn effect(&self, request: &Request, extent: Extent) -> Result<(), Denied> {
        let export = &self.session.export;
        match request.command {
            Command::Flush => return Ok(export.flush()?),
            _ if extent.len == 0 => {}
            Command::Trim => export.trim(extent)?,
            _ => export.write_zeroes(extent)?,
        }
        self.flush_if_forced(request)
    }

    fn flush_if_forced(&self, request: &Request) -> Result<(), Denied> {
        if request.flags.has(CommandFlags::FUA) {
            self.session.export.flush()?;
        }
        Ok(())
    }

    fn read(&mut self, request: &Request) -> Result<(), Fault> {
        let mut data = self.pool.take(in_memory(request.len));
        if request.len > 0
            && let Err(error) = self.session.export.read(request.offset, data.as_mut())
        {
            return self.deny(request, &error.into());
        }
        if !self.session.structured {
            let start = ReplyStart::encode_simple(Errno::OK, request.handle);
            return Ok(self.wire.send(&mut [IoSlice::new(&start), IoSlice::new(&data)])?);
        }
        if request.len == 0 {
            return self.send_chunk(request, ChunkKind::None, &[], &[]);
        }
        if !request.flags.has(CommandFlags::DO_NOT_FRAGMENT) && is_zero(&data) {
            let hole = HoleReply { offset: request.offset, len: request.len }.encode();
            return self.send_chunk(request, ChunkKind::Hole, &hole, &[]);
        }
        let start = DataReply { offset: request.offset }.encode();
        self.send_chunk(request, ChunkKind::Data, &start, &data)
    }

    fn block_status(&mut self, request: &Request, extent: Extent) -> Result<(), Fault> {
        let denied = if !self.session.allocation {
            Denied(Errno::EINVAL, "no metadata context was chosen")
        } else if extent.len == 0 {
            Denied(Errno::EINVAL, "block status of nothing")
        } else {
            match self.descriptors(request, extent) {
                Ok(descriptors) => {
                    let reply = BlockStatusReply { context: ALLOCATION_ID, descriptors }.encode();
                    return self.send_chunk(request, ChunkKind::BlockStatus, &reply, &[]);
                }
                Err(error) => error.into(),
            }
        };
        self.deny(request, &denied)
    }

    fn descriptors(&self, request: &Request, extent: Extent) -> io::Result<Vec<StatusDescriptor>> {
        let one = request.flags.has(CommandFlags::ONE_DESCRIPTOR);
        let max = if one { 1 } else { MAX_DESCRIPTORS };
        let mut left = request.len;
        let mut descriptors = Vec::new();
        for status in self.session.export.block_status(extent)?.iter().take(max) {
            let len = u32::try_from(status.extent.len).unwrap_or(left).min(left);
            if len > 0 {
                descriptors.push(StatusDescriptor { len, flags: status.flags });
                left -= len;
            }
        }
        if descriptors.is_empty() {
            return Err(io::Error::other("the export told no block status"));
        }
        Ok(descriptors)
    }

    /// Sends a chunk that is the whole reply.
    fn send_chunk(
        &mut self,
        request: &Request,
        kind: ChunkKind,
        head: &[u8],
        data: &[u8],
    ) -> Result<(), Fault> {
        let len = on_wire(head.len() + data.len());
        let chunk = Chunk { done: true, kind, handle: request.handle, len }.encode();
        let mut parts = [IoSlice::new(&chunk), IoSlice::new(head), IoSlice::new(data)];
        Ok(self.wire.send(&mut parts)?)
    }

    fn deny(&mut self, request: &Request, denied: &Denied) -> Result<(), Fault> {
        let Denied(errno, message) = *denied;
        if self.session.structured {
            let error = ErrorReply { errno, message: message.to_owned() }.encode();
            self.send_chunk(request, ChunkKind::Error, &error, &[])
        } else {
            let start = ReplyStart::encode_simple(errno, request.handle);
            Ok(self.wire.send(&mut [IoSlice::new(&start)])?)
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|&byte| byte == 0)
}
