//! What a partition has in the store, for people and tools.

use std::collections::BTreeMap;

use fieldstream_engine_api::Mark;
use serde::Serialize;

use crate::snapshot::Layer;
use crate::store::{PartitionStore, numbered};
use crate::{CheckpointId, StoreError};

/// A checkpoint as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    #[serde(serialize_with = "by_name")]
    pub id: CheckpointId,
    /// Its position; none when the manifest cannot be read.
    pub at: Option<Mark>,
    /// Labels, when it is a savepoint.
    pub labels: Vec<String>,
    /// Layers it is made of.
    pub layers: usize,
    /// Bytes of its layers, shared ones included.
    pub bytes: u64,
    /// Device actors in memory, at most: layers may hold several versions of one.
    pub devices: u64,
    /// Device actors on disk.
    pub passivated: u64,
    /// True when an owner after it went on from an earlier one: it does not count any more.
    pub void: bool,
    /// Why its manifest cannot be read.
    pub problem: Option<String>,
}

fn by_name<S: serde::Serializer>(id: &CheckpointId, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&short(*id))
}

/// A checkpoint's name as people write it.
#[must_use]
pub fn short(id: CheckpointId) -> String {
    format!("{}-{}", id.generation.0, id.number)
}

impl PartitionStore {
    /// All checkpoints, oldest first. Manifests are read, layers are not.
    ///
    /// # Errors
    /// If the store fails, or a record that says what counts is damaged.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let lineage = self.lineage().await?;
        let mut labels: BTreeMap<CheckpointId, Vec<String>> = BTreeMap::new();
        for (label, id) in self.labels().await? {
            labels.entry(id).or_default().push(label);
        }
        let mut listed = Vec::new();
        for key in self.objects.list(&self.folder("manifests")).await? {
            let Some((generation, number)) = numbered(&key) else { continue };
            let id = CheckpointId { generation, number };
            let own = labels.remove(&id).unwrap_or_default();
            let void = !lineage.checkpoint_counts(id);
            let blank = Listed { id, at: None, labels: own, layers: 0, bytes: 0, devices: 0, passivated: 0, void, problem: None };
            listed.push(match self.manifest(id).await {
                Ok(manifest) => Listed {
                    at: Some(manifest.at),
                    layers: manifest.layers.len(),
                    bytes: manifest.layers.iter().map(Layer::bytes).sum(),
                    devices: manifest.layers.iter().map(Layer::devices).sum(),
                    passivated: manifest.absent,
                    ..blank
                },
                Err(error @ StoreError::Damaged { .. }) => Listed { problem: Some(error.to_string()), ..blank },
                Err(error) => return Err(error),
            });
        }
        Ok(listed)
    }
}
