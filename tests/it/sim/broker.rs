//! The simulated log: partitions that keep everything for the oracle, retention, and a group of workers that share them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use fieldstream_engine_api::{Assignment, Log, LogBatch, LogError, LogEvent, LogId, Payloads};
use fieldstream_schemas::{PayloadBlock, PayloadEntry};
use tokio::sync::Notify;

use super::mutants::Mutant;
use super::process::Process;

/// Identity of the simulated log.
pub(super) fn log_id() -> LogId {
    LogId("simulated".into())
}

/// A payload in the log.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) append_us: i64,
    pub(super) data: Vec<u8>,
}

#[derive(Debug, Default)]
struct Part {
    records: Vec<Record>,
    /// What lies below is no longer given to anybody.
    first: u64,
    owner: Option<u64>,
}

#[derive(Debug)]
enum GroupEvent {
    Assigned(Vec<u32>),
    Revoked(u32),
}

#[derive(Debug, Default)]
struct Member {
    events: VecDeque<GroupEvent>,
    /// What the member holds when it has seen all its events.
    holds: BTreeSet<u32>,
    wake: Arc<Notify>,
}

/// The service that outlives its readers.
#[derive(Debug, Default)]
pub(super) struct Broker {
    parts: Vec<Part>,
    members: BTreeMap<u64, Member>,
    closed: bool,
}

impl Broker {
    pub(super) fn new(partitions: u32) -> Self {
        Self { parts: (0..partitions).map(|_| Part::default()).collect(), ..Self::default() }
    }

    pub(super) fn partitions(&self) -> u32 {
        self.parts.len() as u32
    }

    pub(super) fn append(&mut self, partition: u32, record: Record) {
        self.parts[partition as usize].records.push(record);
        self.wake_all();
    }

    /// Nothing will be appended any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.wake_all();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn wake_all(&self) {
        self.members.values().for_each(|member| member.wake.notify_one());
    }

    /// All that was ever appended to a partition.
    pub(super) fn records(&self, partition: u32) -> &[Record] {
        &self.parts[partition as usize].records
    }

    /// Payloads of all partitions.
    pub(super) fn appended(&self) -> u64 {
        self.parts.iter().map(|part| part.records.len() as u64).sum()
    }

    pub(super) fn owner(&self, partition: u32) -> Option<u64> {
        self.parts[partition as usize].owner
    }

    pub(super) fn members(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    pub(super) fn join(&mut self, member: u64) {
        self.members.insert(member, Member::default());
    }

    /// The member is gone; its partitions have no owner.
    pub(super) fn leave(&mut self, member: u64) {
        self.members.remove(&member);
        self.parts.iter_mut().filter(|part| part.owner == Some(member)).for_each(|part| part.owner = None);
    }

    /// Partitions without an owner.
    pub(super) fn orphans(&self) -> Vec<u32> {
        (0..self.partitions()).filter(|p| self.owner(*p).is_none()).collect()
    }

    pub(super) fn set_owner(&mut self, partition: u32, member: u64) {
        self.parts[partition as usize].owner = Some(member);
    }

    /// Tells a member that partitions are its own, unless others own them by now.
    pub(super) fn tell_assigned(&mut self, partitions: &[u32], member: u64) {
        let mine: Vec<u32> = partitions.iter().copied().filter(|p| self.owner(*p) == Some(member)).collect();
        let Some(told) = self.members.get_mut(&member).filter(|_| !mine.is_empty()) else { return };
        for partition in &mine {
            if !told.holds.insert(*partition) {
                told.events.push_back(GroupEvent::Revoked(*partition));
            }
        }
        told.events.push_back(GroupEvent::Assigned(mine));
        told.wake.notify_one();
    }

    /// Tells a member that a partition is no longer its own, unless it is again.
    pub(super) fn tell_revoked(&mut self, partition: u32, member: u64) {
        let owner = self.owner(partition);
        let Some(told) = self.members.get_mut(&member).filter(|_| owner != Some(member)) else { return };
        if told.holds.remove(&partition) {
            told.events.push_back(GroupEvent::Revoked(partition));
            told.wake.notify_one();
        }
    }

    fn assignment(&self, partition: u32) -> Assignment {
        let part = &self.parts[partition as usize];
        Assignment { partition, log_id: log_id(), first_offset: part.first, end_offset: part.records.len() as u64 }
    }

    fn trim(&mut self, partition: u32, below: u64) {
        let part = &mut self.parts[partition as usize];
        part.first = part.first.max(below);
    }
}

/// Payloads `from..to` of a partition.
pub(super) fn batch(records: &[Record], partition: u32, from: u64, to: u64) -> LogBatch {
    let (mut data, mut entries) = (Vec::new(), Vec::new());
    let mut append_us = None;
    for (offset, record) in (from..to).zip(&records[from as usize..to as usize]) {
        let (start, len) = (data.len() as u32, record.data.len() as u32);
        entries.push(PayloadEntry { offset, start, len, ingest_us: Some(record.append_us) });
        data.extend_from_slice(&record.data);
        append_us = Some(record.append_us).max(append_us);
    }
    let payloads = Payloads::Raw(PayloadBlock { data: data.into(), entries, ..PayloadBlock::default() });
    LogBatch { partition, source: "readings".into(), next_offset: to, append_us, payloads }
}

#[derive(Debug, Default)]
struct Reader {
    /// `None` until it was told where to begin.
    next: Option<u64>,
    paused: bool,
    end_told: bool,
}

/// A member's connection to the broker.
pub(super) struct SimLog {
    process: Arc<Process>,
    member: u64,
    wake: Arc<Notify>,
    readers: BTreeMap<u32, Reader>,
    /// Whose turn it is: partitions are read in turn.
    turn: u32,
    ready_at: std::time::Duration,
}

impl SimLog {
    /// Joins the group.
    pub(super) fn join(process: &Arc<Process>, member: u64) -> Self {
        let mut broker = process.world.broker();
        broker.join(member);
        let wake = Arc::clone(&broker.members[&member].wake);
        drop(broker);
        Self { process: Arc::clone(process), member, wake, readers: BTreeMap::new(), turn: 0, ready_at: std::time::Duration::ZERO }
    }

    fn group_event(&mut self) -> Option<LogEvent> {
        let mut broker = self.process.world.broker();
        let event = broker.members.get_mut(&self.member)?.events.pop_front()?;
        Some(match event {
            GroupEvent::Assigned(partitions) => {
                self.readers.extend(partitions.iter().map(|p| (*p, Reader::default())));
                LogEvent::Assigned(partitions.iter().map(|p| broker.assignment(*p)).collect())
            }
            GroupEvent::Revoked(partition) => {
                self.readers.remove(&partition);
                LogEvent::Revoked(vec![partition])
            }
        })
    }

    fn has_event(&self) -> bool {
        self.process.world.broker().members.get(&self.member).is_some_and(|m| !m.events.is_empty())
    }

    /// The next partition that has something, in turn.
    fn readable(&self) -> Option<u32> {
        let broker = self.process.world.broker();
        let partitions = broker.partitions();
        (0..partitions).map(|n| (self.turn + n) % partitions).find(|partition| {
            let Some(Reader { next: Some(next), paused: false, end_told }) = self.readers.get(partition) else { return false };
            let end = broker.records(*partition).len() as u64;
            *next < end || broker.is_closed() && !end_told
        })
    }

    fn read(&mut self, partition: u32) -> Result<LogEvent, LogError> {
        let world = &self.process.world;
        let Some(reader) = self.readers.get_mut(&partition) else { unreachable!("it was readable") };
        let from = reader.next.unwrap_or_default();
        let most = world.rng().between(1, 12);
        let mut broker = world.broker();
        let first_offset = broker.parts[partition as usize].first;
        if from < first_offset {
            return Err(LogError::Truncated { partition, wanted: from, first_offset });
        }
        let end = broker.records(partition).len() as u64;
        if from >= end {
            reader.end_told = true;
            return Ok(LogEvent::EndOfInput { partition, next_offset: end });
        }
        let to = end.min(from + most);
        reader.next = Some(to);
        let batch = batch(broker.records(partition), partition, from, to);
        if world.is(Mutant::TrimsBeforeCheckpoint) {
            broker.trim(partition, to);
        }
        Ok(LogEvent::Batch(batch))
    }
}

#[async_trait]
impl Log for SimLog {
    async fn next(&mut self) -> Result<LogEvent, LogError> {
        loop {
            self.process.alive().await;
            let readable = self.readable();
            if readable.is_none() && !self.has_event() {
                self.wake.notified().await;
                continue;
            }
            let now = self.process.world.time.now();
            if now < self.ready_at {
                self.process.world.sleep(self.ready_at - now).await;
                continue;
            }
            self.ready_at = now + self.process.world.rng().millis(0, 40);
            if let Some(event) = self.group_event() {
                self.process.world.note(format_args!("{} hears {event:?}", self.process.name));
                return Ok(event);
            }
            let Some(partition) = readable else { continue };
            self.turn = partition + 1;
            if self.process.world.strikes(self.process.world.faults.log_fails) {
                return Err(LogError::Retry { context: "reading".into(), cause: "simulated".into() });
            }
            return self.read(partition);
        }
    }

    async fn end_offset(&mut self, partition: u32) -> Result<Option<u64>, LogError> {
        self.process.way().await;
        Ok(Some(self.process.world.broker().records(partition).len() as u64))
    }

    async fn seek(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        self.process.way().await;
        self.process.world.note(format_args!("{} seeks {partition} to {offset}", self.process.name));
        if let Some(reader) = self.readers.get_mut(&partition) {
            *reader = Reader { next: Some(offset), ..Reader::default() };
        }
        Ok(())
    }

    async fn acknowledge(&mut self, partition: u32, offset: u64) -> Result<(), LogError> {
        self.process.way().await;
        self.process.world.broker().trim(partition, offset);
        Ok(())
    }

    fn pause(&mut self, partition: u32, paused: bool) {
        if let Some(reader) = self.readers.get_mut(&partition) {
            reader.paused = paused;
        }
    }
}
