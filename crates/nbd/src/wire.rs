//! Whole messages over a socket: all bytes or an error, within a limit of time.
//!
//! Knows nothing of what the bytes mean.

use std::io::{self, IoSlice, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

/// Small reads are served from a buffer of this size, so that the many short
/// fields of the protocol do not cost a system call each.
const INBOX_LEN: usize = 16 << 10;

/// How long a message may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    /// As long as it likes.
    None,
    /// Any time, so long as some bytes move within each such duration.
    Stall(Duration),
    /// All has to be done by then.
    Until(Instant),
}

/// A connected socket with an inbox.
pub(crate) struct Wire {
    stream: UnixStream,
    limit: Limit,
    inbox: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Wire {
    /// Takes over a connected stream; there is no limit of time yet.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        let inbox = vec![0; INBOX_LEN].into_boxed_slice();
        let mut wire = Self { stream, limit: Limit::None, inbox, start: 0, end: 0 };
        wire.set_limit(Limit::None)?;
        Ok(wire)
    }

    /// Sets the limit for all later messages.
    pub(crate) fn set_limit(&mut self, limit: Limit) -> io::Result<()> {
        self.limit = limit;
        match limit {
            Limit::None => self.set_timeouts(None),
            Limit::Stall(duration) => self.set_timeouts(Some(duration)),
            Limit::Until(_) => Ok(()),
        }
    }

    fn set_timeouts(&self, duration: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(duration)?;
        self.stream.set_write_timeout(duration)
    }

    /// Receives exactly as many bytes as `target` has.
    pub(crate) fn receive(&mut self, target: &mut [u8]) -> io::Result<()> {
        if self.receive_or_end(target)? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Receives exactly as many bytes as `target` has, or none: returns `false`
    /// if the peer had closed the connection before the first byte.
    pub(crate) fn receive_or_end(&mut self, target: &mut [u8]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < target.len() {
            let count = self.receive_some(&mut target[filled..])?;
            if count == 0 {
                return if filled == 0 {
                    Ok(false)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            }
            filled += count;
        }
        Ok(true)
    }

    /// Receives an array.
    pub(crate) fn receive_array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives `len` bytes, which the caller has bounded.
    pub(crate) fn receive_vec(&mut self, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.receive(&mut bytes)?;
        Ok(bytes)
    }

    fn receive_some(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if target.len() >= self.inbox.len() {
                return read(&self.stream, self.limit, target);
            }
            self.start = 0;
            self.end = 0;
            self.end = read(&self.stream, self.limit, &mut self.inbox)?;
        }
        let count = target.len().min(self.end - self.start);
        target[..count].copy_from_slice(&self.inbox[self.start..self.start + count]);
        self.start += count;
        Ok(count)
    }

    /// Sends all bytes of all parts, in order.
    pub(crate) fn send(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut parts = parts;
        IoSlice::advance_slices(&mut parts, 0);
        while !parts.is_empty() {
            if let Limit::Until(deadline) = self.limit {
                self.stream.set_write_timeout(Some(left(deadline)?))?;
            }
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(&self.stream, parts, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => IoSlice::advance_slices(&mut parts, count),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn read(mut stream: &UnixStream, limit: Limit, target: &mut [u8]) -> io::Result<usize> {
    loop {
        if let Limit::Until(deadline) = limit {
            stream.set_read_timeout(Some(left(deadline)?))?;
        }
        match stream.read(target) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            result => return result,
        }
    }
}

/// Returns how long it is until the deadline, never zero.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn short_and_long_messages_arrive_whole() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(near).unwrap();
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                far.write_all(&bytes).unwrap();
                drop(far);
            });
            let mut at = 0;
            for len in [1, 7, 20, 70_000, 3, 16 << 10, 100, 200_000] {
                assert_eq!(wire.receive_vec(len).unwrap(), bytes[at..at + len], "{len} at {at}");
                at += len;
            }
            let mut rest = vec![0; bytes.len() - at];
            assert!(wire.receive_or_end(&mut rest).unwrap());
            assert!(!wire.receive_or_end(&mut [0]).unwrap());
            let error = wire.receive(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn a_deadline_holds_although_bytes_trickle() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(near).unwrap();
        let start = Instant::now();
        wire.set_limit(Limit::Until(start + Duration::from_millis(100))).unwrap();
        let writer = std::thread::spawn(move || {
            while far.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        let error = wire.receive(&mut [0; 1000]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(5));
        drop(wire);
        writer.join().unwrap();
    }

    #[test]
    fn a_stalled_reader_times_out_the_sender() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut wire = Wire::new(near).unwrap();
        wire.set_limit(Limit::Stall(Duration::from_millis(50))).unwrap();
        let error = wire.send(&mut [IoSlice::new(&vec![0; 16 << 20])]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_closed_reader_is_an_error_and_no_signal() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let error = Wire::new(near).unwrap().send(&mut [IoSlice::new(b"x")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
