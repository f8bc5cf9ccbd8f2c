//! Checkpoints of many devices: the pause while state is copied, the bandwidth when all devices report, and the time to restore.
//!
//! `cargo bench --bench checkpoints -- [devices] [partitions]` fills partitions with devices of 256 bytes of state each. Both the
//! copy and the writing are shown beside a bare copy and a bare write of as many bytes, taken in the same run.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, UInt32Type};
use fieldstream_checkpoint::{CheckpointStore, Layer, PartitionStore};
use fieldstream_engine_api::{
    Edge, Emitter, Generation, KeyedBatch, KeyedState, LogBatch, LogId, Operator, Output, PartitionKey, Payloads, SlotDirectory, Space,
    StateError, WindowTime,
};
use fieldstream_runtime::clock::SystemClock;
use fieldstream_runtime::partition::Partition;
use fieldstream_runtime::snapshot::SnapshotKind;
use fieldstream_runtime::spec::{CheckpointSpec, GraphSpec, OperatorSpec, PipelineSpec, PortRef, SourceSpec, TimeSpec, TurnLimits};
use fieldstream_schemas::decode::{DecodeConfig, Decoder};
use fieldstream_schemas::{PayloadBlock, PayloadEntry};

/// Numbers of 8 bytes that a device keeps.
const NUMBERS: usize = 32;
/// Entries that are turned into columns together: 32 KiB.
const BLOCK: usize = 128;
const ROWS: u64 = 8192;
const ROUNDS: u64 = 5;

/// Adds each reading to all numbers of its device.
struct Sums {
    outputs: Vec<Output>,
    entries: Vec<[f64; NUMBERS]>,
}

impl Operator for Sums {
    fn space(&self) -> Space {
        Space::Device
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _: &SlotDirectory, _: &mut Emitter) {
        let Some(values) = batch.rows.column_by_name("value").and_then(|c| c.as_primitive_opt::<Float64Type>()) else { return };
        for (device, value) in batch.keys.device.iter().zip(values.values()) {
            if let Some(entry) = self.entries.get_mut(*device as usize) {
                entry.iter_mut().for_each(|number| *number += value);
            }
        }
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![self]
    }
}

impl KeyedState for Sums {
    fn space(&self) -> Space {
        Space::Device
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        self.entries.resize(slots.max(self.entries.len()), [0.0; NUMBERS]);
    }

    // In blocks that stay in the cache: a pass over all entries for each of so many columns would read them from memory each time.
    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let mut numbers: Vec<Vec<f64>> = (0..NUMBERS).map(|_| Vec::with_capacity(slots.len())).collect();
        for block in slots.chunks(BLOCK) {
            for (number, column) in numbers.iter_mut().enumerate() {
                column.extend(block.iter().filter_map(|slot| self.entries.get(*slot as usize)).map(|entry| entry[number]));
            }
        }
        let mut fields = vec![Field::new("slot", DataType::UInt32, false)];
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from(slots.to_vec()))];
        for (number, column) in numbers.into_iter().enumerate() {
            fields.push(Field::new(format!("n{number}"), DataType::Float64, false));
            columns.push(Arc::new(Float64Array::from(column)));
        }
        let schema = Arc::new(Schema::new(fields));
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap_or_else(|_| RecordBatch::new_empty(schema))
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let unfit = || StateError::Columns("another bench wrote it".to_owned());
        let slots = rows.column(0).as_primitive_opt::<UInt32Type>().ok_or_else(unfit)?;
        for number in 0..NUMBERS {
            let column = rows.column(number + 1).as_primitive_opt::<Float64Type>().ok_or_else(unfit)?;
            for (slot, value) in slots.values().iter().zip(column.values()) {
                self.entries.get_mut(*slot as usize).ok_or_else(unfit)?[number] = *value;
            }
        }
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        slots.iter().for_each(|slot| self.entries[*slot as usize] = [0.0; NUMBERS]);
    }

    fn bytes(&self) -> usize {
        self.entries.len() * size_of::<[f64; NUMBERS]>()
    }
}

fn spec() -> PipelineSpec {
    let schema = fieldstream_schemas::readings_schema();
    let output = Output { name: "".into(), edge: Edge { schema, key: Space::Device } };
    let factory = Arc::new(move |_: &_| -> Result<Box<dyn Operator>, _> {
        Ok(Box::new(Sums { outputs: vec![output.clone()], entries: Vec::new() }))
    });
    let decoder = Arc::new(|| Decoder::new(&DecodeConfig::default()).unwrap_or_else(|_| unreachable!("the default fits")));
    let window = WindowTime { out_of_orderness: Duration::ZERO, allowed_lateness: Duration::ZERO };
    PipelineSpec {
        name: "checkpoints".into(),
        sources: vec![SourceSpec { name: "in".into(), decoder }],
        graph: GraphSpec {
            operators: vec![OperatorSpec { name: "sums".into(), kind: "bench", inputs: vec![PortRef::Source(0)], factory }],
            sinks: Vec::new(),
        },
        time: TimeSpec { window, idle_after: None, max_future: None },
        checkpoint: CheckpointSpec { interval: Duration::from_secs(10), keep: 3 },
        turn: TurnLimits { min_rows: 1, max_wait: Duration::ZERO, max_rows: ROWS as usize },
        max_active_devices: usize::MAX,
        max_devices_per_source: usize::MAX,
    }
}

/// One partition with its place in the store.
struct Part {
    partition: Partition,
    store: PartitionStore,
    generation: Generation,
    layers: Vec<Layer>,
    number: u64,
    offset: u64,
}

impl Part {
    /// One reading each of `devices`.
    fn feed(&mut self, devices: impl Iterator<Item = u64>) -> Result<()> {
        let devices: Vec<u64> = devices.collect();
        for chunk in devices.chunks(ROWS as usize) {
            let (mut data, mut entries) = (Vec::new(), Vec::new());
            for device in chunk {
                let start = data.len();
                write!(data, r#"{{"deviceId":"device-{device:08}","sensorId":"t","timestamp":1795428000000,"value":1.5}}"#)?;
                let (len, offset) = ((data.len() - start) as u32, self.offset + entries.len() as u64);
                entries.push(PayloadEntry { offset, start: start as u32, len, ingest_us: None });
            }
            self.offset += entries.len() as u64;
            let payloads = Payloads::Raw(PayloadBlock { data: data.into(), entries, ..PayloadBlock::default() });
            let partition = self.partition.key().partition;
            let batch = LogBatch { partition, source: "in".into(), next_offset: self.offset, append_us: None, payloads };
            self.partition.turn(batch).context("a turn")?;
        }
        Ok(())
    }
}

/// Sorted milliseconds: median, 99 % and most.
fn quantiles(times: &mut [f64]) -> String {
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times.get(((times.len() as f64 * q).ceil() as usize).saturating_sub(1)).copied().unwrap_or_default();
    format!("{:.1} / {:.1} / {:.1} ms (median / p99 / most)", at(0.5), at(0.99), at(1.0))
}

async fn parts(store: &CheckpointStore, count: u32, restore: bool) -> Result<Vec<Part>> {
    let spec = spec();
    let mut parts = Vec::new();
    for number in 0..count {
        let key = PartitionKey { pipeline: "checkpoints".into(), log_id: LogId("bench".into()), partition: number };
        let store = store.partition(&key);
        let generation = store.claim().await?.generation;
        let mut partition = Partition::new(&spec, &key, 0, Arc::new(SystemClock::default())).map_err(|e| anyhow!("{e:?}"))?;
        let restored = store.latest(None).await?;
        store.adopt(generation, &restored.lineage, restored.checkpoint.as_ref().map(|c| c.id), 0).await?;
        if let Some(checkpoint) = &restored.checkpoint {
            partition.restore(checkpoint, false)?;
        }
        ensure!(restored.checkpoint.is_some() == restore, "the store is as expected");
        let offset = partition.complete_to().next_offset;
        parts.push(Part { partition, store, generation, layers: restored.layers, number: 0, offset });
    }
    Ok(parts)
}

/// One checkpoint of every partition: milliseconds of each pause, then bytes and seconds of the writing.
async fn checkpoint(parts: &mut [Part]) -> Result<(Vec<f64>, u64, f64)> {
    let (mut pauses, mut work) = (Vec::new(), Vec::new());
    for part in parts.iter_mut() {
        let kind = if part.layers.is_empty() { SnapshotKind::Whole } else { SnapshotKind::Changes };
        let start = Instant::now();
        let data = part.partition.snapshot_of("", kind)?;
        pauses.push(start.elapsed().as_secs_f64() * 1000.0);
        work.push(data);
    }
    let start = Instant::now();
    let writes = parts.iter().zip(&work).map(|(part, data)| async move {
        let pending = part.store.write(part.generation, part.number, data, &part.layers).await?;
        part.store.commit(&pending).await?;
        anyhow::Ok((pending.bytes(), pending.layers().to_vec()))
    });
    let written = futures::future::try_join_all(writes).await?;
    let seconds = start.elapsed().as_secs_f64();
    let mut bytes = 0;
    for (part, (own, layers)) in parts.iter_mut().zip(written) {
        bytes += own;
        part.layers = layers;
        part.number += 1;
    }
    Ok((pauses, bytes, seconds))
}

#[allow(clippy::print_stdout)] // what a bench is for
async fn run(devices: u64, partitions: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let store = CheckpointStore::open(folder.path()).await?;
    let mut parts = self::parts(&store, partitions, false).await?;
    let own = |number: usize| (0..devices).filter(move |device| device % u64::from(partitions) == number as u64);
    println!("{devices} devices of {} bytes in {partitions} partitions", NUMBERS * 8);
    for (number, part) in parts.iter_mut().enumerate() {
        part.feed(own(number))?;
    }
    let (mut first, bytes, seconds) = checkpoint(&mut parts).await?;
    println!("first checkpoint: {:.0} MB in {seconds:.2} s; pause {}", bytes as f64 / 1e6, quantiles(&mut first));
    for share in [1, 10, 100] {
        let (mut pauses, mut total, mut time) = (Vec::new(), 0, 0.0);
        for round in 0..ROUNDS {
            for (number, part) in parts.iter_mut().enumerate() {
                part.feed(own(number).filter(|device| device / u64::from(partitions) % share == round % share))?;
            }
            let (paused, bytes, seconds) = checkpoint(&mut parts).await?;
            pauses.extend(paused);
            (total, time) = (total + bytes, time + seconds);
        }
        let (mb, layers) = (total as f64 / 1e6, parts.first().map_or(0, |part| part.layers.len()));
        println!(
            "1/{share} of the devices between two checkpoints: {:.0} MB each, {:.0} MB/s, {layers} layers; pause {}",
            mb / ROUNDS as f64,
            mb / time,
            quantiles(&mut pauses)
        );
    }
    drop(parts);
    bare(folder.path(), devices, partitions)?;
    let start = Instant::now();
    let restored = self::parts(&store, partitions, true).await?;
    let seconds = start.elapsed().as_secs_f64();
    let active: usize = restored.iter().map(|part| part.partition.slots().active_devices()).sum();
    ensure!(active as u64 == devices, "{active} devices came back");
    let layers = restored.first().map_or(0, |part| part.layers.len());
    println!("restore of {active} devices, {layers} layers a partition, one partition after the other: {seconds:.2} s");
    Ok(())
}

/// What a copy and a write of as many bytes cost.
#[allow(clippy::print_stdout)]
fn bare(folder: &std::path::Path, devices: u64, partitions: u32) -> Result<()> {
    let bytes = devices as usize * NUMBERS * 8;
    let source = vec![1_u8; bytes / partitions as usize];
    let start = Instant::now();
    let copies: Vec<Vec<u8>> = (0..partitions).map(|_| std::hint::black_box(&source).clone()).collect();
    let copied = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for (number, copy) in copies.iter().enumerate() {
        let mut file = File::create(folder.join(format!("bare-{number}")))?;
        file.write_all(copy)?;
        file.sync_all()?;
    }
    let (mb, written) = (bytes as f64 / 1e6, start.elapsed().as_secs_f64());
    println!("bare: copy {:.1} ms a partition, write and fsync {:.0} MB/s", copied * 1000.0 / f64::from(partitions), mb / written);
    Ok(())
}

fn main() -> Result<()> {
    let numbers: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (devices, partitions) = (numbers.first().copied().unwrap_or(1_000_000), numbers.get(1).copied().unwrap_or(16));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(devices, u32::try_from(partitions)?))
}
