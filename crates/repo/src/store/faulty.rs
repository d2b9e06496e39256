//! Objects that fail like a network does: requests that do not arrive, answers
//! that do not come back, and delays.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use super::simulated::Dice;
use super::{Listed, Objects, Put};
use crate::Error;

/// How often something goes wrong: one in so many operations, 0 for never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Odds {
    pub lost_request: u64,
    pub lost_answer: u64,
    pub delay: u64,
}

/// Objects behind a bad network.
#[derive(Debug)]
pub(crate) struct Faulty<O> {
    objects: O,
    odds: Odds,
    dice: Mutex<Dice>,
}

impl<O: Objects> Faulty<O> {
    pub(crate) fn new(objects: O, odds: Odds, seed: u64) -> Self {
        Self { objects, odds, dice: Mutex::new(Dice(seed)) }
    }

    fn strikes(&self, one_in: u64) -> bool {
        one_in > 0 && self.dice.lock().unwrap().roll(one_in) == 0
    }

    fn ask<T>(&self, key: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        if self.strikes(self.odds.delay) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.strikes(self.odds.lost_request) {
            return Err(Error::io("reach", Path::new(key), ErrorKind::ConnectionRefused));
        }
        let answer = work();
        if self.strikes(self.odds.lost_answer) {
            return Err(Error::io("hear of", Path::new(key), ErrorKind::TimedOut));
        }
        answer
    }
}

impl<O: Objects> Objects for Faulty<O> {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        self.ask(key, || self.objects.put_if_absent(key, bytes))
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        self.ask(key, || self.objects.get(key, max))
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.ask(key, || self.objects.get_range(key, offset, len))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        self.ask(key, || self.objects.size(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.ask(prefix, || self.objects.list(prefix))
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.ask(key, || self.objects.replace(key, bytes))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.ask(key, || self.objects.delete(key))
    }
}
