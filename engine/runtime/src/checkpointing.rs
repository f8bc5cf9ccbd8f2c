//! The coordinator's effects for the checkpoint protocol: it asks [`Progress`](fieldstream_checkpoint::Progress) and does as told.

use std::time::Duration;

use fieldstream_checkpoint::{Action, CheckpointData, CheckpointId, Fact, Layer, PartitionStore, PendingCheckpoint, StoreError};
use fieldstream_engine_api::{Generation, Mark};

use crate::error::PipelineError;
use crate::event::{Event, PartitionEvent};
use crate::pipeline::Coordinator;
use crate::queue::Work;
use crate::snapshot::SnapshotKind;

/// The part of the node that has trouble when checkpoints cannot be stored.
const CHECKPOINTS: &str = "checkpoints";

/// A full store is looked through for what can go at most so often.
const ROOM_AGAIN: Duration = Duration::from_secs(2);

impl Coordinator<'_> {
    /// Tells every partition's protocol a fact.
    pub(crate) fn all_progress(&mut self, fact: impl Fn(u32) -> Fact) {
        let partitions: Vec<u32> = self.owned.keys().copied().collect();
        partitions.into_iter().for_each(|partition| self.progress(partition, fact(partition)));
    }

    /// The interval is over.
    pub(crate) fn checkpoints_due(&mut self) {
        self.all_progress(|_| Fact::SnapshotDue);
        // Once after each take-over also where no checkpoint is made, since sinks may wait for the very room that earlier owners' take.
        let (now, grace) = (self.engine.clock.monotonic(), self.engine.options.prune_grace);
        let left = self.owned.iter().filter(|(_, owned)| now >= owned.claimed + grace && owned.pruned < owned.claimed + grace);
        let left: Vec<u32> = left.map(|(partition, _)| *partition).collect();
        left.into_iter().for_each(|partition| self.prune(partition, self.spec.checkpoint.keep));
    }

    /// Tells a partition's protocol a fact and starts what it asks for.
    pub(crate) fn progress(&mut self, partition: u32, fact: Fact) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let actions = owned.progress.on(fact);
        let settled = owned.progress.settled();
        if let Some(status) = self.status.lock().partitions.get_mut(&partition) {
            status.settle(settled);
        }
        for action in actions {
            self.act(partition, action);
        }
    }

    fn act(&mut self, partition: u32, action: Action) {
        let events = self.outlet.events.clone();
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let (store, generation) = (owned.store.clone(), owned.generation);
        match action {
            Action::TakeSnapshot => {
                if let Some(status) = self.status.lock().partitions.get_mut(&partition) {
                    status.snapshot_asked = Some(self.engine.clock.monotonic());
                }
                let kind = match std::mem::take(&mut owned.retake) {
                    _ if owned.layers.is_empty() => SnapshotKind::Whole,
                    true => SnapshotKind::Retake,
                    false => SnapshotKind::Changes,
                };
                if owned.queue.push(Work::Snapshot(kind)) {
                    self.send_token(partition);
                }
            }
            Action::StoreSnapshot { .. } => {
                let Some(data) = owned.snapshot.take() else { return };
                let (number, below) = (owned.next_checkpoint, owned.layers.clone());
                owned.next_checkpoint += 1;
                tokio::spawn(async move {
                    let result = store.write(generation, number, &data, &below).await;
                    // The coordinator is gone only when the pipeline has ended.
                    let what = PartitionEvent::Stored(result);
                    let _ = events.send(Event::Partition { partition, generation, what });
                });
            }
            Action::StoreManifest { at } => {
                let Some(pending) = owned.pending.take() else { return };
                tokio::spawn(async move {
                    let result = commit_as_owner(&store, generation, &pending).await.map(|id| (id, pending.layers().to_vec()));
                    let what = PartitionEvent::Committed { at, result };
                    let _ = events.send(Event::Partition { partition, generation, what });
                });
            }
            // An owner that was overtaken may still be reading what would go; the next checkpoint prunes as well.
            Action::Prune { .. } if self.engine.clock.monotonic().saturating_sub(owned.claimed) < self.engine.options.prune_grace => {}
            Action::Prune { keep } => self.prune(partition, keep),
            Action::Acknowledge { offset } => owned.acknowledge = Some(offset),
            Action::Drained => owned.drained = true,
        }
    }

    fn prune(&mut self, partition: u32, keep: usize) {
        let Some(owned) = self.owned.get_mut(&partition) else { return };
        let (store, generation, pipeline) = (owned.store.clone(), owned.generation, self.spec.name.clone());
        owned.pruned = self.engine.clock.monotonic();
        self.prunes.retain(|(_, prune)| !prune.is_finished());
        // Two at once would each look for what the other has deleted. What is left now goes after the next checkpoint.
        if self.prunes.iter().any(|(own, _)| *own == partition) {
            return;
        }
        let prune = tokio::spawn(async move {
            if let Err(error) = store.prune(generation, keep).await {
                tracing::warn!(%pipeline, partition, "old checkpoints could not be deleted: {error}");
            }
        });
        self.prunes.push((partition, prune));
    }

    /// The disk is full, and no checkpoint will be stored after which old ones go: they go now. An overtaken owner that still reads
    /// one of them learns that it has been overtaken.
    pub(crate) fn make_room(&mut self, partition: u32) {
        let now = self.engine.clock.monotonic();
        if self.owned.get(&partition).is_some_and(|owned| now.saturating_sub(owned.pruned) >= ROOM_AGAIN) {
            self.prune(partition, self.spec.checkpoint.keep);
        }
    }

    pub(crate) fn snapshot_taken(&mut self, partition: u32, data: CheckpointData, state_bytes: usize) {
        let at = data.at;
        if let Some(status) = self.status.lock().partitions.get_mut(&partition) {
            status.state_bytes = state_bytes;
        }
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.snapshot = Some(data);
        }
        self.progress(partition, Fact::SnapshotTaken { at });
    }

    pub(crate) fn snapshot_stored(&mut self, partition: u32, result: Result<PendingCheckpoint, StoreError>) -> Result<(), PipelineError> {
        match result {
            Ok(pending) => {
                let at = pending.at();
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.pending = Some(pending);
                }
                self.progress(partition, Fact::SnapshotStored { at });
                Ok(())
            }
            Err(error) => self.store_failed(partition, error),
        }
    }

    pub(crate) async fn manifest_stored(
        &mut self,
        partition: u32,
        at: Mark,
        result: Result<(CheckpointId, Vec<Layer>), StoreError>,
    ) -> Result<(), PipelineError> {
        match result {
            Ok((id, layers)) => {
                if let Some(owned) = self.owned.get_mut(&partition) {
                    owned.layers = layers;
                }
                self.status.trouble(CHECKPOINTS, None);
                self.note_checkpoint(partition, at);
                self.progress(partition, Fact::ManifestStored { id, at });
                self.label_checkpoint(partition, id, at).await;
            }
            Err(error) => self.store_failed(partition, error)?,
        }
        let acknowledge = self.owned.get_mut(&partition).and_then(|owned| owned.acknowledge.take());
        if let Some(offset) = acknowledge
            && let Err(error) = self.log.acknowledge(partition, offset).await
        {
            tracing::warn!(pipeline = %self.spec.name, partition, "the log was not told that a checkpoint holds: {error}");
        }
        Ok(())
    }

    fn note_checkpoint(&self, partition: u32, at: Mark) {
        let now = self.engine.clock.monotonic();
        let mut guard = self.status.lock();
        let inner = &mut *guard;
        let Some(status) = inner.partitions.get_mut(&partition) else { return };
        (status.checkpoint, status.checkpoint_at_s) = (Some(at), Some(now.as_secs_f64()));
        if let Some(asked) = status.snapshot_asked.take() {
            inner.checkpoints.observe(now.saturating_sub(asked));
        }
    }

    fn store_failed(&mut self, partition: u32, error: StoreError) -> Result<(), PipelineError> {
        if matches!(error, StoreError::Fenced { .. }) || self.owned.get(&partition).is_some_and(|o| o.drain_asked) {
            return Err(error.into());
        }
        tracing::warn!(pipeline = %self.spec.name, partition, "checkpoint failed, the next one tries again: {error}");
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.retake = true;
            if matches!(error, StoreError::Damaged { .. }) {
                // A layer that the next one would lie over cannot be read: everything is in memory still, and is written anew.
                owned.layers.clear();
            }
        }
        if matches!(error, StoreError::Full { .. }) {
            self.make_room(partition);
        }
        self.status.trouble(CHECKPOINTS, Some(format!("partition {partition}: {error}")));
        self.progress(partition, Fact::StoreFailed);
        Ok(())
    }
}

/// Makes a checkpoint true. A newer owner that had claimed the partition before may not have seen it, and then it is void: the log
/// must not be told of it. One that claims later sees it.
async fn commit_as_owner(store: &PartitionStore, generation: Generation, pending: &PendingCheckpoint) -> Result<CheckpointId, StoreError> {
    let id = store.commit(pending).await?;
    store.check_owner(generation).await?;
    Ok(id)
}
