//! The client: one connection to one export.
//!
//! The plain operations wait for each reply; [`Client::pull`] and
//! [`Client::pipeline`] keep several requests in flight on the same connection,
//! from one thread. It does not reconnect, and it does not retry.

mod assembly;
mod negotiate;
mod pipeline;
mod pull;
mod reply;
mod status;

use std::io::{self, IoSlice};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use tintype_types::{ByteCount, Extent};

pub use self::pipeline::WritePipeline;
pub use self::pull::{Content, PullParams};
pub use self::status::Status;

use self::assembly::Assembly;
use self::negotiate::Negotiated;
use self::reply::{Refusal, check_handle, handle_of, keep, receive_ack, receive_start};
use self::status::StatusReply;
use crate::codec::{
    BlockSizes, Command, CommandFlags, ExportFlags, MAX_PAYLOAD_LEN, Request, StatusFlags,
    in_memory,
};
use crate::error::{Error, Fault, Operation};
use crate::wire::{Limit, Wire};

/// The metadata context that says what is allocated and what reads as zeros.
pub(crate) const BASE_ALLOCATION: &str = "base:allocation";

/// How much one status, trim or zero request is about, so that each answers soon.
const MAX_EFFECT_LEN: u64 = 256 << 20;

/// How to connect.
#[derive(Debug, Clone)]
pub struct ConnectParams {
    /// The name of the export.
    pub export: String,
    /// Metadata contexts to ask for besides `base:allocation`, such as
    /// `qemu:dirty-bitmap:NAME`.
    pub contexts: Vec<String>,
    /// How long the whole handshake may take, and later how long any operation
    /// may wait without a byte moving.
    pub timeout: Duration,
}

impl ConnectParams {
    /// Asks for an export, for no further context, and for a timeout of 30 seconds.
    pub fn new(export: &str) -> Self {
        Self { export: export.to_owned(), contexts: Vec::new(), timeout: Duration::from_secs(30) }
    }
}

/// A connection to one export.
///
/// After a failure of the connection or a breach of the protocol it is of no
/// more use, and every operation says so. Dropping it tells the server good-bye
/// but makes nothing durable: that is what [`Client::flush`] is for.
pub struct Client {
    wire: Wire,
    export: Negotiated,
    next_handle: u64,
    broken: bool,
}

impl Client {
    /// Connects to an export of the server that listens at `path`.
    pub fn connect(path: &Path, params: &ConnectParams) -> Result<Self, Error> {
        let stream = UnixStream::connect(path)
            .map_err(|source| Error::Connect { path: path.to_owned(), source })?;
        Self::from_stream(stream, params)
    }

    /// Connects to an export over a stream that is already connected.
    pub fn from_stream(stream: UnixStream, params: &ConnectParams) -> Result<Self, Error> {
        let in_handshake = |fault: Fault| fault.in_handshake(&params.export);
        let io = |error: io::Error| in_handshake(error.into());
        let mut wire = Wire::new(stream).map_err(io)?;
        wire.set_limit(Limit::Until(Instant::now() + params.timeout)).map_err(io)?;
        let export = negotiate::negotiate(&mut wire, params)?;
        wire.set_limit(Limit::Stall(params.timeout)).map_err(io)?;
        Ok(Self { wire, export, next_handle: 1, broken: false })
    }

    /// Returns the size of the export.
    pub fn size(&self) -> ByteCount {
        ByteCount(self.export.size)
    }

    /// Returns what the export can do.
    pub fn flags(&self) -> ExportFlags {
        self.export.flags
    }

    /// Returns the sizes that requests should keep to.
    pub fn block_sizes(&self) -> BlockSizes {
        self.export.sizes
    }

    /// Returns whether the server knows a metadata context that was asked for.
    pub fn has_context(&self, name: &str) -> bool {
        self.export.context(name).is_some()
    }

    /// Returns whether the connection can still be used.
    pub fn is_usable(&self) -> bool {
        !self.broken
    }

    /// Sets how long any later operation may wait without a byte moving; zero is an
    /// error.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.wire.set_limit(Limit::Stall(timeout))
    }

    /// Reads as many bytes as `buffer` has.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let max = in_memory(self.max_payload());
        self.check(Command::Read, offset, len_of(buffer))?;
        let mut at = offset;
        for piece in buffer.chunks_mut(max) {
            let len = len_of(piece);
            self.read_piece(Extent { offset: at, len }, piece)?;
            at += len;
        }
        Ok(())
    }

    /// Writes bytes. They are durable only after [`Client::flush`].
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.check(Command::Write, offset, len_of(bytes))?;
        let mut at = offset;
        for piece in bytes.chunks(in_memory(self.max_payload())) {
            self.transact(Command::Write, Extent { offset: at, len: len_of(piece) }, piece)?;
            at += len_of(piece);
        }
        Ok(())
    }

    /// Makes bytes read as zeros; the server may free their storage.
    pub fn write_zeroes(&mut self, extent: Extent) -> Result<(), Error> {
        self.effect(Command::WriteZeroes, extent)
    }

    /// Says that bytes are no longer needed; what they read as afterwards is open.
    pub fn trim(&mut self, extent: Extent) -> Result<(), Error> {
        self.effect(Command::Trim, extent)
    }

    /// Makes all writes that were answered durable. Does nothing when the server
    /// has no such command, which means that it has no cache.
    pub fn flush(&mut self) -> Result<(), Error> {
        if !self.export.flags.has(ExportFlags::FLUSH) {
            return Ok(());
        }
        self.transact(Command::Flush, Extent { offset: 0, len: 0 }, &[])
    }

    /// Returns what is allocated, what reads as zeros and what is a hole, in order
    /// and without gaps. Neighbours differ. Ask about parts of large images: the
    /// answer can have an entry for each 512 bytes.
    ///
    /// A server that cannot tell says that all is allocated, which is always safe.
    pub fn block_status(&mut self, extent: Extent) -> Result<Vec<Status>, Error> {
        if self.has_context(BASE_ALLOCATION) {
            return self.status_of(BASE_ALLOCATION, extent);
        }
        self.check(Command::BlockStatus, extent.offset, extent.len)?;
        Ok(vec![Status { extent, flags: StatusFlags::default() }])
    }

    /// Returns what a named metadata context says, in order and without gaps.
    pub fn status_of(&mut self, context: &str, extent: Extent) -> Result<Vec<Status>, Error> {
        let operation = self.check(Command::BlockStatus, extent.offset, extent.len)?;
        let reason = "the server does not know the metadata context";
        let id = self.export.context(context).ok_or(Error::Impossible { operation, reason })?;
        let mut found: Vec<Status> = Vec::new();
        let mut at = extent.offset;
        while at < extent.end() {
            let part = Extent { offset: at, len: (extent.end() - at).min(MAX_EFFECT_LEN) };
            for status in self.status_piece(id, part)? {
                at = status.extent.end();
                match found.last_mut() {
                    Some(last) if last.flags == status.flags => {
                        last.extent.len += status.extent.len;
                    }
                    _ => found.push(status),
                }
            }
        }
        Ok(found)
    }

    fn max_payload(&self) -> u32 {
        self.export.sizes.maximum.min(MAX_PAYLOAD_LEN)
    }

    /// Checks that an operation can be asked for, before anything is sent.
    fn check(&self, command: Command, offset: u64, len: u64) -> Result<Operation, Error> {
        let operation = Operation { command, offset, len };
        if self.broken {
            return Err(Error::Broken { operation });
        }
        let lacks = |flag| !self.export.flags.has(flag);
        let writes = matches!(command, Command::Write | Command::WriteZeroes | Command::Trim);
        let reason = if offset.checked_add(len).is_none_or(|end| end > self.export.size) {
            "it reaches past the end"
        } else if writes && !lacks(ExportFlags::READ_ONLY) {
            "the export is read-only"
        } else if command == Command::WriteZeroes && lacks(ExportFlags::WRITE_ZEROES) {
            "the server cannot write zeros"
        } else if command == Command::Trim && lacks(ExportFlags::TRIM) {
            "the server cannot trim"
        } else {
            return Ok(operation);
        };
        Err(Error::Impossible { operation, reason })
    }

    fn effect(&mut self, command: Command, extent: Extent) -> Result<(), Error> {
        self.check(command, extent.offset, extent.len)?;
        extent.pieces(MAX_EFFECT_LEN).try_for_each(|piece| self.transact(command, piece, &[]))
    }

    /// Sends a request and waits for a reply without data.
    fn transact(&mut self, command: Command, extent: Extent, data: &[u8]) -> Result<(), Error> {
        let operation = self.check(command, extent.offset, extent.len)?;
        let outcome = self.request(command, extent, data).and_then(|handle| {
            let mut refusal = None;
            loop {
                let part = receive_ack(&mut self.wire, self.export.structured)?;
                check_handle(handle, part.handle)?;
                keep(&mut refusal, part.refusal)?;
                if part.done {
                    return Ok(refusal.map_or(Ok(()), Err));
                }
            }
        });
        self.settle(operation, outcome)
    }

    fn read_piece(&mut self, extent: Extent, buffer: &mut [u8]) -> Result<(), Error> {
        let operation = self.check(Command::Read, extent.offset, extent.len)?;
        let mut assembly = Assembly::new(extent, self.export.structured);
        // Unless one chunk is asked for, QEMU answers a failed read by hanging up
        // (`nbd_co_send_sparse_read` in its nbd/server.c).
        let flags = if self.export.flags.has(ExportFlags::DO_NOT_FRAGMENT) {
            CommandFlags::DO_NOT_FRAGMENT
        } else {
            CommandFlags::default()
        };
        let outcome = self.flagged_request(Command::Read, flags, extent, &[]).and_then(|handle| {
            loop {
                let start = receive_start(&mut self.wire)?;
                check_handle(handle, handle_of(&start))?;
                if assembly.accept(start, &mut self.wire, buffer)? {
                    return assembly.check_cover();
                }
            }
        });
        self.settle(operation, outcome)?;
        assembly.fill_zeros(buffer);
        Ok(())
    }

    fn status_piece(&mut self, context: u32, extent: Extent) -> Result<Vec<Status>, Error> {
        let operation = self.check(Command::BlockStatus, extent.offset, extent.len)?;
        let outcome = self.request(Command::BlockStatus, extent, &[]).and_then(|handle| {
            let mut reply = StatusReply::new(extent, context);
            loop {
                let start = receive_start(&mut self.wire)?;
                check_handle(handle, handle_of(&start))?;
                if reply.accept(start, &mut self.wire)? {
                    return reply.finish();
                }
            }
        });
        self.settle(operation, outcome)
    }

    /// Sends a request, whose range has been checked, and returns its handle.
    fn request(&mut self, command: Command, extent: Extent, data: &[u8]) -> Result<u64, Fault> {
        self.flagged_request(command, CommandFlags::default(), extent, data)
    }

    fn flagged_request(
        &mut self,
        command: Command,
        flags: CommandFlags,
        extent: Extent,
        data: &[u8],
    ) -> Result<u64, Fault> {
        let handle = self.next_handle;
        self.next_handle = self.next_handle.wrapping_add(1);
        let len = u32::try_from(extent.len).expect("requests are split into pieces below 4 GiB");
        let header = Request { flags, command, handle, offset: extent.offset, len }.encode();
        self.wire.send(&mut [IoSlice::new(&header), IoSlice::new(data)])?;
        Ok(handle)
    }

    /// Makes an error of what a reply says, and remembers a lost connection.
    fn settle<T>(
        &mut self,
        operation: Operation,
        outcome: Result<Result<T, Refusal>, Fault>,
    ) -> Result<T, Error> {
        match outcome {
            Ok(reply) => reply.map_err(|refusal| refusal.of(operation)),
            Err(fault) => {
                self.broken = true;
                Err(fault.during(operation))
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if !self.broken {
            // The server learns of the end either way, so a failure is of no interest.
            let _ = self.request(Command::Disconnect, Extent { offset: 0, len: 0 }, &[]);
        }
    }
}

fn len_of(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).expect("an address has at most 64 bits here")
}
