//! One open image.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tintype_nbd::{Client, ConnectParams, Content, PullParams, Status, WritePipeline};
use tintype_types::{ByteCount, Extent};

use crate::error::Error;
use crate::spec::ImageSpec;

/// An image that a QEMU of ours has open.
///
/// Threads may use it together: each call that finds no idle connection opens
/// another one. All connections see each other's writes.
pub struct Image {
    spec: ImageSpec,
    socket: Arc<Socket>,
    export: String,
    size: ByteCount,
    idle: Mutex<Vec<Client>>,
}

impl Image {
    /// Connects to an export of QEMU's.
    pub(crate) fn connect(
        spec: ImageSpec,
        socket: Arc<Socket>,
        export: String,
    ) -> Result<Self, Error> {
        let mut image = Self { spec, socket, export, size: ByteCount(0), idle: Mutex::default() };
        let client = image.new_client().map_err(|source| image.error("open", source))?;
        image.size = client.size();
        image.idle().push(client);
        Ok(image)
    }

    /// Returns what the image was opened as.
    pub fn spec(&self) -> &ImageSpec {
        &self.spec
    }

    /// Returns the size of the disk that a guest sees. QEMU rounds up a raw file
    /// that ends within a sector of 512 bytes.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Reads as many bytes as `buffer` has.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.with("read", |client| client.read_at(offset, buffer))
    }

    /// Writes bytes. They are durable only after [`Image::flush`].
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.with("write to", |client| client.write_at(offset, bytes))
    }

    /// Makes bytes read as zeros, and frees their storage where the format and the
    /// file system can.
    pub fn write_zeroes(&self, extent: Extent) -> Result<(), Error> {
        self.with("write to", |client| client.write_zeroes(extent))
    }

    /// Makes all writes that have returned durable.
    pub fn flush(&self) -> Result<(), Error> {
        self.with("flush", Client::flush)
    }

    /// Returns what is allocated, what reads as zeros and what is a hole, in order
    /// and without gaps. Ask about parts of large images: the answer can have an
    /// entry for each 512 bytes.
    pub fn extents(&self, extent: Extent) -> Result<Vec<Status>, Error> {
        self.with("map", |client| client.block_status(extent))
    }

    /// Reads much in little time: hands the content of `extents` to `sink` in runs of
    /// data and of zeros, with several reads in flight. Each byte is handed over
    /// once; the order is roughly that of `extents`.
    pub fn pull<E: From<Error>>(
        &self,
        extents: impl IntoIterator<Item = Extent>,
        params: &PullParams,
        mut sink: impl FnMut(Extent, Content<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut client = self.client().map_err(|source| self.error("read", source))?;
        let pulled = client
            .pull(extents, params, |extent, content| sink(extent, content).map_err(Pulled::Sink));
        self.give_back(client);
        pulled.map_err(|failed| match failed {
            Pulled::Nbd(source) => self.error("read", source).into(),
            Pulled::Sink(error) => error,
        })
    }

    /// Writes much in little time: lets `write` write with up to `window` requests in
    /// flight, and waits until all are answered. Durable only after
    /// [`Image::flush`].
    pub fn push(
        &self,
        window: usize,
        write: impl FnOnce(&mut WritePipeline<'_>) -> Result<(), tintype_nbd::Error>,
    ) -> Result<(), Error> {
        self.with("write to", |client| {
            let mut pipeline = client.pipeline(window);
            let written = write(&mut pipeline);
            let finished = pipeline.finish();
            written.and(finished)
        })
    }

    /// Returns the name of the export.
    pub(crate) fn export(&self) -> &str {
        &self.export
    }

    /// Returns the socket of the exports.
    pub(crate) fn socket(&self) -> Arc<Socket> {
        Arc::clone(&self.socket)
    }

    fn with<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut Client) -> Result<T, tintype_nbd::Error>,
    ) -> Result<T, Error> {
        let mut client = self.client().map_err(|source| self.error(operation, source))?;
        let outcome = act(&mut client);
        self.give_back(client);
        outcome.map_err(|source| self.error(operation, source))
    }

    fn client(&self) -> Result<Client, tintype_nbd::Error> {
        let idle = self.idle().pop();
        idle.map_or_else(|| self.new_client(), Ok)
    }

    fn give_back(&self, client: Client) {
        if client.is_usable() {
            self.idle().push(client);
        }
    }

    fn new_client(&self) -> Result<Client, tintype_nbd::Error> {
        let timeout = self.socket.timeout;
        let params = ConnectParams { timeout, ..ConnectParams::new(&self.export) };
        Client::connect(&self.socket.path(), &params)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Client>> {
        // A list of idle connections is good whatever its last user did.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, operation: &'static str, source: tintype_nbd::Error) -> Error {
        Error::Access { operation, path: self.spec.path.clone(), source }
    }
}

/// What ended a pull.
enum Pulled<E> {
    Nbd(tintype_nbd::Error),
    Sink(E),
}

impl<E> From<tintype_nbd::Error> for Pulled<E> {
    fn from(error: tintype_nbd::Error) -> Self {
        Self::Nbd(error)
    }
}

/// The socket on which QEMU exports the images.
pub(crate) struct Socket {
    directory: File,
    timeout: Duration,
}

impl Socket {
    /// The name of the socket within the private directory.
    pub(crate) const NAME: &str = "nbd.sock";

    /// Finds the socket in QEMU's private directory.
    pub(crate) fn new(directory: &Path, timeout: Duration) -> io::Result<Self> {
        Ok(Self { directory: File::open(directory)?, timeout })
    }

    /// Returns a path to the socket that is short enough for a socket's address
    /// (108 bytes) wherever the directory is.
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd").join(self.directory.as_raw_fd().to_string()).join(Self::NAME)
    }
}
