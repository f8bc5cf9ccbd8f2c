//! A process of a worker: it may die or be stopped at any of its operations, and what it had begun then never ends.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldstream_runtime::clock::{Clock, Wait};
use tokio::sync::Notify;

use super::world::World;

/// One life of a worker.
pub(super) struct Process {
    pub(super) world: Arc<World>,
    /// Worker and life, such as `w1.3`.
    pub(super) name: String,
    dead: AtomicBool,
    stopped_until: Mutex<Duration>,
    clock_error_us: AtomicI64,
    killed: Notify,
}

impl Process {
    pub(super) fn new(world: &Arc<World>, name: String, clock_error_us: i64) -> Arc<Self> {
        Arc::new(Self {
            world: Arc::clone(world),
            name,
            dead: AtomicBool::new(false),
            stopped_until: Mutex::default(),
            clock_error_us: AtomicI64::new(clock_error_us),
            killed: Notify::new(),
        })
    }

    /// It does nothing more, wherever it was.
    pub(super) fn kill(&self) {
        if !self.dead.swap(true, Ordering::Relaxed) {
            self.world.note(format_args!("{} is dead", self.name));
            self.killed.notify_one();
        }
    }

    /// Ends when it is killed.
    pub(super) async fn killed(&self) {
        self.killed.notified().await;
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// It stands still for a while and goes on as if nothing had happened.
    pub(super) fn stop_for(&self, wait: Duration) {
        *self.stopped_until.lock().unwrap() = self.world.time.now() + wait;
    }

    /// Its wall clock jumps.
    pub(super) fn jump_clock(&self, by_us: i64) {
        self.clock_error_us.fetch_add(by_us, Ordering::Relaxed);
    }

    /// Ends when the process runs; never when it is dead.
    pub(super) async fn alive(&self) {
        loop {
            if self.is_dead() {
                std::future::pending::<()>().await;
            }
            let until = *self.stopped_until.lock().unwrap();
            let now = self.world.time.now();
            if until <= now {
                return;
            }
            self.world.sleep(until - now).await;
        }
    }

    /// The way to a service, or back: it takes a while, and the process may not survive it.
    pub(super) async fn way(&self) {
        let wait = {
            let mut rng = self.world.rng();
            if rng.chance(20) { rng.millis(50, 1500) } else { rng.millis(0, 8) }
        };
        self.world.sleep(wait).await;
        if self.world.strikes(self.world.faults.crash) {
            self.kill();
        }
        self.alive().await;
    }
}

/// A process's clocks.
pub(super) struct ProcessClock(pub(super) Arc<Process>);

impl Clock for ProcessClock {
    fn now_us(&self) -> i64 {
        self.0.world.true_us() + self.0.clock_error_us.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        self.0.world.time.now()
    }

    fn sleep(&self, wait: Duration) -> Wait {
        let process = Arc::clone(&self.0);
        Box::pin(async move {
            process.world.sleep(wait).await;
            process.alive().await;
        })
    }
}
