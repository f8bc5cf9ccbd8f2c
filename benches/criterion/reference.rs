//! The reference job, one partition, in memory: the engine against a hand-written loop over the same lines.
//!
//! `cargo bench --bench reference` prints both; the ratio of the two is what counts, since machines differ. The bars are checked
//! by `cargo bench --bench ratios`, in interleaved rounds.
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/by_hand.rs"]
mod by_hand;
#[path = "../data/engine.rs"]
mod engine;
#[path = "../data/lines.rs"]
mod lines;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn reference(c: &mut Criterion) {
    let blocks = lines::partitions(None).remove(0);
    let rows = blocks.iter().map(|b| b.entries.len() as u64).sum();
    let spec = engine::plan(engine::REFERENCE);
    let mut group = c.benchmark_group("reference job");
    group.throughput(Throughput::Elements(rows)).sample_size(10);
    group.bench_function("by hand", |b| b.iter(|| black_box(by_hand::run(&blocks))));
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
