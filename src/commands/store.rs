//! What the commands on stored state share: where it lies and which partitions are meant.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use fieldstream_checkpoint::{CheckpointStore, Location, PartitionStore};

/// Where state lies, and whose is meant.
#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    /// Where the node keeps its state.
    #[arg(long, env = "FIELDSTREAM_DATA_DIR", default_value = ".fieldstream", value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// Where checkpoints lie, if not there: a folder or s3://bucket/prefix.
    #[arg(long, env = "FIELDSTREAM_STATE", value_name = "PLACE")]
    pub(crate) state: Option<Location>,
    /// This pipeline only.
    #[arg(long)]
    pub(crate) pipeline: Option<String>,
    /// This partition only.
    #[arg(long)]
    pub(crate) partition: Option<u32>,
}

impl StoreArgs {
    /// Where the checkpoint store lies.
    pub(crate) fn location(&self) -> Location {
        Location::given_or_in(self.state.as_ref(), &self.data_dir)
    }

    /// The partitions that are meant; at least one.
    pub(crate) async fn partitions(&self) -> Result<Vec<PartitionStore>> {
        let location = self.location();
        let store = CheckpointStore::look_at(&location).with_context(|| format!("{location} holds no state"))?;
        self.partitions_of(&store).await
    }

    /// The partitions of `store` that are meant; at least one.
    pub(crate) async fn partitions_of(&self, store: &CheckpointStore) -> Result<Vec<PartitionStore>> {
        let mut partitions = store.partitions().await?;
        partitions.retain(|partition| {
            let key = partition.key();
            self.pipeline.as_ref().is_none_or(|name| **name == *key.pipeline) && self.partition.is_none_or(|number| number == key.partition)
        });
        if partitions.is_empty() {
            bail!("{} holds no such partition", self.location());
        }
        Ok(partitions)
    }
}

/// Runs what waits for the store.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("the operating system gives no threads")?.block_on(work)
}
