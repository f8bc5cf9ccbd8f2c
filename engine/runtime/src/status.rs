//! What a pipeline looks like from outside while it runs: position, account, counters.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fieldstream_engine_api::{LogId, Mark};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::digest::short;
use crate::durations::Durations;
use crate::engine::Engine;
use crate::event::Event;
use crate::graph::NodeMeter;
use crate::ledger::{Ledger, SinkTotals, Totals};
use crate::queue::PartitionQueue;
use crate::reload::{LastReload, PlanStatus, Verdict};
use crate::shard::Inspect;
use crate::sink_task::SinkStats;

/// After so long without progress a pipeline is not ready.
const STALLED: Duration = Duration::from_secs(30);

/// Where a pipeline is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Taking partitions over.
    #[default]
    Starting,
    /// Handling rows.
    Running,
    /// Handling what was read; reading nothing more.
    Draining,
    /// All input read, all output durable.
    Finished,
    /// Stopped on request, resumable.
    Stopped,
    /// Given up; the error says why.
    Failed,
}

/// One partition, as its coordinator knows it.
#[derive(Debug)]
pub struct PartitionStatus {
    /// Identity of its log.
    pub log_id: LogId,
    /// Its queue.
    pub queue: Arc<PartitionQueue>,
    /// How far turns have come.
    pub complete_to: Mark,
    /// First offset after what was read.
    pub read_to: u64,
    /// Account of all turns.
    pub now: Totals,
    /// Account of the turns that every mark has passed.
    pub settled: Totals,
    /// Accounts of turns that some mark has not passed, oldest first.
    pub unsettled: VecDeque<(Mark, Totals)>,
    /// What the operators have done, in graph order.
    pub meters: Vec<NodeMeter>,
    /// Newest event time handled, microseconds since the epoch.
    pub event_us: Option<i64>,
    /// Since when its log is paused because the queue is full, on the monotonic clock.
    pub paused_since: Option<Duration>,
    /// How long its log was paused before that.
    pub paused_for: Duration,
    /// Bytes of keyed state at the last snapshot.
    pub state_bytes: usize,
    /// Device actors in memory.
    pub active_devices: usize,
    /// Device actors whose state lies on disk.
    pub passivated_devices: u64,
    /// Position of the newest checkpoint.
    pub checkpoint: Option<Mark>,
    /// When it became true, seconds on the monotonic clock.
    pub checkpoint_at_s: Option<f64>,
    /// When the snapshot that is to become the next one was asked for, on the monotonic clock.
    pub snapshot_asked: Option<Duration>,
}

impl PartitionStatus {
    /// Moves the settled account up to `mark`.
    pub fn settle(&mut self, mark: Mark) {
        let passed = |at: &Mark| mark.next_offset >= at.next_offset && mark.next_decision >= at.next_decision;
        while let Some((_, totals)) = self.unsettled.pop_front_if(|(at, _)| passed(at)) {
            self.settled = totals;
        }
    }
}

/// One sink, as the coordinator knows it.
#[derive(Debug)]
pub struct SinkStatus {
    /// Name in YAML.
    pub name: Arc<str>,
    /// True for the dead letter.
    pub dead_letter: bool,
    /// Rows committed or found durable, those before the restored checkpoint included, by partition.
    pub accounted: BTreeMap<u32, u64>,
    /// Rows refused by the service, by partition.
    pub refused: BTreeMap<u32, u64>,
    /// The task's counters.
    pub stats: Arc<SinkStats>,
}

impl SinkStatus {
    /// A sink that has done nothing yet.
    #[must_use]
    pub fn new(dead_letter: bool, name: &Arc<str>, stats: &Arc<SinkStats>) -> Self {
        Self { name: Arc::clone(name), dead_letter, accounted: BTreeMap::new(), refused: BTreeMap::new(), stats: Arc::clone(stats) }
    }

    /// Rows of all partitions.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.accounted.values().sum()
    }
}

/// Everything shown of a pipeline.
#[derive(Debug, Default)]
pub struct StatusInner {
    /// Number of the pipeline on this node.
    pub number: u32,
    /// Where it is in its life.
    pub state: State,
    /// Why it failed.
    pub error: Option<String>,
    /// Its partitions on this node.
    pub partitions: BTreeMap<u32, PartitionStatus>,
    /// Its sinks, in graph order.
    pub sinks: Vec<SinkStatus>,
    /// Operators in graph order: (name, kind).
    pub operators: Vec<(Arc<str>, &'static str)>,
    /// Turns that panicked and were recovered.
    pub restarts: u64,
    /// How the plan differs from that of the checkpoint the pipeline started from.
    pub plan_changes: Option<String>,
    /// From asking for a snapshot until its manifest was durable.
    pub checkpoints: Durations,
    /// Its plan, and how it came to it.
    pub plan: PlanStatus,
    /// Where its coordinator listens, once it runs.
    pub(crate) inbox: Option<mpsc::UnboundedSender<Event>>,
    /// What goes wrong at the moment and is tried again, by the part of the node it is about.
    pub troubles: BTreeMap<Arc<str>, String>,
}

/// Shared, short-locked view of a running pipeline.
#[derive(Debug, Default)]
pub struct Status {
    inner: Mutex<StatusInner>,
}

impl Status {
    /// The view; hold it briefly.
    pub fn lock(&self) -> MutexGuard<'_, StatusInner> {
        // Counters are whole after every assignment, so a panic elsewhere leaves nothing broken.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A run begins, the first or one with another plan: what the last one showed is past, but for what counts over all of them.
    pub(crate) fn begin(&self, number: u32, digest: &str, inbox: &mpsc::UnboundedSender<Event>) {
        let mut inner = self.lock();
        let before = std::mem::take(&mut *inner);
        let plan = PlanStatus { digest: short(digest), lost: BTreeSet::new(), ..before.plan };
        let (restarts, checkpoints) = (before.restarts, before.checkpoints);
        // Receivers go on, and with them what they wait for; the rest is said again if it is still so.
        let troubles = before.troubles.into_iter().filter(|(part, _)| &**part == crate::ingest::JOURNAL).collect();
        let inbox = Some(inbox.clone());
        *inner = StatusInner { number, state: State::Running, restarts, checkpoints, plan, inbox, troubles, ..StatusInner::default() };
    }

    /// Takes note of what became of a wish for the plan `to` (a digest; `None` where it could not be read), at `now_us`
    /// (microseconds since the epoch).
    pub fn note_reload(&self, from: &str, to: Option<&str>, verdict: &Verdict, now_us: i64) {
        let (outcome, why) = verdict.outcome();
        let mut inner = self.lock();
        *inner.plan.reloads.entry(outcome).or_default() += 1;
        let at = fieldstream_schemas::time::format_rfc3339(now_us);
        inner.plan.last = Some(LastReload { at, from: short(from), to: to.map(short), outcome, why: why.map(str::to_owned) });
    }

    /// Says that `part` (`checkpoints`, `journal`, a source's name) has trouble, or with `None` that it works again.
    pub fn trouble(&self, part: &str, what: Option<String>) {
        let troubles = &mut self.lock().troubles;
        match what {
            Some(what) => drop(troubles.insert(part.into(), what)),
            None => drop(troubles.remove(part)),
        }
    }

    /// The log of a partition is paused because its queue is full, or no longer, at `now` on the monotonic clock.
    pub(crate) fn backpressure(&self, partition: u32, now: Duration, begins: bool) {
        if let Some(status) = self.lock().partitions.get_mut(&partition) {
            let since = std::mem::replace(&mut status.paused_since, begins.then_some(now));
            status.paused_for += since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        }
    }

    /// The account now.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let inner = self.lock();
        let (mut now, mut settled) = (Totals::new(inner.sinks.len()), Totals::new(inner.sinks.len()));
        for partition in inner.partitions.values() {
            now.add(&partition.now);
            settled.add(&partition.settled);
        }
        let sink = |s: &SinkStatus| {
            let (accounted, refused) = (s.total(), s.refused.values().sum());
            let in_flight = s.stats.queued.load(Ordering::Relaxed);
            SinkTotals {
                name: Arc::clone(&s.name),
                dead_letter: s.dead_letter,
                delivered: accounted.saturating_sub(refused),
                refused,
                in_flight,
            }
        };
        Ledger::new(&now, &settled, &inner.sinks.iter().map(sink).collect::<Vec<_>>())
    }

    /// Why the pipeline cannot be said to make progress; empty when it does.
    #[must_use]
    pub fn not_ready(&self, engine: &Engine) -> Vec<String> {
        let now = engine.clock.monotonic();
        let inner = self.lock();
        let mut reasons: Vec<String> = inner.troubles.iter().map(|(part, what)| format!("{part}: {what}")).collect();
        if *engine.tight.borrow() {
            reasons.push("the process is above its memory budget, nothing new is read".to_owned());
        }
        match inner.state {
            State::Starting => reasons.push("partitions are being taken over".to_owned()),
            State::Failed => reasons.push(inner.error.clone().unwrap_or_else(|| "failed".to_owned())),
            State::Running | State::Draining | State::Finished | State::Stopped => {}
        }
        for (number, partition) in &inner.partitions {
            let paused = partition.paused_since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
            if paused >= STALLED {
                reasons.push(format!("partition {number} has not been read for {} s because its queue is full", paused.as_secs()));
            }
        }
        for sink in &inner.sinks {
            let trying = sink.stats.trying_since_ms.load(Ordering::Relaxed);
            let tried = now.saturating_sub(Duration::from_millis(trying));
            if trying > 0 && tried >= STALLED {
                reasons.push(format!("sink {} has not managed a commit for {} s", sink.name, tried.as_secs()));
            }
        }
        reasons
    }

    /// State, partitions, operators and sinks as JSON.
    #[must_use]
    pub fn describe(&self) -> serde_json::Value {
        let inner = self.lock();
        let partition = |(number, p): (&u32, &PartitionStatus)| {
            json!({
                "partition": number, "log_id": p.log_id, "complete_to": p.complete_to, "read_to": p.read_to, "queue_bytes": p.queue.bytes(),
                "active_devices": p.active_devices, "passivated_devices": p.passivated_devices, "state_bytes": p.state_bytes, "checkpoint": p.checkpoint,
            })
        };
        let operator = |(number, (name, kind)): (usize, &(Arc<str>, &'static str))| {
            let mut total = NodeMeter::default();
            for meter in inner.partitions.values().filter_map(|p| p.meters.get(number)) {
                total.counts.add(&meter.counts);
                total.batches += meter.batches;
                total.durations.add(&meter.durations);
            }
            let c = total.counts;
            json!({
                "name": name, "kind": kind, "received": c.received, "forwarded": c.forwarded, "absorbed": c.absorbed, "filtered": c.filtered,
                "rejected": c.rejected, "late": c.late, "deduplicated": c.deduplicated, "emitted": c.emitted, "batches": total.batches,
                "busy_s": total.durations.sum_seconds(),
            })
        };
        let sink = |s: &SinkStatus| json!({ "name": s.name, "accounted": s.total(), "queued": s.stats.queued.load(Ordering::Relaxed) });
        json!({
            "state": inner.state, "error": inner.error, "restarts": inner.restarts, "plan_changes": inner.plan_changes, "troubles": inner.troubles,
            "plan": { "digest": inner.plan.digest, "lost_state": inner.plan.lost }, "last_reload": inner.plan.last,
            "partitions": inner.partitions.iter().map(partition).collect::<Vec<_>>(),
            "operators": inner.operators.iter().enumerate().map(operator).collect::<Vec<_>>(),
            "sinks": inner.sinks.iter().map(sink).collect::<Vec<_>>(),
        })
    }

    /// What is known of a device actor on this node; `None` when no partition has it active.
    pub async fn inspect(&self, engine: &Engine, device: &str) -> Option<serde_json::Value> {
        let (number, partitions) = {
            let inner = self.lock();
            (inner.number, inner.partitions.keys().copied().collect::<Vec<u32>>())
        };
        for partition in partitions {
            let (reply, found) = oneshot::channel();
            let message = Inspect { id: (number, partition), device: device.to_owned(), reply };
            // A shard that is gone hosts nothing.
            let asked = engine.shard_of(number, partition).send(message).await;
            if asked.is_ok()
                && let Ok(Some(found)) = found.await
            {
                return Some(found);
            }
        }
        None
    }
}
