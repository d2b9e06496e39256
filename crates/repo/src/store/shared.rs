//! Who is at work on objects that many hosts share and that know no locks.
//!
//! ```text
//! slot/00000003/<id>       a held object
//! slot/00000003/<id>.7     its holder's newest heartbeat, beside it
//! ```
//!
//! A holder puts a new heartbeat now and then and removes the one before. Who
//! wants to know whether it lives looks twice, and takes it for dead when for
//! a long time, by their own steady clock, there was no other heartbeat. No
//! host's clock is compared with another's. A suspended host may so be taken
//! for dead while it lives: whoever ends its session puts the outcome first,
//! and there that stays (`heal`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::clock::{Clock, Repeating, SystemClock};
use super::{Hold, Holder, Listed, Objects, Put, Store};
use crate::Error;

/// What the keys of held objects begin with.
const HELD: &str = "slot/";

/// How holders show that they live.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pulse {
    /// From one heartbeat to the next.
    pub beat: Duration,
    /// How long a holder may be silent before it is taken for dead.
    pub patience: Duration,
}

/// A store of objects that several hosts share.
#[derive(Debug)]
pub(crate) struct Shared<O> {
    objects: Arc<O>,
    pulse: Pulse,
    clock: Arc<dyn Clock>,
    seen: Mutex<HashMap<String, Seen>>,
}

/// What was last seen of a holder.
#[derive(Debug, Clone)]
struct Seen {
    beat: Option<u64>,
    since: Duration,
    /// Whether it was seen to change: the holder lived while it was watched.
    has_moved: bool,
}

impl<O: Objects> Shared<O> {
    pub(crate) fn new(objects: O, pulse: Pulse) -> Self {
        Self::by(Arc::new(SystemClock::new()), objects, pulse)
    }

    /// Like `new`, by another clock.
    pub(crate) fn by(clock: Arc<dyn Clock>, objects: O, pulse: Pulse) -> Self {
        Self { objects: Arc::new(objects), pulse, clock, seen: Mutex::default() }
    }
}

impl Seen {
    fn judge(&self, pulse: Pulse, now: Duration) -> Holder {
        let left = pulse.patience.saturating_sub(now.saturating_sub(self.since));
        match self.has_moved {
            _ if left.is_zero() => Holder::Gone,
            true => Holder::Alive,
            false => Holder::Unsure { look_again: left.min(pulse.beat), at_most: left },
        }
    }
}

fn beat_key(held: &str, number: u64) -> String {
    format!("{held}.{number}")
}

/// Returns the key of the held object and the number of one of its heartbeats.
fn parse_beat(key: &str) -> Option<(&str, u64)> {
    let (held, number) = key.rsplit_once('.')?;
    Some((held, number.parse().ok()?))
}

impl<O: Objects + 'static> Store for Shared<O> {
    fn put_held(&self, key: &str, bytes: &[u8]) -> Result<Option<Box<dyn Hold>>, Error> {
        match self.objects.put_if_absent(key, bytes)? {
            Put::Existed => Ok(None),
            Put::Created => {
                let (objects, held) = (Arc::clone(&self.objects), key.to_owned());
                let beats = Arc::new(Beats { objects, held, newest: Mutex::default() });
                let work = Box::new({
                    let beats = Arc::clone(&beats);
                    move || beats.beat()
                });
                let beating = Some(self.clock.every(self.pulse.beat, work)?);
                Ok(Some(Box::new(Heart { beats, beating })))
            }
        }
    }

    fn holder(&self, key: &str) -> Result<Holder, Error> {
        let beats = self.objects.list(&format!("{key}."))?;
        let beat = beats.iter().filter_map(|listed| Some(parse_beat(&listed.key)?.1)).max();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let time = self.clock.now();
        let now = Seen { beat, since: time, has_moved: seen.contains_key(key) };
        let last = seen.entry(key.to_owned()).or_insert_with(|| now.clone());
        if last.beat != now.beat {
            *last = now;
        }
        Ok(last.judge(self.pulse, time))
    }

    fn has_late_writes(&self) -> bool {
        true
    }

    fn wait(&self, time: Duration) {
        self.clock.sleep(time);
    }

    fn keep_reserve(&self) {}

    fn use_reserve(&self) -> Result<bool, Error> {
        Ok(false)
    }

    /// What is gone in a bucket is gone; what comes late is told by its outcome.
    fn settle(&self, _folder: &str) -> Result<(), Error> {
        Ok(())
    }

    /// Removes the heartbeats of holders that were ended.
    fn sweep(&self) -> Result<(), Error> {
        let listed = self.objects.list(HELD)?;
        let is_there = |held: &str| listed.binary_search_by(|l| l.key.as_str().cmp(held)).is_ok();
        for Listed { key, .. } in &listed {
            if parse_beat(key).is_some_and(|(held, _)| !is_there(held)) {
                self.objects.delete(key)?;
            }
        }
        Ok(())
    }
}

impl<O: Objects> Objects for Shared<O> {
    fn put_if_absent(&self, key: &str, bytes: &[u8]) -> Result<Put, Error> {
        self.objects.put_if_absent(key, bytes)
    }

    fn get(&self, key: &str, max: u64) -> Result<Vec<u8>, Error> {
        self.objects.get(key, max)
    }

    fn get_range(&self, key: &str, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.objects.get_range(key, offset, len)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, Error> {
        self.objects.size(key)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.objects.list(prefix)
    }

    fn replace(&self, key: &str, bytes: &[u8]) -> Result<(), Error> {
        self.objects.replace(key, bytes)
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        self.objects.delete(key)
    }
}

/// Puts heartbeats until dropped.
#[derive(Debug)]
struct Heart<O: Objects> {
    beats: Arc<Beats<O>>,
    /// Dropped first: what puts them must not put another one.
    beating: Option<Box<dyn Repeating>>,
}

impl<O: Objects> Hold for Heart<O> {}

impl<O: Objects> Drop for Heart<O> {
    fn drop(&mut self) {
        drop(self.beating.take());
        self.beats.end();
    }
}

/// The heartbeats of one held object.
#[derive(Debug)]
struct Beats<O> {
    objects: Arc<O>,
    held: String,
    newest: Mutex<Option<u64>>,
}

impl<O: Objects> Beats<O> {
    fn newest(&self) -> MutexGuard<'_, Option<u64>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the next one; whether there will be others.
    fn beat(&self) -> bool {
        match beat_once(&*self.objects, &self.held, &mut self.newest()) {
            Ok(true) => return true,
            // Somebody has ended the session; the commit will say so.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "a heartbeat failed");
                return true;
            }
        }
        self.end();
        false
    }

    /// Removes the last one.
    fn end(&self) {
        if let Some(number) = self.newest().take()
            && let Err(error) = self.objects.delete(&beat_key(&self.held, number))
        {
            tracing::debug!(%error, "a heartbeat stays until the next open");
        }
    }
}

/// Puts the next heartbeat and removes the last; says whether the held object
/// is still there.
fn beat_once(objects: &dyn Objects, held: &str, newest: &mut Option<u64>) -> Result<bool, Error> {
    if objects.size(held)?.is_none() {
        return Ok(false);
    }
    let next = newest.map_or(1, |number| number + 1);
    objects.put_if_absent(&beat_key(held, next), b"")?;
    if let Some(last) = newest.replace(next) {
        objects.delete(&beat_key(held, last))?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::super::memory::Memory;
    use super::*;

    const PULSE: Pulse =
        Pulse { beat: Duration::from_millis(20), patience: Duration::from_millis(400) };

    fn judgement(store: &Shared<Memory>, key: &str, after: Duration) -> Holder {
        store.holder(key).unwrap();
        thread::sleep(after);
        store.holder(key).unwrap()
    }

    #[test]
    fn holders_are_judged_by_their_heartbeats() {
        let memory = Memory::default();
        let [holder, watcher] = [(); 2].map(|()| Shared::new(memory.clone(), PULSE));
        let key = "slot/00000000/a1";
        let hold = holder.put_held(key, b"x").unwrap().unwrap();
        assert!(
            matches!(watcher.holder(key).unwrap(), Holder::Unsure { .. }),
            "one look is too few"
        );
        assert_eq!(judgement(&watcher, key, Duration::from_millis(200)), Holder::Alive);
        assert_eq!(judgement(&watcher, key, PULSE.patience * 2), Holder::Alive);
        drop(hold);
        assert_eq!(memory.list("").unwrap().len(), 1, "no heartbeat is left");
        assert_eq!(judgement(&watcher, key, PULSE.patience * 2), Holder::Gone);
    }

    #[test]
    fn a_holder_that_was_ended_stops_and_leaves_nothing() {
        let memory = Memory::default();
        let store = Shared::new(memory.clone(), PULSE);
        let hold = store.put_held("slot/00000000/a1", b"x").unwrap().unwrap();
        thread::sleep(Duration::from_millis(100));
        store.delete("slot/00000000/a1").unwrap();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(memory.list("").unwrap(), []);
        drop(hold);
    }

    #[test]
    fn heartbeats_of_the_dead_are_swept() {
        let memory = Memory::default();
        let store = Shared::new(memory.clone(), PULSE);
        for key in ["slot/00000000/a1", "slot/00000000/a1.3", "slot/00000000/b2.7"] {
            memory.put_if_absent(key, b"").unwrap();
        }
        store.sweep().unwrap();
        let keys: Vec<_> = memory.list("").unwrap().into_iter().map(|l| l.key).collect();
        assert_eq!(keys, ["slot/00000000/a1", "slot/00000000/a1.3"]);
    }
}
