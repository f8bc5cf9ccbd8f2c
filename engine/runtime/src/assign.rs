//! Taking a partition over: claim, fence and read marks, restore, adopt, re-inject decisions, seek.

use std::sync::Arc;

use fieldstream_checkpoint::cold::ColdStore;
use fieldstream_checkpoint::{CheckpointData, Decision, PartitionStore, PendingCheckpoint, Progress};
use fieldstream_engine_api::{Assignment, Committed, Generation, LogError, Mark, PartitionKey, Position};
use tokio::sync::oneshot;

use crate::error::PipelineError;
use crate::ledger::Totals;
use crate::partition::Partition;
use crate::pipeline::Coordinator;
use crate::queue::{PartitionQueue, Work};
use crate::shard::{Host, Outlet, Remove};
use crate::sink_task::SinkWork;
use crate::status::PartitionStatus;

/// A restart from one checkpoint after so many crashes in a row is said loudly.
const SUSPICIOUS_RESTARTS: u32 = 3;

/// A partition this coordinator owns.
pub(crate) struct Owned {
    pub(crate) queue: Arc<PartitionQueue>,
    pub(crate) generation: Generation,
    pub(crate) store: PartitionStore,
    pub(crate) progress: Progress,
    pub(crate) next_checkpoint: u64,
    pub(crate) snapshot: Option<CheckpointData>,
    pub(crate) pending: Option<PendingCheckpoint>,
    pub(crate) acknowledge: Option<u64>,
    /// What turns will have reached when the queue is empty.
    pub(crate) enqueued: Mark,
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
    assignment: Assignment,
    /// Position of the last panic recovered from.
    recovered_at: Option<Mark>,
}

impl Coordinator<'_> {
    pub(crate) async fn assign(&mut self, assignment: Assignment) -> Result<(), PipelineError> {
        let partition = assignment.partition;
        if self.terms.logs.as_ref().is_some_and(|logs| !logs.contains(&assignment.log_id)) {
            return Err(PipelineError::OtherLog { partition, found: assignment.log_id });
        }
        let key = PartitionKey { pipeline: Arc::clone(&self.spec.name), log_id: assignment.log_id.clone(), partition };
        let store = self.engine.store.partition(&key);
        let claim = store.claim().await?;
        if claim.restarts >= SUSPICIOUS_RESTARTS {
            tracing::warn!(partition = %key, restarts = claim.restarts, "the process has ended several times since this checkpoint; a row may be killing it");
        }
        let marks = self.open_sinks(&key, claim.generation).await?;
        let folder = store.cold_folder(&self.engine.options.data_dir.join("cold"), claim.generation)?;
        let cold = ColdStore::create(&folder, &format!("{:020}", claim.generation.0))?;
        let restored = store.latest(Some(&folder)).await?;
        restored.notes.iter().for_each(|note| tracing::error!(partition = %key, "{note}"));
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
        check_positions(&assignment, start, &marks)?;
        let mut decisions = store.decisions_from(start.next_decision).await?;
        let mut decided = start.next_decision + decisions.len() as u64;
        store.adopt(claim.generation, restored.checkpoint.as_ref().map(|c| c.id), decided).await?;
        if let Some(checkpoint) = &restored.checkpoint
            && let Some(plan) = self.plan_change(&checkpoint.data.plan_digest, &decisions, start, &lost)
        {
            store.append_decision(claim.generation, decided, &plan).await?;
            decisions.push(plan);
            decided += 1;
        }
        let end_decided = decisions.iter().filter(|d| d.kind == crate::decisions::END_OF_INPUT).map(|d| d.position.offset).max();
        let replays = !decisions.is_empty();
        hosted.set_replay(decisions);
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
        let owned = Owned {
            queue: Arc::clone(&queue),
            generation: claim.generation,
            store,
            progress,
            next_checkpoint: 0,
            snapshot: None,
            pending: None,
            acknowledge: None,
            enqueued: Mark { next_decision: decided, ..start },
            taken_at: Mark { next_decision: decided, ..start },
            paused: false,
            ended: false,
            end_decided,
            drain_asked: false,
            drained: false,
            has_devices: hosted.slots().active_devices() > 0 || hosted.passivated_devices() > 0,
            quiet_ticks: 0,
            recovered_at: None,
            assignment,
        };
        self.owned.insert(partition, owned);
        let outlet = Outlet { generation: claim.generation, ..self.outlet.clone() };
        let host = Host { id: (self.number, partition), partition: Box::new(hosted), queue, outlet, turn: self.spec.turn };
        self.engine.shard_of(self.number, partition).send(host).await.map_err(|_| PipelineError::Gone("a shard"))?;
        if replays && self.owned.get(&partition).is_some_and(|owned| owned.queue.push(Work::CatchUp)) {
            self.send_token(partition);
        }
        self.log.seek(partition, start.next_offset).await?;
        tracing::info!(partition = %key, generation = %claim.generation, from = %start, "partition taken over");
        Ok(())
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
    fn plan_change(&self, saved: &str, decisions: &[Decision], start: Mark, lost: &[String]) -> Option<Decision> {
        let (before, now) = (crate::decisions::plan_in_force(saved, decisions), &*self.outlet.digest);
        let changed = crate::digest::changes(before, now).is_some() || !lost.is_empty();
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
            paused_for: std::time::Duration::ZERO,
            state_bytes: 0,
            active_devices: hosted.slots().active_devices(),
            passivated_devices: hosted.passivated_devices(),
            checkpoint: None,
            checkpoint_at_s: None,
            snapshot_asked: None,
        };
        inner.partitions.insert(key.partition, status);
    }

    /// Gives a partition up: what its sinks have not committed is forgotten here and replayed by the next owner.
    pub(crate) async fn revoke(&mut self, partition: u32) {
        let Some(owned) = self.owned.remove(&partition) else { return };
        owned.queue.clear();
        // A shard that is gone hosts nothing.
        let _ = self.engine.shard_of(self.number, partition).send(Remove { id: (self.number, partition) }).await;
        for sink in &self.sinks {
            let _ = sink.work.send(SinkWork::Forget { partition });
        }
        self.forget_status(partition);
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
        node: String,
        message: String,
        position: Option<Position>,
    ) -> Result<(), PipelineError> {
        let at = self.status.lock().partitions.get(&partition).map(|s| s.complete_to);
        let Some(owned) = self.owned.get_mut(&partition) else { return Ok(()) };
        match position {
            Some(position) => {
                tracing::error!(pipeline = %self.spec.name, partition, node, ?position, "a row made the operator panic and goes to the dead letter: {message}");
                let decision = crate::decisions::quarantine(position, &node, &message);
                owned.store.append_decision(owned.generation, owned.enqueued.next_decision, &decision).await?;
            }
            None if self.stepping.contains_key(&partition) && owned.recovered_at == at => {
                return Err(PipelineError::Panic { partition, node, message });
            }
            None => {
                tracing::error!(pipeline = %self.spec.name, partition, node, "an operator panicked: {message}; the partition is restored and steps row by row");
                self.stepping.insert(partition, owned.enqueued.next_offset);
            }
        }
        let assignment = owned.assignment.clone();
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

fn check_positions(assignment: &Assignment, start: Mark, marks: &[Option<Committed>]) -> Result<(), PipelineError> {
    let partition = assignment.partition;
    if start.next_offset < assignment.first_offset {
        let (wanted, first_offset) = (start.next_offset, assignment.first_offset);
        return Err(LogError::Truncated { partition, wanted, first_offset }.into());
    }
    let furthest = marks.iter().flatten().map(|m| m.mark.next_offset).max().unwrap_or_default().max(start.next_offset);
    if furthest > assignment.end_offset {
        let what = format!(
            "output was committed up to offset {furthest}, but the log ends at {}; it is not the log it was. Point the pipeline at the right log, or start anew with another pipeline name",
            assignment.end_offset
        );
        return Err(PipelineError::Position { partition, what });
    }
    Ok(())
}

fn join(errors: &[fieldstream_engine_api::ConfigError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
