//! Where rows go: sinks, which commit rows and mark together.

use async_trait::async_trait;

use crate::{Generation, KeyedBatch, Mark, PartitionKey};

/// Rows that reached a sink by one of its inputs.
#[derive(Clone, Debug)]
pub struct SinkRows {
    /// Number of the input in the sink's `inputs:` list.
    pub input: usize,
    /// The rows.
    pub batch: KeyedBatch,
}

/// Rows of one partition, in order, and how far they make the partition complete.
#[derive(Clone, Debug)]
pub struct SinkBatch {
    /// Whose they are.
    pub partition: PartitionKey,
    /// The rows; may be none, so that the mark can move.
    pub rows: Vec<SinkRows>,
    /// Everything below this is in this batch or in earlier ones.
    pub complete_to: Mark,
}

/// What is durable after a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Whose it is.
    pub partition: PartitionKey,
    /// The durable mark.
    pub mark: Mark,
    /// Rows delivered since the log's beginning, counted in the mark where the sink keeps one.
    pub delivered: u64,
    /// Rows the service refused since the log's beginning; they lie in the sink's reject store.
    pub refused: u64,
}

/// Why a commit failed. Variants by reaction, never by origin.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The same batches will be tried again with backoff.
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done.
        context: String,
        /// The client's own words, without secrets.
        cause: String,
    },
    /// A person must act: configuration, permission, schema.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done.
        context: String,
        /// The client's own words, without secrets.
        cause: String,
    },
    /// A newer owner has taken the partition.
    #[error("partition {partition} is owned by generation {owner}")]
    Fenced {
        /// The partition.
        partition: PartitionKey,
        /// Its owner.
        owner: Generation,
    },
}

/// What a path promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guarantee {
    /// Rows and mark are one atomic write.
    ExactlyOnce,
    /// Rows may come again after a crash, with the same ids.
    AtLeastOnce,
    /// Rows may be lost by design (`blackhole`, `stdout`).
    None,
}

/// A destination. One instance serves all partitions of a pipeline; calls come one at a time.
#[async_trait]
pub trait Sink: Send {
    /// What it promises.
    fn guarantee(&self) -> Guarantee;

    /// Takes a partition: fences lower generations, then reads the mark. `None`: the sink keeps no mark (at least once) or
    /// has none yet for this log.
    async fn open(&mut self, partition: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError>;

    /// Makes `batches` durable, rows and marks together. After `Retry` the same batches come again; a commit whose outcome is
    /// unknown must find out by reading the mark. Several partitions may come in one call, each at most once.
    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError>;

    /// Ends the work of this process on the sink (flush, close). Called once, on drain.
    async fn close(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Sinks by name, as the pipeline names them.
pub type Sinks = Vec<(String, Box<dyn Sink>)>;
