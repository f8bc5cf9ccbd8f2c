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

use crate::options;
use crate::tally::counted;

/// The catalogue line of the `stdout` sink.
pub const KIND: SinkKind = SinkKind {
    name: "stdout",
    about: "Newline-delimited JSON on standard output. No guarantee.",
    schema: || schemars::schema_for!(Options).to_value(),
    check: |value, _| options::parse::<Options>(value).map(|_| Guarantee::None),
    place: |_| None,
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float64Array, RecordBatch};
    use fieldstream_engine_api::{KeyedBatch, Keys, LogId, Mark, Position, SinkRows};

    use super::*;

    #[tokio::test]
    async fn every_row_is_a_line_and_is_counted() {
        let rows = RecordBatch::try_from_iter([("value", Arc::new(Float64Array::from(vec![1.5, 2.5])) as ArrayRef)]).expect("batch");
        let mut sink = Stdout { encoders: vec![JsonWriter::new(&rows.schema())], delivered: BTreeMap::new() };
        let mut keys = Keys::default();
        keys.push(0, 0, Position::new(0, 0));
        keys.push(0, 0, Position::new(1, 0));
        let partition = PartitionKey { pipeline: "p".into(), log_id: LogId("l".into()), partition: 0 };
        let complete_to = Mark { next_offset: 2, next_decision: 0 };
        let batch = SinkBatch { partition, rows: vec![SinkRows { input: 0, batch: KeyedBatch::new(rows, keys) }], complete_to };
        assert_eq!(String::from_utf8_lossy(&sink.lines(std::slice::from_ref(&batch))), "{\"value\":1.5}\n{\"value\":2.5}\n");
        assert_eq!(sink.open(&batch.partition, Generation(1)).await.expect("open"), None);
        for delivered in [2, 4] {
            let done = sink.commit(std::slice::from_ref(&batch)).await.expect("commit");
            assert_eq!((done[0].mark, done[0].delivered), (complete_to, delivered));
        }
    }
}
