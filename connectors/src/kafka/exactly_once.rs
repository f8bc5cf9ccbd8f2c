//! The exactly-once sink: each commit is one transaction of all rows and their marks.
//!
//! Who may write is decided by the transaction itself, in one of three ways. *Group*: the source is a member of a consumer group in
//! the cluster that is written to; the transaction carries the proof of membership (KIP-447), and one producer serves all
//! partitions. *Log*: the log belongs to one process, and one producer is named after it; a newer one of that name ends the older.
//! *Partition*: partitions come from another cluster, so each has a producer of its own name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fieldstream_engine_api::{Committed, Generation, Guarantee, LogId, PartitionKey, Sink, SinkBatch, SinkError};
use rdkafka::ClientConfig;

use super::log::cluster_of;
use super::marks::{Durable, MarkError, MarkKey, MarkReader, MarkRecord, PARTITION, SETTINGS};
use super::membership::{Membership, NotHeld};
use super::options::creation_cause;
use super::records::{Deliveries, Handed, Outgoing, Records, send};
use super::topics::{self, TopicError};
use super::transactions::{Failure, Transactions, blocking};

/// What the deliveries may take longer than their own timeout before the producer is given up.
const GRACE: Duration = Duration::from_secs(10);
/// How long an open transaction of somebody else is waited for before its producer is ended, if it is known.
const OPEN: Duration = Duration::from_secs(2);

/// What the sink is told by its options and its pipeline.
pub(crate) struct Settings {
    /// Connection only.
    pub(crate) client: ClientConfig,
    /// Everything a producer needs but its name.
    pub(crate) producer: ClientConfig,
    pub(crate) pipeline: String,
    pub(crate) sink: String,
    /// Topic of marks.
    pub(crate) marks: String,
    /// Topic of refused rows.
    pub(crate) rejects: String,
    /// How long a transaction may take.
    pub(crate) timeout: Duration,
}

/// What this process holds true of a partition.
#[derive(Clone, Debug)]
struct Held {
    generation: Generation,
    /// Name of the producer that writes it.
    producer: String,
    /// Each transaction needs a proof.
    by_group: bool,
    /// What the runtime was last told.
    told: Option<Durable>,
    /// What the mark said when it was last read or written.
    found: Option<Durable>,
    /// A newer owner has written the mark.
    fenced: Option<Generation>,
}

/// What to do with a batch.
#[derive(Debug, PartialEq, Eq)]
enum Judged {
    /// It is not in the topic yet.
    Write,
    /// An earlier commit, whose answer got lost, has written it.
    Done(Durable),
}

/// One partition's part of a transaction.
struct Part<'a> {
    partition: &'a PartitionKey,
    generation: Generation,
    /// `None`: only the owner is written.
    batch: Option<&'a SinkBatch>,
    before: Option<Durable>,
}

/// The sink.
pub(crate) struct ExactlyOnce {
    settings: Settings,
    records: Records,
    membership: Arc<Membership>,
    /// Tells this process from others where the member of the group has no name of its own.
    process: String,
    reader: Option<MarkReader>,
    cluster: Option<String>,
    producers: BTreeMap<String, Transactions>,
    held: BTreeMap<PartitionKey, Held>,
    rejects_there: bool,
}

/// Judges a batch by the mark. Pure.
fn judge(batch: &SinkBatch, held: &Held) -> Result<Judged, SinkError> {
    if let Some(owner) = held.fenced {
        return Err(SinkError::Fenced { partition: batch.partition.clone(), owner });
    }
    match held.found {
        Some(found) if held.found != held.told => {
            if found.mark >= batch.complete_to {
                return Ok(Judged::Done(found));
            }
            let partition = &batch.partition;
            let cause = format!("partition {partition} is written up to {}, inside a batch up to {}", found.mark, batch.complete_to);
            Err(SinkError::Fatal { context: "check the mark".to_owned(), cause })
        }
        None if held.told.is_some() => {
            let cause = format!("the mark of partition {} is gone: was the topic of marks made anew?", batch.partition);
            Err(SinkError::Fatal { context: "check the mark".to_owned(), cause })
        }
        _ => Ok(Judged::Write),
    }
}

impl ExactlyOnce {
    pub(crate) fn new(settings: Settings, records: Records, membership: Arc<Membership>) -> Self {
        Self {
            settings,
            records,
            membership,
            process: uuid::Uuid::new_v4().to_string(),
            reader: None,
            cluster: None,
            producers: BTreeMap::new(),
            held: BTreeMap::new(),
            rejects_there: false,
        }
    }

    fn context(&self) -> String {
        format!("write to Kafka topic {}", self.records.topic)
    }

    fn retry(&self, cause: impl Into<String>) -> SinkError {
        SinkError::Retry { context: self.context(), cause: cause.into() }
    }

    fn topic_error(&self, topic: &str, error: TopicError) -> SinkError {
        let context = format!("use Kafka topic {topic}");
        match error {
            TopicError::Retry(cause) => SinkError::Retry { context, cause },
            TopicError::Fatal(cause) => SinkError::Fatal { context, cause },
        }
    }

    /// Makes the topic of marks and its reader, once.
    async fn connect(&mut self) -> Result<(), SinkError> {
        if self.reader.is_some() {
            return Ok(());
        }
        let Settings { client, marks, pipeline, sink, .. } = &self.settings;
        topics::ensure(client, marks, SETTINGS).await.map_err(|error| self.topic_error(marks, error))?;
        if !topics::is_compacted(client, marks).await.map_err(|error| self.topic_error(marks, error))? {
            let cause = "it must have cleanup.policy=compact, or marks are forgotten and rows come twice".to_owned();
            return Err(SinkError::Fatal { context: format!("use Kafka topic {marks}"), cause });
        }
        let made = MarkReader::new(client, marks, pipeline, sink);
        let reader = made.map_err(|error| SinkError::Fatal { context: self.context(), cause: creation_cause(&error) })?;
        let (reader, cluster) = blocking(&self.context(), move || {
            let cluster = reader.cluster();
            (reader, cluster)
        })
        .await?;
        if cluster.is_none() {
            return Err(self.retry("the brokers do not say which cluster they are"));
        }
        (self.reader, self.cluster) = (Some(reader), cluster);
        Ok(())
    }

    /// The name of the producer that writes partitions of a log, and whether its transactions need the group's proof.
    fn producer_of(&self, partition: &PartitionKey) -> (String, bool) {
        let LogId(log) = &partition.log_id;
        let base = format!("fieldstream.{}.{}", self.settings.pipeline, self.settings.sink);
        match cluster_of(log) {
            Some(cluster) if self.cluster.as_deref() == Some(cluster) && self.membership.is_member() => {
                let member = self.membership.instance().unwrap_or_else(|| self.process.clone());
                (format!("{base}.{member}"), true)
            }
            Some(_) => (format!("{base}.{log}.{}", partition.partition), false),
            None => (format!("{base}.{log}"), false),
        }
    }

    /// The producer of that name. Where it is new, everything that was begun under its name has ended, and the marks are read.
    async fn producer(&mut self, name: &str) -> Result<Transactions, SinkError> {
        if let Some(producer) = self.producers.get(name) {
            return Ok(producer.clone());
        }
        let producer = Transactions::begin_as(&self.settings.producer, name, &self.context()).await?;
        if let Err(error) = self.read_marks(name).await {
            producer.discard().await;
            return Err(error);
        }
        self.producers.insert(name.to_owned(), producer.clone());
        Ok(producer)
    }

    /// Reads the marks to their end. Transactions that others have left open there are ended, if their producers are known.
    async fn read_marks(&mut self, producer: &str) -> Result<(), SinkError> {
        let mut ended_others = false;
        loop {
            match self.catch_up(OPEN).await? {
                Ok(()) => break,
                Err(MarkError::Open) if !ended_others => {
                    ended_others = true;
                    self.end_others().await?;
                }
                Err(MarkError::Open) => return Err(self.retry("a transaction of another worker is open; its timeout ends it")),
                Err(MarkError::Unread(cause)) => return Err(self.retry(format!("read marks: {cause}"))),
                Err(MarkError::Damaged(cause)) => return Err(SinkError::Fatal { context: self.context(), cause }),
            }
        }
        self.note_found(producer);
        Ok(())
    }

    /// Looks whether somebody newer has written marks. Before a producer is made anew: making it would end the newer one.
    async fn look(&mut self, producer: &str) -> Result<(), SinkError> {
        // What is open may be our own; a new producer ends it.
        if let Err(error) = self.catch_up(Duration::ZERO).await? {
            tracing::debug!(?error, "marks were not read to their end");
        }
        self.note_found(producer);
        Ok(())
    }

    async fn catch_up(&mut self, patience: Duration) -> Result<Result<(), MarkError>, SinkError> {
        let Some(mut reader) = self.reader.take() else { return Err(self.retry("the marks are not read yet")) };
        let (reader, read) = blocking(&self.context(), move || {
            let read = reader.catch_up(patience);
            (reader, read)
        })
        .await?;
        self.reader = Some(reader);
        Ok(read)
    }

    /// Notes what the marks say of the partitions of one producer.
    fn note_found(&mut self, producer: &str) {
        let Some(reader) = &self.reader else { return };
        for (partition, held) in self.held.iter_mut().filter(|(_, held)| held.producer == producer) {
            let mark = reader.of(partition);
            held.fenced = mark.map(|mark| mark.generation).filter(|owner| *owner > held.generation);
            held.found = mark.and_then(|mark| mark.durable);
        }
    }

    /// Ends the transactions of those who wrote our partitions before us: they have been killed or stopped, since they would
    /// have ended them by themselves. One that lives after all gets itself a new producer and reads the marks.
    async fn end_others(&self) -> Result<(), SinkError> {
        let Some(reader) = &self.reader else { return Ok(()) };
        let earlier =
            self.held.iter().filter_map(|(partition, held)| reader.of(partition).filter(|mark| mark.generation < held.generation));
        let mut names: Vec<&str> = earlier.map(|mark| mark.producer.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        for name in names.into_iter().filter(|name| !self.held.values().any(|held| held.producer == *name)) {
            tracing::info!(producer = name, "ending a transaction that an earlier owner has left open");
            Transactions::begin_as(&self.settings.producer, name, &self.context()).await?.discard().await;
        }
        Ok(())
    }

    /// Writes rows, refused rows and marks in one transaction. Gives what is durable then, in order.
    async fn transact(&mut self, name: &str, by_group: bool, parts: &[Part<'_>]) -> Result<Vec<Option<Durable>>, SinkError> {
        let producer = self.producer(name).await?;
        let written = self.write(&producer, name, by_group, parts).await;
        let failure = match written {
            Ok(durable) => return Ok(durable),
            Err(failure) => failure,
        };
        if failure.in_doubt || !producer.abort().await {
            self.producers.remove(name);
            producer.discard().await;
        }
        Err(failure.error)
    }

    async fn write(
        &mut self,
        producer: &Transactions,
        name: &str,
        by_group: bool,
        parts: &[Part<'_>],
    ) -> Result<Vec<Option<Durable>>, Failure> {
        producer.begin()?;
        let deliveries = Arc::new(Deliveries::default());
        let mut after = Vec::with_capacity(parts.len());
        for part in parts {
            let mut durable = part.before;
            if let Some(batch) = part.batch {
                let refused = self.records.send(&producer.producer, batch, None, &deliveries).await;
                if !refused.is_empty() {
                    self.make_rejects().await?;
                }
                for row in &refused {
                    let (topic, payload) = (self.settings.rejects.as_str(), row.payload());
                    let outgoing = Outgoing { topic, partition: None, key: row.key(), payload: &payload, headers: Vec::new() };
                    // A failure is known to the deliveries.
                    let _ = send(&producer.producer, outgoing, &deliveries).await;
                }
                durable = Some(moved(part.before, batch, refused.len() as u64));
            }
            let mark = MarkRecord { durable, generation: part.generation, producer: name.to_owned() };
            let key = serde_json::to_string(&MarkKey::new(part.partition, &self.settings.sink)).unwrap_or_default();
            let value = serde_json::to_vec(&mark).unwrap_or_default();
            let topic = self.settings.marks.as_str();
            let outgoing = Outgoing { topic, partition: Some(PARTITION), key: Some(&key), payload: &value, headers: Vec::new() };
            if send(&producer.producer, outgoing, &deliveries).await == Handed::TooLarge {
                let cause = "a mark is larger than `message.max.bytes`; make that larger".to_owned();
                return Err(Failure { error: SinkError::Fatal { context: self.context(), cause }, in_doubt: false });
            }
            after.push(durable);
        }
        let arrived = deliveries.outcome(self.settings.timeout + GRACE).await;
        arrived.map_err(|code| producer.undelivered(code))?;
        // Only now: a successor that reads the marks must find ours there before it is too late for this proof.
        if by_group {
            self.prove(producer, parts).await?;
        }
        producer.commit().await?;
        Ok(after)
    }

    async fn prove(&self, producer: &Transactions, parts: &[Part<'_>]) -> Result<(), Failure> {
        let membership = Arc::clone(&self.membership);
        let partitions: Vec<u32> = parts.iter().map(|part| part.partition.partition).collect();
        let failed = |error| Failure { error, in_doubt: false };
        let proof = blocking(&self.context(), move || membership.prove(&partitions)).await.map_err(failed)?;
        match proof {
            Ok(proof) => producer.prove(proof).await,
            Err(NotHeld::Member) => Err(failed(self.retry("this worker is not in its consumer group at the moment"))),
            Err(NotHeld::Partition(number)) => {
                let part = parts.iter().find(|part| part.partition.partition == number);
                let Some(part) = part else { return Err(failed(self.retry("a partition was taken away"))) };
                // Whoever has it now claims, if it has not yet.
                let owner = Generation(part.generation.0 + 1);
                Err(failed(SinkError::Fenced { partition: part.partition.clone(), owner }))
            }
        }
    }

    async fn make_rejects(&mut self) -> Result<(), Failure> {
        if !self.rejects_there {
            let topic = &self.settings.rejects;
            let made = topics::ensure(&self.settings.client, topic, &[]).await;
            made.map_err(|error| Failure { error: self.topic_error(topic, error), in_doubt: false })?;
            self.rejects_there = true;
        }
        Ok(())
    }

    /// Commits the batches that one producer writes.
    async fn commit_with(&mut self, name: &str, batches: &[&SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        if !self.producers.contains_key(name) {
            self.look(name).await?;
            if let Some(batch) = batches.iter().find(|batch| self.held.get(&batch.partition).is_some_and(|held| held.fenced.is_some())) {
                let owner = self.held.get(&batch.partition).and_then(|held| held.fenced).unwrap_or_default();
                return Err(SinkError::Fenced { partition: batch.partition.clone(), owner });
            }
        }
        // Reads the marks where an earlier outcome is in doubt.
        self.producer(name).await?;
        let mut done = Vec::with_capacity(batches.len());
        let mut parts = Vec::new();
        let mut by_group = false;
        for batch in batches {
            let Some(held) = self.held.get(&batch.partition) else { continue };
            by_group = held.by_group;
            match judge(batch, held)? {
                Judged::Done(durable) => done.push((batch.partition.clone(), durable)),
                Judged::Write => {
                    parts.push(Part { partition: &batch.partition, generation: held.generation, batch: Some(batch), before: held.found })
                }
            }
        }
        if !parts.is_empty() {
            let durable = self.transact(name, by_group, &parts).await?;
            done.extend(parts.iter().zip(durable).filter_map(|(part, durable)| Some((part.partition.clone(), durable?))));
        }
        for (partition, durable) in &done {
            if let Some(held) = self.held.get_mut(partition) {
                (held.found, held.told) = (Some(*durable), Some(*durable));
            }
        }
        Ok(done.into_iter().map(|(partition, durable)| committed(partition, durable)).collect())
    }
}

fn moved(before: Option<Durable>, batch: &SinkBatch, refused: u64) -> Durable {
    let before = before.unwrap_or_default();
    let rows: u64 = batch.rows.iter().map(|part| part.batch.len() as u64).sum();
    let mark = before.mark.max(batch.complete_to);
    Durable { mark, delivered: before.delivered + rows.saturating_sub(refused), refused: before.refused + refused }
}

fn committed(partition: PartitionKey, durable: Durable) -> Committed {
    Committed { partition, mark: durable.mark, delivered: durable.delivered, refused: durable.refused }
}

#[async_trait]
impl Sink for ExactlyOnce {
    fn guarantee(&self) -> Guarantee {
        Guarantee::ExactlyOnce
    }

    async fn open(&mut self, partition: &PartitionKey, generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.connect().await?;
        let (producer, by_group) = self.producer_of(partition);
        let held = Held { generation, producer: producer.clone(), by_group, told: None, found: None, fenced: None };
        self.held.insert(partition.clone(), held);
        if self.producers.contains_key(&producer) {
            self.read_marks(&producer).await?;
        } else {
            self.producer(&producer).await?;
        }
        let found = match self.held.get(partition) {
            Some(Held { fenced: Some(owner), .. }) => return Err(SinkError::Fenced { partition: partition.clone(), owner: *owner }),
            held => held.and_then(|held| held.found),
        };
        // A group fences by itself. Elsewhere the mark says from now on who the owner is.
        if !by_group {
            self.transact(&producer, false, &[Part { partition, generation, batch: None, before: found }]).await?;
        }
        if let Some(held) = self.held.get_mut(partition) {
            held.told = found;
        }
        Ok(found.map(|durable| committed(partition.clone(), durable)))
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let mut by_producer: BTreeMap<String, Vec<&SinkBatch>> = BTreeMap::new();
        for batch in batches {
            if let Some(held) = self.held.get(&batch.partition) {
                by_producer.entry(held.producer.clone()).or_default().push(batch);
            }
        }
        let mut all = Vec::with_capacity(batches.len());
        for (name, batches) in by_producer {
            all.extend(self.commit_with(&name, &batches).await?);
        }
        Ok(all)
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        for (_, producer) in std::mem::take(&mut self.producers) {
            producer.discard().await;
        }
        Ok(())
    }
}
