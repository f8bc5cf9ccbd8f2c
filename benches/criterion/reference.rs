//! The reference job, one core, in memory: the engine's partition against a hand-written loop over the same lines.
//!
//! `cargo bench --bench reference` prints both; the ratio of the two is what counts, since machines differ.
#![allow(missing_docs, unreachable_pub)] // criterion's macros make public functions without documentation

use std::collections::HashMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fieldstream_engine_api::{LogBatch, LogId, PartitionKey, Payloads};
use fieldstream_pipelines::{Catalogue, Environment, build, load_text};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::partition::Partition;
use fieldstream_runtime::spec::PipelineSpec;
use fieldstream_schemas::time::parse_rfc3339;
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

const LINES: u64 = 200_000;
const DEVICES: u64 = 10_000;
const BLOCK: usize = 6000;
const START_MS: i64 = 1_795_428_000_000;
const PIPELINE: &str = include_str!("../../pipelines/examples/sensor-alerts.yaml");

/// Lines of two sensors a device, a reading a second, 178 bytes or so each.
fn lines() -> Vec<String> {
    let mut state = 42_u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / f64::from(1_u32 << 31) - 0.5
    };
    (0..LINES)
        .map(|i| {
            let series = i % (DEVICES * 2);
            let us = (START_MS + (i / (DEVICES * 2)) as i64 * 1000) * 1000;
            let (device, sensor, time) = (series / 2, series % 2 + 1, fieldstream_schemas::time::format_rfc3339(us));
            let value = (2000.0 + 300.0 * noise()).round() / 100.0;
            let mut line = String::new();
            // Writing to a String cannot fail.
            let _ = write!(
                line,
                r#"{{"id":"{i}","deviceId":"device-{device:07}","sensorId":"temp-{sensor:03}","sensorType":"temperature","timestamp":"{time}","value":{value},"unit":"celsius","quality":0.9}}"#
            );
            line
        })
        .collect()
}

fn blocks(lines: &[String]) -> Vec<PayloadBlock> {
    let mut offset = 0;
    let block = |chunk: &[String]| {
        let mut data = Vec::new();
        let mut entries = Vec::with_capacity(chunk.len());
        for line in chunk {
            entries.push(PayloadEntry { offset, start: data.len() as u32, len: line.len() as u32, ingest_us: None });
            data.extend_from_slice(line.as_bytes());
            data.push(b'\n');
            offset += line.len() as u64 + 1;
        }
        PayloadBlock { data: data.into(), entries, keys: None, topics: None }
    };
    lines.chunks(BLOCK).map(block).collect()
}

fn pipeline() -> PipelineSpec {
    let vars = [("input", "unused"), ("output", "unused")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    let environment = Environment { vars: vars.into(), ..Environment::default() };
    let loaded = load_text(&Path::new("sensor-alerts.yaml").display().to_string(), PIPELINE, &environment, &Catalogue::built_in());
    match loaded.into_result() {
        Ok((plan, _)) => build::spec(&plan),
        Err(problems) => panic!("{problems:?}"),
    }
}

/// All turns of the job; gives the rows that reached the sinks.
fn engine(spec: &PipelineSpec, blocks: &[PayloadBlock]) -> usize {
    let key = PartitionKey { pipeline: "sensor-alerts".into(), log_id: LogId("bench".into()), partition: 0 };
    let mut partition = match Partition::new(spec, &key, 0, Arc::new(SystemClock::default())) {
        Ok(partition) => partition,
        Err(errors) => panic!("{errors:?}"),
    };
    let mut rows = 0;
    for block in blocks {
        let next_offset = block.entries.last().map_or(0, |e| e.offset + u64::from(e.len) + 1);
        let payloads = Payloads::Raw(block.clone());
        let batch = LogBatch { partition: 0, source: "readings".into(), next_offset, append_us: None, payloads };
        let Ok(outputs) = partition.turn(batch) else { panic!("nothing is passivated here") };
        rows += outputs.iter().flat_map(|t| &t.rows).flatten().map(|r| r.batch.len()).sum::<usize>();
    }
    rows
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    device_id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    sensor_id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    timestamp: std::borrow::Cow<'a, str>,
    value: f64,
    quality: f64,
}

#[derive(Default)]
struct Device {
    sensors: Vec<(Box<str>, f64, f64, u32)>,
    windows: Vec<(i64, u64, f64, f64, f64)>,
}

/// The same job as a person would write it for this one purpose: no ledger, no dead letters, no positions.
fn by_hand(blocks: &[PayloadBlock]) -> usize {
    let mut devices: HashMap<Box<str>, Device, foldhash::fast::FixedState> = HashMap::default();
    let mut rows = 0;
    for block in blocks {
        for index in 0..block.entries.len() {
            let Ok(line) = sonic_rs::from_slice::<Line<'_>>(block.payload(index)) else { continue };
            let Some(ts) = parse_rfc3339(line.timestamp.as_bytes()) else { continue };
            if !(-40.0..=85.0).contains(&line.value) || line.quality < 0.5 {
                continue;
            }
            if !devices.contains_key(&*line.device_id) {
                devices.insert(line.device_id.as_ref().into(), Device::default());
            }
            let Some(device) = devices.get_mut(&*line.device_id) else { continue };
            rows += usize::from(ewma(device, &line.sensor_id, line.value)) * line.id.len().min(1);
            let start = ts.div_euclid(10_000_000);
            match device.windows.iter_mut().find(|w| w.0 == start) {
                Some(w) => *w = (start, w.1 + 1, w.2.min(line.value), w.3.max(line.value), w.4 + line.value),
                None => device.windows.push((start, 1, line.value, line.value, line.value)),
            }
        }
    }
    rows + devices.values().map(|d| d.windows.len()).sum::<usize>()
}

fn ewma(device: &mut Device, sensor: &str, x: f64) -> bool {
    let Some((_, mean, var, n)) = device.sensors.iter_mut().find(|s| *s.0 == *sensor) else {
        device.sensors.push((sensor.into(), x, 0.0, 1));
        return false;
    };
    let d = x - *mean;
    let alert = *n >= 30 && *var > 1e-9 && (d / var.sqrt()).abs() > 4.0;
    *mean += 0.05 * d;
    *var = 0.95 * (*var + 0.05 * d * d);
    *n += 1;
    alert
}

fn reference(c: &mut Criterion) {
    let blocks = blocks(&lines());
    let spec = pipeline();
    let mut group = c.benchmark_group("reference job");
    group.throughput(Throughput::Elements(LINES)).sample_size(10);
    group.bench_function("by hand", |b| b.iter(|| black_box(by_hand(&blocks))));
    group.bench_function("engine", |b| b.iter(|| black_box(engine(&spec, &blocks))));
    group.finish();
}

criterion_group!(benches, reference);
criterion_main!(benches);
