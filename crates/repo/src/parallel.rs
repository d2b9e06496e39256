//! The same work for many items, on several threads.

use std::num::NonZero;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

/// Threads that read at the same time on however few cores: a store may be far away.
const LEAST_READERS: usize = 4;
/// On however many cores: each holds a segment of 16 MiB at most.
const MOST_READERS: usize = 16;

/// Returns how many threads can compute at the same time.
pub(crate) fn cores() -> usize {
    // Asked once: the answer takes a dozen system calls.
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| thread::available_parallelism().map_or(2, NonZero::get))
}

/// Returns how many threads read at the same time.
pub(crate) fn readers() -> usize {
    cores().clamp(LEAST_READERS, MOST_READERS)
}

/// Does the same for each, on the calling thread and as many more as are allowed;
/// returns the results in the order of the items.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    if threads.min(items.len()) <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let worker = || {
        let number = || Some(next.fetch_add(1, Relaxed)).filter(|number| *number < items.len());
        std::iter::from_fn(number).map(|number| (number, work(&items[number]))).collect::<Vec<_>>()
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(items.len())).map(|_| scope.spawn(worker)).collect();
        let mut results = worker();
        results.extend(others.into_iter().flat_map(|w| w.join().expect("work never panics")));
        results
    });
    results.sort_unstable_by_key(|(number, _)| *number);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_are_in_the_order_of_the_items() {
        let items: Vec<u64> = (0..1_000).collect();
        for threads in [1, 2, 7, 2_000] {
            let doubled = super::map(&items, threads, |item| item * 2);
            assert!(doubled.iter().zip(&items).all(|(doubled, item)| *doubled == item * 2));
            assert_eq!(doubled.len(), items.len());
        }
        assert!(super::map(&[], 4, |item: &u64| *item).is_empty());
    }
}
