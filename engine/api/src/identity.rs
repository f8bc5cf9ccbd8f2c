//! Names and numbers that make delivery exact: log ids, partitions, generations and marks.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Identity of a log: offsets of different ids must never be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(pub Arc<str>);

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A partition as one pipeline sees it: the unit of order, ownership, state, checkpoint and recovery.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PartitionKey {
    /// Name of the pipeline.
    pub pipeline: Arc<str>,
    /// The log it reads.
    pub log_id: LogId,
    /// Number of the partition in that log.
    pub partition: u32,
}

impl fmt::Display for PartitionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pipeline, self.log_id, self.partition)
    }
}

/// Ownership number of a partition: a higher one fences every lower one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far something is complete: everything below `next_offset`, and every decision below `next_decision`, is in it.
///
/// Exclusive, and whole payloads only. Marks of one partition are totally ordered in both parts together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark {
    /// First offset that is not in it.
    pub next_offset: u64,
    /// First decision number that is not in it.
    pub next_decision: u64,
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.next_offset, self.next_decision)
    }
}
