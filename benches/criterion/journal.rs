//! Appending to the journal: from the call to the fsync that covers it, with one append in flight and with many (group commit).
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/lines.rs"]
mod lines;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fieldstream_journal::{Journal, JournalOptions};
use fieldstream_schemas::decode::{DecodeConfig, Decoder};
use fieldstream_schemas::{Decoded, PayloadBlock};
use futures::future::join_all;

/// Append time, microseconds since the epoch.
const NOW_US: i64 = 1_795_428_000_000_000;

fn decoded(rows: usize) -> Decoded {
    let mut decoder = Decoder::new(&DecodeConfig::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let mut block: PayloadBlock = lines::blocks(&lines::lines(20_000, 2500)).remove(0);
    block.entries.truncate(rows);
    decoder.decode(&block)
}

fn journal(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().build().unwrap_or_else(|e| panic!("{e}"));
    let folder = tempfile::tempdir().unwrap_or_else(|e| panic!("{e}"));
    let options = JournalOptions { budget_bytes: 64 << 30, ..JournalOptions::default() };
    let journal = Journal::open(folder.path(), options).unwrap_or_else(|e| panic!("{e}"));
    let mut group = c.benchmark_group("journal append");
    group.sample_size(20);
    for (rows, in_flight) in [(1, 1), (1, 256), (64, 16), (1024, 1), (1024, 16)] {
        let payload = decoded(rows);
        group.throughput(Throughput::Elements((rows * in_flight) as u64));
        group.bench_function(BenchmarkId::new(format!("{rows} rows"), format!("{in_flight} in flight")), |b| {
            let inputs = || vec![payload.clone(); in_flight];
            b.iter_batched(
                inputs,
                |inputs| {
                    let appends = inputs.into_iter().map(|decoded| journal.append("field", decoded, None, NOW_US));
                    for outcome in runtime.block_on(join_all(appends)) {
                        outcome.unwrap_or_else(|e| panic!("{e}"));
                    }
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, journal);
criterion_main!(benches);
