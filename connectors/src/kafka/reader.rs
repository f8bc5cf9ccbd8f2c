//! The consumer's thread: it alone talks to the client library, which wants to be polled and blocks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use fieldstream_engine_api::{Assignment, LogBatch, LogError, LogEvent, LogId};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::sync::oneshot;

use super::block::{BlockBuilder, Record, Wanted, append_us, origin_of};
use super::group::{Change, Entrance, GroupContext};
use super::journal_records::whose;
use super::log::log_id;
use super::membership::Membership;
use super::outbox::Outbox;

/// A member that is fenced twice within this time shares its name with another process.
const FENCED_AGAIN: Duration = Duration::from_secs(60);

/// Bytes that may wait for the engine before fetching stops; it goes on at half of that.
const OUTBOX_BYTES: usize = 32 << 20;
/// How long the thread waits for records, and so at most for a command.
const IDLE: Duration = Duration::from_millis(10);
/// How long a question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(5);
/// Time between two attempts to learn what a new partition holds.
const AGAIN: Duration = Duration::from_millis(500);
/// Records taken between two looks at the commands.
const RUN: u32 = 256;

/// What the engine wants.
#[derive(Debug)]
pub(crate) enum Command {
    Seek { partition: i32, offset: u64, reply: oneshot::Sender<Result<(), LogError>> },
    Acknowledge { partition: i32, offset: u64 },
    End { partition: i32, reply: oneshot::Sender<Result<u64, LogError>> },
    Pause { partition: i32, paused: bool },
}

#[derive(Debug, Default)]
struct Partition {
    /// Next offset to pass on; `None` before the seek.
    next: Option<u64>,
    block: BlockBuilder,
    /// Whose records are in the block; the log's own source until one is.
    source: Option<Arc<str>>,
    /// The engine's queue is full.
    paused: bool,
    /// Last offset acknowledged.
    acknowledged: Option<u64>,
}

impl Partition {
    /// What is in the block.
    fn take(&mut self, number: i32, source: &Arc<str>) -> Option<LogBatch> {
        let of = self.source.take();
        self.block.take(number as u32, of.as_ref().unwrap_or(source))
    }
}

/// What is read.
pub(crate) struct Source {
    pub(crate) topic: String,
    /// Name of the source in its pipeline.
    pub(crate) name: Arc<str>,
    pub(crate) wanted: Wanted,
    /// Sources of the pipeline, where the topic stands for the journal of several.
    pub(crate) receivers: Option<Arc<[Arc<str>]>>,
}

/// State of the thread.
pub(crate) struct Reader {
    consumer: Arc<BaseConsumer<GroupContext>>,
    topic: String,
    source: Source,
    commands: Receiver<Command>,
    entrance: Entrance,
    outbox: Arc<Outbox>,
    membership: Arc<Membership>,
    state: State,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<i32, Partition>,
    /// Assigned, but what they hold is not known yet.
    unknown: Vec<i32>,
    ask_again: Option<Instant>,
    cluster: Option<String>,
    /// Fetching stopped because the outbox is full.
    stalled: bool,
    /// The last state of the connection that was logged.
    trouble: Option<Code>,
    ever_assigned: bool,
    create_time_told: bool,
    /// The library asked for an offset reset: some partition no longer has the offset we are at.
    reset_asked: bool,
    /// When another member of our name was last let in instead of us.
    fenced: Option<Instant>,
}

impl Reader {
    pub(crate) fn new(consumer: Arc<BaseConsumer<GroupContext>>, source: Source, commands: Receiver<Command>, entrance: Entrance) -> Self {
        let (topic, outbox, membership) = (source.topic.clone(), Arc::clone(&entrance.outbox), Arc::clone(&entrance.membership));
        Self { consumer, topic, source, commands, entrance, outbox, membership, state: State::default() }
    }

    /// Runs until the other end of the commands is dropped.
    pub(crate) fn run(mut self) {
        while self.serve_commands() {
            self.limit();
            self.introduce();
            self.find_truncated();
            for _ in 0..RUN {
                if !self.poll() {
                    break;
                }
            }
        }
    }

    /// Takes one record or event; false when there is none at the moment, or something else is to be done first.
    fn poll(&mut self) -> bool {
        let idle = self.state.partitions.values().all(|p| p.block.is_empty());
        let polled = self.consumer.poll(if idle { IDLE } else { Duration::ZERO });
        let more = match polled {
            Some(Ok(message)) => {
                take(&mut self.state, &message, &self.source, &self.outbox);
                true
            }
            Some(Err(error)) => {
                self.trouble(&error);
                false
            }
            None => false,
        };
        for change in self.consumer.context().take_changes() {
            self.change(change);
        }
        if !more {
            self.flush();
        }
        more
    }

    fn flush(&mut self) {
        for (number, partition) in &mut self.state.partitions {
            if let Some(batch) = partition.take(*number, &self.source.name) {
                self.outbox.push_batch(batch);
            }
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Assigned(numbers) => {
                self.state.ever_assigned = true;
                for number in &numbers {
                    self.state.partitions.insert(*number, Partition::default());
                    self.outbox.pause(*number as u32, false);
                }
                self.state.unknown.extend(numbers);
                self.state.ask_again = None;
            }
            Change::Revoked(numbers) => {
                for number in &numbers {
                    self.state.partitions.remove(number);
                    self.outbox.forget(*number as u32);
                }
                self.state.unknown.retain(|n| !numbers.contains(n));
            }
        }
    }

    /// Tells the engine about newly assigned partitions, once the brokers have said what they hold.
    fn introduce(&mut self) {
        if self.state.unknown.is_empty() || self.state.ask_again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.state.ask_again = Some(Instant::now() + AGAIN);
        if self.state.cluster.is_none() {
            self.state.cluster = self.consumer.client().fetch_cluster_id(QUESTION);
        }
        let Some(cluster) = &self.state.cluster else { return };
        let log_id = LogId(log_id(cluster, &self.topic).into());
        let mut known = Vec::new();
        let mut unknown = Vec::new();
        for number in std::mem::take(&mut self.state.unknown) {
            // After one failure the others are asked later: the group must be kept alive by polling meanwhile.
            match if unknown.is_empty() { self.consumer.client().fetch_watermarks(&self.topic, number, QUESTION).ok() } else { None } {
                Some((low, high)) => known.push(Assignment {
                    partition: number as u32,
                    log_id: log_id.clone(),
                    first_offset: low.max(0) as u64,
                    end_offset: high.max(0) as u64,
                }),
                None => unknown.push(number),
            }
        }
        self.state.unknown = unknown;
        if !known.is_empty() {
            self.calm();
            self.outbox.push(Ok(LogEvent::Assigned(known)));
        }
    }

    /// Serves what the engine wants; false when it is gone.
    fn serve_commands(&mut self) -> bool {
        let mut commits = TopicPartitionList::new();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Seek { partition, offset, reply }) => {
                    let result = self.seek(partition, offset);
                    if reply.send(result).is_err() {
                        tracing::debug!(partition, "nobody waits for the seek any more");
                    }
                }
                Ok(Command::Acknowledge { partition, offset }) => {
                    let Some(owned) = self.state.partitions.get_mut(&partition) else { continue };
                    owned.acknowledged = Some(offset);
                    self.membership.note(partition, offset);
                    if commits.add_partition_offset(&self.topic, partition, Offset::Offset(offset as i64)).is_err() {
                        tracing::debug!(partition, offset, "no group offset");
                    }
                }
                Ok(Command::End { partition, reply }) => {
                    if reply.send(self.end(partition)).is_err() {
                        tracing::debug!(partition, "nobody waits for the end any more");
                    }
                }
                Ok(Command::Pause { partition, paused }) => self.pause(partition, paused),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        if commits.count() > 0
            && let Err(error) = self.consumer.commit(&commits, CommitMode::Async)
        {
            tracing::debug!(%error, "group offsets were not committed; they are for dashboards only");
        }
        true
    }

    fn one(&self, partition: i32) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        list
    }

    /// First offset after the end of a partition.
    fn end(&self, number: i32) -> Result<u64, LogError> {
        let known = self.consumer.client().fetch_watermarks(&self.topic, number, QUESTION);
        let context = || format!("find the end of partition {number} of Kafka topic {}", self.topic);
        known.map(|(_, high)| high.max(0) as u64).map_err(|error| LogError::Retry { context: context(), cause: error.to_string() })
    }

    fn seek(&mut self, number: i32, offset: u64) -> Result<(), LogError> {
        let context = || format!("read partition {number} of Kafka topic {} from offset {offset}", self.topic);
        let retry = |cause: String| LogError::Retry { context: context(), cause };
        let (read, acknowledged) = match self.state.partitions.get(&number) {
            // An answer to the group would make the library forget that the group has thrown us out.
            Some(partition) if !self.consumer.assignment_lost() => (partition.next.is_some(), partition.acknowledged),
            // It is no longer ours: its revocation is on its way to the engine.
            _ => return Ok(()),
        };
        let (low, high) =
            self.consumer.client().fetch_watermarks(&self.topic, number, QUESTION).map_err(|error| retry(error.to_string()))?;
        check_offset(number, offset, low, high)
            .map_err(|error| error.unwrap_or_else(|cause| LogError::Fatal { context: context(), cause }))?;
        if read {
            self.consumer.incremental_unassign(&self.one(number)).map_err(|error| retry(error.to_string()))?;
        }
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, number, Offset::Offset(offset as i64)).map_err(|error| retry(error.to_string()))?;
        self.consumer.incremental_assign(&list).map_err(|error| retry(error.to_string()))?;
        self.outbox.forget(number as u32);
        let paused = self.state.partitions.get(&number).is_some_and(|p| p.paused);
        self.state.partitions.insert(number, Partition { next: Some(offset), paused, acknowledged, ..Partition::default() });
        self.membership.hold(number, acknowledged.unwrap_or(offset));
        if paused || self.state.stalled {
            self.fetch(number, false);
        }
        Ok(())
    }

    fn pause(&mut self, number: i32, paused: bool) {
        let Some(partition) = self.state.partitions.get_mut(&number) else { return };
        if partition.paused == paused {
            return;
        }
        partition.paused = paused;
        let read = partition.next.is_some();
        self.outbox.pause(number as u32, paused);
        if read && !self.state.stalled {
            self.fetch(number, !paused);
        }
    }

    /// Lets the library fetch a partition, or not. What it has fetched and not handed out it fetches again later.
    fn fetch(&self, number: i32, on: bool) {
        let list = self.one(number);
        let done = if on { self.consumer.resume(&list) } else { self.consumer.pause(&list) };
        if let Err(error) = done {
            tracing::debug!(partition = number, %error, "fetching was not switched");
        }
    }

    /// Stops fetching while the engine has more than enough.
    fn limit(&mut self) {
        let bytes = self.outbox.bytes();
        let stalled = if self.state.stalled { bytes > OUTBOX_BYTES / 2 } else { bytes > OUTBOX_BYTES };
        if stalled == self.state.stalled {
            return;
        }
        self.state.stalled = stalled;
        for (number, partition) in &self.state.partitions {
            if partition.next.is_some() && !partition.paused {
                self.fetch(*number, !stalled);
            }
        }
    }

    fn calm(&mut self) {
        if self.state.trouble.take().is_some() {
            tracing::info!(topic = %self.topic, "Kafka answers again");
        }
    }

    /// Errors of the library. It reconnects by itself; what changes is logged once, what a person must do is passed on.
    fn trouble(&mut self, error: &KafkaError) {
        let code = match error {
            KafkaError::MessageConsumption(code) | KafkaError::MessageConsumptionFatal(code) => *code,
            other => {
                tracing::warn!(topic = %self.topic, error = %other, "Kafka consumer");
                return;
            }
        };
        let context = format!("read Kafka topic {}", self.topic);
        let fatal = |cause: String| Some(LogError::Fatal { context: context.clone(), cause });
        let passed_on = match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
                let cause = "there is no such topic; create it, with message.timestamp.type=LogAppendTime".to_owned();
                Some(LogError::Retry { context: context.clone(), cause })
            }
            Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed | Code::ClusterAuthorizationFailed => {
                fatal(format!("not allowed: {code}"))
            }
            Code::Authentication | Code::SaslAuthenticationFailed if !self.state.ever_assigned => {
                fatal(format!("not authenticated: {code}"))
            }
            Code::AutoOffsetReset | Code::OffsetOutOfRange => {
                self.state.reset_asked = true;
                None
            }
            // Our own older request may have come after a newer one. Another process of that name would do it again at once.
            Code::FencedInstanceId if self.state.fenced.is_none_or(|before| before.elapsed() > FENCED_AGAIN) => self.enter_again().err(),
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => fatal(code.to_string()),
            _ => None,
        };
        let known = self.state.trouble.is_some_and(|last| last == code || (is_connection(last) && is_connection(code)));
        if !known {
            self.state.trouble = Some(code);
            tracing::warn!(topic = %self.topic, cause = %code, "trouble with Kafka; the client keeps trying");
            if let Some(error) = passed_on {
                self.outbox.push(Err(error));
            }
        }
    }

    /// Becomes a new member, since the library gives the old one up for good. What it read belongs to nobody until the group says so.
    fn enter_again(&mut self) -> Result<(), LogError> {
        let numbers: Vec<i32> = std::mem::take(&mut self.state.partitions).into_keys().chain(self.state.unknown.drain(..)).collect();
        self.membership.release(&numbers);
        numbers.iter().for_each(|number| self.outbox.take_back(*number as u32));
        self.outbox.push(Ok(LogEvent::Revoked(numbers.iter().map(|number| *number as u32).collect())));
        self.state.fenced = Some(Instant::now());
        self.consumer = self.entrance.enter()?;
        Ok(())
    }

    /// Tells the engine which partition no longer has the offset we are at, once the brokers have said so.
    fn find_truncated(&mut self) {
        if !self.state.reset_asked || self.state.ask_again.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.state.ask_again = Some(Instant::now() + AGAIN);
        let context = format!("read Kafka topic {}", self.topic);
        for (number, partition) in &self.state.partitions {
            let Some(next) = partition.next else { continue };
            let Ok((low, high)) = self.consumer.client().fetch_watermarks(&self.topic, *number, QUESTION) else { return };
            if let Err(error) = check_offset(*number, next, low, high) {
                self.outbox.push(Err(error.unwrap_or_else(|cause| LogError::Fatal { context, cause })));
                self.state.reset_asked = false;
                return;
            }
        }
        // Every offset is there, yet the library does not trust the log: it was cut and written again behind our back.
        let cause = "the log was truncated and written again (an unclean leader election); accept the gap to go on".into();
        self.outbox.push(Err(LogError::Fatal { context, cause }));
        self.state.reset_asked = false;
    }
}

/// Whether an error says only that nobody answers: one outage shows as several of them in turn.
fn is_connection(code: Code) -> bool {
    matches!(code, Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut | Code::RequestTimedOut)
}

/// Whether `offset` can be read from a partition that holds `low..high`. The error is one of truncation, or else its cause.
fn check_offset(partition: i32, offset: u64, low: i64, high: i64) -> Result<(), Result<LogError, String>> {
    let (low, high) = (low.max(0) as u64, high.max(0) as u64);
    if offset < low {
        return Err(Ok(LogError::Truncated { partition: partition as u32, wanted: offset, first_offset: low }));
    }
    if offset > high {
        return Err(Err(format!("the partition ends at {high}: the log is not the one it was, or has lost records")));
    }
    Ok(())
}

/// Passes a record on, unless it is left over from before a seek.
fn take(state: &mut State, message: &BorrowedMessage<'_>, source: &Source, outbox: &Outbox) {
    let Some(partition) = state.partitions.get_mut(&message.partition()) else { return };
    let offset = message.offset().max(0) as u64;
    if partition.next.is_none_or(|next| offset < next) {
        return;
    }
    let append_us = append_us(message, &mut state.create_time_told);
    let origin = if source.wanted.origins { origin_of(message) } else { None };
    let record = Record { offset, payload: message.payload().unwrap_or_default(), key: message.key(), origin, append_us };
    partition.next = Some(offset + 1);
    let whose = match &source.receivers {
        Some(receivers) => whose(message.headers(), receivers),
        None => Some((&source.name, None)),
    };
    let before = match &whose {
        // A batch is of one source.
        Some((of, _)) if partition.source.as_ref().is_some_and(|s| s != *of) => partition.take(message.partition(), &source.name),
        _ => None,
    };
    let full = match whose {
        Some((of, refusal)) => {
            partition.source.get_or_insert_with(|| Arc::clone(of));
            match refusal {
                Some((code, why)) => partition.block.refuse(record, code, why),
                None => partition.block.push(record, source.wanted),
            }
        }
        None => {
            partition.block.pass(offset, append_us);
            false
        }
    };
    let after = if full { partition.take(message.partition(), &source.name) } else { None };
    before.into_iter().chain(after).for_each(|batch| outbox.push_batch(batch));
    if state.trouble.take().is_some() {
        tracing::info!(topic = message.topic(), "Kafka answers again");
    }
}
