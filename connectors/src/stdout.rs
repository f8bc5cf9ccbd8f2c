//! The `stdout` sink: newline-delimited JSON on standard output, for eyes and pipes.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use fieldstream_schemas::encode::json::JsonWriter;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::blackhole::counted;
use crate::options;

/// The catalogue line of the `stdout` sink.
pub const KIND: SinkKind = SinkKind {
    name: "stdout",
    about: "Newline-delimited JSON on standard output. No guarantee.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value, _| options::parse::<Options>(value).map(|_| Guarantee::None),
    build,
};

/// Options of the `stdout` sink: it has none.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Options {}

fn build(value: &Value, inputs: &[SinkInput], _context: &ConnectContext) -> Built<Box<dyn Sink>> {
    options::parse::<Options>(value)?;
    let encoders = inputs.iter().map(|input| JsonWriter::new(&input.edge.schema)).collect();
    Ok(Box::new(Stdout { encoders, delivered: BTreeMap::new() }))
}

struct Stdout {
    encoders: Vec<JsonWriter>,
    delivered: BTreeMap<PartitionKey, u64>,
}

impl Stdout {
    fn lines(&self, batches: &[SinkBatch]) -> Vec<u8> {
        let mut out = Vec::new();
        for part in batches.iter().flat_map(|batch| &batch.rows) {
            let Some(encoder) = self.encoders.get(part.input) else { continue };
            for row in 0..part.batch.len() {
                encoder.write_row(&part.batch.rows, row, &mut out);
                out.push(b'\n');
            }
        }
        out
    }
}

#[async_trait]
impl Sink for Stdout {
    fn guarantee(&self) -> Guarantee {
        Guarantee::None
    }

    async fn open(&mut self, partition: &PartitionKey, _generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.delivered.insert(partition.clone(), 0);
        Ok(None)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let lines = self.lines(batches);
        let written = tokio::task::spawn_blocking(move || {
            let mut out = io::stdout().lock();
            out.write_all(&lines).and_then(|()| out.flush())
        });
        let failed = |cause: String| SinkError::Fatal { context: "write to standard output".to_owned(), cause };
        written.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        Ok(batches.iter().map(|batch| counted(&mut self.delivered, batch)).collect())
    }
}
