//! Checkpoints in the store: layers of Arrow files, and the manifest that makes them true.

use std::path::Path as FsPath;

use bytes::Bytes;
use fieldstream_engine_api::{Generation, Mark};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path;
use tokio::runtime::{Handle, RuntimeFlavor};

use crate::decisions::Lineage;
use crate::layers::{merge_from, overlay};
use crate::objects::seal;
use crate::snapshot::{FileEntry, Layer, Manifest, Tables, decode, encode};
use crate::store::{PartitionStore, numbered};
use crate::{Checkpoint, CheckpointData, CheckpointId, PendingCheckpoint, StoreError};

/// Files of a layer read at once.
const READS: usize = 4;

/// The newest readable checkpoint.
#[derive(Debug)]
pub struct Restored {
    /// The owners that counted when it was looked for.
    pub lineage: Lineage,
    /// `None` when there never was one: start from the log's beginning.
    pub checkpoint: Option<Checkpoint>,
    /// Its layers, oldest first: what the next delta lies over.
    pub layers: Vec<Layer>,
    /// Name and position of it and of the older ones kept, oldest first. Savepoints are not among them.
    pub kept: Vec<(CheckpointId, Mark)>,
    /// True when a person had asked for this checkpoint and gives up what the log no longer holds.
    pub accept_gap: bool,
    /// What was found damaged and passed over, for a person: to be shown loudly.
    pub notes: Vec<String>,
}

impl PartitionStore {
    /// Names of the true checkpoints that count, oldest first. Those of overtaken owners do not.
    pub(crate) async fn names(&self, lineage: &Lineage) -> Result<Vec<CheckpointId>, StoreError> {
        let keys = self.objects.list(&self.folder("manifests")).await?;
        Ok(keys
            .iter()
            .filter_map(numbered)
            .map(|(generation, number)| CheckpointId { generation, number })
            .filter(|id| lineage.checkpoint_counts(*id))
            .collect())
    }

    /// Loads and verifies the newest checkpoint. A damaged one is passed over for the one before it, with a note. Its cold files
    /// are put into `cold`; without a folder they are left where they are.
    ///
    /// # Errors
    /// If the store fails, or there are checkpoints and none can be read.
    pub async fn latest(&self, cold: Option<&FsPath>) -> Result<Restored, StoreError> {
        let lineage = self.lineage().await?;
        let mut names = self.names(&lineage).await?;
        let savepoints = self.savepoints().await?;
        let (mut notes, mut accept_gap) = (Vec::new(), false);
        if let Some(asked) = self.asked_restore(&lineage).await? {
            // What is newer becomes void with the adoption that follows.
            names.retain(|id| *id <= asked.checkpoint);
            accept_gap = asked.accept_gap;
            notes.push(format!("{} starts from checkpoint {} because it was asked to", self.key, asked.checkpoint));
            if names.last() != Some(&asked.checkpoint) {
                return Err(StoreError::damaged(&self.at("manifests", &asked.checkpoint.to_string()), "it is to be restored, and is gone"));
            }
        }
        let mut damaged: Option<String> = None;
        for (index, id) in names.iter().enumerate().rev() {
            match self.load(*id, cold).await {
                Ok((data, layers)) => {
                    let regular: Vec<CheckpointId> = names[..index].iter().copied().filter(|id| !savepoints.contains_key(id)).collect();
                    let mut kept = self.positions(&regular).await;
                    kept.push((*id, data.at));
                    return Ok(Restored { lineage, checkpoint: Some(Checkpoint { id: *id, data }), layers, kept, accept_gap, notes });
                }
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!(partition = %self.key, checkpoint = %id, %error, "checkpoint is damaged, trying the one before it");
                    damaged = damaged.or_else(|| Some(error.to_string()));
                    notes.push(format!("checkpoint {id} of {} was passed over: {error}", self.key));
                }
                Err(error) => return Err(error),
            }
        }
        match damaged {
            None => Ok(Restored { lineage, checkpoint: None, layers: Vec::new(), kept: Vec::new(), accept_gap, notes }),
            Some(newest) => Err(StoreError::NoneReadable { partition: self.key.to_string(), count: names.len(), newest }),
        }
    }

    /// Positions of older checkpoints; one whose manifest cannot be read cannot be fallen back to, so it holds nothing.
    async fn positions(&self, names: &[CheckpointId]) -> Vec<(CheckpointId, Mark)> {
        let mut kept = Vec::with_capacity(names.len());
        for id in names {
            if let Ok(manifest) = self.manifest(*id).await {
                kept.push((*id, manifest.at));
            }
        }
        kept
    }

    pub(crate) async fn manifest(&self, id: CheckpointId) -> Result<Manifest, StoreError> {
        let key = self.at("manifests", &id.to_string());
        let manifest: Manifest = self.read(&key).await?.ok_or_else(|| StoreError::damaged(&key, "it is gone"))?;
        if manifest.id == id {
            Ok(manifest.modern())
        } else {
            Err(StoreError::damaged(&key, format!("it is the manifest of {}", manifest.id)))
        }
    }

    /// A checkpoint as one, and its layers.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when a file of it is not what was written.
    pub(crate) async fn load(&self, id: CheckpointId, cold: Option<&FsPath>) -> Result<(CheckpointData, Vec<Layer>), StoreError> {
        let manifest = self.manifest(id).await?;
        let mut read = self.read_layers(&manifest.layers).await?;
        let tables = match (read.pop(), read.is_empty()) {
            (Some(only), true) => only,
            (Some(newest), false) => {
                read.push(newest);
                self.laid_over(id, read, true).await?
            }
            (None, _) => Tables::default(),
        };
        let mut data = CheckpointData::of(&manifest, tables);
        if let Some(folder) = cold {
            data.cold = self.fetch_cold(&manifest.cold, folder).await?;
        }
        Ok((data, manifest.layers))
    }

    /// The tables of layers, verified.
    pub(crate) async fn read_layers(&self, layers: &[Layer]) -> Result<Vec<Tables>, StoreError> {
        let mut read = Vec::with_capacity(layers.len());
        for layer in layers {
            let folder = self.at("snapshots", &layer.id.to_string());
            let files: Vec<(Path, FileEntry)> =
                layer.files.iter().map(|entry| (folder.clone().join(entry.name.as_str()), entry.clone())).collect();
            let files = stream::iter(files).map(|(key, entry)| async move {
                let bytes = self.objects.get(&key).await?.ok_or_else(|| StoreError::damaged(&key, "it is gone"))?;
                apart(move || decode(&key, &entry, bytes).map(|rows| (entry.content, rows))).await?
            });
            let files: Vec<_> = files.buffered(READS).try_collect().await?;
            let mut tables = Tables::default();
            files.into_iter().for_each(|(content, rows)| tables.add(&content, rows));
            read.push(tables);
        }
        Ok(read)
    }

    async fn laid_over(&self, id: CheckpointId, layers: Vec<Tables>, whole: bool) -> Result<Tables, StoreError> {
        let key = self.at("manifests", &id.to_string());
        let laid = apart(move || overlay(&layers, whole)).await?;
        laid.map_err(|what| StoreError::damaged(&key, format!("its layers do not fit: {what}")))
    }

    /// Writes the files of a checkpoint. It becomes true by [`Self::commit`], when every sink's mark has reached its position.
    /// `number` must be new within the generation: a counter from 0, also counting attempts that failed. A delta lies over the
    /// layers `below`; some of them are merged into it when it is time.
    ///
    /// # Errors
    /// If the store fails. [`StoreError::Damaged`]: a layer to be merged cannot be read, so that only a whole snapshot helps.
    pub async fn write(
        &self,
        generation: Generation,
        number: u64,
        data: &CheckpointData,
        below: &[Layer],
    ) -> Result<PendingCheckpoint, StoreError> {
        let id = CheckpointId { generation, number };
        let mut layers = if data.delta { below.to_vec() } else { Vec::new() };
        let mut own = data.layer();
        let bytes: Vec<u64> = layers.iter().map(Layer::bytes).chain([own.bytes()]).collect();
        if let Some(first) = merge_from(&bytes) {
            let mut merged = self.read_layers(&layers.split_off(first)).await?;
            merged.push(own);
            own = self.laid_over(id, merged, first == 0).await?;
        }
        layers.push(self.write_layer(id, &own).await?);
        let cold = self.keep_cold(&data.cold).await?;
        Ok(PendingCheckpoint { manifest: Manifest::new(id, data, layers, cold) })
    }

    async fn write_layer(&self, id: CheckpointId, tables: &Tables) -> Result<Layer, StoreError> {
        let folder = self.at("snapshots", &id.to_string());
        let mut files: Vec<FileEntry> = Vec::new();
        for (content, rows) in tables.contents() {
            let name = format!("{:05}.arrow", files.len());
            match self.write_file(&folder.clone().join(name.as_str()), rows).await {
                Ok((bytes, crc32)) => files.push(FileEntry { name, bytes, crc32, rows: rows.num_rows() as u64, content }),
                Err(error) => {
                    // On a full disk, one attempt after the other would leave less room. What stays all the same is pruned later.
                    for file in files {
                        let _ = self.objects.delete(&folder.clone().join(file.name)).await;
                    }
                    return Err(error);
                }
            }
        }
        Ok(Layer { id, files })
    }

    /// Length and CRC32 of what was written.
    async fn write_file(&self, key: &Path, rows: &arrow::array::RecordBatch) -> Result<(u64, u32), StoreError> {
        let (bytes, crc32) = self.encoded(key, rows).await?;
        let length = bytes.len() as u64;
        self.objects.create(key, bytes).await?;
        Ok((length, crc32))
    }

    async fn encoded(&self, key: &Path, rows: &arrow::array::RecordBatch) -> Result<(Bytes, u32), StoreError> {
        let (key, rows) = (key.clone(), rows.clone());
        apart(move || {
            let bytes = encode(&key, &rows)?;
            let crc32 = crc32fast::hash(&bytes);
            Ok((bytes, crc32))
        })
        .await?
    }

    /// Writes the manifest: from here on the checkpoint is true.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn commit(&self, pending: &PendingCheckpoint) -> Result<CheckpointId, StoreError> {
        let id = pending.manifest.id;
        let key = self.at("manifests", &id.to_string());
        self.objects.create(&key, seal(&key, &pending.manifest)?).await?;
        Ok(id)
    }

    /// [`Self::write`] of a whole snapshot and [`Self::commit`] in one, for when every sink's mark has already reached the position.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn save(&self, generation: Generation, number: u64, data: &CheckpointData) -> Result<CheckpointId, StoreError> {
        let pending = self.write(generation, number, data, &[]).await?;
        self.commit(&pending).await
    }
}

/// Runs what keeps a core busy where it holds up nobody. A runtime of one thread does it at once: simulated runs must be repeatable.
async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|e| StoreError::io("work on a checkpoint", e))
}
