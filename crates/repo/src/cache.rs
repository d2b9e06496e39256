//! A bounded map of things that can be read again.
//!
//! Two generations: what was used since the last turn stays, the rest goes
//! when the young generation has filled half of the budget. Constant time, no
//! order to maintain.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// The map's own cost of a value, so that tiny values cannot grow without bound.
const OWN_WEIGHT: usize = 64;

/// A cache of at most about `budget` bytes.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    generations: Mutex<Generations<K, V>>,
    budget: usize,
}

#[derive(Debug)]
struct Generations<K, V> {
    young: HashMap<K, (Arc<V>, usize)>,
    old: HashMap<K, (Arc<V>, usize)>,
    young_weight: usize,
}

impl<K: Copy + Eq + Hash, V> Cache<K, V> {
    /// Makes an empty cache.
    pub(crate) fn new(budget: usize) -> Self {
        let generations =
            Generations { young: HashMap::new(), old: HashMap::new(), young_weight: 0 };
        Self { generations: Mutex::new(generations), budget }
    }

    /// Returns the value of a key and keeps it longer.
    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, _)) = generations.young.get(key) {
            return Some(Arc::clone(value));
        }
        let (value, weight) = generations.old.remove(key)?;
        generations.insert(*key, Arc::clone(&value), weight, self.budget);
        Some(value)
    }

    /// Forgets a value; whether it was there.
    pub(crate) fn remove(&self, key: &K) -> bool {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let young = generations.young.remove(key);
        if let Some((_, weight)) = &young {
            // As much as `insert` has counted.
            generations.young_weight -= weight + OWN_WEIGHT;
        }
        generations.old.remove(key).is_some() || young.is_some()
    }

    /// Keeps a value of about `weight` bytes.
    pub(crate) fn insert(&self, key: K, value: Arc<V>, weight: usize) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.insert(key, value, weight, self.budget);
    }
}

impl<K: Copy + Eq + Hash, V> Generations<K, V> {
    fn insert(&mut self, key: K, value: Arc<V>, weight: usize, budget: usize) {
        if self.young_weight + weight + OWN_WEIGHT > budget / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_weight = 0;
        }
        self.young_weight += weight + OWN_WEIGHT;
        self.young.insert(key, (value, weight));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let cache = Cache::new(2 * 64 * 10);
        cache.insert(u32::MAX, Arc::new(0), 0);
        for key in 0..100 {
            cache.insert(key, Arc::new(0), 0);
            assert!(cache.get(&u32::MAX).is_some());
        }
        assert!(cache.get(&0).is_none());
        assert!(cache.get(&99).is_some());
    }
}
