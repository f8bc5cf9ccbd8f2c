//! The simulated tables: rows and mark in one step, generations that fence; and a hook that keeps no mark.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use fieldstream_engine_api::{Committed, Generation, Guarantee, Mark, PartitionKey, Position, Sink, SinkBatch, SinkError};
use fieldstream_schemas::encode::JsonWriter;

use super::mutants::Mutant;
use super::process::Process;

/// A row as a table keeps it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) partition: u32,
    /// Input of the sink it came by.
    pub(super) input: usize,
    pub(super) position: Position,
    /// All its columns as JSON.
    pub(super) text: String,
}

/// A mark, and the rows delivered since the log's beginning.
type Marked = (Mark, u64);

/// What a sink's service keeps.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) rows: Vec<Row>,
    pub(super) owners: BTreeMap<u32, Generation>,
    marks: BTreeMap<u32, Marked>,
}

/// The rows of `batch` as they are kept.
pub(super) fn rows_of(partition: u32, parts: &[fieldstream_engine_api::SinkRows]) -> Vec<Row> {
    let mut rows = Vec::new();
    for part in parts {
        let writer = JsonWriter::new(&part.batch.rows.schema());
        for row in 0..part.batch.len() {
            let mut text = Vec::new();
            writer.write_row(&part.batch.rows, row, &mut text);
            let text = String::from_utf8(text).unwrap();
            rows.push(Row { partition, input: part.input, position: part.batch.keys.position[row], text });
        }
    }
    rows
}

/// A worker's connection to a table.
pub(super) struct SimSink {
    process: Arc<Process>,
    table: usize,
    /// It keeps no mark and fences nobody: at least once.
    hook: bool,
    mine: BTreeMap<u32, Generation>,
    /// How far commits went that had no answer: when they come again, the mark tells what became of them.
    unanswered: BTreeMap<u32, Mark>,
    /// What a mutant has told to be durable and still holds.
    held: Vec<SinkBatch>,
}

impl SimSink {
    pub(super) fn new(process: &Arc<Process>, table: usize, hook: bool) -> Self {
        Self { process: Arc::clone(process), table, hook, mine: BTreeMap::new(), unanswered: BTreeMap::new(), held: Vec::new() }
    }

    fn retry(&self, cause: &str) -> SinkError {
        SinkError::Retry { context: format!("table {}", self.table), cause: cause.into() }
    }

    /// The mark, as `open` tells it.
    fn mark(&self, key: &PartitionKey) -> Option<Committed> {
        if self.process.world.is(Mutant::ForgetsMark) {
            return None;
        }
        let table = self.process.world.tables[self.table].lock().unwrap();
        let (mark, delivered) = *table.marks.get(&key.partition)?;
        Some(Committed { partition: key.clone(), mark, delivered, refused: 0 })
    }

    /// Lower generations may not write any more.
    fn fence(&self, key: &PartitionKey, generation: Generation) -> Result<(), SinkError> {
        let mut table = self.process.world.tables[self.table].lock().unwrap();
        let owner = table.owners.entry(key.partition).or_default();
        if *owner > generation {
            return Err(SinkError::Fenced { partition: key.clone(), owner: *owner });
        }
        *owner = generation;
        Ok(())
    }

    fn check_owner(&self, batch: &SinkBatch) -> Result<(), SinkError> {
        let number = batch.partition.partition;
        let owner = self.process.world.tables[self.table].lock().unwrap().owners.get(&number).copied().unwrap_or_default();
        let fences = !self.process.world.is(Mutant::FencesNobody);
        if fences && self.mine.get(&number) != Some(&owner) {
            return Err(SinkError::Fenced { partition: batch.partition.clone(), owner });
        }
        Ok(())
    }

    /// Rows, then mark. In one step, unless a mutant takes two.
    async fn write(&self, batch: &SinkBatch) -> Committed {
        let world = &self.process.world;
        let (number, to) = (batch.partition.partition, batch.complete_to);
        let (known, delivered) = world.tables[self.table].lock().unwrap().marks.get(&number).copied().unwrap_or_default();
        let reached = known.next_offset >= to.next_offset && known.next_decision >= to.next_decision;
        // Only here: that rows of a replay are skipped is the engine's part.
        if reached && self.unanswered.get(&number) == Some(&to) && !world.is(Mutant::NeverLooksAtMark) {
            return Committed { partition: batch.partition.clone(), mark: known, delivered, refused: 0 };
        }
        let rows = rows_of(number, &batch.rows);
        let delivered = delivered + rows.len() as u64;
        world.note(format_args!("{} commits {} rows of {number} to table {}, {known} -> {to}", self.process.name, rows.len(), self.table));
        world.tables[self.table].lock().unwrap().rows.extend(rows);
        if world.is(Mutant::RowsThenMark) {
            self.process.way().await;
        }
        world.tables[self.table].lock().unwrap().marks.insert(number, (to.max(known), delivered));
        Committed { partition: batch.partition.clone(), mark: to.max(known), delivered, refused: 0 }
    }

    async fn write_all(&self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        batches.iter().try_for_each(|batch| self.check_owner(batch))?;
        let mut done = Vec::with_capacity(batches.len());
        for batch in batches {
            done.push(self.write(batch).await);
        }
        Ok(done)
    }

    /// Rows one by one, each visible at once, and no mark.
    async fn call_hook(&self, batches: &[SinkBatch]) -> Vec<Committed> {
        let world = &self.process.world;
        let mut done = Vec::with_capacity(batches.len());
        for batch in batches {
            for row in rows_of(batch.partition.partition, &batch.rows) {
                self.process.way().await;
                world.tables[self.table].lock().unwrap().rows.push(row);
            }
            done.push(Committed { partition: batch.partition.clone(), mark: batch.complete_to, delivered: 0, refused: 0 });
        }
        done
    }
}

#[async_trait]
impl Sink for SimSink {
    fn guarantee(&self) -> Guarantee {
        if self.hook { Guarantee::AtLeastOnce } else { Guarantee::ExactlyOnce }
    }

    async fn open(&mut self, key: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.process.way().await;
        if self.hook {
            return Ok(None);
        }
        let world = Arc::clone(&self.process.world);
        if world.strikes(world.faults.sink_fails) {
            return Err(self.retry("simulated failure"));
        }
        let early = self.mark(key);
        if world.is(Mutant::ReadsMarkThenFences) {
            world.pause(0, 1_500).await;
            self.process.alive().await;
        }
        self.fence(key, generation)?;
        world.note(format_args!("{} opens table {} for {} as {generation}", self.process.name, self.table, key.partition));
        let mark = if world.is(Mutant::ReadsMarkThenFences) { early } else { self.mark(key) };
        self.mine.insert(key.partition, generation);
        self.process.way().await;
        if world.strikes(world.faults.sink_mute) {
            return Err(self.retry("the answer was lost"));
        }
        Ok(mark)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        self.process.way().await;
        if self.hook {
            return Ok(self.call_hook(batches).await);
        }
        let world = Arc::clone(&self.process.world);
        if world.strikes(world.faults.sink_stalls) {
            world.pause(1_000, 60_000).await;
            self.process.alive().await;
        }
        if world.strikes(world.faults.sink_fails) {
            return Err(self.retry("simulated failure"));
        }
        if world.is(Mutant::AnswersBeforeCommit) {
            let held = std::mem::replace(&mut self.held, batches.to_vec());
            self.write_all(&held).await?;
            let told = |b: &SinkBatch| Committed { partition: b.partition.clone(), mark: b.complete_to, delivered: 0, refused: 0 };
            return Ok(batches.iter().map(told).collect());
        }
        let done = self.write_all(batches).await?;
        self.process.way().await;
        self.unanswered.clear();
        if world.strikes(world.faults.sink_mute) {
            self.unanswered = batches.iter().map(|b| (b.partition.partition, b.complete_to)).collect();
            return Err(self.retry("the answer was lost"));
        }
        Ok(done)
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        self.process.way().await;
        let held = std::mem::take(&mut self.held);
        self.write_all(&held).await.map(|_| ())
    }
}
