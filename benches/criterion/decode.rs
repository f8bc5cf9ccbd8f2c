//! Payloads to rows: the JSON decoder over the reference job's lines.
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/lines.rs"]
mod lines;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fieldstream_schemas::decode::{DecodeConfig, Decoder};
use serde_json::json;

fn config(options: serde_json::Value) -> DecodeConfig {
    serde_json::from_value(options).unwrap_or_else(|e| panic!("{e}"))
}

fn decoder(config: &DecodeConfig) -> Decoder {
    Decoder::new(config).unwrap_or_else(|e| panic!("{e:?}"))
}

fn decode(c: &mut Criterion) {
    let block = lines::blocks(&lines::lines(20_000, 2500)).remove(0);
    let all = ["id", "deviceId", "sensorId", "sensorType", "timestamp", "value", "unit", "quality"];
    let configs = [
        ("json", json!({"format": "json"})),
        ("json, all required", json!({"format": "json", "value": "number", "required": all})),
        ("json, unknown as tags", json!({"format": "json", "unknown": "tags"})),
    ];
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(block.entries.len() as u64));
    for (name, options) in configs {
        let mut decoder = decoder(&config(options));
        group.bench_function(name, |b| b.iter(|| black_box(decoder.decode(&block)).positions.len()));
    }
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
