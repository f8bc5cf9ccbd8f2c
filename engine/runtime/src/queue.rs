//! Bounded queues: what waits for a partition's turn, and how much output may be on its way to the sinks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fieldstream_checkpoint::Decision;
use fieldstream_engine_api::LogBatch;

use crate::snapshot::SnapshotKind;
use crate::spec::TurnLimits;

/// Waiting batches with fewer rows than this are joined: the costs of a turn are spread over more rows.
const SMALL: usize = 4096;

/// Something a partition has to do, in order.
#[derive(Debug)]
pub enum Work {
    /// Handle payloads.
    Batch(LogBatch),
    /// Carry out a decision that is durable already.
    Decide(Decision),
    /// Account for payloads that the log has lost.
    Lost {
        /// First offset after them.
        next_offset: u64,
        /// How many.
        payloads: u64,
    },
    /// Carry out the decisions of a replay that lie where the partition is.
    CatchUp,
    /// Copy the state between two turns.
    Snapshot(SnapshotKind),
}

/// What a partition does next.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // moved once per turn
pub enum NextTurn {
    /// There is nothing to do.
    Nothing,
    /// More rows should come first.
    Wait,
    /// Anything but payloads.
    Work(Work),
    /// Consecutive payloads of one source.
    Batches(Vec<LogBatch>),
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Self::Batch(batch) => batch.payloads.bytes(),
            Self::Decide(_) | Self::Lost { .. } | Self::CatchUp | Self::Snapshot(_) => 0,
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

    /// Takes what the next turn does. Small batches are taken together; fewer rows than `limits` wants wait, unless they are
    /// `overdue` or something else is waiting behind them.
    pub fn next_turn(&self, limits: &TurnLimits, overdue: bool) -> NextTurn {
        let mut waiting = self.waiting();
        let (batches, wait) = leading(&waiting, limits);
        if batches == 0 {
            return waiting.pop_front().map_or(NextTurn::Nothing, NextTurn::Work);
        }
        if wait && !overdue {
            return NextTurn::Wait;
        }
        let taken: Vec<LogBatch> =
            waiting.drain(..batches).filter_map(|work| if let Work::Batch(batch) = work { Some(batch) } else { None }).collect();
        self.bytes.fetch_sub(taken.iter().map(|batch| batch.payloads.bytes()).sum(), Ordering::Relaxed);
        NextTurn::Batches(taken)
    }

    /// True when there is something that need not wait for more rows.
    pub fn is_ready(&self, limits: &TurnLimits) -> bool {
        let waiting = self.waiting();
        !waiting.is_empty() && !leading(&waiting, limits).1
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

/// How many of the first batches make a turn together, and whether they should wait for more.
fn leading(waiting: &VecDeque<Work>, limits: &TurnLimits) -> (usize, bool) {
    let enough = limits.min_rows.max(SMALL);
    let (mut batches, mut rows) = (0, 0);
    let mut source = None;
    for work in waiting {
        let Work::Batch(batch) = work else { break };
        let count = batch.payloads.count();
        if batches > 0 && (rows >= enough || rows + count > limits.max_rows || source != Some(&batch.source)) {
            break;
        }
        (batches, rows, source) = (batches + 1, rows + count, Some(&batch.source));
    }
    let alone = batches > 0 && batches == waiting.len();
    (batches, alone && rows < limits.min_rows && !limits.max_wait.is_zero())
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
    use fieldstream_engine_api::Payloads;
    use fieldstream_schemas::{PayloadBlock, PayloadEntry};

    use super::*;

    const LIMITS: TurnLimits = TurnLimits { min_rows: 3, max_wait: std::time::Duration::from_secs(1), max_rows: 5 };

    fn batch(source: &str, offset: u64, rows: u32) -> Work {
        let entry = |n| PayloadEntry { offset: offset + u64::from(n), start: n, len: 1, ingest_us: None };
        let block =
            PayloadBlock { data: vec![b'x'; rows as usize].into(), entries: (0..rows).map(entry).collect(), ..PayloadBlock::default() };
        let next_offset = offset + u64::from(rows);
        Work::Batch(LogBatch { partition: 0, source: source.into(), next_offset, append_us: None, payloads: Payloads::Raw(block) })
    }

    /// What the next turn would be, as text.
    fn next(queue: &PartitionQueue, overdue: bool) -> String {
        match queue.next_turn(&LIMITS, overdue) {
            NextTurn::Batches(batches) => {
                let joined = LogBatch::join(batches);
                joined
                    .iter()
                    .map(|b| format!("{} {} rows to {}", b.source, b.payloads.count(), b.next_offset))
                    .collect::<Vec<_>>()
                    .join(", ")
            }
            NextTurn::Work(_) => "work".to_owned(),
            NextTurn::Wait => "wait".to_owned(),
            NextTurn::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn small_batches_travel_together_and_few_rows_wait() {
        let queue = PartitionQueue::default();
        queue.push(batch("a", 0, 2));
        assert_eq!((next(&queue, false).as_str(), next(&queue, true).as_str()), ("wait", "a 2 rows to 2"));
        queue.push(batch("a", 2, 2));
        queue.push(batch("a", 4, 2));
        queue.push(batch("a", 6, 4));
        queue.push(batch("b", 10, 1));
        queue.push(Work::Snapshot(SnapshotKind::Whole));
        let turns: Vec<String> = (0..5).map(|_| next(&queue, false)).collect();
        let expected = ["a 4 rows to 6", "a 4 rows to 10", "b 1 rows to 11", "work", "nothing"];
        assert_eq!(turns, expected, "five rows at most, one source, and nothing waits with work behind it");
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn one_token_at_a_time() {
        let queue = PartitionQueue::default();
        assert!(!queue.schedule(), "nothing to do");
        assert!(queue.push(Work::Snapshot(SnapshotKind::Whole)));
        assert!(!queue.push(Work::Snapshot(SnapshotKind::Whole)), "a token is on its way");
        assert!(matches!(queue.next_turn(&LIMITS, false), NextTurn::Work(Work::Snapshot(_))));
        queue.unschedule();
        assert!(queue.schedule(), "work is left");
        assert!(!queue.schedule());
    }
}
