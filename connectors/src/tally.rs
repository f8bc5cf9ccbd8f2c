//! What sinks that keep no mark say of a commit.

use std::collections::BTreeMap;

use fieldstream_engine_api::{Committed, PartitionKey, SinkBatch};

/// Adds the rows of `batch` to what its partition delivered, and takes its mark for durable.
pub(crate) fn counted(delivered: &mut BTreeMap<PartitionKey, u64>, batch: &SinkBatch) -> Committed {
    let total = delivered.entry(batch.partition.clone()).or_default();
    *total += batch.rows.iter().map(|part| part.batch.len() as u64).sum::<u64>();
    Committed { partition: batch.partition.clone(), mark: batch.complete_to, delivered: *total, refused: 0 }
}
