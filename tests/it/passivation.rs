//! Devices that leave memory and come back: the results of a partition with room for a few devices equal those of one with room
//! for all, also across a restart from a checkpoint.

use std::path::Path;
use std::sync::Arc;

use fieldstream_checkpoint::CheckpointStore;
use fieldstream_checkpoint::cold::ColdStore;
use fieldstream_engine_api::{Generation, LogBatch, LogId, PartitionKey, Payloads};
use fieldstream_pipelines::{Catalogue, Environment, build, load_text};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::decisions::end_of_input;
use fieldstream_runtime::partition::{Partition, TurnOutput};
use fieldstream_runtime::snapshot::SnapshotKind;
use fieldstream_runtime::spec::PipelineSpec;
use fieldstream_schemas::encode::JsonWriter;
use fieldstream_schemas::time::format_rfc3339;
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

pub(crate) const START_US: i64 = 1_795_428_000_000_000;
const DEVICES: u64 = 300;
const BATCHES: u64 = 180;
pub(crate) const ROWS: u64 = 40;

/// One operator of every kind that keeps state or waits for ticks.
const PIPELINE: &str = r#"
version: 1
pipeline: passivation
time: { out_of_orderness: 2s, allowed_lateness: 5s, idle_after: 20s }
sources:
  readings: { mqtt: { url: "mqtt://localhost:1", topics: [a] }, decode: { format: json } }
operators:
  valid:
    inputs: [readings]
    validate:
      rules:
        - { id: step, rate: { max_step: 1000 }, otherwise: { quality: uncertain } }
        - { id: stuck, stuck: { count: 4 }, otherwise: { quality: uncertain } }
  once: { inputs: [valid], dedupe: { by: [sensor_id, ts] } }
  windows:
    inputs: [once]
    window: { tumbling: 10s, by: series, aggregate: { n: { count: "*" }, low: { min: value }, mean: { mean: value }, p90: { quantile: { of: value, q: 0.9 } } } }
  sessions: { inputs: [once], window: { session: { gap: 3s }, by: device, aggregate: { n: { count: "*" }, newest: { last: value } } } }
  silent: { inputs: [once], detect: { gap: { after: 45s } } }
  odd: { inputs: [once], detect: { ewma: { warmup: 5, z: 3 }, emit: row } }
  high: { inputs: [once], detect: { threshold: { above: 90, deadband: 5 } } }
  trend: { inputs: [once], predict: { trend_to_limit: { limit: 36, lookback: 20s, buckets: 4, min_points: 3 } } }
  health: { inputs: [once], predict: { health: { every: 30s, warmup: 5 } } }
sinks:
  tumbled: { inputs: [windows, windows.revised], blackhole: }
  ended: { inputs: [sessions], blackhole: }
  alerts: { inputs: [silent, odd, high], blackhole: }
  predictions: { inputs: [trend, health], blackhole: }
dead_letter: { blackhole: }
"#;

pub(crate) fn spec() -> PipelineSpec {
    let loaded = load_text("passivation.yaml", PIPELINE, &Environment::default(), &Catalogue::built_in());
    match loaded.into_result() {
        Ok((plan, _)) => build::spec(&plan),
        Err(problems) => panic!("{problems:?}"),
    }
}

/// Readings of a crowd that moves on: a device has rows for a while, is silent, and comes back.
pub(crate) fn batch(number: u64) -> LogBatch {
    batch_of(number, DEVICES)
}

/// The same of `crowd` devices.
fn batch_of(number: u64, crowd: u64) -> LogBatch {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let now_us = START_US + number as i64 * 1_000_000;
    let (mut data, mut entries) = (Vec::new(), Vec::new());
    for row in 0..ROWS {
        let device = (number * 2 + random(30)) % crowd;
        let ts = format_rfc3339(now_us - random(4000) as i64 * 1000);
        let sensor = random(2);
        let rise = if sensor == 0 { (number % 60) as f64 / 5.0 } else { 0.0 };
        let value = if random(50) == 0 { 95.0 } else { 20.0 + random(30) as f64 / 10.0 + rise };
        let line = format!(
            r#"{{"deviceId":"d{device}","sensorId":"s{sensor}","sensorType":"t","timestamp":"{ts}","value":{value},"quality":0.9}}"#
        );
        let entry = PayloadEntry { offset: number * ROWS + row, start: data.len() as u32, len: line.len() as u32, ingest_us: Some(now_us) };
        data.extend_from_slice(line.as_bytes());
        entries.push(entry);
    }
    let payloads = Payloads::Raw(PayloadBlock { data: data.into(), entries, ..PayloadBlock::default() });
    LogBatch { partition: 0, source: "readings".into(), next_offset: (number + 1) * ROWS, append_us: Some(now_us), payloads }
}

/// Everything that leaves by any sink, as JSON. What one tick emits has no order among devices, so nothing is compared in order.
pub(crate) fn lines(outputs: &[TurnOutput], into: &mut Vec<String>) {
    let rows =
        outputs.iter().flat_map(|output| output.rows.iter().enumerate()).flat_map(|(sink, rows)| rows.iter().map(move |r| (sink, r)));
    for (sink, rows) in rows {
        let writer = JsonWriter::new(&rows.batch.rows.schema());
        for row in 0..rows.batch.len() {
            let mut text = Vec::new();
            writer.write_row(&rows.batch.rows, row, &mut text);
            into.push(format!("{sink}/{} {}", rows.input, String::from_utf8(text).unwrap()));
        }
    }
}

struct Played {
    lines: Vec<String>,
    most_active: usize,
    passivated: u64,
    most_layers: usize,
}

fn key() -> PartitionKey {
    PartitionKey { pipeline: "passivation".into(), log_id: LogId("log".into()), partition: 0 }
}

/// The whole input of `crowd` devices through a partition with room for `limit` of them; after every `restart` batches it is thrown
/// away and restored from a checkpoint. Checkpoints are deltas, of which some come to nothing.
async fn play(crowd: u64, limit: usize, restart: u64, folder: &Path) -> Played {
    let spec = spec();
    let store = CheckpointStore::open(&folder.join("state")).await.unwrap().partition(&key());
    let blank = |generation: Generation| {
        let cold = store.cold_folder(&folder.join("cold"), generation).unwrap();
        let store = ColdStore::create(&cold, &format!("{:020}", generation.0)).unwrap();
        let blank = Partition::new(&spec, &key(), 0, Arc::new(SystemClock::default())).unwrap().with_cold_store(store, limit);
        (blank, cold)
    };
    let mut generation = store.claim().await.unwrap().generation;
    store.adopt(generation, &store.lineage().await.unwrap(), None, 0).await.unwrap();
    let mut partition = blank(generation).0;
    let mut played = Played { lines: Vec::new(), most_active: 0, passivated: 0, most_layers: 0 };
    let (mut layers, mut kind, mut saved) = (Vec::new(), SnapshotKind::Whole, None);
    for number in 0..BATCHES {
        lines(&partition.turn(batch_of(number, crowd)).unwrap(), &mut played.lines);
        played.most_active = played.most_active.max(partition.slots().active_devices());
        played.passivated = played.passivated.max(partition.passivated_devices());
        if restart < BATCHES && (number % 2 == 0 || (number + 1) % restart == 0) {
            let pending = store.write(generation, number, &partition.snapshot_of("", kind).unwrap(), &layers).await.unwrap();
            let kept = number % 5 != 4 || (number + 1) % restart == 0;
            if kept {
                layers = pending.layers().to_vec();
                saved = Some(store.commit(&pending).await.unwrap());
                store.prune(generation, 1).await.unwrap();
            }
            kind = match kept {
                true => SnapshotKind::Changes,
                false if layers.is_empty() => SnapshotKind::Whole,
                false => SnapshotKind::Retake,
            };
        }
        if (number + 1) % restart == 0 {
            drop(partition);
            generation = store.claim().await.unwrap().generation;
            let (fresh, cold) = blank(generation);
            partition = fresh;
            let restored = store.latest(Some(&cold)).await.unwrap();
            layers = restored.layers;
            played.most_layers = played.most_layers.max(layers.len());
            partition.restore(&restored.checkpoint.unwrap(), false).unwrap();
            store.adopt(generation, &store.lineage().await.unwrap(), saved, 0).await.unwrap();
        }
    }
    lines(&[partition.decide(&end_of_input(BATCHES * ROWS)).unwrap()], &mut played.lines);
    played.lines.sort();
    played
}

#[test]
fn devices_on_disk_do_not_show_in_results() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let folders: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let all = runtime.block_on(play(DEVICES, 1 << 20, BATCHES + 1, folders[0].path()));
    assert_eq!((all.passivated, all.most_active), (0, DEVICES as usize));
    for port in ["0/0", "0/1", "1/0", "2/0", "2/1", "2/2", "3/0", "3/1"] {
        assert!(all.lines.iter().any(|line| line.starts_with(port)), "nothing came by sink/input {port}");
    }
    let few = runtime.block_on(play(DEVICES, 16, BATCHES + 1, folders[1].path()));
    assert!(few.passivated > 200 && few.most_active <= 16, "{} in memory, {} on disk", few.most_active, few.passivated);
    assert!(all.lines == few.lines, "{}", first_difference(&all.lines, &few.lines));
    let restarted = runtime.block_on(play(DEVICES, 16, 17, folders[2].path()));
    assert!(all.lines == restarted.lines, "after restarts: {}", first_difference(&all.lines, &restarted.lines));
    // With room for half of the crowd, checkpoints are made of layers.
    let layered = runtime.block_on(play(DEVICES, 200, 17, folders[3].path()));
    assert!(layered.most_layers > 2, "{} layers", layered.most_layers);
    assert!(all.lines == layered.lines, "from layers: {}", first_difference(&all.lines, &layered.lines));
}

/// A device that is back before it counts as silent may leave memory in the very tick for which its old row on disk is due.
#[test]
fn devices_that_are_back_before_they_are_silent_are_not_ticked() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for (crowd, limit) in [(60, 16), (56, 24), (48, 12)] {
        let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
        let all = runtime.block_on(play(crowd, 1 << 20, BATCHES + 1, folders[0].path()));
        let few = runtime.block_on(play(crowd, limit, BATCHES + 1, folders[1].path()));
        assert!(few.passivated > 20, "{} on disk", few.passivated);
        assert!(all.lines == few.lines, "{crowd}, {limit}: {}", first_difference(&all.lines, &few.lines));
    }
}

fn first_difference(expected: &[String], found: &[String]) -> String {
    let missing = expected.iter().find(|line| found.binary_search(line).is_err());
    let extra = found.iter().find(|line| expected.binary_search(line).is_err());
    format!("{} rows instead of {}; missing {missing:?}; too much {extra:?}", found.len(), expected.len())
}
