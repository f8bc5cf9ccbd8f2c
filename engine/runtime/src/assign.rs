//! Taking a partition over: claim, fence and read marks, restore, adopt, re-inject decisions, seek.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_checkpoint::cold::ColdStore;
use fieldstream_checkpoint::{CheckpointData, Decision, Layer, PartitionStore, PendingCheckpoint, Progress, Restored, StoreError};
use fieldstream_engine_api::{Assignment, Committed, Generation, LogError, Mark, PartitionKey, Position};
use tokio::sync::oneshot;

use crate::error::PipelineError;
use crate::gap::Wanted;
use crate::ledger::Totals;
use crate::partition::Partition;
use crate::pipeline::Coordinator;
use crate::queue::{PartitionQueue, Work};
use crate::shard::{Host, Outlet, Remove};
use crate::sink_task::SinkWork;
use crate::status::PartitionStatus;

/// A restart from one checkpoint after so many crashes in a row is said loudly.
const SUSPICIOUS_RESTARTS: u32 = 3;

/// A log that does not say where a partition is now is asked again, at doubling distances up to the last.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(10);

/// A partition this coordinator owns.
pub(crate) struct Owned {
    pub(crate) queue: Arc<PartitionQueue>,
    pub(crate) generation: Generation,
    pub(crate) store: PartitionStore,
    pub(crate) progress: Progress,
    pub(crate) next_checkpoint: u64,
    pub(crate) snapshot: Option<CheckpointData>,
    pub(crate) pending: Option<PendingCheckpoint>,
    /// Layers of the newest checkpoint, oldest first; none: the next snapshot is whole.
    pub(crate) layers: Vec<Layer>,
    /// The snapshot before came to nothing.
    pub(crate) retake: bool,
    /// When it was claimed, on the monotonic clock.
    pub(crate) claimed: std::time::Duration,
    /// When it was last looked through for what can go.
    pub(crate) pruned: std::time::Duration,
    pub(crate) acknowledge: Option<u64>,
    /// What turns will have reached when the queue is empty.
    pub(crate) enqueued: Mark,
    /// Number of the next decision that is made.
    pub(crate) next_decision: u64,
    /// Offsets of the decisions that are still to be replayed, in their order.
    replay: VecDeque<u64>,
    /// Below it everything has happened already, and some sink may have it: no new decision may be put there.
    replays_to: u64,
    pub(crate) paused: bool,
    pub(crate) ended: bool,
    /// Offset of the last end of input that is decided already and is being replayed.
    pub(crate) end_decided: Option<u64>,
    pub(crate) drain_asked: bool,
    pub(crate) drained: bool,
    pub(crate) has_devices: bool,
    pub(crate) quiet_ticks: u64,
    /// Where it stood when it was taken over, all decisions up to then included.
    pub(crate) taken_at: Mark,
    pub(crate) assignment: Assignment,
    /// Position of the last panic recovered from.
    recovered_at: Option<Mark>,
}

impl Owned {
    /// A partition that has just been taken over, with nothing to replay.
    fn new(assignment: Assignment, queue: Arc<PartitionQueue>, generation: Generation, store: PartitionStore, progress: Progress) -> Self {
        Self {
            queue,
            generation,
            store,
            progress,
            next_checkpoint: 0,
            snapshot: None,
            pending: None,
            layers: Vec::new(),
            retake: false,
            claimed: Duration::ZERO,
            pruned: Duration::ZERO,
            acknowledge: None,
            enqueued: Mark::default(),
            next_decision: 0,
            replay: VecDeque::new(),
            replays_to: 0,
            paused: false,
            ended: false,
            end_decided: None,
            drain_asked: false,
            drained: false,
            has_devices: false,
            quiet_ticks: 0,
            taken_at: Mark::default(),
            assignment,
            recovered_at: None,
        }
    }

    /// Payloads below `next_offset` are in the queue, and with them the decisions of a replay that lie among them.
    pub(crate) fn enqueue_to(&mut self, next_offset: u64) {
        self.enqueued.next_offset = next_offset;
        while self.replay.pop_front_if(|offset| *offset <= next_offset).is_some() {
            self.enqueued.next_decision += 1;
        }
    }

    /// True when what happens now has not happened before.
    pub(crate) fn is_abreast(&self) -> bool {
        self.enqueued.next_offset >= self.replays_to
    }
}

/// What was read. What a newer owner deletes looks damaged to the one it has overtaken.
pub(crate) async fn or_overtaken<T>(store: &PartitionStore, generation: Generation, read: Result<T, StoreError>) -> Result<T, StoreError> {
    match read {
        Err(error) => Err(store.check_owner(generation).await.err().unwrap_or(error)),
        read => read,
    }
}

impl Coordinator<'_> {
    pub(crate) async fn assign(&mut self, mut assignment: Assignment) -> Result<(), PipelineError> {
        let partition = assignment.partition;
        if self.terms.logs.as_ref().is_some_and(|logs| !logs.contains(&assignment.log_id)) {
            return Err(PipelineError::OtherLog { partition, found: assignment.log_id });
        }
        let key = PartitionKey { pipeline: Arc::clone(&self.spec.name), log_id: assignment.log_id.clone(), partition };
        let store = self.engine.store.partition(&key);
        let other_logs = self.other_logs(&store, &assignment).await?;
        let claim = store.claim().await?;
        warn_of_restarts(&key, claim.restarts);
        let marks = self.open_sinks(&key, claim.generation).await?;
        let (cold, restored) = self.newest(&store, claim.generation).await?;
        let mut hosted = Partition::new(&self.spec, &key, self.log.start_offset(&assignment), Arc::clone(&self.engine.clock))
            .map_err(|errors| PipelineError::Build(join(&errors)))?
            .with_cold_store(cold, self.spec.max_active_devices);
        let changed = restored.checkpoint.as_ref().is_some_and(|checkpoint| self.note_changes(&checkpoint.data.plan_digest));
        let mut lost = Vec::new();
        if let Some(checkpoint) = &restored.checkpoint {
            lost = hosted.restore(checkpoint, self.terms.accept_state_loss).map_err(|error| PipelineError::Restore { partition, error })?;
            self.note_lost(&lost);
        }
        let start = hosted.complete_to();
        let furthest = self.check_end(&mut assignment, start, &marks).await?;
        let wanted = Wanted::new(&restored, start, &marks, other_logs);
        let mut decisions = self.adopt(&store, claim.generation, &restored, &assignment, start, wanted).await?;
        if let Some(plan) = self.plan_change(&restored, &decisions, start, &lost) {
            store.append_decision(claim.generation, start.next_decision + decisions.len() as u64, &plan).await?;
            decisions.push(plan);
        }
        let decided = start.next_decision + decisions.len() as u64;
        let end_decided = decisions.iter().filter(|d| d.kind == crate::decisions::END_OF_INPUT).map(|d| d.position.offset).max();
        let replay: VecDeque<u64> = decisions.iter().map(|d| d.position.offset).collect();
        let (replays, replays_to) = (!replay.is_empty(), replay.iter().copied().max().unwrap_or_default().max(furthest));
        hosted.set_replay(decisions);
        let from = hosted.complete_to().next_offset;
        hosted.step_below(self.stepping.get(&partition).copied().unwrap_or_default());
        let sink_marks = marks.iter().map(|mark| mark.as_ref().map_or(start, |committed| committed.mark)).collect();
        let mut progress = Progress::new(start, sink_marks, restored.kept, self.spec.checkpoint.keep);
        if changed {
            progress.renew();
        }
        if let Some(oldest) = progress.oldest() {
            self.log.acknowledge(partition, oldest.next_offset).await?;
        }
        let queue = Arc::new(PartitionQueue::default());
        self.show(&key, &hosted, &queue, &marks);
        let mut owned = Owned {
            // What was left out still lies in them: the next snapshot is whole, so that it does not come back.
            layers: if lost.is_empty() { restored.layers } else { Vec::new() },
            claimed: self.engine.clock.monotonic(),
            enqueued: start,
            taken_at: Mark { next_decision: decided, ..start },
            next_decision: decided,
            replay,
            replays_to,
            end_decided,
            has_devices: hosted.slots().active_devices() > 0 || hosted.passivated_devices() > 0,
            ..Owned::new(assignment, Arc::clone(&queue), claim.generation, store, progress)
        };
        owned.enqueue_to(from);
        self.owned.insert(partition, owned);
        self.host(hosted, queue, claim.generation, replays).await?;
        self.seek(partition, from).await?;
        tracing::info!(partition = %key, generation = %claim.generation, from = %start, "partition taken over");
        Ok(())
    }

    /// The newest readable checkpoint, and a cold store in whose folder its cold files lie.
    async fn newest(&self, store: &PartitionStore, generation: Generation) -> Result<(ColdStore, Restored), PipelineError> {
        let folder = store.cold_folder(&self.engine.options.data_dir.join("cold"), generation)?;
        let cold = ColdStore::create(&folder, &format!("{:020}", generation.0))?;
        let restored = or_overtaken(store, generation, store.latest(Some(&folder)).await).await?;
        restored.notes.iter().for_each(|note| tracing::error!(partition = %store.key(), "{note}"));
        Ok((cold, restored))
    }

    /// Gives a partition to its shard; with a replay it has to do at once what was decided where it begins.
    async fn host(
        &self,
        hosted: Partition,
        queue: Arc<PartitionQueue>,
        generation: Generation,
        replays: bool,
    ) -> Result<(), PipelineError> {
        let ready = replays && queue.push(Work::CatchUp);
        let partition = hosted.key().partition;
        let outlet = Outlet { generation, ..self.outlet.clone() };
        let host = Host { id: (self.number, partition), partition: Box::new(hosted), queue, outlet, turn: self.spec.turn };
        self.engine.shard_of(self.number, partition).send(host).await.map_err(|_| PipelineError::Gone("a shard"))?;
        if ready {
            self.send_token(partition);
        }
        Ok(())
    }

    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            match self.log.seek(partition, offset).await {
                Err(LogError::Retry { context, cause }) if backoff < LAST_BACKOFF => {
                    tracing::warn!(pipeline = %self.spec.name, "{context}: {cause}; trying again in {backoff:?}");
                    self.engine.clock.sleep(backoff).await;
                    backoff *= 2;
                }
                done => return done,
            }
        }
    }

    /// Says once, not for every partition, that the plan is another one than that of the checkpoint.
    fn note_changes(&self, saved: &str) -> bool {
        let Some(changes) = crate::digest::changes(saved, &self.outlet.digest) else { return false };
        if self.status.lock().plan_changes.replace(changes.clone()).is_none() {
            tracing::warn!(
                pipeline = %self.spec.name,
                "the pipeline has changed since its last checkpoint: {changes}. Operators keep the state that was saved under their names; what has changed holds from here on"
            );
        }
        true
    }

    /// Says once, not for every partition, which state was left out.
    fn note_lost(&self, lost: &[String]) {
        for state in lost {
            if self.status.lock().plan.lost.insert(state.clone()) {
                tracing::warn!(pipeline = %self.spec.name, "state was left out, as accepted: {state}");
            }
        }
    }

    /// The decision that this plan holds from here on, where another one held before.
    fn plan_change(&self, restored: &Restored, decisions: &[Decision], start: Mark, lost: &[String]) -> Option<Decision> {
        let saved = &restored.checkpoint.as_ref()?.data.plan_digest;
        let (before, now) = (crate::decisions::plan_in_force(saved, decisions), &*self.outlet.digest);
        // A restore after a panic leaves the same out again: that is no news.
        let told = || decisions.iter().any(|decision| crate::decisions::is_plan(decision, now, lost));
        let changed = crate::digest::changes(before, now).is_some() || !lost.is_empty() && !told();
        // Decisions are carried out in the order of their numbers, so it cannot lie before the last one.
        let offset = decisions.iter().map(|decision| decision.position.offset).fold(start.next_offset, u64::max);
        changed.then(|| crate::decisions::plan(offset, before, now, lost))
    }

    async fn open_sinks(&self, key: &PartitionKey, generation: Generation) -> Result<Vec<Option<Committed>>, PipelineError> {
        let mut marks = Vec::with_capacity(self.sinks.len());
        for sink in &self.sinks {
            let (reply, opened) = oneshot::channel();
            let asked = sink.work.send(SinkWork::Open { key: key.clone(), generation, reply });
            asked.map_err(|_| PipelineError::Gone("a sink task"))?;
            let mark = opened.await.map_err(|_| PipelineError::Gone("a sink task"))?;
            marks.push(mark.map_err(|error| PipelineError::Sink { sink: Arc::clone(&sink.name), error })?);
        }
        Ok(marks)
    }

    fn show(&self, key: &PartitionKey, hosted: &Partition, queue: &Arc<PartitionQueue>, marks: &[Option<Committed>]) {
        let mut inner = self.status.lock();
        let totals: Totals = hosted.totals().clone();
        for ((sink, offered), mark) in inner.sinks.iter_mut().zip(&totals.offered).zip(marks) {
            sink.accounted.insert(key.partition, *offered);
            sink.refused.insert(key.partition, mark.as_ref().map_or(0, |m| m.refused));
        }
        inner.operators = hosted.graph().meters().map(|(name, kind, _)| (Arc::clone(name), kind)).collect();
        let status = PartitionStatus {
            log_id: key.log_id.clone(),
            queue: Arc::clone(queue),
            complete_to: hosted.complete_to(),
            read_to: hosted.complete_to().next_offset,
            settled: totals.clone(),
            now: totals,
            unsettled: std::collections::VecDeque::new(),
            meters: Vec::new(),
            event_us: None,
            paused_since: None,
            paused_for: Duration::ZERO,
            state_bytes: 0,
            active_devices: hosted.slots().active_devices(),
            passivated_devices: hosted.passivated_devices(),
            checkpoint: None,
            checkpoint_at_s: None,
            snapshot_asked: None,
        };
        inner.partitions.insert(key.partition, status);
    }

    /// Gives a partition up: what its sinks have not committed is forgotten here and replayed by the next owner. Gives what each
    /// sink tells when it has forgotten.
    pub(crate) async fn revoke(&mut self, partition: u32) -> Vec<oneshot::Receiver<()>> {
        let mut forgotten = Vec::with_capacity(self.sinks.len());
        let Some(owned) = self.owned.remove(&partition) else { return forgotten };
        self.forget_savepoint(partition);
        owned.queue.clear();
        // A shard that is gone hosts nothing.
        let _ = self.engine.shard_of(self.number, partition).send(Remove { id: (self.number, partition) }).await;
        for sink in &self.sinks {
            let (done, heard) = oneshot::channel();
            let _ = sink.work.send(SinkWork::Forget { partition, done });
            forgotten.push(heard);
        }
        self.forget_status(partition);
        forgotten
    }

    fn forget_status(&self, partition: u32) {
        let mut inner = self.status.lock();
        inner.partitions.remove(&partition);
        for sink in &mut inner.sinks {
            sink.accounted.remove(&partition);
            sink.refused.remove(&partition);
        }
    }

    /// A turn panicked: the partition goes back to its checkpoint, replays, and steps through the batch row by row. The row
    /// that panics then is put into quarantine by a decision, and everything else goes on.
    pub(crate) async fn recover(
        &mut self,
        partition: u32,
        (node, message): (String, String),
        position: Option<Position>,
        reached: u64,
    ) -> Result<(), PipelineError> {
        let at = self.status.lock().partitions.get(&partition).map(|s| s.complete_to);
        let Some(owned) = self.owned.get_mut(&partition) else { return Ok(()) };
        match position {
            Some(position) => {
                tracing::error!(pipeline = %self.spec.name, partition, node, ?position, "a row made the operator panic and goes to the dead letter: {message}");
                let decision = crate::decisions::quarantine(position, &node, &message);
                owned.store.append_decision(owned.generation, owned.next_decision, &decision).await?;
            }
            // All its rows were stepped, so that it was none of them.
            None if self.stepping.get(&partition).is_some_and(|below| *below >= reached) && owned.recovered_at == at => {
                return Err(PipelineError::Panic { partition, node, message });
            }
            None => {
                tracing::error!(pipeline = %self.spec.name, partition, node, "an operator panicked: {message}; the partition is restored and steps row by row");
                self.stepping.insert(partition, owned.enqueued.next_offset);
            }
        }
        let mut assignment = owned.assignment.clone();
        assignment.end_offset = assignment.end_offset.max(owned.enqueued.next_offset);
        self.status.lock().restarts += 1;
        self.revoke(partition).await;
        if !self.resume_reading() {
            // Told to stop: the next start replays from the checkpoint.
            return Ok(());
        }
        self.assign(assignment).await?;
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.recovered_at = at;
        }
        Ok(())
    }
}

fn warn_of_restarts(partition: &PartitionKey, restarts: u32) {
    if restarts >= SUSPICIOUS_RESTARTS {
        tracing::warn!(%partition, restarts, "the process has ended several times since this checkpoint; a row may be killing it");
    }
}

fn join(errors: &[fieldstream_engine_api::ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
