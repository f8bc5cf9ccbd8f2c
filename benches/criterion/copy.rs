//! Rows to PostgreSQL's binary COPY format.
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/lines.rs"]
mod lines;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fieldstream_connectors::timescale::copy_binary;
use fieldstream_schemas::decode::{DecodeConfig, Decoder};

fn copy(c: &mut Criterion) {
    let mut decoder = Decoder::new(&DecodeConfig::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let all = decoder.decode(&lines::blocks(&lines::lines(20_000, 2500)).remove(0)).rows;
    let mut group = c.benchmark_group("COPY BINARY");
    for rows in [1, 64, 1024, all.num_rows()] {
        let batch = all.slice(0, rows);
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| b.iter(|| black_box(copy_binary(&batch))));
    }
    group.finish();
}

criterion_group!(benches, copy);
criterion_main!(benches);
