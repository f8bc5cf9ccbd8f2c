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
//! | `snapshots/<p>/<generation>-<number>/<file>` | tables of a layer, shared by checkpoints |
//! | `cold/<p>/<generation>-<number>.arrow` | state of passivated devices, shared by checkpoints |
//! | `manifests/<p>/<generation>-<number>` | the checkpoint is true |
//! | `savepoints/<p>/<label>` | a checkpoint that is not pruned |
//! | `restores/<p>/<number>` | the checkpoint that the next start is to begin from |
//!
//! Take-over: [`PartitionStore::claim`], fence all sinks and read their marks, [`PartitionStore::latest`],
//! [`PartitionStore::decisions_in`] the same lineage from the checkpoint's next decision on, [`PartitionStore::adopt`], restore, seek.

use std::path::Path as FsPath;
use std::sync::Arc;

use bytes::Bytes;
use fieldstream_engine_api::{Generation, LogId, PartitionKey};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::ObjectStore;
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use crate::decisions::{Adoption, DecisionRecord, Lineage};
use crate::objects::{Objects, name_of, seal, segment, unseal};
use crate::{CheckpointId, Decision, StoreError};

/// Small objects read at once.
const READS: usize = 16;

/// Where checkpoints lie. Cloning shares it.
#[derive(Clone, Debug)]
pub struct CheckpointStore {
    pub(crate) objects: Objects,
}

impl CheckpointStore {
    /// Opens a store on the local disk, making the folder if need be.
    ///
    /// # Errors
    /// If the folder cannot be used, or does not refuse to create a name twice.
    pub async fn open(folder: &FsPath) -> Result<Self, StoreError> {
        Self::probed(Objects::local(folder)?).await
    }

    /// Opens a store on the local disk to look into it. Nothing is written.
    ///
    /// # Errors
    /// If there is none.
    pub fn look(folder: &FsPath) -> Result<Self, StoreError> {
        if !folder.is_dir() {
            return Err(StoreError::io(format!("open {}", folder.display()), "there is no such folder"));
        }
        Ok(Self { objects: Objects::local(folder)? })
    }

    /// Opens a store on the local disk to repair it: no node may have it open, and none can open it as long as this lives.
    ///
    /// # Errors
    /// If there is none, or a node has it open.
    pub fn open_alone(folder: &FsPath) -> Result<Self, StoreError> {
        Ok(Self { objects: Objects::local_alone(folder)? })
    }

    /// All partitions that were ever claimed.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn partitions(&self) -> Result<Vec<PartitionStore>, StoreError> {
        let mut found = Vec::new();
        for pipeline in self.objects.folders(&Path::from("claims")).await? {
            for log in self.objects.folders(&Path::from_iter(["claims", &pipeline])).await? {
                let mut partitions: Vec<u32> = Vec::new();
                let names = self.objects.folders(&Path::from_iter(["claims", &pipeline, &log])).await?;
                partitions.extend(names.iter().filter_map(|name| name.parse::<u32>().ok()));
                partitions.sort_unstable();
                let key = |partition| PartitionKey { pipeline: name_of(&pipeline).into(), log_id: LogId(name_of(&log).into()), partition };
                found.extend(partitions.into_iter().map(|partition| self.partition(&key(partition))));
            }
        }
        Ok(found)
    }

    /// Opens a store on any object store with conditional put.
    ///
    /// # Errors
    /// If it cannot be reached, or does not refuse to create a key twice.
    pub async fn open_remote(store: Arc<dyn ObjectStore>) -> Result<Self, StoreError> {
        let location = store.to_string();
        Self::probed(Objects::remote(store, &location)).await
    }

    pub(crate) async fn probed(objects: Objects) -> Result<Self, StoreError> {
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
pub(crate) struct ClaimRecord {
    generation: Generation,
    restarts: u32,
    checkpoint: Option<CheckpointId>,
}

/// The store of one partition.
#[derive(Clone, Debug)]
pub struct PartitionStore {
    pub(crate) objects: Objects,
    pub(crate) key: PartitionKey,
    pub(crate) tail: [String; 3],
}

impl PartitionStore {
    /// Whose it is.
    #[must_use]
    pub fn key(&self) -> &PartitionKey {
        &self.key
    }

    pub(crate) fn folder(&self, kind: &str) -> Path {
        Path::from_iter(std::iter::once(kind).chain(self.tail.iter().map(String::as_str)))
    }

    pub(crate) fn at(&self, kind: &str, name: &str) -> Path {
        self.folder(kind).join(name)
    }

    pub(crate) async fn read<T: serde::de::DeserializeOwned>(&self, key: &Path) -> Result<Option<T>, StoreError> {
        self.objects.get(key).await?.map(|data| unseal(key, &data)).transpose()
    }

    /// Generations that have a key in `kind`, ascending; names of another form are not ours and are passed over.
    async fn generations(&self, kind: &str) -> Result<Vec<Generation>, StoreError> {
        let keys = self.objects.list(&self.folder(kind)).await?;
        Ok(keys.iter().filter_map(|k| k.filename()?.parse().ok()).map(Generation).collect())
    }

    /// Ids of the logs that this partition's pipeline has ever claimed partitions of.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn logs(&self) -> Result<Vec<String>, StoreError> {
        let [pipeline, ..] = &self.tail;
        let folders = self.objects.folders(&Path::from_iter(["claims", pipeline])).await?;
        Ok(folders.iter().map(|name| name_of(name)).collect())
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
                    for kind in ["snapshots", "manifests", "decisions", "adoptions", "savepoints", "restores"] {
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

    /// The owners that count now.
    ///
    /// # Errors
    /// If the store fails or a record is damaged.
    pub async fn lineage(&self) -> Result<Lineage, StoreError> {
        let keys: Vec<Path> = self.generations("adoptions").await?.iter().map(|g| self.at("adoptions", &padded(*g))).collect();
        let read = stream::iter(keys).map(|key| async move { self.read::<Adoption>(&key).await }).buffered(READS);
        let found: Vec<Option<Adoption>> = read.try_collect().await?;
        Ok(Lineage::of(found.into_iter().flatten().collect()))
    }

    /// Writes what this owner takes over: the checkpoint it starts from and the decisions below `decisions_below`, both as `lineage`
    /// shows them, which was read after all sinks had been fenced. Must be durable before its first decision and its first checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] when a newer owner has claimed or adopted the partition.
    pub async fn adopt(
        &self,
        generation: Generation,
        lineage: &Lineage,
        checkpoint: Option<CheckpointId>,
        decisions_below: u64,
    ) -> Result<(), StoreError> {
        self.check_owner(generation).await?;
        if let Some(owner) = self.lineage().await?.newest().filter(|newest| *newest >= generation) {
            return Err(StoreError::Fenced { partition: self.key.to_string(), owner });
        }
        // Not the newest record of now: one that came since was written by an owner that we had overtaken.
        let previous = lineage.newest();
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
        self.decisions_in(&self.lineage().await?, first).await
    }

    /// [`Self::decisions_from`] as `lineage` shows them.
    ///
    /// # Errors
    /// As [`Self::decisions_from`].
    pub async fn decisions_in(&self, lineage: &Lineage, first: u64) -> Result<Vec<Decision>, StoreError> {
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
