//! The node: shards on their arbiters, the checkpoint store, the clock, and the pipelines they serve.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use actix::{Actor, Addr, Arbiter};
use fieldstream_checkpoint::{CheckpointStore, Location, StoreError};
use fieldstream_journal::{Journal, JournalError, JournalOptions};
use tokio::sync::OnceCell;

use crate::clock::Clock;
use crate::memory::{Tight, watch_budget};
use crate::shard::Shard;

/// Settings of a node. Flags and environment, not pipeline fields.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Where the journal lies, what is passivated, and checkpoints unless `state` says otherwise.
    pub data_dir: PathBuf,
    /// Where checkpoints lie: a place that all workers of a group see. `None` for the folder `state` in `data_dir`.
    pub state: Option<Location>,
    /// Shards, one per core.
    pub shards: usize,
    /// Payload bytes that may wait for each partition.
    pub queue_bytes: usize,
    /// Output bytes that may be on their way to the sinks of each pipeline.
    pub output_bytes: usize,
    /// How long a drain may take.
    pub drain_deadline: Duration,
    /// What a log no longer holds is given up and recorded, instead of ending the pipeline.
    pub accept_gap: bool,
    /// How long after a claim nothing is deleted: an owner that was overtaken may still be reading.
    pub prune_grace: Duration,
    /// Sizes of the journal.
    pub journal: JournalOptions,
    /// Resident bytes of the process above which nothing new is read; `None` for no bound.
    pub memory_budget: Option<u64>,
}

impl EngineOptions {
    /// Defaults for `data_dir`: one shard per core, 4 MiB of input per partition, 64 MiB of output per pipeline, 30 s to drain,
    /// 30 s before old checkpoints go.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        let shards = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            data_dir,
            state: None,
            shards,
            queue_bytes: 4 << 20,
            output_bytes: 64 << 20,
            drain_deadline: Duration::from_secs(30),
            accept_gap: false,
            prune_grace: Duration::from_secs(30),
            journal: JournalOptions::default(),
            memory_budget: None,
        }
    }
}

/// A running node. Must be made inside an actix system.
pub struct Engine {
    pub(crate) options: EngineOptions,
    pub(crate) shards: Vec<Addr<Shard>>,
    pub(crate) store: CheckpointStore,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tight: Tight,
    journal: OnceCell<Journal>,
    next_pipeline: AtomicU32,
    arbiters: Vec<Arbiter>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts shards and opens the store.
    ///
    /// # Errors
    /// If the data directory cannot be used.
    pub async fn start(options: EngineOptions, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let store = CheckpointStore::open_at(&Location::given_or_in(options.state.as_ref(), &options.data_dir)).await?;
        let arbiters: Vec<Arbiter> = (0..options.shards.max(1)).map(|_| Arbiter::new()).collect();
        let shards = arbiters.iter().map(|arbiter| Shard::start_in_arbiter(&arbiter.handle(), |_| Shard::default())).collect();
        let tight = watch_budget(&clock, options.memory_budget);
        Ok(Self { options, shards, store, clock, tight, journal: OnceCell::new(), next_pipeline: AtomicU32::new(0), arbiters })
    }

    /// A node inside another program: one shard on the caller's own thread, checkpoints in `store`.
    #[must_use]
    pub fn embedded(options: EngineOptions, clock: Arc<dyn Clock>, store: CheckpointStore) -> Self {
        let shards = vec![Shard::default().start()];
        let tight = watch_budget(&clock, options.memory_budget);
        Self { options, shards, store, clock, tight, journal: OnceCell::new(), next_pipeline: AtomicU32::new(0), arbiters: Vec::new() }
    }

    /// The node's journal, opened when the first receiver needs it.
    ///
    /// # Errors
    /// If the folder cannot be used, or another process has it open.
    pub async fn journal(&self) -> Result<&Journal, JournalError> {
        self.journal
            .get_or_try_init(|| async {
                let folder = self.options.data_dir.join("journal");
                let options = self.options.journal;
                let opened = tokio::task::spawn_blocking(move || Journal::open(&folder, options)).await;
                opened.unwrap_or_else(|panic| Err(JournalError::Failed(panic.to_string())))
            })
            .await
    }

    /// The journal, if a receiver has needed it.
    #[must_use]
    pub fn opened_journal(&self) -> Option<&Journal> {
        self.journal.get()
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// A number for a pipeline of this process.
    pub(crate) fn next_pipeline(&self) -> u32 {
        self.next_pipeline.fetch_add(1, Ordering::Relaxed)
    }

    /// The shard that hosts a partition.
    pub(crate) fn shard_of(&self, pipeline: u32, partition: u32) -> &Addr<Shard> {
        &self.shards[(pipeline as usize + partition as usize) % self.shards.len()]
    }

    /// Ends the shards' threads.
    pub fn stop(&self) {
        for arbiter in &self.arbiters {
            arbiter.stop();
        }
    }
}
