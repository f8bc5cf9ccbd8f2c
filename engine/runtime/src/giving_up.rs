//! Giving partitions up: because the log takes them away, or because somebody else has them already.

use std::time::Duration;

use fieldstream_checkpoint::StoreError;
use fieldstream_engine_api::SinkError;
use futures::future::join_all;

use crate::error::PipelineError;
use crate::pipeline::Coordinator;

/// How long sinks may take to end what they are committing of a partition that is taken away. Whoever takes it reads marks, so
/// what comes later is not there twice; but it holds up the one who takes it.
const SINKS: Duration = Duration::from_secs(5);
/// How soon a log must take away a partition that somebody else has claimed: a group needs its session's timeout and a rebalance.
const LOG: Duration = Duration::from_secs(60);

/// A partition that somebody else has claimed, and that the log has not taken away yet.
#[derive(Debug)]
pub(crate) struct Overtaken {
    /// On the monotonic clock.
    until: Duration,
    error: PipelineError,
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
        if tokio::time::timeout(SINKS, join_all(sinks)).await.is_err() {
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

    /// Somebody else has a partition. Where the log hands partitions around, it takes this one away before long; elsewhere a
    /// second process runs on the same data, and this one stops.
    pub(crate) async fn overtaken(&mut self, partition: u32, error: PipelineError) -> Result<(), PipelineError> {
        self.revoke(partition).await;
        if !self.log.released(partition) {
            return Err(error);
        }
        tracing::warn!(pipeline = %self.spec.name, partition, "somebody else has the partition, it is given up: {error}");
        self.overtaken.insert(partition, Overtaken { until: self.engine.clock.monotonic() + LOG, error });
        Ok(())
    }

    /// Time until the log must have taken away what was overtaken.
    pub(crate) fn overtaken_left(&self) -> Option<Duration> {
        let until = self.overtaken.values().map(|overtaken| overtaken.until).min()?;
        Some(until.saturating_sub(self.engine.clock.monotonic()))
    }

    /// The log has not: two owners that the log knows nothing of, and only a person can tell which is right.
    pub(crate) fn overtaken_for_good(&mut self) -> Result<(), PipelineError> {
        self.overtaken.pop_first().map_or(Ok(()), |(_, overtaken)| Err(overtaken.error))
    }
}

impl PipelineError {
    /// True when somebody else owns the partition.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self, Self::Sink { error: SinkError::Fenced { .. }, .. } | Self::Store(StoreError::Fenced { .. }))
    }
}
