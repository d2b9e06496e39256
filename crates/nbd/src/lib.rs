//! The NBD wire protocol: a codec, a small client and a small server.
//!
//! Made for one peer, QEMU, on unix sockets of this machine: the [`Client`] reads
//! and writes what a QEMU exports, the [`Server`] is the target of QEMU's block
//! jobs and the source of lazily restored disks. Blocking sockets and plain
//! threads. The peer is not trusted: whatever it sends, memory stays bounded and
//! the worst outcome is an error.
//!
//! Left out on purpose: TCP, TLS, oldstyle negotiation, reconnecting, and any
//! knowledge of image formats.

pub mod codec;

mod client;
mod error;
mod server;
mod wire;

pub use client::{Client, ConnectParams, Content, PullParams, Status, WritePipeline};
pub use error::{Error, ErrorKind, Operation, Violation};
pub use server::{Export, MemoryExport, Payload, Server, ServerConfig};
