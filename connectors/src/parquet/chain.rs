//! The chain of commits of one partition.

use std::sync::Arc;

use bytes::Bytes;
use fieldstream_engine_api::{Generation, LogId, Mark, PartitionKey, SinkError};
use object_store::path::Path;
use serde::{Deserialize, Serialize};

use super::store::{Store, fatal, segment};

/// Directory of the commits.
pub(crate) const COMMITS: &str = "commits";

/// One commit, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Commit {
    /// Name of the pipeline.
    pub(crate) pipeline: Arc<str>,
    /// Name of the sink.
    pub(crate) sink: Arc<str>,
    /// The log.
    pub(crate) log_id: LogId,
    /// Number of the partition.
    pub(crate) partition: u32,
    /// Its owner.
    pub(crate) generation: Generation,
    /// The mark before; `None` at the beginning.
    pub(crate) from: Option<Mark>,
    /// The mark after; `None` while only owners have come.
    pub(crate) to: Option<Mark>,
    /// Rows of the log in this store, this commit's included.
    pub(crate) delivered: u64,
    /// Data files of this commit, as keys.
    pub(crate) files: Vec<String>,
}

/// The end of a chain.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    /// Number of the last commit; 0 for none.
    pub(crate) number: u64,
    /// The last commit that can be read.
    pub(crate) commit: Option<Commit>,
}

fn folder(partition: &PartitionKey) -> Path {
    Path::from_iter([COMMITS.to_owned(), segment(&partition.log_id.0), partition.partition.to_string()])
}

fn key(partition: &PartitionKey, number: u64) -> Path {
    Path::from_iter([folder(partition).as_ref().split('/').collect::<Vec<_>>(), vec![&format!("{number:020}.json")]].concat())
}

/// Number of a commit by its key.
fn number(key: &Path) -> Option<u64> {
    key.filename()?.strip_suffix(".json")?.parse().ok()
}

/// Reads the end of a partition's chain.
pub(crate) async fn end(store: &Store, partition: &PartitionKey) -> Result<End, SinkError> {
    let keys = store.list(Some(&folder(partition))).await?;
    let mut end = End { number: keys.iter().filter_map(number).max().unwrap_or(0), commit: None };
    for at in keys.iter().rev() {
        // A commit that was cut by a loss of power was never told of: the one before it holds.
        end.commit = store.get(at).await?.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if end.commit.is_some() {
            break;
        }
        tracing::warn!(commit = %at, "commit cannot be read and was never told of, the one before it holds");
    }
    Ok(end)
}

/// The commit with a number, if it can be read.
pub(crate) async fn read(store: &Store, partition: &PartitionKey, number: u64) -> Result<Option<Commit>, SinkError> {
    Ok(store.get(&key(partition, number)).await?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Appends a commit; false when its number is taken.
pub(crate) async fn append(store: &Store, partition: &PartitionKey, number: u64, commit: &Commit) -> Result<bool, SinkError> {
    let key = key(partition, number);
    let bytes = serde_json::to_vec(commit).map_err(|e| fatal(format!("write {key}"), &e))?;
    store.create(&key, Bytes::from(bytes)).await
}
