//! One task per sink: gathers rows, commits them with their marks, tries again, and never loses count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::BooleanArray;
use fieldstream_engine_api::{Committed, Generation, Mark, PartitionKey, Sink, SinkBatch, SinkError, SinkRows};
use tokio::sync::{mpsc, oneshot};

use crate::clock::Clock;
use crate::event::Event;
use crate::queue::OutputRoom;
use crate::spec::Gather;

/// A mark without rows may wait this long: it costs a commit and helps only checkpoints.
const MARK_ONLY_WAIT: Duration = Duration::from_secs(1);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// What a sink task is asked to do, in order.
#[derive(Debug)]
pub enum SinkWork {
    /// Take a partition: fence lower generations and read the mark.
    Open {
        /// The partition.
        key: PartitionKey,
        /// Its owner.
        generation: Generation,
        /// Gets the sink's mark.
        reply: oneshot::Sender<Result<Option<Committed>, SinkError>>,
    },
    /// Output of one turn.
    Rows {
        /// Partition number.
        partition: u32,
        /// The rows.
        rows: Vec<SinkRows>,
        /// Everything below this is in these rows or in earlier ones.
        complete_to: Mark,
        /// Bytes taken from the output room.
        bytes: usize,
        /// Ingest time of the newest row, microseconds since the epoch.
        ingest_us: Option<i64>,
    },
    /// From now on commit at once: the pipeline drains.
    Flush,
    /// Forget what a partition has not committed (it is restored or revoked).
    Forget {
        /// Partition number.
        partition: u32,
    },
    /// End.
    Close {
        /// Gets the outcome.
        reply: oneshot::Sender<Result<(), SinkError>>,
    },
}

/// Counters of one sink, for metrics.
#[derive(Debug, Default)]
pub struct SinkStats {
    /// Commits that succeeded.
    pub commits: AtomicU64,
    /// Commits that were tried again.
    pub retries: AtomicU64,
    /// Time spent in commits, nanoseconds.
    pub commit_ns: AtomicU64,
    /// Rows committed.
    pub rows: AtomicU64,
    /// Rows handed to the task and not yet committed (or found durable already).
    pub queued: AtomicU64,
    /// Ingest-to-commit time of the newest row of the last commit, microseconds.
    pub latency_us: AtomicU64,
}

#[derive(Debug)]
struct Lane {
    key: PartitionKey,
    /// Rows below it are durable already: a replay brings them again.
    durable: Mark,
    rows: Vec<SinkRows>,
    complete_to: Option<Mark>,
    bytes: usize,
}

/// What all sink tasks of a pipeline share.
#[derive(Clone)]
pub struct SinkShared {
    /// Where output bytes are counted.
    pub room: Arc<OutputRoom>,
    /// The coordinator.
    pub events: mpsc::UnboundedSender<Event>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// The task's state.
pub struct SinkTask {
    number: usize,
    name: Arc<str>,
    sink: Box<dyn Sink>,
    gather: Gather,
    room: Arc<OutputRoom>,
    events: mpsc::UnboundedSender<Event>,
    clock: Arc<dyn Clock>,
    /// Counters.
    pub stats: Arc<SinkStats>,
    waiting: Waiting,
}

impl std::fmt::Debug for SinkTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SinkTask").field("name", &self.name).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Waiting {
    lanes: BTreeMap<u32, Lane>,
    rows: usize,
    /// Rows of a replay that a mark says are durable.
    skipped: u64,
    bytes: usize,
    since: Option<Duration>,
    rows_since: Option<Duration>,
    newest_ingest_us: Option<i64>,
    eager: bool,
}

impl SinkTask {
    /// A task for one sink of a pipeline.
    #[must_use]
    pub fn new(number: usize, name: Arc<str>, sink: Box<dyn Sink>, gather: Gather, shared: &SinkShared) -> Self {
        let SinkShared { room, events, clock } = shared.clone();
        Self { number, name, sink, gather, room, events, clock, stats: Arc::default(), waiting: Waiting::default() }
    }

    /// Works until it is closed, its queue ends, or the sink gives up.
    pub async fn run(mut self, mut queue: mpsc::UnboundedReceiver<SinkWork>) {
        loop {
            let work = match self.time_left() {
                None => queue.recv().await,
                Some(left) if left.is_zero() => queue.try_recv().ok(),
                Some(left) => tokio::time::timeout(left, queue.recv()).await.unwrap_or_default(),
            };
            let idle = work.is_none();
            if idle && queue.is_closed() && queue.is_empty() {
                return;
            }
            let closing = match work {
                Some(work) => self.take(work).await,
                None => None,
            };
            if (idle || self.is_full()) && self.time_left().is_some_and(|left| left.is_zero()) || closing.is_some() {
                let committed = self.commit().await;
                let failed = committed.is_err();
                if let Some(reply) = closing {
                    let closed = if failed { committed } else { self.sink.close().await };
                    // The coordinator may have stopped waiting at its drain deadline.
                    let _ = reply.send(closed);
                    return;
                }
                if let Err(error) = committed {
                    let _ = self.events.send(Event::SinkFailed { sink: Arc::clone(&self.name), error });
                    return;
                }
            }
        }
    }

    fn is_full(&self) -> bool {
        self.waiting.rows >= self.gather.max_rows || self.waiting.bytes >= self.gather.max_bytes
    }

    /// Time until what waits must be committed; `None` when nothing waits.
    fn time_left(&self) -> Option<Duration> {
        let waiting = &self.waiting;
        let since = waiting.since?;
        if waiting.eager || self.is_full() {
            return Some(Duration::ZERO);
        }
        let due =
            waiting.rows_since.map_or(since + MARK_ONLY_WAIT.max(self.gather.max_wait), |rows_since| rows_since + self.gather.max_wait);
        Some(due.saturating_sub(self.clock.monotonic()))
    }

    async fn take(&mut self, work: SinkWork) -> Option<oneshot::Sender<Result<(), SinkError>>> {
        match work {
            SinkWork::Open { key, generation, reply } => {
                let opened = self.open(key, generation).await;
                // The coordinator waits for the answer unless it has failed meanwhile.
                let _ = reply.send(opened);
            }
            SinkWork::Rows { partition, rows, complete_to, bytes, ingest_us } => {
                self.gather_rows(partition, rows, complete_to, bytes, ingest_us)
            }
            SinkWork::Flush => self.waiting.eager = true,
            SinkWork::Forget { partition } => {
                if let Some(lane) = self.waiting.lanes.remove(&partition) {
                    let rows = lane.rows.iter().map(|r| r.batch.len()).sum::<usize>();
                    self.waiting.rows -= rows;
                    self.stats.queued.fetch_sub(rows as u64, Ordering::Relaxed);
                    self.room.give_back(lane.bytes);
                }
            }
            SinkWork::Close { reply } => return Some(reply),
        }
        None
    }

    async fn open(&mut self, key: PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        let mut backoff = FIRST_BACKOFF;
        let opened = loop {
            match self.sink.open(&key, generation).await {
                Err(SinkError::Retry { context, cause }) => {
                    tracing::warn!(sink = %self.name, "{context}: {cause}; trying again in {backoff:?}");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                other => break other?,
            }
        };
        let durable = opened.as_ref().map_or(Mark::default(), |committed| committed.mark);
        let lane = Lane { durable, rows: Vec::new(), complete_to: None, bytes: 0, key: key.clone() };
        self.waiting.lanes.insert(key.partition, lane);
        Ok(opened)
    }

    fn gather_rows(&mut self, partition: u32, rows: Vec<SinkRows>, complete_to: Mark, bytes: usize, ingest_us: Option<i64>) {
        let Some(lane) = self.waiting.lanes.get_mut(&partition) else {
            self.room.give_back(bytes);
            let rows = rows.iter().map(|r| r.batch.len() as u64).sum();
            self.stats.queued.fetch_sub(rows, Ordering::Relaxed);
            return;
        };
        let now = self.clock.monotonic();
        self.waiting.since.get_or_insert(now);
        lane.bytes += bytes;
        self.waiting.bytes += bytes;
        lane.complete_to = Some(complete_to);
        for part in rows {
            let offered = part.batch.len();
            let kept = not_durable_yet(part, lane.durable, complete_to);
            let rows = kept.as_ref().map_or(0, |p| p.batch.len());
            self.waiting.skipped += (offered - rows) as u64;
            if let Some(part) = kept {
                self.waiting.rows_since.get_or_insert(now);
                self.waiting.rows += rows;
                lane.rows.push(part);
            }
        }
        self.waiting.newest_ingest_us = ingest_us.or(self.waiting.newest_ingest_us);
    }

    async fn commit(&mut self) -> Result<(), SinkError> {
        let mut batches = Vec::new();
        let mut bytes = 0;
        for lane in self.waiting.lanes.values_mut() {
            if let Some(complete_to) = lane.complete_to.take() {
                batches.push(SinkBatch { partition: lane.key.clone(), rows: std::mem::take(&mut lane.rows), complete_to });
                bytes += std::mem::take(&mut lane.bytes);
            }
        }
        let rows = std::mem::take(&mut self.waiting.rows) as u64;
        let skipped = std::mem::take(&mut self.waiting.skipped);
        self.waiting.bytes = 0;
        (self.waiting.since, self.waiting.rows_since) = (None, None);
        if batches.is_empty() {
            return Ok(());
        }
        let committed = self.commit_until_it_holds(&batches).await?;
        for done in &committed {
            if let Some(lane) = self.waiting.lanes.get_mut(&done.partition.partition) {
                lane.durable = lane.durable.max(done.mark);
            }
        }
        self.stats.rows.fetch_add(rows, Ordering::Relaxed);
        self.stats.queued.fetch_sub(rows + skipped, Ordering::Relaxed);
        if let Some(ingest) = self.waiting.newest_ingest_us.take() {
            let latency = self.clock.now_us().saturating_sub(ingest).max(0);
            self.stats.latency_us.store(latency as u64, Ordering::Relaxed);
        }
        self.room.give_back(bytes);
        // The coordinator outlives its sinks except at a failed end, when nobody asks any more.
        let _ = self.events.send(Event::Durable { sink: self.number, committed, accounted: rows + skipped });
        Ok(())
    }

    async fn commit_until_it_holds(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let start = self.clock.monotonic();
            let outcome = self.sink.commit(batches).await;
            let spent = self.clock.monotonic().saturating_sub(start);
            self.stats.commit_ns.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
            match outcome {
                Err(SinkError::Retry { context, cause }) => {
                    self.stats.retries.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(sink = %self.name, "{context}: {cause}; trying again in {backoff:?}");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                other => {
                    self.stats.commits.fetch_add(u64::from(other.is_ok()), Ordering::Relaxed);
                    return other;
                }
            }
        }
    }
}

/// Leaves out rows that a mark says are durable: those below its offset, or all of a turn it has passed.
fn not_durable_yet(part: SinkRows, durable: Mark, complete_to: Mark) -> Option<SinkRows> {
    let passed = durable.next_offset >= complete_to.next_offset && durable.next_decision >= complete_to.next_decision;
    if passed {
        return None;
    }
    let positions = &part.batch.keys.position;
    if positions.iter().all(|p| p.offset >= durable.next_offset) {
        return Some(part);
    }
    let mask: BooleanArray = positions.iter().map(|p| Some(p.offset >= durable.next_offset)).collect();
    // The mask has the batch's length, so filtering cannot fail.
    let batch = part.batch.filter(&mask).ok()?;
    (!batch.is_empty()).then_some(SinkRows { batch, ..part })
}
