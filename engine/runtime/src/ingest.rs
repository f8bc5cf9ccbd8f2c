//! Receivers into the journal: decode, append, wait until durable, acknowledge in receive order.

use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{ReceiveError, Received, Receiver};
use fieldstream_journal::{Journal, JournalError};
use fieldstream_schemas::decode::Decoder;
use tokio::sync::watch;

use crate::admission::Admission;
use crate::clock::{Clock, within};
use crate::memory::Tight;
use crate::status::Status;

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A full journal is tried again after this even if no room was announced: other programs may have made some.
const FULL_RETRY: Duration = Duration::from_secs(5);

/// The part of the node that has trouble when the journal is full.
pub(crate) const JOURNAL: &str = "journal";

/// One receiver on its way into the journal.
pub(crate) struct Ingest {
    pub(crate) source: Arc<str>,
    pub(crate) receiver: Box<dyn Receiver>,
    pub(crate) decoder: Decoder,
    pub(crate) journal: Journal,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) admission: Admission,
    pub(crate) tight: Tight,
    pub(crate) status: Arc<Status>,
}

impl Ingest {
    /// Works until the receiver ends or the pipeline is told to stop; what was received by then is durable.
    async fn run(&mut self) -> Result<(), String> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let received = tokio::select! {
                stopped = self.stop.wait_for(|stop| *stop) => {
                    // An error says that the node is gone, which is a stop as well.
                    drop(stopped);
                    return Ok(());
                }
                received = next(&mut self.tight, &mut *self.receiver) => received,
            };
            match received {
                Ok(Some(received)) => {
                    if backoff > FIRST_BACKOFF {
                        self.status.trouble(&self.source, None);
                    }
                    backoff = FIRST_BACKOFF;
                    self.take(received).await?;
                }
                Ok(None) => return Ok(()),
                Err(ReceiveError::Retry { context, cause }) => {
                    tracing::warn!(source = %self.source, "{context}: {cause}; trying again in {backoff:?}");
                    self.status.trouble(&self.source, Some(format!("{context}: {cause}")));
                    self.clock.sleep(backoff).await;
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
                Err(fatal @ ReceiveError::Fatal { .. }) => return Err(fatal.to_string()),
            }
        }
    }

    async fn take(&mut self, received: Received) -> Result<(), String> {
        let Received { mut block, handle } = received;
        let now_us = self.clock.now_us();
        block.entries.iter_mut().for_each(|entry| entry.ingest_us = entry.ingest_us.or(Some(now_us)));
        let decoded = self.admission.admit(self.decoder.decode(&block), &block);
        let mut refused = false;
        loop {
            match self.journal.append(&self.source, decoded.clone(), None, now_us).await {
                Ok(()) => break,
                Err(full @ JournalError::Full { .. }) => {
                    if !std::mem::replace(&mut refused, true) {
                        tracing::error!(source = %self.source, "{full}; the source is not acknowledged until there is room");
                        self.status.trouble(JOURNAL, Some(format!("{full}; sources are not acknowledged until there is room")));
                    }
                    // Either way the append is tried again.
                    let _ = within(&*self.clock, FULL_RETRY, self.journal.wait_for_room()).await;
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        if refused {
            tracing::info!(source = %self.source, "the journal has room again");
            self.status.trouble(JOURNAL, None);
        }
        match self.receiver.acknowledge(handle).await {
            Ok(()) => Ok(()),
            // The payloads are durable; the sender repeats what it was not told of.
            Err(ReceiveError::Retry { context, cause }) => {
                tracing::warn!(source = %self.source, "{context}: {cause}; unacknowledged payloads will come again");
                Ok(())
            }
            Err(fatal) => Err(fatal.to_string()),
        }
    }
}

/// What the receiver has next, once there is memory for it. Safe to drop, as its parts are.
async fn next(tight: &mut Tight, receiver: &mut dyn Receiver) -> Result<Option<Received>, ReceiveError> {
    // The other end is dropped only where there is no budget.
    drop(tight.wait_for(|tight| !*tight).await);
    receiver.next().await
}

/// How the receivers of a pipeline ended.
#[derive(Clone, Debug)]
pub(crate) enum Done {
    /// All have ended, or were told to stop. The journal ended here then, by partition.
    All { ends: Vec<(u32, u64)> },
    /// One gave up.
    Failed { source: Arc<str>, error: String },
}

/// Runs all receivers of a pipeline; says when the last has ended, or that one gave up.
pub(crate) async fn run_all(ingests: Vec<Ingest>, journal: Journal, done: watch::Sender<Option<Done>>) {
    let runs = ingests.into_iter().map(|mut ingest| async move { (Arc::clone(&ingest.source), ingest.run().await) });
    let outcomes = futures::future::join_all(runs).await;
    let failure = outcomes.into_iter().find_map(|(source, outcome)| outcome.err().map(|error| (source, error)));
    done.send_replace(Some(match failure {
        Some((source, error)) => Done::Failed { source, error },
        None => Done::All { ends: journal.assignments().iter().map(|a| (a.partition, a.end_offset)).collect() },
    }));
}
