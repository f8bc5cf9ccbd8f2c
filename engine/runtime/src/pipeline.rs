//! The coordinator of one pipeline: log events to partition queues, marks to checkpoints, and an orderly end.

mod start;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_checkpoint::{Fact, StoreError};
use fieldstream_engine_api::{Log, LogBatch, LogError, LogEvent};
use fieldstream_journal::Journal;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::assign::Owned;
use crate::clock::{Beat, within};
use crate::decisions;
use crate::engine::Engine;
use crate::error::PipelineError;
use crate::event::{DurableShare, Event, PartitionEvent};
use crate::giving_up::Overtaken;
use crate::input;
use crate::ledger::Ledger;
use crate::queue::Work;
use crate::reload::Terms;
use crate::savepoint::Saving;
use crate::shard::{Outlet, Ready, Remove};
use crate::sink_task::{SinkHandle, SinkWork};
use crate::spec::{PipelineParts, PipelineSpec};
use crate::status::{State, Status};

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Time between two checkpoints while the journal is full: only checkpoints make room in it.
const HURRY: Duration = Duration::from_millis(500);

/// The part of the node that has trouble when the log does not answer.
const LOG: &str = "log";

/// When all receivers have ended and the journal has had nothing for so long, its rest belongs to other pipelines.
const SILENT_END: Duration = Duration::from_secs(2);

/// How a pipeline ended.
#[derive(Debug)]
pub struct Report {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// `Finished` or `Stopped`.
    pub state: State,
    /// Wall time, seconds.
    pub elapsed_s: f64,
    /// The final account.
    pub ledger: Ledger,
}

/// The coordinator.
pub(crate) struct Coordinator<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) spec: Arc<PipelineSpec>,
    pub(crate) number: u32,
    pub(crate) log: Box<dyn Log>,
    pub(crate) finite: bool,
    pub(crate) sinks: Vec<SinkHandle>,
    pub(crate) outlet: Outlet,
    pub(crate) owned: BTreeMap<u32, Owned>,
    pub(crate) status: Arc<Status>,
    pub(crate) terms: Terms,
    /// Partitions have been assigned, and all of them are taken over.
    pub(crate) assigned: bool,
    events: mpsc::UnboundedReceiver<Event>,
    stop: watch::Receiver<bool>,
    draining: bool,
    stopped: bool,
    /// Where the journal ended, by partition, when all receivers had ended: what is read up to there is the whole input.
    ends: Option<BTreeMap<u32, u64>>,
    started_at: Duration,
    /// When the log last gave something, or the receivers ended, on the monotonic clock.
    heard_at: Duration,
    /// Partitions that step row by row below an offset after a panic.
    pub(crate) stepping: BTreeMap<u32, u64>,
    /// Partitions that somebody else has and the log has not taken away.
    pub(crate) overtaken: BTreeMap<u32, Overtaken>,
    /// Deadline of the drain on the monotonic clock.
    drain_until: Option<Duration>,
    /// Deletions of old checkpoints under way, with their partitions.
    pub(crate) prunes: Vec<(u32, JoinHandle<()>)>,
    /// A savepoint under way.
    pub(crate) saving: Option<Saving>,
}

/// Runs a pipeline to its end, or until it is told to stop. `digest` has a line `part=hash` for each part of the plan that results
/// depend on; it goes into checkpoints, and a start from one with another digest says what has changed. Empty: not known.
///
/// # Errors
/// Why it could not go on. Whatever was acknowledged or marked stays true.
pub async fn run(
    engine: &Engine,
    parts: PipelineParts,
    digest: &str,
    stop: watch::Receiver<bool>,
    status: Arc<Status>,
) -> Result<Report, PipelineError> {
    let PipelineParts { spec, input, sinks } = parts;
    let opened = input::open(engine, &spec, input, &stop, &status).await?;
    let mut coordinator = Coordinator::start(engine, spec, sinks, opened, (digest, Terms::default()), stop, status);
    let outcome = coordinator.work().await;
    coordinator.end(outcome).await
}

impl Coordinator<'_> {
    /// The orderly end after [`Self::work`]; after its failure, or when it was given up, whatever there is to let go of.
    pub(crate) async fn end(mut self, outcome: Result<(), PipelineError>) -> Result<Report, PipelineError> {
        let closed = match outcome {
            Ok(()) => self.close().await,
            Err(error) => Err(error),
        };
        let closed = closed.map_err(|error| self.told_cause(error));
        self.abandon().await;
        if let Err(error) = closed {
            let mut inner = self.status.lock();
            inner.state = State::Failed;
            inner.error = Some(error.to_string());
            return Err(error);
        }
        let state = if self.stopped { State::Stopped } else { State::Finished };
        self.status.lock().state = state;
        let elapsed = self.engine.clock.monotonic().saturating_sub(self.started_at);
        Ok(Report { pipeline: Arc::clone(&self.spec.name), state, elapsed_s: elapsed.as_secs_f64(), ledger: self.status.ledger() })
    }

    /// Handles whatever happens until the pipeline is done. May be dropped, to be given up.
    pub(crate) async fn work(&mut self) -> Result<(), PipelineError> {
        let clock = Arc::clone(&self.engine.clock);
        let mut checkpoints = Beat::new(&*clock, self.spec.checkpoint.interval.max(Duration::from_millis(10)));
        let quarter = self.spec.time.idle_after.map_or(Duration::from_secs(3600), |idle| (idle / 4).max(Duration::from_millis(10)));
        let mut silence = Beat::new(&*clock, quarter);
        let mut hurry = Beat::new(&*clock, HURRY);
        let mut backoff = FIRST_BACKOFF;
        let mut tight = self.engine.tight.clone();
        while !self.is_done() {
            // Not a sleep of its own length: whatever happens meanwhile, such as a checkpoint's time, would begin it anew.
            let silent_left = (self.heard_at + SILENT_END).saturating_sub(clock.monotonic());
            let drain_left = self.drain_until.map(|until| until.saturating_sub(clock.monotonic()));
            let overtaken_left = self.overtaken_left();
            // In a fixed order, so that a run can be repeated: what is rare and short first; then events, of which there are only as
            // many as the log's batches and their commits make; the log, which may always have something, after them.
            tokio::select! {
                biased;
                changed = self.stop.changed(), if !self.stopped => {
                    self.stopped = changed.is_err() || *self.stop.borrow();
                    if self.stopped {
                        self.begin_drain();
                    }
                }
                () = clock.sleep(overtaken_left.unwrap_or_default()), if overtaken_left.is_some() => self.claim_again().await?,
                () = clock.sleep(drain_left.unwrap_or_default()), if drain_left.is_some() => {
                    return Err(PipelineError::DrainDeadline(self.engine.options.drain_deadline));
                }
                () = checkpoints.next(&*clock), if !self.on_trial() => self.checkpoints_due(),
                event = self.events.recv() => self.on_event(event.ok_or(PipelineError::Gone("the event channel"))?).await?,
                () = silence.next(&*clock), if !self.finite && !self.draining && self.spec.time.idle_after.is_some() => self.silent_ticks().await?,
                () = hurry.next(&*clock), if self.must_hurry() => self.all_progress(|_| Fact::RoomWanted),
                // Without a budget the other end is gone, and this branch with it.
                Ok(()) = tight.changed() => {}
                polled = self.log.next(), if !self.draining && !self.input_ended() && !*tight.borrow() => self.on_polled(polled, &mut backoff).await?,
                () = clock.sleep(silent_left), if self.ends.is_some() && !self.draining && self.owned.values().all(|o| !o.paused) => self.end_silent().await?,
            }
        }
        Ok(())
    }

    /// A sink task that is gone has said why.
    fn told_cause(&mut self, error: PipelineError) -> PipelineError {
        if !matches!(error, PipelineError::Gone(_)) {
            return error;
        }
        let told = std::iter::from_fn(|| self.events.try_recv().ok());
        let cause = told.filter_map(|event| match event {
            Event::SinkFailed { sink, error } => Some(PipelineError::Sink { sink, error }),
            _ => None,
        });
        cause.last().unwrap_or(error)
    }

    /// What the log gave; trouble with it is waited out.
    async fn on_polled(&mut self, polled: Result<LogEvent, LogError>, backoff: &mut Duration) -> Result<(), PipelineError> {
        match polled {
            Ok(event) => {
                if std::mem::replace(backoff, FIRST_BACKOFF) > FIRST_BACKOFF {
                    self.status.trouble(LOG, None);
                }
                self.on_log(event).await
            }
            Err(LogError::Retry { context, cause }) => {
                tracing::warn!(pipeline = %self.spec.name, "{context}: {cause}; trying again in {backoff:?}");
                self.status.trouble(LOG, Some(format!("{context}: {cause}")));
                self.engine.clock.sleep(*backoff).await;
                *backoff = (*backoff * 2).min(MAX_BACKOFF);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The journal is full, and checkpoints may be made.
    fn must_hurry(&self) -> bool {
        !self.on_trial() && self.engine.opened_journal().is_some_and(Journal::is_full)
    }

    fn input_ended(&self) -> bool {
        !self.owned.is_empty() && self.owned.values().all(|o| o.ended)
    }

    fn is_done(&self) -> bool {
        self.draining && self.owned.values().all(|o| o.drained)
    }

    async fn on_log(&mut self, event: LogEvent) -> Result<(), PipelineError> {
        match event {
            LogEvent::Assigned(assignments) => {
                for assignment in assignments {
                    self.take_over(assignment).await?;
                }
                self.assigned = true;
                self.note_trial();
                // They may have ended before the partitions were ours, with nothing more to come.
                self.end_after_receivers().await?;
            }
            LogEvent::Revoked(partitions) => self.give_up(&partitions).await,
            LogEvent::Batch(batch) => self.on_batch(batch).await?,
            LogEvent::Lost { partition, next_offset, payloads } => self.on_lost(partition, next_offset, payloads),
            LogEvent::EndOfInput { partition, next_offset } => self.end_input(partition, next_offset).await?,
        }
        Ok(())
    }

    async fn on_batch(&mut self, batch: LogBatch) -> Result<(), PipelineError> {
        let (partition, next_offset) = (batch.partition, batch.next_offset);
        let Some(owned) = self.owned.get_mut(&partition) else { return Ok(()) };
        owned.enqueue_to(next_offset);
        owned.quiet_ticks = 0;
        self.heard_at = self.engine.clock.monotonic();
        let ready = owned.queue.push(Work::Batch(batch));
        if !owned.paused && owned.queue.bytes() >= self.engine.options.queue_bytes {
            owned.paused = true;
            self.log.pause(partition, true);
            self.status.backpressure(partition, self.engine.clock.monotonic(), true);
        }
        if let Some(status) = self.status.lock().partitions.get_mut(&partition) {
            status.read_to = next_offset;
        }
        if ready {
            self.send_token(partition);
        }
        self.end_after_receivers().await
    }

    /// When all receivers have ended, a partition ends where the journal ends.
    async fn end_after_receivers(&mut self) -> Result<(), PipelineError> {
        let Some(ends) = &self.ends else { return Ok(()) };
        let reached =
            |(partition, owned): &(&u32, &Owned)| !owned.ended && ends.get(partition).is_some_and(|end| owned.enqueued.next_offset >= *end);
        let ends: Vec<(u32, u64)> = self.owned.iter().filter(reached).map(|(p, o)| (*p, o.enqueued.next_offset)).collect();
        for (partition, offset) in ends {
            self.end_input(partition, offset).await?;
        }
        Ok(())
    }

    /// The rest of the journal belongs to other pipelines: nothing more comes for this one.
    async fn end_silent(&mut self) -> Result<(), PipelineError> {
        let ends = self.ends.iter().flatten();
        if ends.filter(|(p, _)| self.owned.get(p).is_some_and(|o| !o.ended)).any(|(p, end)| self.log.read_to(*p).is_none_or(|at| at < *end))
        {
            // It was silent because nothing was read: a partition was paused, or the disk is slow.
            self.heard_at = self.engine.clock.monotonic();
            return Ok(());
        }
        let open: Vec<(u32, u64)> = self.owned.iter().filter(|(_, o)| !o.ended).map(|(p, o)| (*p, o.enqueued.next_offset)).collect();
        for (partition, offset) in open {
            self.end_input(partition, offset).await?;
        }
        Ok(())
    }

    async fn end_input(&mut self, partition: u32, next_offset: u64) -> Result<(), PipelineError> {
        let Some(owned) = self.owned.get_mut(&partition).filter(|o| !o.ended) else { return Ok(()) };
        owned.ended = true;
        owned.enqueue_to(next_offset);
        if owned.end_decided.is_none_or(|offset| offset < next_offset) {
            self.decide(partition, decisions::end_of_input(next_offset)).await?;
        }
        if self.input_ended() {
            self.begin_drain();
        }
        Ok(())
    }

    /// Makes a decision durable, then lets the partition carry it out.
    async fn decide(&mut self, partition: u32, decision: fieldstream_checkpoint::Decision) -> Result<(), PipelineError> {
        let Some(owned) = self.owned.get_mut(&partition) else { return Ok(()) };
        owned.store.append_decision(owned.generation, owned.next_decision, &decision).await?;
        owned.next_decision += 1;
        owned.enqueued.next_decision += 1;
        if owned.queue.push(Work::Decide(decision)) {
            self.send_token(partition);
        }
        Ok(())
    }

    /// Time goes on in partitions that nothing has come for. Each tick is a decision; they come ever more rarely.
    async fn silent_ticks(&mut self) -> Result<(), PipelineError> {
        let now_us = self.engine.clock.now_us();
        let mut due = Vec::new();
        for (partition, owned) in self.owned.iter_mut().filter(|(_, o)| o.has_devices && !o.ended && o.is_abreast()) {
            owned.quiet_ticks += 1;
            // After idle_after (four quarters), then every quarter up to twice that, then at doubling distances.
            if (4..=8).contains(&owned.quiet_ticks) || owned.quiet_ticks > 8 && owned.quiet_ticks.is_power_of_two() {
                due.push((*partition, owned.enqueued.next_offset));
            }
        }
        for (partition, offset) in due {
            match self.decide(partition, decisions::tick(offset, now_us)).await {
                // A tick that was not made has not happened. Time goes on at the next one.
                Err(PipelineError::Store(StoreError::Full { context, cause })) => {
                    tracing::warn!(pipeline = %self.spec.name, partition, "time stands still, the disk is full: {context}: {cause}");
                    self.make_room(partition);
                }
                other => other?,
            }
        }
        Ok(())
    }

    pub(crate) fn send_token(&self, partition: u32) {
        let shard = self.engine.shard_of(self.number, partition);
        if shard.try_send(Ready { id: (self.number, partition) }).is_err() {
            // Cannot be full (one token per partition), so the shard is gone: the next event wait will say so.
            tracing::error!(pipeline = %self.spec.name, partition, "the shard takes no tokens");
        }
    }

    async fn on_event(&mut self, event: Event) -> Result<(), PipelineError> {
        match event {
            Event::Partition { partition, generation, what } => {
                if self.owned.get(&partition).is_some_and(|owned| owned.generation == generation) {
                    self.on_partition(partition, what).await?;
                }
            }
            Event::Durable { sink, shares } => self.on_durable(sink, &shares),
            Event::Fenced { sink, partition, generation, error } => {
                if let Some(owned) = self.owned.get(&partition).filter(|owned| owned.generation == generation) {
                    let assignment = owned.assignment.clone();
                    self.overtaken(assignment, PipelineError::Sink { sink, error }).await?;
                }
            }
            Event::SinkFailed { sink, error } => return Err(PipelineError::Sink { sink, error }),
            // Receivers that were told to stop have not ended: what comes after the next start belongs to the same input, and no
            // window may close for it.
            Event::ReceiversDone { .. } if *self.stop.borrow() => {}
            Event::ReceiversDone { ends } => {
                self.ends = Some(ends.into_iter().collect());
                self.heard_at = self.engine.clock.monotonic();
                self.end_after_receivers().await?;
            }
            Event::Savepoint { label, reply } => self.begin_savepoint(label, reply).await,
            Event::ReceiverFailed { source, error } => return Err(PipelineError::Receiver { source_name: source, error }),
        }
        Ok(())
    }

    async fn on_partition(&mut self, partition: u32, what: PartitionEvent) -> Result<(), PipelineError> {
        match what {
            PartitionEvent::Turn { complete_to, totals, meters, active_devices, passivated_devices, event_us } => {
                if let Some(status) = self.status.lock().partitions.get_mut(&partition) {
                    status.complete_to = complete_to;
                    status.unsettled.push_back((complete_to, totals.clone()));
                    status.now = totals;
                    status.meters = meters;
                    status.event_us = event_us.max(status.event_us);
                    (status.active_devices, status.passivated_devices) = (active_devices, passivated_devices);
                }
                let Some(owned) = self.owned.get_mut(&partition) else { return Ok(()) };
                owned.has_devices = active_devices > 0 || passivated_devices > 0;
                if owned.paused && owned.queue.bytes() < self.engine.options.queue_bytes / 2 {
                    owned.paused = false;
                    self.log.pause(partition, false);
                    self.status.backpressure(partition, self.engine.clock.monotonic(), false);
                }
                self.progress(partition, Fact::TurnDone { mark: complete_to });
                self.drain_partition(partition);
            }
            PartitionEvent::Panicked { node, message, position, reached } => {
                self.recover(partition, (node, message), position, reached).await?;
            }
            PartitionEvent::Failed { error } => return Err(PipelineError::Cold { partition, error }),
            PartitionEvent::Snapshot { data, state_bytes } => self.snapshot_taken(partition, *data, state_bytes),
            PartitionEvent::Stored(result) => self.snapshot_stored(partition, result)?,
            PartitionEvent::Committed { at, result } => self.manifest_stored(partition, at, result).await?,
        }
        Ok(())
    }

    fn on_durable(&mut self, sink: usize, shares: &[DurableShare]) {
        for share in shares {
            let partition = share.committed.partition.partition;
            if self.owned.get(&partition).is_none_or(|owned| owned.generation != share.generation) {
                continue;
            }
            if let Some(status) = self.status.lock().sinks.get_mut(sink) {
                *status.accounted.entry(partition).or_default() += share.accounted;
                status.refused.insert(partition, share.committed.refused);
            }
            self.progress(partition, Fact::SinkDurable { sink, mark: share.committed.mark });
        }
        self.note_trial();
        // Output became durable: partitions that waited for room may go on.
        let waiting: Vec<u32> = self.owned.iter().filter(|(_, o)| o.queue.schedule()).map(|(p, _)| *p).collect();
        waiting.into_iter().for_each(|partition| self.send_token(partition));
    }

    fn begin_drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        self.status.lock().state = State::Draining;
        if self.stopped {
            self.drain_until = Some(self.engine.clock.monotonic() + self.engine.options.drain_deadline);
        }
        for sink in &self.sinks {
            // A sink that is gone has reported why.
            let _ = sink.work.send(SinkWork::Flush);
        }
        let partitions: Vec<u32> = self.owned.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.drain_partition(partition));
    }

    /// A partition that is restored must be read again, even if the whole input had been read. False when the pipeline was
    /// told to stop.
    pub(crate) fn resume_reading(&mut self) -> bool {
        if self.draining && !self.stopped {
            self.draining = false;
            self.status.lock().state = State::Running;
        }
        !self.stopped
    }

    /// When a draining partition has handled all that was read, it finishes with a checkpoint.
    fn drain_partition(&mut self, partition: u32) {
        let done = self.status.lock().partitions.get(&partition).map(|s| s.complete_to);
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        if self.draining && !owned.drain_asked && done == Some(owned.enqueued) {
            owned.drain_asked = true;
            self.progress(partition, Fact::Drain);
        }
    }

    /// The orderly end: sinks close, partitions are released.
    async fn close(&mut self) -> Result<(), PipelineError> {
        for sink in &self.sinks {
            let (reply, closed) = oneshot::channel();
            if sink.work.send(SinkWork::Close { reply }).is_ok() {
                let outcome = closed.await.map_err(|_| PipelineError::Gone("a sink task"))?;
                outcome.map_err(|error| PipelineError::Sink { sink: Arc::clone(&sink.name), error })?;
            }
        }
        // The marks of a replay are there before its rows are counted: what a sink told last has not been heard yet.
        while let Ok(event) = self.events.try_recv() {
            if let Event::Durable { sink, shares } = event {
                self.on_durable(sink, &shares);
            }
        }
        for owned in self.owned.values() {
            owned.store.release(owned.generation).await?;
        }
        Ok(())
    }

    async fn abandon(&mut self) {
        for partition in self.owned.keys() {
            let shard = self.engine.shard_of(self.number, *partition);
            // A shard that is gone hosts nothing.
            let _ = shard.send(Remove { id: (self.number, *partition) }).await;
        }
        // A sink lets go of its locks and connections when its task is gone: who comes next may need them.
        for sink in self.sinks.drain(..) {
            sink.task.abort();
            let _ = within(&*self.engine.clock, self.engine.options.drain_deadline, sink.task).await;
        }
        // The runtime would cut them off in the middle, which harms nothing but looks like a failure.
        let prunes = futures::future::join_all(self.prunes.drain(..).map(|(_, prune)| prune));
        let _ = within(&*self.engine.clock, self.engine.options.drain_deadline, prunes).await;
    }
}
