//! A limit on the bytes that go to and come from a store each second.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Listed, Objects, Put};
use crate::Error;

/// Objects behind a limit. What is asked for by itself goes at once; the next
/// one waits until the limit has room for both.
#[derive(Debug)]
pub(crate) struct Throttle<O> {
    objects: O,
    bytes_per_second: Option<NonZeroU64>,
    free_at: Mutex<Instant>,
}

impl<O: Objects> Throttle<O> {
    pub(crate) fn new(objects: O, bytes_per_second: Option<NonZeroU64>) -> Self {
        Self { objects, bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits for its turn, and makes the next one wait for these bytes.
    fn pass(&self, bytes: usize) {
        let Some(rate) = self.bytes_per_second else { return };
        let bytes = u64::try_from(bytes).expect("a usize fits in 64 bits");
        let micros = bytes.saturating_mul(1_000_000) / rate;
        let turn = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + Duration::from_micros(micros);
            turn
        };
        std::thread::sleep(turn.saturating_duration_since(Instant::now()));
    }
}

impl<O: Objects> Objects for Throttle<O> {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        self.pass(bytes.len());
        self.objects.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.objects.get(key, max)?;
        self.pass(bytes.len());
        Ok(bytes)
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.pass(len);
        self.objects.get_range(key, offset, len)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        self.objects.size(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.objects.list(prefix)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.pass(bytes.len());
        self.objects.replace(key, bytes)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.objects.delete(key)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::*;

    #[test]
    fn many_bytes_take_their_time() {
        let rate = NonZeroU64::new(1 << 20);
        let objects = Throttle::new(Memory::default(), rate);
        let begun = Instant::now();
        for number in 0..4 {
            objects.put_if_absent(&format!("a/{number}"), &[1; 64 << 10]).unwrap();
        }
        objects.get_range("a/0", 0, 64 << 10).unwrap();
        let took = begun.elapsed();
        // Four times 64 KiB went before the last one.
        assert!(took >= Duration::from_millis(250), "{took:?}");
    }
}
