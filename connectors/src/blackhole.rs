//! The `blackhole` sink: counts rows and forgets them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::options;
use crate::tally::counted;

/// The catalogue line of the `blackhole` sink.
pub const KIND: SinkKind = SinkKind {
    name: "blackhole",
    about: "Counts rows and forgets them.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value, _| options::parse::<Options>(value).map(|_| Guarantee::None),
    place: |_| None,
    build,
};

/// Options of the `blackhole` sink: it has none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

fn build(value: &Value, _inputs: &[SinkInput], _context: &ConnectContext) -> Built<Box<dyn Sink>> {
    options::parse::<Options>(value)?;
    Ok(Box::new(Blackhole::default()))
}

/// Rows seen since the partition was opened.
#[derive(Debug, Default)]
struct Blackhole {
    delivered: BTreeMap<PartitionKey, u64>,
}

#[async_trait]
impl Sink for Blackhole {
    fn guarantee(&self) -> Guarantee {
        Guarantee::None
    }

    async fn open(&mut self, partition: &PartitionKey, _generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.delivered.insert(partition.clone(), 0);
        Ok(None)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        Ok(batches.iter().map(|batch| counted(&mut self.delivered, batch)).collect())
    }
}
