//! Savepoints, which pruning leaves alone, and what a person wants the next start to begin from.

use std::collections::BTreeMap;

use fieldstream_engine_api::Generation;
use serde::{Deserialize, Serialize};

use crate::decisions::Lineage;
use crate::objects::{seal, segment};
use crate::store::PartitionStore;
use crate::{CheckpointId, StoreError};

pub(crate) const SAVEPOINTS: &str = "savepoints";
pub(crate) const RESTORES: &str = "restores";

/// What a savepoint file says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SavepointRecord {
    label: String,
    checkpoint: CheckpointId,
}

/// What a restore file says: it holds until an owner that came after it has adopted the partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedRestore {
    /// What the next start begins from.
    pub checkpoint: CheckpointId,
    /// True when what the log no longer holds is given up.
    pub accept_gap: bool,
    /// The newest owner with an adoption record at that time.
    after: Option<Generation>,
}

impl PartitionStore {
    /// A label of each savepoint. A record that is damaged is passed over: fsck names it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn savepoints(&self) -> Result<BTreeMap<CheckpointId, String>, StoreError> {
        Ok(self.labels().await?.into_iter().map(|(label, id)| (id, label)).collect())
    }

    /// All labels and what they keep.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn labels(&self) -> Result<Vec<(String, CheckpointId)>, StoreError> {
        let mut found = Vec::new();
        for key in self.objects.list(&self.folder(SAVEPOINTS)).await? {
            match self.read::<SavepointRecord>(&key).await {
                Ok(record) => found.extend(record.map(|record| (record.label, record.checkpoint))),
                Err(error @ StoreError::Damaged { .. }) => tracing::error!("a savepoint cannot be read, and protects nothing: {error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Keeps a true checkpoint from being pruned until the label is removed.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when the label is taken.
    pub async fn label(&self, label: &str, checkpoint: CheckpointId) -> Result<(), StoreError> {
        let key = self.at(SAVEPOINTS, &segment(label));
        self.objects.create(&key, seal(&key, &SavepointRecord { label: label.to_owned(), checkpoint })?).await
    }

    /// Makes the next start begin from `checkpoint`, until which everything newer stays and after which it is void.
    ///
    /// # Errors
    /// If there is no such checkpoint, or the store fails.
    pub async fn ask_restore(&self, checkpoint: CheckpointId, accept_gap: bool) -> Result<(), StoreError> {
        let lineage = self.lineage().await?;
        self.manifest(checkpoint).await?;
        if !lineage.checkpoint_counts(checkpoint) {
            let key = self.at("manifests", &checkpoint.to_string());
            return Err(StoreError::damaged(&key, "it is void: an owner after it went on from an earlier checkpoint"));
        }
        let record = AskedRestore { checkpoint, accept_gap, after: lineage.newest() };
        let newest = self.objects.list(&self.folder(RESTORES)).await?.last().and_then(|k| k.filename()?.parse::<u64>().ok());
        let key = self.at(RESTORES, &format!("{:020}", newest.map_or(0, |n| n + 1)));
        self.objects.create(&key, seal(&key, &record)?).await
    }

    /// What the next start was asked to begin from, if it has not begun yet.
    pub(crate) async fn asked_restore(&self, lineage: &Lineage) -> Result<Option<AskedRestore>, StoreError> {
        let Some(key) = self.objects.list(&self.folder(RESTORES)).await?.pop() else { return Ok(None) };
        let asked: Option<AskedRestore> = self.read(&key).await?;
        Ok(asked.filter(|asked| asked.after == lineage.newest()))
    }

    /// Deletes what was asked for and has been done.
    pub(crate) async fn prune_restores(&self, lineage: &Lineage) -> Result<(), StoreError> {
        for key in self.objects.list(&self.folder(RESTORES)).await? {
            let spent = match self.read::<AskedRestore>(&key).await {
                Ok(asked) => asked.is_none_or(|asked| asked.after != lineage.newest()),
                Err(StoreError::Damaged { .. }) => false,
                Err(error) => return Err(error),
            };
            if spent {
                self.objects.delete(&key).await?;
            }
        }
        Ok(())
    }
}
