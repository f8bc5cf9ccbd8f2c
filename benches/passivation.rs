//! Many more devices than memory has room for: each of N ids has one reading, then some come back and must find their state.
//!
//! `cargo bench --bench passivation -- [ids] [slots]` prints memory, disk and rate as the ids pass, and fails when the state of
//! a device that returns is not what it was.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use fieldstream_checkpoint::cold::ColdStore;
use fieldstream_engine_api::{LogBatch, LogId, PartitionKey, Payloads};
use fieldstream_pipelines::{Catalogue, Environment, build, load_text};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::partition::Partition;
use fieldstream_schemas::time::format_rfc3339;
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

const START_US: i64 = 1_795_428_000_000_000;
const ROWS: u64 = 8192;
const RETURNING: u64 = 100_000;

const PIPELINE: &str = r#"
version: 1
pipeline: passivation
time: { out_of_orderness: 2s, idle_after: 1m }
sources:
  readings: { mqtt: { url: "mqtt://localhost:1", topics: [a] }, decode: { format: json } }
operators:
  valid: { inputs: [readings], validate: { rules: [{ id: range, check: "value BETWEEN -1000 AND 1000" }] } }
  windows: { inputs: [valid], window: { tumbling: 10s, by: device, aggregate: { n: { count: "*" }, mean: { mean: value } } } }
  odd: { inputs: [valid], detect: { ewma: { warmup: 30, z: 4 }, emit: row } }
  trend: { inputs: [valid], predict: { trend_to_limit: { limit: 1000, lookback: 1h, buckets: 4, min_points: 30 } } }
sinks:
  tumbled: { inputs: [windows], blackhole: }
  alerts: { inputs: [odd], blackhole: }
  predictions: { inputs: [trend], blackhole: }
dead_letter: { blackhole: }
"#;

/// One reading each of the devices from `first` on, all at `now_us`.
fn batch(offset: u64, devices: impl Iterator<Item = u64>, now_us: i64) -> LogBatch {
    let time = format_rfc3339(now_us);
    let (mut data, mut entries) = (String::new(), Vec::new());
    for device in devices {
        let start = data.len();
        let value = 20 + device % 7;
        // Writing to a String cannot fail.
        let _ = write!(data, r#"{{"deviceId":"device-{device:08}","sensorId":"t","timestamp":"{time}","value":{value},"quality":0.9}}"#);
        let len = (data.len() - start) as u32;
        entries.push(PayloadEntry { offset: offset + entries.len() as u64, start: start as u32, len, ingest_us: Some(now_us) });
    }
    let next_offset = offset + entries.len() as u64;
    let payloads = Payloads::Raw(PayloadBlock { data: data.into_bytes().into(), entries, ..PayloadBlock::default() });
    LogBatch { partition: 0, source: "readings".into(), next_offset, append_us: Some(now_us), payloads }
}

/// Resident memory of this process, MiB.
fn resident_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or_default() / 1024.0
}

fn disk_mib(folder: &std::path::Path) -> f64 {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum::<u64>() as f64 / (1 << 20) as f64
}

#[allow(clippy::print_stdout)] // what a bench is for
fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (ids, limit) = (numbers.first().copied().unwrap_or(1_000_000), numbers.get(1).copied().unwrap_or(100_000));
    let loaded = load_text("passivation.yaml", PIPELINE, &Environment::default(), &Catalogue::built_in());
    let (plan, _) = loaded.into_result().map_err(|problems| anyhow!("{problems:?}"))?;
    let key = PartitionKey { pipeline: "passivation".into(), log_id: LogId("bench".into()), partition: 0 };
    let folder = tempfile::tempdir()?;
    let cold = ColdStore::create(folder.path(), "bench")?;
    let partition = Partition::new(&build::spec(&plan), &key, 0, Arc::new(SystemClock::default()));
    let mut partition = partition.map_err(|errors| anyhow!("{errors:?}"))?.with_cold_store(cold, limit as usize);
    let (mut now_us, mut offset, start) = (START_US, 0, Instant::now());
    println!("{ids} ids through {limit} slots\n      ids  in memory    on disk  RSS MiB  disk MiB  ids/s");
    let mut step = |partition: &mut Partition, devices: &mut dyn Iterator<Item = u64>| -> Result<()> {
        let batch = batch(offset, devices, now_us);
        offset = batch.next_offset;
        now_us += 1_000_000;
        partition.turn(batch).map(|_| ()).context("a turn")
    };
    for first in (0..ids).step_by(ROWS as usize) {
        step(&mut partition, &mut (first..(first + ROWS).min(ids)))?;
        if first / (ids / 10).max(1) != (first + ROWS) / (ids / 10).max(1) {
            let (active, absent) = (partition.slots().active_devices(), partition.passivated_devices());
            let rate = (first + ROWS) as f64 / start.elapsed().as_secs_f64();
            println!(
                "{:>9}  {active:>9}  {absent:>9}  {:>7.0}  {:>8.0}  {rate:>5.0}",
                first + ROWS,
                resident_mib(),
                disk_mib(folder.path())
            );
        }
    }
    // A prime stride reaches all parts of the history, in an order that has nothing to do with it.
    let returning = RETURNING.min(ids);
    let some: Vec<u64> = (0..returning).map(|n| n * 7919 % ids).collect();
    let back = Instant::now();
    for chunk in some.chunks(ROWS as usize) {
        step(&mut partition, &mut chunk.iter().copied())?;
    }
    println!("{returning} came back at {:.0} ids/s; RSS {:.0} MiB", returning as f64 / back.elapsed().as_secs_f64(), resident_mib());
    for device in some.iter().step_by(some.len() / 1000) {
        let found = partition.inspect(&format!("device-{device:08}")).with_context(|| format!("device {device} is gone"))?;
        let count = found.pointer("/state/odd~10/rows/0/count").and_then(serde_json::Value::as_u64);
        ensure!(count == Some(2), "device {device} has other state than two readings: {found}");
    }
    println!("state of 1000 of them: as expected (two readings each)");
    Ok(())
}
