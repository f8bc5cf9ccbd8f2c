//! The checkpoint store: claims, checkpoints and decisions of partitions.
//!
//! Keys, under `<p>` = `<pipeline>/<log>/<partition>`:
//!
//! | key | what |
//! |---|---|
//! | `claims/<p>/<generation>` | ownership, with the count of unclean restarts |
//! | `claims/<p>/<generation>.released` | its owner ended cleanly |
//! | `adoptions/<p>/<generation>` | what the owner took over, see [`crate::decisions`] |
//! | `decisions/<p>/<generation>-<number>` | decisions |
//! | `snapshots/<p>/<generation>-<number>/<file>` | tables of a checkpoint |
//! | `cold/<p>/<generation>-<number>.arrow` | state of passivated devices, shared by checkpoints |
//! | `manifests/<p>/<generation>-<number>` | the checkpoint is true |
//!
//! Take-over: [`PartitionStore::claim`], fence all sinks and read their marks, [`PartitionStore::latest`],
//! [`PartitionStore::decisions_from`] the checkpoint's next decision, [`PartitionStore::adopt`], restore, seek.

use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use fieldstream_engine_api::{Generation, Mark, PartitionKey};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::decisions::{Adoption, DecisionRecord, Lineage};
use crate::objects::{Objects, seal, segment, unseal};
use crate::snapshot::{FileEntry, Manifest, decode, encode};
use crate::{Checkpoint, CheckpointData, CheckpointId, Decision, PendingCheckpoint, StoreError};

/// Small objects read at once.
const READS: usize = 16;

/// Where checkpoints lie. Cloning shares it.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    objects: Objects,
}

impl CheckpointStore {
    /// Opens a store on the local disk, making the folder if need be.
    ///
    /// # Errors
    /// If the folder cannot be used, or does not refuse to create a name twice.
    pub async fn open(folder: &FsPath) -> Result<Self, StoreError> {
        Self::probed(Objects::local(folder)?).await
    }

    /// Opens a store on any object store with conditional put.
    ///
    /// # Errors
    /// If it cannot be reached, or does not refuse to create a key twice.
    pub async fn open_remote(store: Arc<dyn ObjectStore>) -> Result<Self, StoreError> {
        Self::probed(Objects::remote(store)).await
    }

    async fn probed(objects: Objects) -> Result<Self, StoreError> {
        objects.probe().await?;
        Ok(Self { objects })
    }

    /// The part of the store that belongs to one partition.
    #[must_use]
    pub fn partition(&self, key: &PartitionKey) -> PartitionStore {
        let tail = [segment(&key.pipeline), segment(&key.log_id.0), key.partition.to_string()];
        PartitionStore { objects: self.objects.clone(), key: key.clone(), tail }
    }
}

/// A claim that was won.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The new ownership number.
    pub generation: Generation,
    /// How often in a row an owner that started from the same checkpoint ended without [`PartitionStore::release`].
    pub restarts: u32,
}

/// What the claim file says.
#[derive(Debug, Serialize, Deserialize)]
struct ClaimRecord {
    generation: Generation,
    restarts: u32,
    checkpoint: Option<CheckpointId>,
}

/// The newest readable checkpoint.
#[derive(Debug)]
pub struct Restored {
    /// `None` when there never was one: start from the log's beginning.
    pub checkpoint: Option<Checkpoint>,
    /// Name and position of it and of the older ones kept, oldest first.
    pub kept: Vec<(CheckpointId, Mark)>,
    /// What was found damaged and passed over, for a person: to be shown loudly.
    pub notes: Vec<String>,
}

/// The store of one partition.
#[derive(Clone, Debug)]
pub struct PartitionStore {
    pub(crate) objects: Objects,
    key: PartitionKey,
    pub(crate) tail: [String; 3],
}

impl PartitionStore {
    pub(crate) fn folder(&self, kind: &str) -> Path {
        Path::from_iter(std::iter::once(kind).chain(self.tail.iter().map(String::as_str)))
    }

    pub(crate) fn at(&self, kind: &str, name: &str) -> Path {
        self.folder(kind).join(name)
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, key: &Path) -> Result<Option<T>, StoreError> {
        self.objects.get(key).await?.map(|data| unseal(key, &data)).transpose()
    }

    /// Generations that have a key in `kind`, ascending; names of another form are not ours and are passed over.
    async fn generations(&self, kind: &str) -> Result<Vec<Generation>, StoreError> {
        let keys = self.objects.list(&self.folder(kind)).await?;
        Ok(keys.iter().filter_map(|k| k.filename()?.parse().ok()).map(Generation).collect())
    }

    /// Takes ownership: the highest generation plus one, tried until it is ours.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn claim(&self) -> Result<Claim, StoreError> {
        loop {
            let newest = self.generations("claims").await?.last().copied().unwrap_or_default();
            let generation = Generation(newest.0 + 1);
            let checkpoint = self.names(&self.lineage().await?).await?.last().copied();
            let restarts = self.restarts(newest, checkpoint).await?;
            let key = self.at("claims", &padded(generation));
            let record = ClaimRecord { generation, restarts, checkpoint };
            match self.objects.create(&key, seal(&key, &record)?).await {
                Ok(()) => {
                    for kind in ["snapshots", "manifests", "decisions", "adoptions"] {
                        self.objects.sweep(&self.folder(kind));
                    }
                    return Ok(Claim { generation, restarts });
                }
                Err(StoreError::Exists(_)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn restarts(&self, newest: Generation, checkpoint: Option<CheckpointId>) -> Result<u32, StoreError> {
        let name = padded(newest);
        let released = self.objects.get(&self.at("claims", &format!("{name}.released"))).await?.is_some();
        let previous = match self.read::<ClaimRecord>(&self.at("claims", &name)).await {
            // The count is a safety net: a damaged claim must not keep the partition from starting.
            Err(StoreError::Damaged { .. }) => None,
            read => read?,
        };
        Ok(previous.filter(|p| !released && p.checkpoint == checkpoint).map_or(0, |p| p.restarts + 1))
    }

    /// Says that this owner ends in good order, so that its end does not count as a crash.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn release(&self, generation: Generation) -> Result<(), StoreError> {
        let key = self.at("claims", &format!("{}.released", padded(generation)));
        match self.objects.create(&key, Bytes::new()).await {
            Err(StoreError::Exists(_)) => Ok(()),
            done => done,
        }
    }

    /// Says whether `generation` still is the newest claim.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when it is not.
    pub async fn check_owner(&self, generation: Generation) -> Result<(), StoreError> {
        let owner = self.generations("claims").await?.last().copied().unwrap_or_default();
        if owner > generation { Err(StoreError::Fenced { partition: self.key.to_string(), owner }) } else { Ok(()) }
    }

    async fn lineage(&self) -> Result<Lineage, StoreError> {
        let keys: Vec<Path> = self.generations("adoptions").await?.iter().map(|g| self.at("adoptions", &padded(*g))).collect();
        let read = stream::iter(keys).map(|key| async move { self.read::<Adoption>(&key).await }).buffered(READS);
        let found: Vec<Option<Adoption>> = read.try_collect().await?;
        Ok(Lineage::of(found.into_iter().flatten().collect()))
    }

    /// Names of the true checkpoints that count, oldest first. Those of overtaken owners do not.
    async fn names(&self, lineage: &Lineage) -> Result<Vec<CheckpointId>, StoreError> {
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
        let names = self.names(&self.lineage().await?).await?;
        let mut notes = Vec::new();
        for (index, id) in names.iter().enumerate().rev() {
            match self.load(*id, cold).await {
                Ok(data) => {
                    let mut kept = self.positions(&names[..index]).await;
                    kept.push((*id, data.at));
                    return Ok(Restored { checkpoint: Some(Checkpoint { id: *id, data }), kept, notes });
                }
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!(partition = %self.key, checkpoint = %id, %error, "checkpoint is damaged, trying the one before it");
                    notes.push(format!("checkpoint {id} of {} was passed over: {error}", self.key));
                }
                Err(error) => return Err(error),
            }
        }
        match notes.first() {
            None => Ok(Restored { checkpoint: None, kept: Vec::new(), notes }),
            Some(newest) => Err(StoreError::NoneReadable { partition: self.key.to_string(), count: names.len(), newest: newest.clone() }),
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

    async fn manifest(&self, id: CheckpointId) -> Result<Manifest, StoreError> {
        let key = self.at("manifests", &id.to_string());
        let manifest: Manifest = self.read(&key).await?.ok_or_else(|| StoreError::damaged(&key, "it is gone"))?;
        if manifest.id == id { Ok(manifest) } else { Err(StoreError::damaged(&key, format!("it is the manifest of {}", manifest.id))) }
    }

    async fn load(&self, id: CheckpointId, cold: Option<&FsPath>) -> Result<CheckpointData, StoreError> {
        let manifest = self.manifest(id).await?;
        let mut data = CheckpointData::of(&manifest);
        let folder = self.at("snapshots", &id.to_string());
        for entry in &manifest.files {
            let key = folder.clone().join(entry.name.as_str());
            let bytes = self.objects.get(&key).await?.ok_or_else(|| StoreError::damaged(&key, "it is gone"))?;
            data.add(&entry.content, decode(&key, entry, bytes)?);
        }
        if let Some(folder) = cold {
            data.cold = self.fetch_cold(&manifest.cold, folder).await?;
        }
        Ok(data)
    }

    /// Writes what this owner takes over: the checkpoint it starts from and the decisions below `decisions_below`. Must be
    /// durable before its first decision and its first checkpoint, and follows the fencing of all sinks.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when a newer owner has claimed or adopted the partition.
    pub async fn adopt(&self, generation: Generation, checkpoint: Option<CheckpointId>, decisions_below: u64) -> Result<(), StoreError> {
        self.check_owner(generation).await?;
        let previous = self.lineage().await?.newest();
        if let Some(owner) = previous.filter(|p| *p >= generation) {
            return Err(StoreError::Fenced { partition: self.key.to_string(), owner });
        }
        let key = self.at("adoptions", &padded(generation));
        self.objects.create(&key, seal(&key, &Adoption { generation, previous, checkpoint, decisions_below })?).await
    }

    /// Makes decision `number` durable; its effects may leave after this. Numbers of a partition go up by one.
    ///
    /// # Errors
    /// [`StoreError::Exists`] when this generation has written that number already; [`StoreError::Full`] when there is no room
    /// for it, in which case it has not been made.
    pub async fn append_decision(&self, generation: Generation, number: u64, decision: &Decision) -> Result<(), StoreError> {
        let key = self.at("decisions", &format!("{}-{number:020}", padded(generation)));
        self.objects.create(&key, seal(&key, &DecisionRecord::new(number, decision))?).await
    }

    /// All decisions that count from number `first` on, in order: the decision at index `i` has the number `first + i`.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when one cannot be read or is missing: replay without it would not be the same.
    pub async fn decisions_from(&self, first: u64) -> Result<Vec<Decision>, StoreError> {
        let lineage = self.lineage().await?;
        let mut keys: Vec<(u64, Path)> = Vec::new();
        for key in self.objects.list(&self.folder("decisions")).await? {
            if let Some((generation, number)) = numbered(&key)
                && number >= first
                && lineage.decision_counts(generation, number)
            {
                keys.push((number, key));
            }
        }
        keys.sort();
        for (expected, (number, key)) in (first..).zip(&keys) {
            if *number != expected {
                return Err(StoreError::damaged(key, format!("decision {expected} is missing before it")));
            }
        }
        let read = stream::iter(keys).map(|(number, key)| async move {
            let found: Option<DecisionRecord> = self.read(&key).await?;
            let record = found.filter(|r| r.number == number).ok_or_else(|| StoreError::damaged(&key, "it is gone or another one"))?;
            Ok(record.into_decision())
        });
        read.buffered(READS).try_collect().await
    }

    /// Writes the files of a checkpoint. It becomes true by [`Self::commit`], when every sink's mark has reached its position.
    /// `number` must be new within the generation: a counter from 0, also counting attempts that failed.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn write(&self, generation: Generation, number: u64, data: &CheckpointData) -> Result<PendingCheckpoint, StoreError> {
        let id = CheckpointId { generation, number };
        let folder = self.at("snapshots", &id.to_string());
        let mut files = Vec::new();
        for (content, rows) in data.contents() {
            let name = format!("{:05}.arrow", files.len());
            let key = folder.clone().join(name.as_str());
            let bytes = encode(&key, rows)?;
            let (length, crc32) = (bytes.len() as u64, crc32fast::hash(&bytes));
            self.objects.create(&key, bytes).await?;
            files.push(FileEntry { name, bytes: length, crc32, rows: rows.num_rows() as u64, content });
        }
        let cold = self.keep_cold(&data.cold).await?;
        let (plan_digest, extras) = (data.plan_digest.clone(), data.extras.clone());
        Ok(PendingCheckpoint { manifest: Manifest { id, at: data.at, plan_digest, files, cold, absent: data.absent, extras } })
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

    /// [`Self::write`] and [`Self::commit`] in one, for when every sink's mark has already reached the position.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn save(&self, generation: Generation, number: u64, data: &CheckpointData) -> Result<CheckpointId, StoreError> {
        let pending = self.write(generation, number, data).await?;
        self.commit(&pending).await
    }

    /// Deletes all checkpoints but the newest `keep`, what never became true, and decisions and records that nothing needs
    /// any more. Only the newest owner may; give an owner that was overtaken a grace period after the claim to notice.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when there is a newer claim; nothing is deleted then.
    pub async fn prune(&self, generation: Generation, keep: usize) -> Result<(), StoreError> {
        self.check_owner(generation).await?;
        let lineage = self.lineage().await?;
        let mut names = self.names(&lineage).await?;
        let kept = names.split_off(names.len().saturating_sub(keep.max(1)));
        let (Some(oldest), Some(newest)) = (kept.first().copied(), kept.last().copied()) else { return Ok(()) };
        // Newer than the newest: made by this very owner since the names were listed.
        let old = |id: CheckpointId| !kept.contains(&id) && (id < newest || id.generation < generation);
        for key in self.objects.list(&self.folder("manifests")).await? {
            if numbered(&key).is_some_and(|(g, number)| old(CheckpointId { generation: g, number })) {
                self.objects.delete(&key).await?;
            }
        }
        for key in self.objects.list(&self.folder("snapshots")).await? {
            let folder = Path::from_iter(key.parts().take(5));
            let Some((g, number)) = numbered(&folder) else { continue };
            if old(CheckpointId { generation: g, number }) {
                self.objects.delete(&key).await?;
            }
        }
        let mut needed = Vec::with_capacity(kept.len());
        for id in &kept {
            needed.push(self.manifest(*id).await?.cold);
        }
        self.prune_cold(&needed, generation).await?;
        self.prune_records(&lineage, oldest, generation).await
    }

    async fn prune_records(&self, lineage: &Lineage, oldest: CheckpointId, generation: Generation) -> Result<(), StoreError> {
        let needed_from = self.manifest(oldest).await?.at.next_decision;
        let mut lowest = oldest.generation;
        for key in self.objects.list(&self.folder("decisions")).await? {
            let Some((g, number)) = numbered(&key) else { continue };
            if number < needed_from || !lineage.decision_counts(g, number) {
                self.objects.delete(&key).await?;
            } else {
                lowest = lowest.min(g);
            }
        }
        for key in self.objects.list(&self.folder("adoptions")).await? {
            if key.filename().and_then(|n| n.parse().ok()).is_some_and(|g: u64| g < lowest.0) {
                self.objects.delete(&key).await?;
            }
        }
        for key in self.objects.list(&self.folder("claims")).await? {
            let name = key.filename().unwrap_or_default().trim_end_matches(".released");
            // The claim before ours stays: it counts restarts. Ours must stay: numbers never repeat.
            if name.parse().is_ok_and(|g: u64| g + 1 < generation.0) {
                self.objects.delete(&key).await?;
            }
        }
        Ok(())
    }
}

/// A generation as it stands in names, padded so that names sort like numbers.
fn padded(generation: Generation) -> String {
    format!("{:020}", generation.0)
}

/// Generation and number of a key `.../<generation>-<number>`.
pub(crate) fn numbered(key: &Path) -> Option<(Generation, u64)> {
    let (generation, number) = key.filename()?.split_once('-')?;
    Some((Generation(generation.parse().ok()?), number.parse().ok()?))
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
