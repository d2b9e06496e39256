//! Lines on a socket: bounded in length, each read with a deadline. What a line
//! means is not known here.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fd::BorrowedFd;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// The longest line that is taken of QEMU: the schema of QEMU 10 has 0.3 MB.
const MAX_LINE: usize = 16 << 20;

/// How a line could not be had.
#[derive(Debug)]
pub(crate) enum WireError {
    /// The deadline passed; what has arrived of the line is kept for the next call.
    Deadline,
    /// The other side closed.
    Closed,
    /// The line is longer than any that QEMU sends.
    TooLong,
    /// The socket failed.
    Io(io::Error),
}

/// One end of a QMP socket.
pub(crate) struct Wire {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are known to hold no line end.
    searched: usize,
    /// The longest line that is taken.
    max_line: usize,
}

impl Wire {
    /// A wire to QEMU's monitor.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self::bounded(stream, MAX_LINE)
    }

    /// A wire whose lines have at most that many bytes.
    pub(crate) fn bounded(stream: UnixStream, max_line: usize) -> Self {
        Self { stream, buffer: Vec::new(), searched: 0, max_line }
    }

    /// Returns the socket.
    pub(crate) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Reads one line, without its end.
    pub(crate) fn read_line(&mut self, deadline: Instant) -> Result<Vec<u8>, WireError> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|&b| b == b'\n') {
                let end = self.searched + at;
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                line.truncate(end);
                return Ok(line);
            }
            self.searched = self.buffer.len();
            if self.searched > self.max_line {
                return Err(WireError::TooLong);
            }
            self.fill(deadline)?;
        }
    }

    pub(crate) fn write_all(&mut self, bytes: &[u8], deadline: Instant) -> Result<(), WireError> {
        self.stream.set_write_timeout(Some(remaining(deadline)?)).map_err(WireError::Io)?;
        self.stream.write_all(bytes).map_err(classify)
    }

    /// Writes a short line together with a descriptor for the peer.
    pub(crate) fn write_with_descriptor(
        &mut self,
        bytes: &[u8],
        descriptor: BorrowedFd<'_>,
        deadline: Instant,
    ) -> Result<(), WireError> {
        self.stream.set_write_timeout(Some(remaining(deadline)?)).map_err(WireError::Io)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor];
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(fits, "there is space for one descriptor");
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
                .map_err(|error| classify(error.into()))?;
        self.write_all(&bytes[sent..], deadline)
    }

    fn fill(&mut self, deadline: Instant) -> Result<(), WireError> {
        self.stream.set_read_timeout(Some(remaining(deadline)?)).map_err(WireError::Io)?;
        let mut piece = [0; 16384];
        match self.stream.read(&mut piece) {
            Ok(0) => Err(WireError::Closed),
            Ok(read) => {
                self.buffer.extend_from_slice(&piece[..read]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(classify(error)),
        }
    }
}

fn remaining(deadline: Instant) -> Result<Duration, WireError> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(WireError::Deadline),
        left => Ok(left),
    }
}

fn classify(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => WireError::Deadline,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => WireError::Closed,
        _ => WireError::Io(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn lines_arrive_whole_whatever_the_pieces() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(ours);
        theirs.write_all(b"{\"a\"").unwrap();
        assert!(matches!(wire.read_line(soon()), Err(WireError::Deadline)));
        theirs.write_all(b":1}\r\nsecond\n").unwrap();
        assert_eq!(wire.read_line(soon()).unwrap(), b"{\"a\":1}\r");
        assert_eq!(wire.read_line(soon()).unwrap(), b"second");
        drop(theirs);
        assert!(matches!(wire.read_line(soon()), Err(WireError::Closed)));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let piece = vec![b'x'; 1 << 20];
            while theirs.write_all(&piece).is_ok() {}
        });
        let mut wire = Wire::new(ours);
        let deadline = Instant::now() + Duration::from_secs(20);
        assert!(matches!(wire.read_line(deadline), Err(WireError::TooLong)));
        drop(wire);
        writer.join().unwrap();
    }
}
