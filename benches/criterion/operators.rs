//! Every operator, in batches of 1 to 16 384 rows, over 1 k, 100 k and 1 M series.
//!
//! `cargo bench --bench operators -- --quick ewma` looks at one of them.
#![allow(missing_docs, unreachable_pub, dead_code)] // criterion's macros make public functions; data/ serves other benches too

#[path = "../data/feed.rs"]
mod feed;
#[path = "../data/lines.rs"]
mod lines;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fieldstream_engine_api::{Emitter, KeyedBatch};
use serde_json::{Value, json};

/// Rows made ahead at most, so that making them is not timed.
const AHEAD: usize = 1 << 17;

fn tried() -> Vec<(&'static str, &'static str, Value)> {
    let aggregate = json!({"n": {"count": "*"}, "lowest": {"min": "value"}, "highest": {"max": "value"}, "average": {"mean": "value"}});
    let rules = json!([
        {"id": "range", "range": {"min": -40, "max": 85}},
        {"id": "quality", "quality": {"min_score": 0.5}},
        {"id": "rate", "rate": {"max_per_second": 50}},
    ]);
    vec![
        ("validate", "validate", json!({"rules": rules})),
        ("filter", "filter", json!({"where": "value > 19"})),
        ("map", "map", json!({"set": {"value": "value * 1.8 + 32"}})),
        ("route", "route", json!({"routes": {"high": "value > 21", "low": "value < 19"}, "otherwise": "rest"})),
        ("batch", "batch", json!({"max_rows": 8192})),
        ("dedupe", "dedupe", json!({"by": ["ts"], "last": 4})),
        ("deadband", "deadband", json!({"absolute": 0.5})),
        ("tumbling by series", "window", json!({"tumbling": "10s", "by": "series", "aggregate": aggregate})),
        ("tumbling by device", "window", json!({"tumbling": "10s", "by": "device", "aggregate": aggregate})),
        ("hopping", "window", json!({"hopping": {"size": "10s", "every": "5s"}, "by": "series", "aggregate": aggregate})),
        ("session", "window", json!({"session": {"gap": "5s"}, "by": "series", "aggregate": aggregate})),
        ("quantiles", "window", json!({"tumbling": "10s", "by": "series", "aggregate": {"p": {"quantile": {"of": "value", "q": 0.9}}}})),
        ("threshold", "detect", json!({"threshold": {"above": 24.5}})),
        ("ewma", "detect", json!({"ewma": {"z": 5}})),
        ("robust", "detect", json!({"robust": {"k": 6}})),
        ("cusum", "detect", json!({"cusum": {}})),
        ("rate", "detect", json!({"rate": {"max_per_second": 8}})),
        ("flatline", "detect", json!({"flatline": {"for": "60s"}})),
        ("gap", "detect", json!({"gap": {"after": "60s"}})),
        ("trend", "predict", json!({"trend_to_limit": {"limit": 90, "lookback": "60s", "buckets": 4}})),
        ("health", "predict", json!({"health": {"every": "60s"}})),
    ]
}

fn operators(c: &mut Criterion) {
    for series in [1000, 100_000, 1_000_000] {
        let fleet = feed::Fleet::new(series);
        for (name, kind, options) in tried() {
            let mut group = c.benchmark_group(format!("{name}, {series} series"));
            group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(400));
            for rows in [1, 64, 1024, 16_384] {
                let mut operator = feed::operator(kind, &options, &fleet.slots);
                let (mut feed, mut out) = (fleet.feed(), Emitter::default());
                group.throughput(Throughput::Elements(rows as u64));
                group.bench_function(BenchmarkId::from_parameter(rows), |b| {
                    b.iter_custom(|times| {
                        let (mut spent, mut left) = (Duration::ZERO, times as usize);
                        while left > 0 {
                            let chunk: Vec<KeyedBatch> = (0..left.min((AHEAD / rows).min(1024))).map(|_| feed.batch(rows)).collect();
                            left -= chunk.len();
                            let start = Instant::now();
                            for batch in &chunk {
                                std::hint::black_box(feed::call(&mut *operator, batch, &fleet.slots, &mut out));
                            }
                            spent += start.elapsed();
                        }
                        spent
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, operators);
criterion_main!(benches);
