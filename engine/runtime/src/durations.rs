//! How long something took, counted in fixed buckets: cheap enough for every turn of every operator.

use std::time::Duration;

/// Upper bounds of the buckets in microseconds; what is above the last falls into one more bucket.
pub const BOUNDS_US: [u64; 14] =
    [10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000];

/// Counts by bucket, not cumulative, and their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// One count per bound of [`BOUNDS_US`], and one for longer ones.
    pub buckets: [u64; BOUNDS_US.len() + 1],
    /// All durations together, nanoseconds.
    pub sum_ns: u64,
}

impl Durations {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| bound * 1000 < ns);
        self.buckets[bucket] += 1;
        self.sum_ns = self.sum_ns.saturating_add(ns);
    }

    /// Adds those of another.
    pub fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, others)| *mine += others);
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// All durations together, seconds.
    #[must_use]
    pub fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_nothing_is_too_long() {
        let mut durations = Durations::default();
        for us in [0, 10, 11, 30_000_000, 30_000_001] {
            durations.observe(Duration::from_micros(us));
        }
        durations.observe(Duration::MAX);
        let mut expected = [0; BOUNDS_US.len() + 1];
        (expected[0], expected[1], expected[13], expected[14]) = (2, 1, 1, 2);
        assert_eq!(durations.buckets, expected);
        assert_eq!(durations.sum_ns, u64::MAX);
    }
}
