//! Virtual time: it stands still while anything can run, and jumps to the next wait when nothing can.
//!
//! The runtime calls a hook just before its thread would sleep; the hook wakes the one wait that is due next. The runtime has no
//! timer of its own, so that whoever waits past the engine's clock panics instead of making a run unrepeatable.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

#[derive(Debug, Default)]
struct Timers {
    now: Duration,
    number: u64,
    waiting: BTreeMap<(Duration, u64), Waker>,
}

/// The time of one simulated world.
#[derive(Debug, Default)]
pub(super) struct VirtualTime(Mutex<Timers>);

impl VirtualTime {
    /// Time since the world began.
    pub(super) fn now(&self) -> Duration {
        self.0.lock().unwrap().now
    }

    /// Ends when `wait` has passed.
    pub(super) fn sleep(self: &Arc<Self>, wait: Duration) -> Sleep {
        Sleep { until: self.now().saturating_add(wait), time: Arc::clone(self), number: None }
    }

    /// Nothing can run: the next wait is over. Waits that are due together end in the order in which they began.
    fn advance(&self) {
        let due = {
            let mut timers = self.0.lock().unwrap();
            let due = timers.waiting.pop_first();
            if let Some(((at, _), _)) = &due {
                timers.now = timers.now.max(*at);
            }
            due
        };
        if let Some((_, waker)) = due {
            waker.wake();
        }
    }
}

/// A wait in virtual time.
#[derive(Debug)]
pub(super) struct Sleep {
    time: Arc<VirtualTime>,
    until: Duration,
    number: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let mut timers = this.time.0.lock().unwrap();
        if timers.now >= this.until {
            return Poll::Ready(());
        }
        let number = *this.number.get_or_insert_with(|| {
            timers.number += 1;
            timers.number
        });
        timers.waiting.insert((this.until, number), cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.time.0.lock().unwrap().waiting.remove(&(self.until, number));
        }
    }
}

/// Runs `work` on this thread under `time`, in an actix system of its own.
pub(super) fn run<F: Future>(time: &Arc<VirtualTime>, work: F) -> F::Output {
    let time = Arc::clone(time);
    let system = actix::System::with_tokio_rt(move || {
        tokio::runtime::Builder::new_current_thread().on_thread_park(move || time.advance()).build().unwrap()
    });
    system.block_on(work)
}
