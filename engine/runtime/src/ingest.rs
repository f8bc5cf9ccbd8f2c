//! Receivers into the journal: decode, append, wait until durable, acknowledge in receive order.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{Append, AppendError, ReceiveError, Received, Receiver};
use fieldstream_journal::Journal;
use fieldstream_schemas::Decoded;
use fieldstream_schemas::decode::Decoder;
use tokio::sync::watch;

use crate::admission::Admission;
use crate::clock::{Clock, within};
use crate::memory::Tight;
use crate::status::Status;

const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A journal that refused is tried again after this even if no room was announced: other programs may have made some. One that does not
/// answer for so long has trouble.
const PATIENCE: Duration = Duration::from_secs(5);

/// The part of the node that has trouble when the journal is full or does not answer.
pub(crate) const JOURNAL: &str = "journal";

/// One receiver on its way into the journal.
pub(crate) struct Ingest {
    pub(crate) source: Arc<str>,
    pub(crate) receiver: Box<dyn Receiver>,
    pub(crate) decoder: Decoder,
    pub(crate) journal: Arc<dyn Append>,
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
        self.append(&decoded, now_us).await?;
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

    /// Returns when all of it is durable; until then nothing more is taken from the receiver.
    async fn append(&mut self, decoded: &Decoded, now_us: i64) -> Result<(), String> {
        let (clock, mut troubled) = (&*self.clock, false);
        loop {
            let mut appending = pin!(self.journal.append(&self.source, decoded, now_us));
            let outcome = match within(clock, PATIENCE, &mut appending).await {
                Some(outcome) => outcome,
                None => {
                    self.trouble(&mut troubled, &format!("what was received is not durable after {PATIENCE:?}"));
                    appending.await
                }
            };
            match outcome {
                Ok(()) => break,
                Err(AppendError::Retry { context, cause }) => {
                    self.trouble(&mut troubled, &format!("{context}: {cause}"));
                    // Either way the append is tried again.
                    let _ = within(clock, PATIENCE, self.journal.room()).await;
                }
                Err(fatal @ AppendError::Fatal { .. }) => return Err(fatal.to_string()),
            }
        }
        if troubled {
            tracing::info!(source = %self.source, "the journal takes what is received again");
            self.status.trouble(JOURNAL, None);
        }
        Ok(())
    }

    /// Says why a source is held back; in the log once.
    fn trouble(&self, told: &mut bool, why: &str) {
        let what = format!("{why}; sources are not acknowledged meanwhile");
        if !std::mem::replace(told, true) {
            tracing::error!(source = %self.source, "{what}");
        }
        self.status.trouble(JOURNAL, Some(what));
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

/// Runs all receivers of a pipeline; says when the last has ended, or that one gave up. A topic that stands for the journal has no end,
/// since others write to it: without `journal` nothing is said of an end.
pub(crate) async fn run_all(ingests: Vec<Ingest>, journal: Option<Journal>, done: watch::Sender<Option<Done>>) {
    let runs = ingests.into_iter().map(|mut ingest| async move { (Arc::clone(&ingest.source), ingest.run().await) });
    let outcomes = futures::future::join_all(runs).await;
    let failure = outcomes.into_iter().find_map(|(source, outcome)| outcome.err().map(|error| (source, error)));
    let done_with = match (failure, journal) {
        (Some((source, error)), _) => Done::Failed { source, error },
        (None, Some(journal)) => Done::All { ends: journal.assignments().iter().map(|a| (a.partition, a.end_offset)).collect() },
        (None, None) => return,
    };
    done.send_replace(Some(done_with));
}
