//! The server: named exports on a unix socket, a thread for each connection.

mod export;
mod handshake;
mod transmission;

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use self::export::{Export, MemoryExport, Payload};

use self::export::Pool;
use self::handshake::{Exports, Handshake, Next, Session};
use self::transmission::Transmission;
use crate::codec::{
    ClientFlags, Greeting, MAX_OPTION_LEN, MAX_PAYLOAD_LEN, OptionHeader, in_memory,
};
use crate::error::{Error, Fault, Violation};
use crate::wire::{Limit, Wire};

/// How to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerConfig {
    /// How long a peer may take from its connection to its choice of an export.
    pub handshake_timeout: Duration,
    /// How many connections there may be at once; more are closed at once.
    pub max_connections: usize,
    /// The most bytes that one read or write may carry, at most 32 MiB. Memory is
    /// bounded by it times the connections.
    pub max_payload: u32,
    /// How long [`Server::stop`] lets peers take the replies to their last requests.
    pub stop_grace: Duration,
}

impl Default for ServerConfig {
    /// 10 seconds, 8 connections, 32 MiB, 1 second.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            max_connections: 8,
            max_payload: MAX_PAYLOAD_LEN,
            stop_grace: Duration::from_secs(1),
        }
    }
}

/// A running server. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    listener: UnixListener,
    exports: Exports,
    config: ServerConfig,
    pool: Arc<Pool>,
    stopping: AtomicBool,
    connections: Mutex<Vec<Connection>>,
}

struct Connection {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Server {
    /// Starts to serve exports, each with its name, to those who connect to the
    /// listener. Who may connect is up to the socket's path and mode; the path is
    /// the caller's to remove.
    pub fn start(
        listener: UnixListener,
        exports: impl IntoIterator<Item = (String, Arc<dyn Export>)>,
        config: &ServerConfig,
    ) -> Result<Self, Error> {
        let max_payload = config.max_payload.clamp(4096, MAX_PAYLOAD_LEN);
        let shared = Arc::new(Shared {
            listener,
            exports: exports.into_iter().collect(),
            config: ServerConfig { max_payload, ..*config },
            pool: Arc::default(),
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let acceptor = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.accept()
            })
            .map_err(|source| Error::Start { source })?;
        Ok(Self { shared, acceptor: Some(acceptor) })
    }

    /// Stops to listen, lets each connection finish the request that it works on,
    /// closes the connections and waits for their threads.
    pub fn stop(mut self) {
        self.halt();
    }

    fn halt(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, Ordering::Relaxed);
        // On Linux this wakes `accept`, and refuses those who still try to connect.
        if let Err(error) =
            rustix::net::shutdown(&self.shared.listener, rustix::net::Shutdown::Both)
        {
            tracing::warn!(%error, "cannot shut down an NBD listener");
        }
        let _ = acceptor.join();
        let connections = std::mem::take(&mut *self.shared.connections());
        // No more requests, but room for the replies to those that are in work.
        connections.iter().for_each(|connection| connection.close(Shutdown::Read));
        let deadline = Instant::now() + self.shared.config.stop_grace;
        while Instant::now() < deadline
            && !connections.iter().all(|connection| connection.thread.is_finished())
        {
            thread::sleep(Duration::from_millis(1));
        }
        for connection in connections {
            connection.close(Shutdown::Both);
            // A panic has been reported by the thread's panic hook.
            let _ = connection.thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.halt();
    }
}

impl Connection {
    fn close(&self, how: Shutdown) {
        // It fails only when the peer was faster.
        let _ = self.stream.shutdown(how);
    }
}

/// Tells the peer that the connection is over when its thread ends, even by a
/// panic: the list of connections still holds the socket open.
struct Closer(UnixStream);

impl Drop for Closer {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Vec<Connection>> {
        // A list of connections is good whatever its last user did.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>) {
        while !self.stopping.load(Ordering::Relaxed) {
            let admitted = self.listener.accept().and_then(|(stream, _)| self.admit(stream));
            match admitted {
                Err(error) if !self.stopping.load(Ordering::Relaxed) => {
                    tracing::warn!(%error, "cannot take an NBD connection");
                    // Too few descriptors or threads: wait for some to be freed.
                    thread::sleep(Duration::from_millis(50));
                }
                _ => {}
            }
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) -> io::Result<()> {
        let mut connections = self.connections();
        connections.retain(|connection| !connection.thread.is_finished());
        if connections.len() >= self.config.max_connections {
            tracing::warn!(max = self.config.max_connections, "too many NBD connections");
            return Ok(());
        }
        let own = stream.try_clone()?;
        let shared = Arc::clone(self);
        let thread = thread::Builder::new().name("nbd-serve".to_owned()).spawn(move || {
            if let Err(fault) = shared.serve(own) {
                tracing::debug!(%fault, "an NBD connection ended");
            }
        })?;
        connections.push(Connection { stream, thread });
        Ok(())
    }

    fn serve(&self, stream: UnixStream) -> Result<(), Fault> {
        let _closer = Closer(stream.try_clone()?);
        let mut wire = Wire::new(stream)?;
        wire.set_limit(Limit::Until(Instant::now() + self.config.handshake_timeout))?;
        let Some(session) = self.negotiate(&mut wire)? else { return Ok(()) };
        // A peer may be idle, or be stopped in the middle of a write, for days.
        wire.set_limit(Limit::None)?;
        let (pool, stopping) = (&self.pool, &self.stopping);
        let max_payload = self.config.max_payload;
        Transmission { wire, session, pool, stopping, max_payload }.run()
    }

    fn negotiate(&self, wire: &mut Wire) -> Result<Option<Session>, Fault> {
        const OFFERED: ClientFlags = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES);
        let greeting = Greeting { flags: 0b11 };
        wire.send(&mut [IoSlice::new(&greeting.encode())])?;
        let flags = ClientFlags::decode(&wire.receive_array()?);
        if !flags.within(OFFERED) {
            return Err(Violation::ClientFlags { flags: flags.0 }.into());
        }
        let mut handshake = Handshake::new(&self.exports, flags, self.config.max_payload);
        let mut answer = Vec::new();
        loop {
            let header = OptionHeader::decode(&wire.receive_array::<{ OptionHeader::LEN }>()?)?;
            if header.len > MAX_OPTION_LEN {
                return Err(Violation::TooLong { len: header.len }.into());
            }
            let data = wire.receive_vec(in_memory(header.len))?;
            answer.clear();
            let next = handshake.answer(header.kind, &data, &mut answer);
            wire.send(&mut [IoSlice::new(&answer)])?;
            match next {
                Next::Option => {}
                Next::Transmission(session) => return Ok(Some(session)),
                Next::End => return Ok(None),
            }
        }
    }
}
