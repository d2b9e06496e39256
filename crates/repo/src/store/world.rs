//! A simulated world: hosts that share objects over a bad network, each with a
//! clock of its own. One host is at work at a time; whose turn it is, and what
//! goes wrong, a seed decides. Days pass in milliseconds.
//!
//! What goes wrong: requests and answers are lost, puts and deletions take effect
//! minutes after they were given up, listings of segments are short, hosts are
//! killed between any two requests, or suspended for longer than others wait.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::{Clock, Repeating, Work};
use super::memory::Memory;
use super::simulated::Dice;
use super::{Listed, Objects, Put};
use crate::Error;

/// How often something happens: once in so many requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Odds {
    pub lost_request: u64,
    pub lost_answer: u64,
    pub late_effect: u64,
    pub short_listing: u64,
    pub kill: u64,
    pub suspension: u64,
}

/// The longest that a request takes, a suspension lasts, and an effect is late.
const REQUEST: u64 = 2_000;
const SUSPENSION: u64 = 900_000;
const LATENESS: u64 = 600_000;

thread_local! {
    /// Whether this thread is the one that makes its host's turns.
    static MAKES_TURNS: Cell<bool> = const { Cell::new(false) };
}

/// A host's number; one that comes after a killed one is another.
pub(crate) type HostId = usize;

#[derive(Debug, Default)]
struct Host {
    /// Not at work before this time.
    wakes_at: Duration,
    is_dead: bool,
    has_ended: bool,
    /// Has been suspended, so that others may have taken it for dead.
    was_suspended: bool,
    clock_starts_at: Duration,
}

struct Tick {
    host: HostId,
    every: Duration,
    due: Duration,
    /// Taken out while it is done.
    work: Option<Work>,
}

impl fmt::Debug for Tick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tick").field("host", &self.host).field("due", &self.due).finish()
    }
}

#[derive(Debug)]
enum Effect {
    Put(String, Vec<u8>),
    Delete(String),
}

#[derive(Debug)]
struct State {
    dice: Dice,
    now: Duration,
    hosts: Vec<Host>,
    turn: HostId,
    ticks: BTreeMap<u64, Tick>,
    late: Vec<(Duration, Effect)>,
    /// How often each kind of thing has happened.
    counts: BTreeMap<&'static str, u64>,
}

/// The world; clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct World {
    objects: Memory,
    odds: Odds,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl World {
    /// Makes a world in which so many hosts will be at work.
    pub(crate) fn new(objects: Memory, hosts: usize, odds: Odds, seed: u64) -> Self {
        let mut dice = Dice(seed);
        let host = |dice: &mut Dice| Host {
            // Ten years, either way.
            clock_starts_at: Duration::from_secs(dice.roll(20 * 31_557_600)),
            ..Host::default()
        };
        let hosts = (0..hosts).map(|_| host(&mut dice)).collect();
        let state = State {
            dice,
            now: Duration::ZERO,
            hosts,
            turn: HostId::MAX,
            ticks: BTreeMap::new(),
            late: Vec::new(),
            counts: BTreeMap::new(),
        };
        Self { objects, odds, state: Arc::new((Mutex::new(state), Condvar::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives somebody the first turn.
    pub(crate) fn begin(&self) {
        self.pass_turn();
    }

    /// Makes this thread the one of a host, and waits for its first turn.
    pub(crate) fn enter(&self, host: HostId) {
        MAKES_TURNS.set(true);
        self.await_turn(self.lock(), host);
    }

    /// Ends a host's work, in whatever state it is.
    pub(crate) fn leave(&self, host: HostId) {
        MAKES_TURNS.set(false);
        self.lock().hosts[host].has_ended = true;
        self.pass_turn();
    }

    pub(crate) fn is_dead(&self, host: HostId) -> bool {
        self.lock().hosts[host].is_dead
    }

    /// Whether others may have taken it for dead.
    pub(crate) fn was_suspended(&self, host: HostId) -> bool {
        self.lock().hosts[host].was_suspended
    }

    pub(crate) fn roll(&self, sides: u64) -> u64 {
        self.lock().dice.roll(sides)
    }

    /// Counts something that has happened.
    pub(crate) fn note(&self, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
    }

    /// Lets all that is late take effect.
    pub(crate) fn settle(&self) {
        self.lock().now += Duration::from_millis(LATENESS);
        self.take_effect();
    }

    /// Returns how often each kind of thing has happened.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    /// Lets time pass, and somebody else go on.
    fn switch(&self, host: HostId) {
        {
            let mut state = self.lock();
            let took = state.dice.roll(REQUEST);
            state.now += Duration::from_millis(took);
            if state.strikes(self.odds.suspension, "suspended") {
                let time = state.dice.roll(SUSPENSION);
                let now = state.now;
                state.hosts[host].wakes_at = now + Duration::from_millis(time);
                state.hosts[host].was_suspended = true;
            }
            if state.strikes(self.odds.kill, "killed") {
                state.kill(host);
            }
        }
        self.pass_turn();
        self.await_turn(self.lock(), host);
    }

    /// Chooses who is next, and does what is due until then.
    fn pass_turn(&self) {
        loop {
            self.take_effect();
            if let Some((number, mut work)) = self.next_tick() {
                let makes_turns = MAKES_TURNS.replace(false);
                let goes_on = work();
                MAKES_TURNS.set(makes_turns);
                self.end_tick(number, work, goes_on);
                continue;
            }
            let mut state = self.lock();
            let now = state.now;
            let at_work = |host: &Host| !host.has_ended;
            let ready: Vec<HostId> = (0..state.hosts.len())
                .filter(|host| at_work(&state.hosts[*host]) && state.hosts[*host].wakes_at <= now)
                .collect();
            if !ready.is_empty() {
                let choice = state.dice.pick(ready.len());
                state.turn = ready[choice];
                self.state.1.notify_all();
                return;
            }
            let wakes = state.hosts.iter().filter(|host| at_work(host)).map(|host| host.wakes_at);
            let Some(wakes) = wakes.min() else { return };
            let ticks = state.ticks.values().map(|tick| tick.due);
            state.now = ticks.filter(|due| *due > now).chain([wakes]).min().unwrap_or(wakes);
        }
    }

    fn await_turn(&self, mut state: MutexGuard<'_, State>, host: HostId) {
        while state.turn != host {
            state = self.state.1.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes out the work of a tick that is due on a host that is awake.
    fn next_tick(&self) -> Option<(u64, Work)> {
        let mut state = self.lock();
        let State { ticks, hosts, now, .. } = &mut *state;
        let is_due = |tick: &Tick| tick.due <= *now && hosts[tick.host].wakes_at <= *now;
        let (number, tick) = ticks.iter_mut().find(|(_, tick)| is_due(tick))?;
        tick.due = *now + tick.every;
        Some((*number, tick.work.take()?))
    }

    fn end_tick(&self, number: u64, work: Work, goes_on: bool) {
        let mut state = self.lock();
        if !goes_on {
            state.ticks.remove(&number);
        } else if let Some(tick) = state.ticks.get_mut(&number) {
            tick.work = Some(work);
        }
    }

    fn take_effect(&self) {
        let due = {
            let mut state = self.lock();
            let now = state.now;
            let (due, later) =
                std::mem::take(&mut state.late).into_iter().partition(|(at, _)| *at <= now);
            state.late = later;
            let due: Vec<(Duration, Effect)> = due;
            due
        };
        for (_, effect) in due {
            self.perform(effect);
        }
    }

    fn perform(&self, effect: Effect) {
        let done = match effect {
            Effect::Put(key, bytes) => self.objects.put_if_absent(&key, &bytes).map(drop),
            Effect::Delete(key) => self.objects.delete(&key),
        };
        done.expect("memory never fails");
    }
}

impl State {
    fn strikes(&mut self, one_in: u64, what: &'static str) -> bool {
        let strikes = one_in > 0 && self.dice.roll(one_in) == 0;
        if strikes {
            *self.counts.entry(what).or_default() += 1;
        }
        strikes
    }

    fn kill(&mut self, host: HostId) {
        self.hosts[host].is_dead = true;
        self.ticks.retain(|_, tick| tick.host != host);
    }
}

/// What one host has of the world.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub world: World,
    pub host: HostId,
}

impl Line {
    fn failed(&self, key: &str, kind: ErrorKind) -> Error {
        Error::io("reach", Path::new(key), kind)
    }

    fn ask<T>(
        &self,
        key: &str,
        effect: Option<Effect>,
        work: impl FnOnce(&Memory) -> Result<T, Error>,
    ) -> Result<T, Error> {
        if MAKES_TURNS.get() && !self.world.is_dead(self.host) {
            self.world.switch(self.host);
        }
        let World { objects, odds, .. } = &self.world;
        let mut state = self.world.lock();
        if state.hosts[self.host].is_dead {
            return Err(self.failed(key, ErrorKind::PermissionDenied));
        }
        if state.strikes(odds.lost_request, "lost request") {
            return Err(self.failed(key, ErrorKind::TimedOut));
        }
        if let Some(effect) = effect
            && state.strikes(odds.late_effect, "late effect")
        {
            let at = state.now + Duration::from_millis(state.dice.roll(LATENESS));
            state.late.push((at, effect));
            return Err(self.failed(key, ErrorKind::TimedOut));
        }
        let is_lost = state.strikes(odds.lost_answer, "lost answer");
        drop(state);
        let answer = work(objects);
        if is_lost { Err(self.failed(key, ErrorKind::TimedOut)) } else { answer }
    }
}

impl Objects for Line {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        let effect = Effect::Put(key.to_owned(), bytes.to_vec());
        self.ask(key, Some(effect), |objects| objects.put_if_absent(key, bytes))
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        self.ask(key, None, |objects| objects.get(key, max))
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.ask(key, None, |objects| objects.get_range(key, offset, len))
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        self.ask(key, None, |objects| objects.size(key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        let mut listed = self.ask(prefix, None, |objects| objects.list(prefix))?;
        let mut state = self.world.lock();
        if prefix == "seg/"
            && !listed.is_empty()
            && state.strikes(self.world.odds.short_listing, "short listing")
        {
            let missing = state.dice.pick(listed.len());
            listed.remove(missing);
        }
        Ok(listed)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.ask(key, None, |objects| objects.replace(key, bytes))
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        let effect = Effect::Delete(key.to_owned());
        self.ask(key, Some(effect), |objects| objects.delete(key))
    }
}

impl Clock for Line {
    fn now(&self) -> Duration {
        let state = self.world.lock();
        state.hosts[self.host].clock_starts_at + state.now
    }

    fn sleep(&self, time: Duration) {
        if self.world.is_dead(self.host) {
            return;
        }
        {
            let mut state = self.world.lock();
            let wakes_at = state.now + time;
            state.hosts[self.host].wakes_at = wakes_at;
        }
        self.world.pass_turn();
        self.world.await_turn(self.world.lock(), self.host);
    }

    fn every(&self, time: Duration, work: Work) -> Result<Box<dyn Repeating>, Error> {
        let mut state = self.world.lock();
        let number = state.ticks.last_key_value().map_or(0, |(last, _)| last + 1);
        let due = state.now + time;
        state.ticks.insert(number, Tick { host: self.host, every: time, due, work: Some(work) });
        drop(state);
        Ok(Box::new(Ticking { world: self.world.clone(), number }))
    }
}

#[derive(Debug)]
struct Ticking {
    world: World,
    number: u64,
}

impl Repeating for Ticking {}

impl Drop for Ticking {
    fn drop(&mut self) {
        let gone = self.world.lock().ticks.remove(&self.number);
        drop(gone);
    }
}
