//! Names to slots, a batch at a time: devices known already, as in all but a device's first batch.
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/feed.rs"]
mod feed;
#[path = "../data/lines.rs"]
mod lines;

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fieldstream_runtime::ingress::address;
use fieldstream_schemas::Decoded;

fn slots(c: &mut Criterion) {
    let mut group = c.benchmark_group("slots");
    for series in [1000, 100_000, 1_000_000] {
        let mut fleet = feed::Fleet::new(series);
        for rows in [1, 64, 1024, 16_384] {
            let batches: Vec<Decoded> = {
                let mut feed = fleet.feed();
                let batch = |_| feed.batch(rows);
                let decoded = |b: fieldstream_engine_api::KeyedBatch| Decoded {
                    positions: b.keys.position.clone(),
                    rows: b.rows,
                    rejects: Vec::new(),
                };
                (0..64).map(batch).map(decoded).collect()
            };
            let mut next = 0;
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(BenchmarkId::new(format!("{series} series"), rows), |b| {
                let input = || {
                    next = (next + 1) % batches.len();
                    batches[next].clone()
                };
                b.iter_batched(input, |decoded| black_box(address(decoded, &mut fleet.slots)), BatchSize::SmallInput);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, slots);
criterion_main!(benches);
