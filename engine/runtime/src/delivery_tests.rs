//! Exactly-once delivery under crashes, take-overs, retries and panics, against a log and a sink kept in memory.
//!
//! The pipeline counts each device's readings: a row lost, doubled or judged by wrong state shows in the counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, UInt32Type};
use async_trait::async_trait;
use fieldstream_engine_api::{
    Assignment, Committed, Edge, Emitter, Generation, Guarantee, KeyedBatch, KeyedState, Log, LogBatch, LogError, LogEvent, LogId, Mark,
    Operator, Output, PartitionKey, Payloads, Sink, SinkBatch, SinkError, SinkInput, SlotDirectory, Space, StateError, WindowTime,
};
use fieldstream_schemas::decode::{DecodeConfig, Decoder};
use fieldstream_schemas::{PayloadBlock, PayloadEntry};
use tokio::sync::watch;

use crate::clock::SystemClock;
use crate::engine::{Engine, EngineOptions};
use crate::error::PipelineError;
use crate::pipeline::{Report, run};
use crate::spec::*;
use crate::status::{State, Status};

const PARTITIONS: u32 = 2;
const PAYLOADS: u64 = 400;
const DEVICES: u64 = 7;
/// A reading of this value makes the operator panic.
const POISON: f64 = 666.0;

fn payload(partition: u32, offset: u64, poison: &[u64]) -> String {
    let device = offset % DEVICES;
    let value = if poison.contains(&offset) { POISON } else { offset as f64 };
    format!(r#"{{"deviceId":"d{partition}-{device}","sensorId":"s","timestamp":{},"value":{value}}}"#, 1_000_000 + offset)
}

/// A finite log of JSON readings, a few payloads a batch.
struct MemoryLog {
    next: BTreeMap<u32, u64>,
    assigned: bool,
    ended: Vec<u32>,
    poison: &'static [u64],
    /// Offsets below it are gone.
    first_offset: u64,
    /// Offsets of partition 0 that the log has lost.
    lost: Option<std::ops::Range<u64>>,
    id: &'static str,
    /// Tells the pipeline to stop when this offset is reached, and gives nothing more.
    stop: Option<(u64, watch::Sender<bool>)>,
}

#[async_trait]
impl Log for MemoryLog {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        if !self.assigned {
            self.assigned = true;
            let (log_id, first_offset) = (LogId(self.id.into()), self.first_offset);
            // Everything was appended after the assignment.
            let assignment = |partition| Assignment { partition, log_id: log_id.clone(), first_offset, end_offset: first_offset };
            return Ok(LogEvent::Assigned((0..PARTITIONS).map(assignment).collect()));
        }
        tokio::task::yield_now().await;
        let Some((partition, from)) = self.next.iter().find(|(p, _)| !self.ended.contains(p)).map(|(p, o)| (*p, *o)) else {
            return std::future::pending().await;
        };
        if let Some((_, stop)) = self.stop.as_ref().filter(|(at, _)| from >= *at) {
            stop.send_replace(true);
            return std::future::pending().await;
        }
        if from >= PAYLOADS {
            self.ended.push(partition);
            return Ok(LogEvent::EndOfInput { partition, next_offset: PAYLOADS });
        }
        if let Some(lost) = self.lost.as_ref().filter(|lost| partition == 0 && lost.contains(&from)) {
            self.next.insert(partition, lost.end);
            return Ok(LogEvent::Lost { partition, next_offset: lost.end, payloads: lost.end - from });
        }
        let before_loss = self.lost.as_ref().filter(|lost| partition == 0 && lost.start > from).map_or(PAYLOADS, |lost| lost.start);
        let to = (from + 13).min(PAYLOADS).min(before_loss);
        let mut block = PayloadBlock::default();
        let mut data = Vec::new();
        for offset in from..to {
            let text = payload(partition, offset, self.poison);
            block.entries.push(PayloadEntry { offset, start: data.len() as u32, len: text.len() as u32, ingest_us: None });
            data.extend_from_slice(text.as_bytes());
        }
        block.data = data.into();
        self.next.insert(partition, to);
        Ok(LogEvent::Batch(LogBatch { partition, source: "in".into(), next_offset: to, append_us: None, payloads: Payloads::Raw(block) }))
    }

    async fn end_offset(&mut self, _: u32) -> Result<Option<u64>, LogError> {
        Ok(Some(PAYLOADS))
    }

    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        self.ended.retain(|p| *p != partition);
        self.next.insert(partition, offset);
        Ok(())
    }

    async fn acknowledge(&mut self, _: u32, _: u64) -> Result<(), LogError> {
        Ok(())
    }

    fn pause(&mut self, _: u32, _: bool) {}
}

/// Emits, for each reading, how many the device has sent so far.
struct Counter {
    outputs: Vec<Output>,
    counts: Vec<i64>,
}

fn counted_schema() -> Arc<Schema> {
    Arc::new(Schema::new(vec![Field::new("value", DataType::Float64, false), Field::new("count", DataType::Int64, false)]))
}

impl Operator for Counter {
    fn space(&self) -> Space {
        Space::Device
    }

    fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    fn on_batch(&mut self, batch: &KeyedBatch, _: &SlotDirectory, out: &mut Emitter) {
        let values = batch.rows.column_by_name("value").unwrap().as_primitive::<Float64Type>().clone();
        let mut counts = Vec::new();
        for (row, device) in batch.keys.device.iter().enumerate() {
            assert!(values.value(row) < POISON - 0.5 || values.value(row) > POISON + 0.5, "poison");
            self.counts[*device as usize] += 1;
            counts.push(self.counts[*device as usize]);
        }
        let rows = RecordBatch::try_new(counted_schema(), vec![Arc::new(values), Arc::new(Int64Array::from(counts))]).unwrap();
        out.forward(0, batch.with_rows(rows));
    }

    fn states(&mut self) -> Vec<&mut dyn KeyedState> {
        vec![self]
    }
}

impl KeyedState for Counter {
    fn space(&self) -> Space {
        Space::Device
    }

    fn layout(&self) -> u32 {
        1
    }

    fn grow_to(&mut self, slots: usize) {
        self.counts.resize(slots.max(self.counts.len()), 0);
    }

    fn snapshot(&self, slots: &[u32]) -> RecordBatch {
        let schema = Schema::new(vec![Field::new("slot", DataType::UInt32, false), Field::new("count", DataType::Int64, false)]);
        let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(slots.iter().map(|s| self.counts[*s as usize])));
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(UInt32Array::from(slots.to_vec())), counts]).unwrap()
    }

    fn restore(&mut self, rows: &RecordBatch) -> Result<(), StateError> {
        let (slots, counts) = (rows.column(0).as_primitive::<UInt32Type>(), rows.column(1).as_primitive::<Int64Type>());
        (0..rows.num_rows()).for_each(|r| self.counts[slots.value(r) as usize] = counts.value(r));
        Ok(())
    }

    fn clear(&mut self, slots: &[u32]) {
        slots.iter().for_each(|s| self.counts[*s as usize] = 0);
    }

    fn bytes(&self) -> usize {
        self.counts.len() * 8
    }
}

/// What outlives a crash: the service behind the sink.
#[derive(Default)]
pub(crate) struct Service {
    owner: BTreeMap<u32, Generation>,
    marks: BTreeMap<u32, (Mark, u64)>,
    rows: Vec<(u32, u64, i64)>,
    commits: u32,
    stale_writes: u32,
}

/// A sink whose service commits rows and mark together, answers every third commit with "try again" after doing it, and
/// can be told to fail for good.
struct MemorySink {
    service: Arc<Mutex<Service>>,
    owned: BTreeMap<u32, Generation>,
    /// `Fatal` at this commit of this process; 0: never.
    dies_at: u32,
    commits: u32,
}

#[async_trait]
impl Sink for MemorySink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, partition: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        let mut service = self.service.lock().unwrap();
        let owner = service.owner.entry(partition.partition).or_default();
        assert!(generation > *owner, "a claim is newer than all before");
        *owner = generation;
        self.owned.insert(partition.partition, generation);
        let mark = service.marks.get(&partition.partition);
        Ok(mark.map(|(mark, delivered)| Committed { partition: partition.clone(), mark: *mark, delivered: *delivered, refused: 0 }))
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        self.commits += 1;
        if self.commits == self.dies_at {
            return Err(SinkError::Fatal { context: "test".into(), cause: "told to die".into() });
        }
        let mut service = self.service.lock().unwrap();
        service.commits += 1;
        let unknown_outcome = service.commits.is_multiple_of(3);
        let mut done = Vec::new();
        for batch in batches {
            let number = batch.partition.partition;
            let (owner, mine) = (service.owner[&number], self.owned[&number]);
            if owner != mine {
                service.stale_writes += 1;
                return Err(SinkError::Fenced { partition: batch.partition.clone(), owner });
            }
            let (known, mut delivered) = service.marks.get(&number).copied().unwrap_or_default();
            // A batch whose commit had no answer comes again: its mark tells.
            if known < batch.complete_to {
                for part in &batch.rows {
                    let values = part.batch.rows.column(0).as_primitive::<Float64Type>();
                    let counts = part.batch.rows.column(1).as_primitive::<Int64Type>();
                    service.rows.extend((0..part.batch.len()).map(|r| (number, values.value(r) as u64, counts.value(r))));
                    delivered += part.batch.len() as u64;
                }
                service.marks.insert(number, (batch.complete_to, delivered));
            }
            done.push(Committed { partition: batch.partition.clone(), mark: batch.complete_to.max(known), delivered, refused: 0 });
        }
        if unknown_outcome {
            return Err(SinkError::Retry { context: "commit".into(), cause: "no answer".into() });
        }
        Ok(done)
    }
}

pub(crate) fn parts(service: &Arc<Mutex<Service>>, dies_at: u32, poison: &'static [u64]) -> PipelineParts {
    let edge = Edge { schema: counted_schema(), key: Space::Series };
    let output = Output { name: "".into(), edge: edge.clone() };
    let factory: OperatorFactory = Arc::new(move |_| Ok(Box::new(Counter { outputs: vec![output.clone()], counts: Vec::new() })));
    let dead = Edge { schema: fieldstream_schemas::records::dead_letter_schema(), key: Space::Device };
    let gather = Gather { max_rows: 40, max_bytes: 1 << 20, max_wait: Duration::from_millis(5) };
    let sink = |name: &str, port, edge, dead_letter| SinkSpec {
        name: name.into(),
        inputs: vec![(port, SinkInput { name: name.into(), edge })],
        gather,
        dead_letter,
    };
    let graph = GraphSpec {
        operators: vec![OperatorSpec { name: "count".into(), kind: "map", inputs: vec![PortRef::Source(0)], factory }],
        sinks: vec![
            sink("out", PortRef::Operator { node: 0, port: 0 }, edge, false),
            sink("dead_letter", PortRef::SourceRejected { source: 0 }, dead, true),
        ],
    };
    let spec = PipelineSpec {
        name: "test".into(),
        sources: vec![SourceSpec { name: "in".into(), decoder: Arc::new(|| Decoder::new(&DecodeConfig::default()).unwrap()) }],
        graph,
        time: TimeSpec {
            window: WindowTime { out_of_orderness: Duration::ZERO, allowed_lateness: Duration::ZERO },
            idle_after: None,
            max_future: None,
        },
        checkpoint: CheckpointSpec { interval: Duration::from_millis(10), keep: 2 },
        // Small turns make many commits, also where a busy machine lets much input wait.
        turn: TurnLimits { min_rows: 1, max_wait: Duration::ZERO, max_rows: 20 },
        max_active_devices: 1 << 20,
        max_devices_per_source: 1 << 20,
    };
    let log = memory_log(poison);
    let sink = MemorySink { service: Arc::clone(service), owned: BTreeMap::new(), dies_at, commits: 0 };
    let dead_letters = DeadLetters::default();
    PipelineParts {
        spec,
        input: Input::Log { log: Box::new(log), finite: true },
        sinks: vec![SinkBox(Box::new(sink)), SinkBox(Box::new(dead_letters))],
    }
}

fn memory_log(poison: &'static [u64]) -> MemoryLog {
    let (next, ended) = (BTreeMap::new(), Vec::new());
    MemoryLog { next, assigned: false, ended, poison, first_offset: 0, lost: None, id: "memory", stop: None }
}

/// Keeps nothing but promises nothing either.
#[derive(Default)]
struct DeadLetters {}

#[async_trait]
impl Sink for DeadLetters {
    fn guarantee(&self) -> Guarantee {
        Guarantee::None
    }

    async fn open(&mut self, _: &PartitionKey, _: Generation) -> Result<Option<Committed>, SinkError> {
        Ok(None)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let done = |b: &SinkBatch| Committed { partition: b.partition.clone(), mark: b.complete_to, delivered: 0, refused: 0 };
        Ok(batches.iter().map(done).collect())
    }
}

/// Runs `f` inside an actix system on a runtime of several threads.
fn on_system<F: Future>(f: F) -> F::Output {
    let system =
        actix::System::with_tokio_rt(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());
    system.block_on(f)
}

async fn start(dir: &std::path::Path, parts: PipelineParts) -> (Result<Report, PipelineError>, u64) {
    start_with(EngineOptions { shards: 2, ..EngineOptions::new(dir.to_owned()) }, parts).await
}

async fn start_with(options: EngineOptions, parts: PipelineParts) -> (Result<Report, PipelineError>, u64) {
    let engine = Engine::start(options, Arc::new(SystemClock::default())).await.unwrap();
    let (_stop, stopped) = watch::channel(false);
    let status = Arc::new(Status::default());
    let outcome = tokio::time::timeout(Duration::from_secs(60), run(&engine, parts, "digest", stopped, Arc::clone(&status))).await;
    engine.stop();
    let restarts = status.lock().restarts;
    (outcome.expect("the pipeline ends"), restarts)
}

/// Every reading once, each with the count its device had then.
fn assert_exact(service: &Service, without: &[u64]) {
    let mut rows = service.rows.clone();
    rows.sort_unstable();
    let mut expected = Vec::new();
    for partition in 0..PARTITIONS {
        let mut counts = BTreeMap::<u64, i64>::new();
        for offset in (0..PAYLOADS).filter(|o| !without.contains(o)) {
            let count = counts.entry(offset % DEVICES).or_default();
            *count += 1;
            expected.push((partition, offset, *count));
        }
    }
    expected.sort_unstable();
    assert_eq!(rows.len(), expected.len(), "rows lost or doubled");
    assert_eq!(rows, expected);
}

#[test]
fn an_undisturbed_run_delivers_everything_once() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    let (report, _) = on_system(start(dir.path(), parts(&service, 0, &[])));
    let report = report.unwrap();
    assert_exact(&service.lock().unwrap(), &[]);
    assert_eq!(report.state, State::Finished);
    assert!(report.ledger.balanced, "{:?}", report.ledger);
    assert_eq!((report.ledger.received, report.ledger.settled), (u64::from(PARTITIONS) * PAYLOADS, u64::from(PARTITIONS) * PAYLOADS));
}

#[test]
fn crashes_at_any_commit_leave_exactly_the_right_rows() {
    for dies_at in [1, 2, 3, 5, 8, 13] {
        let service = Arc::new(Mutex::new(Service::default()));
        let dir = tempfile::tempdir().unwrap();
        let mut crashes = 0;
        let report = loop {
            match on_system(start(dir.path(), parts(&service, if crashes < 4 { dies_at } else { 0 }, &[]))).0 {
                Ok(report) => break report,
                Err(PipelineError::Sink { .. }) => crashes += 1,
                Err(other) => panic!("{other}"),
            }
        };
        assert!(crashes > 0, "the sink died at commit {dies_at}");
        assert_exact(&service.lock().unwrap(), &[]);
        assert!(report.ledger.balanced, "after {crashes} crashes at commit {dies_at}: {:?}", report.ledger);
    }
}

#[test]
fn a_row_that_panics_is_the_only_one_taken_out() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    let (report, restarts) = on_system(start(dir.path(), parts(&service, 0, &[200])));
    let report = report.unwrap();
    assert_exact(&service.lock().unwrap(), &[200]);
    assert_eq!(report.ledger.dead_lettered["poison"], u64::from(PARTITIONS));
    assert!(report.ledger.balanced, "{:?}", report.ledger);
    assert_eq!(restarts, 2 * u64::from(PARTITIONS), "one restore to step, one to go on, for each partition");
}

#[test]
fn rows_that_panic_close_together_are_taken_out_one_after_the_other() {
    let service = Arc::new(Mutex::new(Service::default()));
    let dir = tempfile::tempdir().unwrap();
    // The second lies beyond what had been read when the first panicked, but in one turn with it at the next try.
    let poison: &[u64] = &[200, 201, 213, 226];
    let (report, _) = on_system(start(dir.path(), parts(&service, 0, poison)));
    let report = report.unwrap();
    assert_exact(&service.lock().unwrap(), poison);
    assert_eq!(report.ledger.dead_lettered["poison"], poison.len() as u64 * u64::from(PARTITIONS));
    assert!(report.ledger.balanced, "{:?}", report.ledger);
}

#[path = "gap_tests.rs"]
mod gaps;
#[path = "reload_tests.rs"]
mod reload;
#[path = "stop_tests.rs"]
mod stop;
