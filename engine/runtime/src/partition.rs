//! A partition: the device actors it hosts, their time, and the turn that handles a batch.

mod inspect;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use arrow::array::Array;
use fieldstream_checkpoint::cold::ColdStore;
use fieldstream_checkpoint::{Checkpoint, CheckpointData, Decision};
use fieldstream_engine_api::{
    BuildContext, ConfigErrors, KeyedBatch, LogBatch, Mark, PartitionKey, Payloads, Position, Rejected, SinkRows, SlotDirectory, Tick,
    TickTime,
};
use fieldstream_schemas::decode::Decoder;
use fieldstream_schemas::records::{RecordIds, Refuser};
use fieldstream_schemas::{Decoded, PayloadBlock, Readings, Reject};

use crate::changes::Changes;
use crate::clock::Clock;
use crate::dead_letters::{self, TurnPayloads};
use crate::decisions;
use crate::graph::Graph;
use crate::ingress;
use crate::ledger::Totals;
use crate::losses::Losses;
use crate::origins::Origins;
use crate::passivation::{Actors, ColdError, Passivation};
use crate::snapshot::{self, RestoreError, SnapshotKind};
use crate::spec::{PipelineSpec, TimeSpec};
use crate::time::PartitionTime;

/// What one turn produced.
#[derive(Debug)]
pub struct TurnOutput {
    /// Partition number.
    pub partition: u32,
    /// Rows by sink.
    pub rows: Vec<Vec<SinkRows>>,
    /// Everything below this is in this turn or in earlier ones.
    pub complete_to: Mark,
    /// The account up to here.
    pub totals: Totals,
    /// Ingest time of the newest row, microseconds since the epoch, for latency metrics.
    pub ingest_us: Option<i64>,
    /// Newest event time in the turn's input, microseconds since the epoch.
    pub event_us: Option<i64>,
}

/// One partition of a pipeline with everything its device actors own.
pub struct Partition {
    key: PartitionKey,
    source_names: Vec<Arc<str>>,
    decoders: Vec<Decoder>,
    ids: RecordIds,
    graph: Graph,
    slots: SlotDirectory,
    time: PartitionTime,
    changes: Changes,
    /// Without it, all devices stay in memory.
    passivation: Option<Passivation>,
    settings: TimeSpec,
    totals: Totals,
    /// States left out at restores.
    losses: Losses,
    /// What was taken of the streams that forwarders send.
    origins: Origins,
    complete_to: Mark,
    replay: VecDeque<Decision>,
    quarantined: HashSet<Position>,
    /// Rows below this offset are run one by one, so that a panic names its row.
    stepping_below: u64,
    stepping_at: Option<Position>,
    /// Offsets of this turn's payloads that hold several rows.
    several: HashSet<u64>,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Partition").field("key", &self.key).field("complete_to", &self.complete_to).finish_non_exhaustive()
    }
}

impl Partition {
    /// A blank partition that begins at offset `from`. `clock` only measures how long operators take.
    ///
    /// # Errors
    /// What the operators' constructors say.
    pub fn new(spec: &PipelineSpec, key: &PartitionKey, from: u64, clock: Arc<dyn Clock>) -> Result<Self, ConfigErrors> {
        let context = BuildContext {
            pipeline: Arc::clone(&spec.name),
            node: Arc::clone(&spec.name),
            log_id: key.log_id.clone(),
            partition: key.partition,
            time: spec.time.window,
        };
        let graph = Graph::new(&spec.graph, spec.sources.len(), &context)?;
        let mut totals = Totals::new(spec.graph.sinks.len());
        graph.reject_codes().iter().for_each(|code| totals.dead_letter(code, 0));
        [fieldstream_schemas::payload::CODE_PARSE, fieldstream_schemas::payload::CODE_TIMESTAMP]
            .iter()
            .for_each(|c| totals.dead_letter(c, 0));
        Ok(Self {
            ids: RecordIds::new(&spec.name, "", &key.log_id.0, key.partition),
            key: key.clone(),
            source_names: spec.sources.iter().map(|s| Arc::clone(&s.name)).collect(),
            decoders: spec.sources.iter().map(|s| (s.decoder)()).collect(),
            graph,
            slots: SlotDirectory::default(),
            time: PartitionTime::new(spec.time.idle_after),
            changes: Changes::default(),
            passivation: None,
            settings: spec.time,
            totals,
            losses: Losses::default(),
            origins: Origins::default(),
            complete_to: Mark { next_offset: from, next_decision: 0 },
            replay: VecDeque::new(),
            quarantined: HashSet::new(),
            stepping_below: 0,
            stepping_at: None,
            several: HashSet::new(),
            clock,
        })
    }

    /// Moves the state of the quietest devices to `cold` when there are more than `limit` in memory.
    #[must_use]
    pub fn with_cold_store(self, cold: ColdStore, limit: usize) -> Self {
        Self { passivation: Some(Passivation::new(cold, limit)), ..self }
    }

    /// Handles one batch of whole payloads, and on replay the decisions that fell into it: one output for each.
    ///
    /// # Errors
    /// If state of passivated devices cannot be read; the partition must be restored then.
    pub fn turn(&mut self, mut batch: LogBatch) -> Result<Vec<TurnOutput>, ColdError> {
        let mut outputs = Vec::with_capacity(1);
        while let Some(offset) = self.replay.front().map(|d| d.position.offset).filter(|offset| *offset < batch.next_offset) {
            let (before, rest) = batch.split_at(offset);
            if let Some(before) = before {
                outputs.push(self.rows_turn(before)?);
            }
            batch = rest;
            if let Some(decision) = self.replay.pop_front() {
                outputs.push(self.decide(&decision)?);
            }
        }
        outputs.push(self.rows_turn(batch)?);
        outputs.extend(self.catch_up()?);
        Ok(outputs)
    }

    /// Accounts for payloads below `next_offset` that the log has lost.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn lost(&mut self, next_offset: u64, payloads: u64) -> Result<Vec<TurnOutput>, ColdError> {
        self.give_up(payloads, "lost");
        self.complete_to.next_offset = self.complete_to.next_offset.max(next_offset);
        let mut outputs = vec![self.finish_turn(None)?];
        outputs.extend(self.catch_up()?);
        Ok(outputs)
    }

    /// Payloads that nobody will ever see are in the account all the same.
    fn give_up(&mut self, payloads: u64, reason: &str) {
        self.totals.received += payloads;
        self.totals.drop_rows(reason, payloads);
    }

    /// Carries out the decisions of a replay that lie where the partition is, or behind it.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn catch_up(&mut self) -> Result<Vec<TurnOutput>, ColdError> {
        let mut outputs = Vec::new();
        while let Some(decision) = self.replay.pop_front_if(|d| d.position.offset <= self.complete_to.next_offset) {
            outputs.push(self.decide(&decision)?);
        }
        Ok(outputs)
    }

    /// Decisions made after the checkpoint this partition was restored from, in order; they are carried out where they were
    /// made, those at the very start by [`Self::catch_up`].
    pub fn set_replay(&mut self, decisions: impl IntoIterator<Item = Decision>) {
        self.replay.extend(decisions);
        // The rows below it will not come, so nothing may wait for them.
        let leap = self.replay.iter().filter_map(decisions::gap_of).map(|gap| gap.to).max();
        self.complete_to.next_offset = self.complete_to.next_offset.max(leap.unwrap_or_default());
        // A quarantine may have been decided after a decision that lies behind its row: it counts from the start.
        self.quarantined.extend(self.replay.iter().filter(|d| d.kind == decisions::QUARANTINE).map(|d| d.position));
    }

    /// Runs rows below `offset` one by one: a batch that panicked is looked through for the row that did it.
    pub fn step_below(&mut self, offset: u64) {
        self.stepping_below = offset;
    }

    /// The row that is being stepped.
    #[must_use]
    pub fn stepping_at(&self) -> Option<Position> {
        self.stepping_at
    }

    /// Carries out a decision that is durable.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn decide(&mut self, decision: &Decision) -> Result<TurnOutput, ColdError> {
        self.call_in(&[], &[])?;
        match decision.kind.as_str() {
            decisions::END_OF_INPUT => {
                let devices: Vec<u32> = self.slots.devices().collect();
                self.tick(&Tick { position: decision.position, time: TickTime::EndOfInput }, &devices, None)?;
            }
            decisions::TICK => {
                let now_us = decision.payload.get("now_us").and_then(serde_json::Value::as_i64).unwrap_or_default();
                if let Some((time, devices)) = self.time.advance(now_us, &self.slots) {
                    self.tick(&Tick { position: decision.position, time: TickTime::Append(time) }, &devices, None)?;
                }
            }
            decisions::GAP => {
                if let Some(gap) = decisions::gap_of(decision) {
                    self.give_up(gap.payloads, "accepted_gap");
                }
            }
            decisions::QUARANTINE => {
                self.quarantined.insert(decision.position);
            }
            // This partition was built from the plan already; that it holds is history, not an effect.
            decisions::PLAN => {}
            other => {
                tracing::error!(partition = %self.key, "a decision of the unknown kind {other} is left out; it was written by a newer version")
            }
        }
        self.complete_to.next_decision += 1;
        self.finish_turn(None)
    }

    fn rows_turn(&mut self, batch: LogBatch) -> Result<TurnOutput, ColdError> {
        let source = self.source_names.iter().position(|name| *name == batch.source).unwrap_or_default();
        let (decoded, block) = match batch.payloads {
            Payloads::Raw(mut block) => {
                self.admit(source, &mut block);
                (self.decoders[source].decode(&block), Some(block))
            }
            Payloads::Rows { rows, positions, rejects, raw } => (Decoded { rows, positions, rejects }, raw),
        };
        let Decoded { rows, positions, rejects } = decoded;
        self.several = positions.iter().chain(rejects.iter().map(|r| &r.position)).filter(|p| p.row > 0).map(|p| p.offset).collect();
        self.undecodable(source, &rejects);
        let (addressed, new) = ingress::address(Decoded { rows, positions, rejects: Vec::new() }, &mut self.slots);
        self.changes.touch(&addressed.keys.device);
        self.call_in(&addressed.keys.device, &new)?;
        let (addressed, misplaced) = match &block {
            Some(block) => ingress::check_keys(addressed, block),
            None => (addressed, None),
        };
        let (addressed, poison) = ingress::take_out(addressed, &self.quarantined);
        let (addressed, skewed) = ingress::check_skew(addressed, self.settings.max_future);
        for rejected in misplaced.iter().chain(&poison).chain(&skewed) {
            self.refused(source, rejected, block.as_ref());
        }
        let event_us = Readings::new(&addressed.rows).and_then(|r| arrow::compute::max(r.ts));
        self.run_rows(source, &addressed, block.as_ref())?;
        self.complete_to.next_offset = batch.next_offset;
        Ok(TurnOutput { event_us, ..self.finish_turn(batch.append_us)? })
    }

    /// Takes out what forwarders have sent before.
    fn admit(&mut self, source: usize, block: &mut PayloadBlock) {
        let (known, unreadable) = self.origins.admit(block);
        self.totals.received += known;
        self.totals.deduplicated += known;
        self.undecodable(source, &unreadable);
    }

    /// Begins a turn: the state of devices that were not in memory comes back.
    fn call_in(&mut self, devices: &[u32], new: &[u32]) -> Result<(), ColdError> {
        let Some(passivation) = &mut self.passivation else { return Ok(()) };
        passivation.begin_turn(
            devices,
            new,
            &mut Actors { graph: &mut self.graph, slots: &mut self.slots, time: &mut self.time, changes: &mut self.changes },
        )
    }

    /// Ticks `devices`, which are in memory, and those on disk that the tick concerns.
    fn tick(&mut self, tick: &Tick, devices: &[u32], block: Option<&PayloadBlock>) -> Result<(), ColdError> {
        if !devices.is_empty() {
            self.changes.touch(devices);
            self.run_graph(Some((tick, devices)), block);
        }
        let Some(passivation) = &self.passivation else { return Ok(()) };
        let Some(mut cursor) = passivation.ticked(tick.time, &self.time)? else { return Ok(()) };
        loop {
            let Some(passivation) = &mut self.passivation else { return Ok(()) };
            let mut actors = Actors { graph: &mut self.graph, slots: &mut self.slots, time: &mut self.time, changes: &mut self.changes };
            passivation.shrink(true, &mut actors)?;
            let Some(devices) = passivation.wake(&mut cursor, tick.time, &mut actors)? else { return Ok(()) };
            self.run_graph(Some((tick, &devices)), block);
        }
    }

    fn run_rows(&mut self, source: usize, batch: &KeyedBatch, block: Option<&PayloadBlock>) -> Result<(), ColdError> {
        let mut start = 0;
        if let Some(readings) = Readings::new(&batch.rows)
            && readings.ingest_ts.null_count() < batch.len()
        {
            for row in 0..batch.len() {
                let append = readings.ingest_ts.value(row);
                if let Some((time, devices)) = self.time.advance(append, &self.slots) {
                    self.run_slice(source, batch, start..row, block);
                    start = row;
                    let position = Position { tick: 1, ..batch.keys.position[row] };
                    self.tick(&Tick { position, time: TickTime::Append(time) }, &devices, block)?;
                }
                self.time.seen(batch.keys.device[row], append);
            }
        }
        self.run_slice(source, batch, start..batch.len(), block);
        Ok(())
    }

    fn run_slice(&mut self, source: usize, batch: &KeyedBatch, rows: std::ops::Range<usize>, block: Option<&PayloadBlock>) {
        if batch.keys.position.get(rows.start).is_none_or(|p| p.offset >= self.stepping_below) {
            return self.run_range(source, batch, rows, block);
        }
        for row in rows {
            self.stepping_at = Some(batch.keys.position[row]);
            self.run_range(source, batch, row..row + 1, block);
        }
        self.stepping_at = None;
    }

    fn run_range(&mut self, source: usize, batch: &KeyedBatch, rows: std::ops::Range<usize>, block: Option<&PayloadBlock>) {
        let whole = rows.len() == batch.len();
        let slice = if whole { batch.clone() } else { batch.slice(rows.start, rows.len()) };
        self.graph.push(source, slice, &mut self.totals);
        self.run_graph(None, block);
    }

    fn run_graph(&mut self, tick: Option<(&Tick, &[u32])>, block: Option<&PayloadBlock>) {
        let (ids, partition) = (&self.ids, self.key.partition);
        let payloads = TurnPayloads { block, several: &self.several };
        let mut make = |node: &str, rejected: &Rejected| dead_letters::of_rows(Refuser { node, partition, ids }, rejected, payloads);
        self.graph.run(tick, &self.slots, &mut self.totals, &*self.clock, &mut make);
    }

    fn undecodable(&mut self, source: usize, rejects: &[Reject]) {
        // Runs of one code go together, so that the account can count them.
        for run in rejects.chunk_by(|a, b| a.code == b.code) {
            let batch = dead_letters::of_payloads(self.refuser(source), run);
            self.graph.push_rejected(source, run[0].code, batch, &mut self.totals);
        }
    }

    fn refused(&mut self, source: usize, rejected: &Rejected, block: Option<&PayloadBlock>) {
        let batch = dead_letters::of_rows(self.refuser(source), rejected, TurnPayloads { block, several: &self.several });
        self.graph.push_rejected(source, &rejected.code, batch, &mut self.totals);
    }

    fn refuser(&self, source: usize) -> Refuser<'_> {
        Refuser { node: &self.source_names[source], partition: self.key.partition, ids: &self.ids }
    }

    fn finish_turn(&mut self, ingest_us: Option<i64>) -> Result<TurnOutput, ColdError> {
        if let Some(passivation) = &mut self.passivation {
            passivation.shrink(
                false,
                &mut Actors { graph: &mut self.graph, slots: &mut self.slots, time: &mut self.time, changes: &mut self.changes },
            )?;
        }
        let rows = self.graph.take_sink_rows();
        for (offered, rows) in self.totals.offered.iter_mut().zip(&rows) {
            *offered += rows.iter().map(|r| r.batch.len() as u64).sum::<u64>();
        }
        Ok(TurnOutput {
            partition: self.key.partition,
            rows,
            complete_to: self.complete_to,
            totals: self.totals.clone(),
            ingest_us,
            event_us: None,
        })
    }

    /// Copies everything needed to go on from here.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn snapshot(&mut self, digest: &str) -> Result<CheckpointData, ColdError> {
        self.snapshot_of(digest, SnapshotKind::Whole)
    }

    /// Copies what is needed to go on from here, given what lies in the store already.
    ///
    /// # Errors
    /// As [`Self::turn`].
    pub fn snapshot_of(&mut self, digest: &str, kind: SnapshotKind) -> Result<CheckpointData, ColdError> {
        let scope = self.changes.take(&self.slots, kind == SnapshotKind::Retake, kind == SnapshotKind::Whole);
        let account = (&self.totals, &self.losses, &self.origins);
        let mut data = snapshot::take(self.complete_to, digest, &scope, &mut self.graph, &self.slots, &self.time, account);
        if let Some(passivation) = &mut self.passivation {
            data.cold = passivation.segments()?;
            data.absent = passivation.absent();
        }
        Ok(data)
    }

    /// Puts a checkpoint into this blank partition. With `accept_loss`, state that has no place in the pipeline is left out; gives
    /// what, as `operator/state: why`.
    ///
    /// # Errors
    /// If it does not fit the pipeline.
    pub fn restore(&mut self, checkpoint: &Checkpoint, accept_loss: bool) -> Result<Vec<String>, RestoreError> {
        let restored = snapshot::restore(&checkpoint.data, &mut self.graph, &mut self.slots, &mut self.time, accept_loss)?;
        (self.totals, self.losses, self.origins) = (restored.totals, restored.losses, restored.origins);
        self.changes.restored(&self.slots);
        self.complete_to = checkpoint.data.at;
        match &mut self.passivation {
            Some(passivation) => {
                let attached = passivation.attach(&checkpoint.data.cold, checkpoint.data.absent, &self.losses);
                attached.map_err(|error| RestoreError(error.to_string()))?;
            }
            None if checkpoint.data.absent == 0 => {}
            None => return Err(RestoreError("it has passivated devices, and there is no folder for them".to_owned())),
        }
        Ok(restored.lost)
    }

    /// The clock that its turns are measured with.
    #[must_use]
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Whose partition it is.
    #[must_use]
    pub fn key(&self) -> &PartitionKey {
        &self.key
    }

    /// Everything below this has been handled.
    #[must_use]
    pub fn complete_to(&self) -> Mark {
        self.complete_to
    }

    /// The account of all turns.
    #[must_use]
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// The graph, to look at.
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Bytes of all keyed state in memory.
    pub fn state_bytes(&mut self) -> usize {
        self.graph.state_bytes()
    }

    /// Device actors whose state lies on disk.
    #[must_use]
    pub fn passivated_devices(&self) -> u64 {
        self.passivation.as_ref().map_or(0, Passivation::absent)
    }

    /// The device actors in memory.
    #[must_use]
    pub fn slots(&self) -> &SlotDirectory {
        &self.slots
    }
}
