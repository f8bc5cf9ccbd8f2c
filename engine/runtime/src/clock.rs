//! The only place of the engine that asks what time it is, and that waits.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A wait that a clock measures.
pub type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Source of wall time, of durations and of waits. Tests pass one that stands still or jumps.
pub trait Clock: Send + Sync {
    /// Microseconds since the epoch, UTC.
    fn now_us(&self) -> i64;

    /// Time since an arbitrary fixed moment; never runs backwards.
    fn monotonic(&self) -> Duration;

    /// Ends when `wait` has passed on the monotonic clock, counted from the first poll at the latest. May be dropped at any time.
    fn sleep(&self, wait: Duration) -> Wait {
        Box::pin(tokio::time::sleep(wait))
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

#[allow(clippy::disallowed_methods)] // this is the clock module that the ban points to
impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

#[allow(clippy::disallowed_methods)] // this is the clock module that the ban points to
impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// What comes of `work`; `None` when it takes longer than `limit`.
pub async fn within<F: Future>(clock: &dyn Clock, limit: Duration, work: F) -> Option<F::Output> {
    let (mut work, mut wait) = (pin!(work), clock.sleep(limit));
    tokio::select! {
        biased;
        outcome = &mut work => Some(outcome),
        () = &mut wait => None,
    }
}

/// Beats at even distances. A beat that was missed is not made up for.
#[derive(Clone, Copy, Debug)]
pub struct Beat {
    period: Duration,
    next: Duration,
}

impl Beat {
    /// The first beat comes after one `period`.
    #[must_use]
    pub fn new(clock: &dyn Clock, period: Duration) -> Self {
        Self { period, next: clock.monotonic().saturating_add(period) }
    }

    /// Waits for the next beat. May be dropped and called again: no beat is lost by it.
    pub async fn next(&mut self, clock: &dyn Clock) {
        clock.sleep(self.next.saturating_sub(clock.monotonic())).await;
        self.next = clock.monotonic().saturating_add(self.period);
    }
}
