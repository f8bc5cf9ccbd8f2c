//! Savepoints of a running pipeline: each partition's next checkpoint gets a label, and pruning leaves it alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use fieldstream_checkpoint::{CheckpointId, Fact, StoreError};
use fieldstream_engine_api::Mark;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::event::Event;
use crate::pipeline::Coordinator;
use crate::status::Status;

/// Bytes of a label at most: it becomes a file name.
const LONGEST_LABEL: usize = 100;

/// A partition's part of a savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SavedPartition {
    /// Partition number.
    pub partition: u32,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// Its position.
    pub at: Mark,
}

/// What a savepoint has come to, or why it has not.
pub type Saved = Result<Vec<SavedPartition>, String>;

/// A savepoint under way.
#[derive(Debug)]
pub(crate) struct Saving {
    label: Arc<str>,
    /// Partitions whose next checkpoint from this position on is theirs.
    waiting: BTreeMap<u32, Mark>,
    done: Vec<SavedPartition>,
    reply: oneshot::Sender<Saved>,
}

impl Coordinator<'_> {
    /// Asks every partition for a checkpoint of what it has handled by now.
    pub(crate) async fn begin_savepoint(&mut self, label: Arc<str>, reply: oneshot::Sender<Saved>) {
        if self.saving.is_some() {
            // Whoever asked may have left.
            let _ = reply.send(Err("another savepoint of this pipeline is under way: try again when it is there".to_owned()));
            return;
        }
        if self.on_trial() {
            let _ = reply.send(Err("the plan is on trial after a reload, and makes no checkpoint yet: try again in a moment".to_owned()));
            return;
        }
        let current: Vec<(u32, Mark, Option<CheckpointId>)> =
            self.owned.iter().map(|(partition, owned)| (*partition, owned.progress.processed(), owned.progress.current())).collect();
        self.saving = Some(Saving { label, waiting: current.iter().map(|(p, at, _)| (*p, *at)).collect(), done: Vec::new(), reply });
        for (partition, at, checkpoint) in current {
            match checkpoint {
                Some(id) => self.label_checkpoint(partition, id, at).await,
                None => self.progress(partition, Fact::SnapshotDue),
            }
        }
        self.end_savepoint();
    }

    /// A checkpoint is true: if a savepoint waits for it, it gets the label.
    pub(crate) async fn label_checkpoint(&mut self, partition: u32, id: CheckpointId, at: Mark) {
        let Some(saving) = &mut self.saving else { return };
        if saving.waiting.get(&partition).is_none_or(|from| at < *from) {
            return;
        }
        let Some(owned) = self.owned.get(&partition) else { return };
        match owned.store.label(&saving.label, id).await {
            Ok(()) => {
                saving.waiting.remove(&partition);
                saving.done.push(SavedPartition { partition, checkpoint: id.to_string(), at });
                self.end_savepoint();
            }
            Err(error) => {
                let why = match error {
                    StoreError::Exists(_) => format!("there is a savepoint `{}` already: choose another label", saving.label),
                    error => error.to_string(),
                };
                if let Some(saving) = self.saving.take() {
                    let _ = saving.reply.send(Err(why));
                }
            }
        }
    }

    fn end_savepoint(&mut self) {
        if let Some(saving) = self.saving.take_if(|saving| saving.waiting.is_empty()) {
            tracing::info!(pipeline = %self.spec.name, label = %saving.label, partitions = saving.done.len(), "savepoint made");
            let _ = saving.reply.send(Ok(saving.done));
        }
    }

    /// A partition is given up: its next owner knows nothing of the savepoint.
    pub(crate) fn forget_savepoint(&mut self, partition: u32) {
        if let Some(saving) = self.saving.take_if(|saving| saving.waiting.contains_key(&partition)) {
            let _ = saving.reply.send(Err(format!("partition {partition} was given up meanwhile: try again")));
        }
    }
}

impl Status {
    /// Makes a savepoint of all partitions on this node. Resolves when their checkpoints are true, which waits for the sinks.
    ///
    /// # Errors
    /// Why there is none, for a person.
    pub async fn savepoint(&self, label: &str) -> Saved {
        if label.is_empty() || label.len() > LONGEST_LABEL {
            return Err(format!("a label has 1 to {LONGEST_LABEL} bytes"));
        }
        let inbox = self.lock().inbox.clone();
        let (reply, saved) = oneshot::channel();
        let asked = inbox.is_some_and(|inbox| inbox.send(Event::Savepoint { label: label.into(), reply }).is_ok());
        if !asked {
            return Err("the pipeline is not running".to_owned());
        }
        saved.await.unwrap_or_else(|_| Err("the pipeline ended before the savepoint was there".to_owned()))
    }
}
