//! Which parts of a disk have been saved before the guest overwrote them.

use std::collections::BTreeMap;

use tintype_types::Extent;

/// A set of byte ranges that touch and overlap freely.
#[derive(Debug, Default)]
pub(super) struct Covered {
    /// Start of each range to its end; ranges neither touch nor overlap.
    ranges: BTreeMap<u64, u64>,
}

impl Covered {
    /// Adds a range.
    pub(super) fn add(&mut self, extent: Extent) {
        let (mut start, mut end) = (extent.offset, extent.end());
        while let Some((&before, &before_end)) = self.ranges.range(..=end).next_back() {
            if before_end < start {
                break;
            }
            start = start.min(before);
            end = end.max(before_end);
            self.ranges.remove(&before);
        }
        self.ranges.insert(start, end);
    }

    /// Returns the parts of a range that are not in the set, in order.
    pub(super) fn missing(&self, extent: Extent) -> Vec<Extent> {
        let mut missing = Vec::new();
        let mut at = extent.offset;
        let first = self.ranges.range(..=at).next_back().map_or(at, |(&start, _)| start);
        for (&start, &end) in self.ranges.range(first..extent.end()) {
            if start > at {
                missing.push(Extent { offset: at, len: start - at });
            }
            at = at.max(end);
        }
        if at < extent.end() {
            missing.push(Extent { offset: at, len: extent.end() - at });
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(range: std::ops::Range<u64>) -> Extent {
        Extent { offset: range.start, len: range.end - range.start }
    }

    #[test]
    fn missing_is_the_complement_of_what_was_added() {
        let mut covered = Covered::default();
        let mut model = [false; 64];
        // A fixed, well mixed sequence of ranges.
        for step in 0..40_u64 {
            let start = step * 37 % 61;
            let len = 1 + step * 5 % 3;
            let added = extent(start..(start + len).min(64));
            for probe in 0..32 {
                let asked = extent(probe..64 - probe);
                let missing = covered.missing(asked);
                let told: Vec<u64> = missing.iter().flat_map(|m| m.offset..m.end()).collect();
                let expected: Vec<u64> = (probe..64 - probe)
                    .filter(|&at| !model[usize::try_from(at).unwrap()])
                    .collect();
                assert_eq!(told, expected);
            }
            covered.add(added);
            (added.offset..added.end()).for_each(|at| model[usize::try_from(at).unwrap()] = true);
        }
    }
}
