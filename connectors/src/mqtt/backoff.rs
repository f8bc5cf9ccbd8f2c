//! Waits between attempts: doubling, with jitter, so that a fleet does not come back in step.

use std::time::Duration;

/// Exponential backoff.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    most: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits of about `first`, twice that, and so on up to `most`.
    pub(crate) fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, attempt: 0 }
    }

    /// The next wait: between half and the whole of the current step.
    pub(crate) fn next(&mut self) -> Duration {
        let step = self.first.saturating_mul(1 << self.attempt.min(20)).min(self.most);
        self.attempt = self.attempt.saturating_add(1);
        let jitter = (uuid::Uuid::new_v4().as_u128() % 1024) as u32;
        step / 2 + (step / 2) * jitter / 1024
    }

    /// An attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_limit_and_start_again() {
        let (first, most) = (Duration::from_millis(100), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, most);
        let mut step = first;
        for _ in 0..50 {
            let wait = backoff.next();
            assert!(wait >= step / 2 && wait <= step, "{wait:?} of {step:?}");
            step = (step * 2).min(most);
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
