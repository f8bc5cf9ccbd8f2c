//! Giving partitions up: because the log takes them away, or because somebody else has them already.

use std::time::Duration;

use fieldstream_checkpoint::StoreError;
use fieldstream_engine_api::{Assignment, SinkError};
use futures::future::join_all;

use crate::clock::within;
use crate::error::PipelineError;
use crate::pipeline::Coordinator;

/// How long sinks may take to end what they are committing of a partition that is taken away. Whoever takes it reads marks, so
/// what comes later is not there twice; but it holds up the one who takes it.
const SINKS: Duration = Duration::from_secs(5);
/// How long after another owner was met a partition is claimed again that the log still says is ours. Longer than a group's usual
/// session, so that a worker which the group has given up learns of it before.
const AGAIN: Duration = Duration::from_secs(20);
/// Other owners that are met in a row before only a person can tell who is right.
const OWNERS: u32 = 4;

/// A partition that somebody else has claimed, and that the log has not taken away.
#[derive(Debug)]
pub(crate) struct Overtaken {
    assignment: Assignment,
    /// When to claim it again, on the monotonic clock; `None` when that was done.
    again: Option<Duration>,
    /// Owners met since the log gave it.
    owners: u32,
}

impl Coordinator<'_> {
    /// The log takes partitions away. What is being committed of them has ended, or waits for its sink, when this returns.
    pub(crate) async fn give_up(&mut self, partitions: &[u32]) {
        let mut sinks = Vec::new();
        let mut claims = Vec::new();
        for partition in partitions {
            self.overtaken.remove(partition);
            claims.extend(self.owned.get(partition).map(|owned| (owned.store.clone(), owned.generation)));
            sinks.extend(self.revoke(*partition).await);
        }
        if within(&*self.engine.clock, SINKS, join_all(sinks)).await.is_none() {
            tracing::warn!(pipeline = %self.spec.name, ?partitions, "a sink is still committing rows of partitions that are taken away");
        }
        for partition in partitions {
            self.log.released(*partition);
        }
        for (store, generation) in claims {
            if let Err(error) = store.release(generation).await {
                tracing::warn!(pipeline = %self.spec.name, "that a partition was given up in good order was not noted: {error}");
            }
        }
    }

    /// Somebody else has a partition. Where the log hands partitions around, it takes this one away before long, or the other one
    /// was late to learn that it is ours; elsewhere a second process runs on the same data, and this one stops.
    pub(crate) async fn overtaken(&mut self, assignment: Assignment, error: PipelineError) -> Result<(), PipelineError> {
        let partition = assignment.partition;
        self.revoke(partition).await;
        let owners = self.overtaken.get(&partition).map_or(0, |overtaken| overtaken.owners) + 1;
        if !self.log.released(partition) || owners > OWNERS {
            return Err(error);
        }
        tracing::warn!(pipeline = %self.spec.name, partition, "somebody else has the partition, it is given up: {error}");
        let again = Some(self.engine.clock.monotonic() + AGAIN);
        self.overtaken.insert(partition, Overtaken { assignment, again, owners });
        Ok(())
    }

    /// Time until a partition is to be claimed again.
    pub(crate) fn overtaken_left(&self) -> Option<Duration> {
        let again = self.overtaken.values().filter_map(|overtaken| overtaken.again).min()?;
        Some(again.saturating_sub(self.engine.clock.monotonic()))
    }

    /// Claims what the log has not taken away: another owner has come between that should not.
    pub(crate) async fn claim_again(&mut self) -> Result<(), PipelineError> {
        let now = self.engine.clock.monotonic();
        let due: Vec<Assignment> = self
            .overtaken
            .values_mut()
            .filter_map(|overtaken| overtaken.again.take_if(|again| *again <= now).map(|_| overtaken.assignment.clone()))
            .collect();
        for assignment in due {
            self.take_over(assignment).await?;
        }
        Ok(())
    }

    /// Takes a partition over that the log gives; somebody else who has it is no failure yet.
    pub(crate) async fn take_over(&mut self, assignment: Assignment) -> Result<(), PipelineError> {
        match self.assign(assignment.clone()).await {
            Err(error) if error.is_fenced() => self.overtaken(assignment, error).await,
            done => done,
        }
    }
}

impl PipelineError {
    /// True when somebody else owns the partition.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self, Self::Sink { error: SinkError::Fenced { .. }, .. } | Self::Store(StoreError::Fenced { .. }))
    }
}
