//! The reference job through the engine's partition, in memory. Against the hand-written loop: `cargo bench --bench ratios`.
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/engine.rs"]
mod engine;
#[path = "../data/lines.rs"]
mod lines;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn reference(c: &mut Criterion) {
    let blocks = lines::blocks(&lines::lines(250_000, 2500));
    let rows = blocks.iter().map(|b| b.entries.len() as u64).sum();
    let spec = engine::reference();
    let mut group = c.benchmark_group("reference job");
    group.throughput(Throughput::Elements(rows)).sample_size(10);
    group.bench_function("partition", |b| {
        b.iter(|| {
            let mut partition = engine::partition(&spec);
            blocks.iter().map(|block| engine::turn(&mut partition, block).iter().sum::<u64>()).sum::<u64>()
        });
    });
    group.finish();
}

criterion_group!(benches, reference);
criterion_main!(benches);
