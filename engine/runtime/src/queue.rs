//! Bounded queues: what waits for a partition's turn, and how much output may be on its way to the sinks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fieldstream_checkpoint::Decision;
use fieldstream_engine_api::LogBatch;

/// Something a partition has to do, in order.
#[derive(Debug)]
pub enum Work {
    /// Handle payloads.
    Batch(LogBatch),
    /// Carry out a decision that is durable already.
    Decide(Decision),
    /// Carry out the decisions of a replay that lie where the partition is.
    CatchUp,
    /// Copy the state between two turns.
    Snapshot,
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.payloads.bytes(),
            Self::Decide(_) | Self::CatchUp | Self::Snapshot => 0,
        }
    }
}

/// Work waiting for one partition. At most one "ready" token for it is on its way to the shard at any time.
#[derive(Debug, Default)]
pub struct PartitionQueue {
    waiting: Mutex<VecDeque<Work>>,
    bytes: AtomicUsize,
    scheduled: AtomicBool,
}

impl PartitionQueue {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Work>> {
        // A panic cannot leave the deque half-changed: every critical section is one call.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends work. True when the caller must send a "ready" token.
    pub fn push(&self, work: Work) -> bool {
        self.bytes.fetch_add(work.bytes(), Ordering::Relaxed);
        self.waiting().push_back(work);
        self.schedule()
    }

    /// Takes the oldest work.
    pub fn pop(&self) -> Option<Work> {
        let work = self.waiting().pop_front()?;
        self.bytes.fetch_sub(work.bytes(), Ordering::Relaxed);
        Some(work)
    }

    /// Claims the token if there is work and none is on its way.
    pub fn schedule(&self) -> bool {
        !self.waiting().is_empty() && !self.scheduled.swap(true, Ordering::AcqRel)
    }

    /// The token was used; work that arrives from now on needs a new one.
    pub fn unschedule(&self) {
        self.scheduled.store(false, Ordering::Release);
    }

    /// Forgets all work (the partition is restored or given up).
    pub fn clear(&self) {
        self.waiting().clear();
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Bytes of payload that wait.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// True when nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }
}

/// Bytes of output between turns and durable marks, all partitions and sinks of a pipeline together. A turn needs room.
#[derive(Debug)]
pub struct OutputRoom {
    used: AtomicUsize,
    limit: usize,
}

impl OutputRoom {
    /// Room for about `limit` bytes; one turn may go over it.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// True when another turn may run.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.used.load(Ordering::Acquire) < self.limit
    }

    /// Output of a turn is on its way.
    pub fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Output is durable.
    pub fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Bytes on their way.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_at_a_time() {
        let queue = PartitionQueue::default();
        assert!(!queue.schedule(), "nothing to do");
        assert!(queue.push(Work::Snapshot));
        assert!(!queue.push(Work::Snapshot), "a token is on its way");
        assert!(queue.pop().is_some());
        queue.unschedule();
        assert!(queue.schedule(), "work is left");
        assert!(!queue.schedule());
    }
}
