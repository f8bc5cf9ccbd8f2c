//! Pipelines through the engine's `Partition`, as a shard runs them.

use std::path::Path;
use std::sync::Arc;

use fieldstream_engine_api::{LogBatch, LogId, PartitionKey, Payloads};
use fieldstream_pipelines::{Catalogue, Environment, build, load_text};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::partition::Partition;
use fieldstream_runtime::spec::PipelineSpec;
use fieldstream_schemas::PayloadBlock;

/// The reference job's pipeline.
pub(crate) fn reference() -> PipelineSpec {
    plan(include_str!("../../pipelines/examples/sensor-alerts.yaml"), &["input", "output"])
}

/// Plans a pipeline, whose variables do not matter: its connectors are not built.
pub(crate) fn plan(text: &str, vars: &[&str]) -> PipelineSpec {
    let vars = vars.iter().map(|name| ((*name).to_owned(), "unused".to_owned())).collect();
    let environment = Environment { vars, ..Environment::default() };
    let loaded = load_text(&Path::new("bench.yaml").display().to_string(), text, &environment, &Catalogue::built_in());
    match loaded.into_result() {
        Ok((plan, _)) => build::spec(&plan),
        Err(problems) => panic!("{problems:?}"),
    }
}

/// A blank partition.
pub(crate) fn partition(spec: &PipelineSpec) -> Partition {
    let key = PartitionKey { pipeline: Arc::clone(&spec.name), log_id: LogId("bench".into()), partition: 0 };
    match Partition::new(spec, &key, 0, Arc::new(SystemClock::default())) {
        Ok(partition) => partition,
        Err(errors) => panic!("{errors:?}"),
    }
}

/// One turn; gives the rows that reached each sink.
pub(crate) fn turn(partition: &mut Partition, block: &PayloadBlock) -> Vec<u64> {
    let next_offset = block.entries.last().map_or(0, |e| e.offset + u64::from(e.len) + 1);
    let payloads = Payloads::Raw(block.clone());
    let batch = LogBatch { partition: 0, source: "readings".into(), next_offset, append_us: None, payloads };
    let mut rows = Vec::new();
    let Ok(outputs) = partition.turn(batch) else { panic!("nothing is passivated here") };
    for output in outputs {
        rows.resize(output.rows.len(), 0);
        output.rows.iter().zip(&mut rows).for_each(|(sink, n)| *n += sink.iter().map(|r| r.batch.len() as u64).sum::<u64>());
    }
    rows
}
