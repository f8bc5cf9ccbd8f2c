//! One task per sink: gathers rows, commits them with their marks, tries again, and never loses count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::BooleanArray;
use fieldstream_engine_api::{Committed, Generation, Mark, PartitionKey, Sink, SinkBatch, SinkError, SinkRows};
use prometheus::{Histogram, HistogramOpts};
use tokio::sync::{mpsc, oneshot};

use crate::clock::{Clock, within};
use crate::event::{DurableShare, Event};
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
        /// Newest event time of the turn, microseconds since the epoch.
        event_us: Option<i64>,
    },
    /// From now on commit at once: the pipeline drains.
    Flush,
    /// Forget what a partition has not committed (it is restored or revoked).
    Forget {
        /// Partition number.
        partition: u32,
        /// Told when nothing of it will be committed any more.
        done: oneshot::Sender<()>,
    },
    /// End.
    Close {
        /// Gets the outcome.
        reply: oneshot::Sender<Result<(), SinkError>>,
    },
}

/// Counters of one sink, for metrics.
#[derive(Debug)]
pub struct SinkStats {
    /// Commits that were tried again.
    pub retries: AtomicU64,
    /// Rows handed to the task and not yet committed (or found durable already).
    pub queued: AtomicU64,
    /// When the commit under way was first tried, milliseconds on the monotonic clock; 0: none is under way.
    pub trying_since_ms: AtomicU64,
    /// Duration of commits, seconds.
    pub commit_seconds: Histogram,
    /// Rows of each commit.
    pub batch_rows: Histogram,
    /// Ingest to commit of the newest row of each commit, seconds.
    pub ingest_to_commit: Histogram,
    /// Event to commit of the newest row of each commit, seconds.
    pub event_to_commit: Histogram,
}

impl SinkStats {
    fn new(pipeline: &str, sink: &str) -> Self {
        let histogram = |name: &str, help: &str, buckets: Vec<f64>| {
            let options = HistogramOpts::new(name, help).const_label("pipeline", pipeline).const_label("sink", sink).buckets(buckets);
            Histogram::with_opts(options).unwrap_or_else(|_| unreachable!("names, labels and buckets are constants of this function"))
        };
        let seconds = || vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
        let rows = vec![1.0, 10.0, 100.0, 1000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0];
        Self {
            retries: AtomicU64::new(0),
            queued: AtomicU64::new(0),
            trying_since_ms: AtomicU64::new(0),
            commit_seconds: histogram("fieldstream_sink_commit_duration_seconds", "Duration of sink commits.", seconds()),
            batch_rows: histogram("fieldstream_sink_batch_rows", "Rows of each sink commit.", rows),
            ingest_to_commit: histogram(
                "fieldstream_ingest_to_commit_seconds",
                "From ingest to durable, newest row of each commit.",
                seconds(),
            ),
            event_to_commit: histogram(
                "fieldstream_event_to_commit_seconds",
                "From event time to durable, newest row of each commit.",
                seconds(),
            ),
        }
    }
}

#[derive(Debug)]
struct Lane {
    key: PartitionKey,
    generation: Generation,
    /// Rows below it are durable already: a replay brings them again.
    durable: Mark,
    rows: Vec<SinkRows>,
    /// Rows of a replay that the mark says are durable.
    skipped: u64,
    complete_to: Option<Mark>,
    bytes: usize,
}

impl Lane {
    fn waiting_rows(&self) -> u64 {
        self.rows.iter().map(|r| r.batch.len() as u64).sum()
    }
}

/// A running sink task, as its coordinator holds it.
pub(crate) struct SinkHandle {
    pub(crate) name: Arc<str>,
    pub(crate) work: mpsc::UnboundedSender<SinkWork>,
    pub(crate) task: tokio::task::JoinHandle<()>,
}

/// What all sink tasks of a pipeline share.
#[derive(Clone)]
pub struct SinkShared {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
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
    bytes: usize,
    since: Option<Duration>,
    rows_since: Option<Duration>,
    newest_ingest_us: Option<i64>,
    newest_event_us: Option<i64>,
    eager: bool,
}

impl SinkTask {
    /// A task for one sink of a pipeline.
    #[must_use]
    pub fn new(number: usize, name: Arc<str>, sink: Box<dyn Sink>, gather: Gather, shared: &SinkShared) -> Self {
        let SinkShared { pipeline, room, events, clock } = shared.clone();
        let stats = Arc::new(SinkStats::new(&pipeline, &name));
        Self { number, name, sink, gather, room, events, clock, stats, waiting: Waiting::default() }
    }

    /// Works until it is closed, its queue ends, or the sink gives up.
    pub async fn run(mut self, mut queue: mpsc::UnboundedReceiver<SinkWork>) {
        loop {
            let work = match self.time_left() {
                None => queue.recv().await,
                Some(left) if left.is_zero() => queue.try_recv().ok(),
                Some(left) => within(&*self.clock, left, queue.recv()).await.flatten(),
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
            SinkWork::Rows { partition, rows, complete_to, bytes, ingest_us, event_us } => {
                self.gather_rows(partition, rows, complete_to, bytes);
                self.waiting.newest_ingest_us = ingest_us.or(self.waiting.newest_ingest_us);
                self.waiting.newest_event_us = event_us.max(self.waiting.newest_event_us);
            }
            SinkWork::Flush => self.waiting.eager = true,
            SinkWork::Forget { partition, done } => {
                if let Some(lane) = self.waiting.lanes.remove(&partition) {
                    self.waiting.rows -= lane.waiting_rows() as usize;
                    self.stats.queued.fetch_sub(lane.waiting_rows() + lane.skipped, Ordering::Relaxed);
                    self.room.give_back(lane.bytes);
                }
                // Not everybody waits for it.
                let _ = done.send(());
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
                    self.clock.sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                other => break other?,
            }
        };
        let durable = opened.as_ref().map_or(Mark::default(), |committed| committed.mark);
        let lane = Lane { durable, generation, rows: Vec::new(), skipped: 0, complete_to: None, bytes: 0, key: key.clone() };
        self.waiting.lanes.insert(key.partition, lane);
        Ok(opened)
    }

    fn gather_rows(&mut self, partition: u32, rows: Vec<SinkRows>, complete_to: Mark, bytes: usize) {
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
            lane.skipped += (offered - rows) as u64;
            if let Some(part) = kept {
                self.waiting.rows_since.get_or_insert(now);
                self.waiting.rows += rows;
                lane.rows.push(part);
            }
        }
    }

    async fn commit(&mut self) -> Result<(), SinkError> {
        let mut batches = Vec::new();
        let mut shares = BTreeMap::new();
        let mut bytes = 0;
        for (number, lane) in &mut self.waiting.lanes {
            if let Some(complete_to) = lane.complete_to.take() {
                shares.insert(*number, lane.waiting_rows() + std::mem::take(&mut lane.skipped));
                batches.push(SinkBatch { partition: lane.key.clone(), rows: std::mem::take(&mut lane.rows), complete_to });
                bytes += std::mem::take(&mut lane.bytes);
            }
        }
        let rows = std::mem::take(&mut self.waiting.rows) as u64;
        self.waiting.bytes = 0;
        (self.waiting.since, self.waiting.rows_since) = (None, None);
        if batches.is_empty() {
            return Ok(());
        }
        self.stats.trying_since_ms.store(self.clock.monotonic().as_millis().max(1) as u64, Ordering::Relaxed);
        let committed = self.commit_until_it_holds(batches).await?;
        self.stats.trying_since_ms.store(0, Ordering::Relaxed);
        self.stats.queued.fetch_sub(shares.values().sum(), Ordering::Relaxed);
        self.observe(rows);
        self.room.give_back(bytes);
        let shares = committed.into_iter().filter_map(|committed| {
            let lane = self.waiting.lanes.get_mut(&committed.partition.partition)?;
            lane.durable = lane.durable.max(committed.mark);
            let accounted = shares.remove(&committed.partition.partition).unwrap_or_default();
            Some(DurableShare { generation: lane.generation, committed, accounted })
        });
        // The coordinator outlives its sinks except at a failed end, when nobody asks any more.
        let _ = self.events.send(Event::Durable { sink: self.number, shares: shares.collect() });
        Ok(())
    }

    fn observe(&mut self, rows: u64) {
        let now_us = self.clock.now_us();
        let seconds_since = |us: i64| now_us.saturating_sub(us).max(0) as f64 / 1e6;
        let (ingest, event) = (self.waiting.newest_ingest_us.take(), self.waiting.newest_event_us.take());
        if rows > 0 {
            self.stats.batch_rows.observe(rows as f64);
            ingest.into_iter().for_each(|us| self.stats.ingest_to_commit.observe(seconds_since(us)));
            event.into_iter().for_each(|us| self.stats.event_to_commit.observe(seconds_since(us)));
        }
    }

    async fn commit_until_it_holds(&mut self, mut batches: Vec<SinkBatch>) -> Result<Vec<Committed>, SinkError> {
        let mut backoff = FIRST_BACKOFF;
        while !batches.is_empty() {
            let start = self.clock.monotonic();
            let outcome = self.sink.commit(&batches).await;
            let spent = self.clock.monotonic().saturating_sub(start);
            self.stats.commit_seconds.observe(spent.as_secs_f64());
            match outcome {
                Err(SinkError::Retry { context, cause }) => {
                    self.stats.retries.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(sink = %self.name, "{context}: {cause}; trying again in {backoff:?}");
                    self.clock.sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                Err(error @ SinkError::Fenced { .. }) => self.drop_fenced(error, &mut batches)?,
                other => return other,
            }
        }
        Ok(Vec::new())
    }

    /// A partition has a newer owner: what is here of it is that owner's to write. The others go on.
    fn drop_fenced(&mut self, error: SinkError, batches: &mut Vec<SinkBatch>) -> Result<(), SinkError> {
        let SinkError::Fenced { partition, .. } = &error else { return Err(error) };
        let number = partition.partition;
        let index = batches.iter().position(|batch| batch.partition == *partition);
        let (Some(index), Some(lane)) = (index, self.waiting.lanes.remove(&number)) else { return Err(error) };
        batches.remove(index);
        let _ = self.events.send(Event::Fenced { sink: Arc::clone(&self.name), partition: number, generation: lane.generation, error });
        Ok(())
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
