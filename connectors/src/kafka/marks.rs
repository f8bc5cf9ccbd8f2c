//! Marks in a compacted topic, written in the transaction that writes the rows: the newest record of a key is the mark.
//!
//! All marks lie in partition 0, whatever the topic has: a change of the partition count would move keys. They are read to the end
//! that the partition has when the question is asked, and a transaction that is open there is waited for: what a predecessor has
//! begun must have ended before its successor may know how far it came.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fieldstream_engine_api::{Generation, Mark, PartitionKey};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::{ClientConfig, ClientContext};
use serde::{Deserialize, Serialize};

/// Settings of the topic when it is made. Small segments, because the one that is written to is never compacted.
pub(crate) const SETTINGS: &[(&str, &str)] =
    &[("cleanup.policy", "compact"), ("segment.bytes", "16777216"), ("segment.ms", "3600000"), ("min.cleanable.dirty.ratio", "0.1")];
/// Where marks lie.
pub(crate) const PARTITION: i32 = 0;
/// How long a question to the brokers may take.
const QUESTION: Duration = Duration::from_secs(5);
/// How long reading may take; a topic that is compacted is small.
const READ: Duration = Duration::from_secs(30);
/// Time between two looks at an open transaction.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Key of a mark: the record's key is this as JSON.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct MarkKey {
    pub(crate) pipeline: String,
    pub(crate) sink: String,
    pub(crate) log: String,
    pub(crate) partition: u32,
}

impl MarkKey {
    pub(crate) fn new(key: &PartitionKey, sink: &str) -> Self {
        let (pipeline, log) = (key.pipeline.to_string(), key.log_id.to_string());
        Self { pipeline, sink: sink.to_owned(), log, partition: key.partition }
    }
}

/// A durable mark with the counts that belong to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Durable {
    /// Everything below it is in the topic.
    #[serde(flatten)]
    pub(crate) mark: Mark,
    /// Rows in the topic.
    pub(crate) delivered: u64,
    /// Rows in the topic of refused rows.
    pub(crate) refused: u64,
}

/// Value of a mark: the record's value is this as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MarkRecord {
    /// Missing until the first commit.
    #[serde(flatten)]
    pub(crate) durable: Option<Durable>,
    /// The owner.
    pub(crate) generation: Generation,
    /// Transactional id of who wrote it: what a successor ends when it was left open.
    pub(crate) producer: String,
}

/// Why marks could not be read.
#[derive(Debug)]
pub(crate) enum MarkError {
    /// A transaction is open and its owner has not ended it.
    Open,
    /// The brokers do not answer, or not well.
    Unread(String),
    /// Not one of ours.
    Damaged(String),
}

struct Quiet;

impl ClientContext for Quiet {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl rdkafka::consumer::ConsumerContext for Quiet {}

/// Reads the marks of one sink. All of its calls block.
pub(crate) struct MarkReader {
    topic: String,
    pipeline: String,
    sink: String,
    /// Sees what is committed.
    committed: BaseConsumer<Quiet>,
    /// Sees everything.
    all: BaseConsumer<Quiet>,
    next: i64,
    found: BTreeMap<MarkKey, MarkRecord>,
}

impl MarkReader {
    /// A reader that connects when it is first used.
    pub(crate) fn new(config: &ClientConfig, topic: &str, pipeline: &str, sink: &str) -> Result<Self, KafkaError> {
        let consumer = |isolation: &str| {
            let mut config = config.clone();
            config
                .set("group.id", format!("fieldstream-marks-{pipeline}-{sink}"))
                .set("enable.auto.commit", "false")
                .set("enable.partition.eof", "true")
                .set("auto.offset.reset", "earliest")
                .set("allow.auto.create.topics", "false")
                .set("fetch.wait.max.ms", "100")
                .set("isolation.level", isolation);
            config.create_with_context(Quiet)
        };
        let (committed, all) = (consumer("read_committed")?, consumer("read_uncommitted")?);
        let (topic, pipeline, sink) = (topic.to_owned(), pipeline.to_owned(), sink.to_owned());
        Ok(Self { topic, pipeline, sink, committed, all, next: 0, found: BTreeMap::new() })
    }

    /// The cluster's id.
    pub(crate) fn cluster(&self) -> Option<String> {
        self.all.client().fetch_cluster_id(QUESTION)
    }

    /// The mark of a partition, as of the last [`Self::catch_up`].
    pub(crate) fn of(&self, partition: &PartitionKey) -> Option<&MarkRecord> {
        self.found.get(&MarkKey::new(partition, &self.sink))
    }

    /// Reads everything that was written before this call, waiting for at most `patience` for transactions that are open in it.
    pub(crate) fn catch_up(&mut self, patience: Duration) -> Result<(), MarkError> {
        let unread = |error: KafkaError| MarkError::Unread(error.to_string());
        let deadline = Instant::now() + patience;
        let (_, end) = self.all.fetch_watermarks(&self.topic, PARTITION, QUESTION).map_err(unread)?;
        let stable = loop {
            let (_, stable) = self.committed.fetch_watermarks(&self.topic, PARTITION, QUESTION).map_err(unread)?;
            if stable >= end || Instant::now() >= deadline {
                break stable;
            }
            std::thread::sleep(LOOK_AGAIN);
        };
        // What lies before an open transaction says whose it may be.
        if self.next < stable {
            let mut from = TopicPartitionList::new();
            let offset = if self.next == 0 { Offset::Beginning } else { Offset::Offset(self.next) };
            from.add_partition_offset(&self.topic, PARTITION, offset).map_err(unread)?;
            self.committed.assign(&from).map_err(unread)?;
            let read = self.read_on(Instant::now() + READ);
            let ended = self.committed.unassign().map_err(unread);
            read.and(ended)?;
        }
        if stable < end { Err(MarkError::Open) } else { Ok(()) }
    }

    /// Takes records until the end is reached.
    fn read_on(&mut self, deadline: Instant) -> Result<(), MarkError> {
        while Instant::now() < deadline {
            match self.committed.poll(Duration::from_millis(200)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                // The library connects again by itself, and tells of an outage long after it: time decides.
                Some(Err(error)) if !is_final(&error) => tracing::debug!(%error, "reading marks"),
                Some(Err(error)) => return Err(MarkError::Unread(error.to_string())),
                Some(Ok(message)) => {
                    self.next = message.offset() + 1;
                    let Ok(key) = serde_json::from_slice::<MarkKey>(message.key().unwrap_or_default()) else { continue };
                    if key.pipeline != self.pipeline || key.sink != self.sink {
                        continue;
                    }
                    match message.payload() {
                        None => drop(self.found.remove(&key)),
                        Some(value) => {
                            let record = serde_json::from_slice(value).map_err(|error| {
                                MarkError::Damaged(format!("the mark at offset {} of topic {}: {error}", message.offset(), self.topic))
                            })?;
                            self.found.insert(key, record);
                        }
                    }
                }
            }
        }
        Err(MarkError::Unread("no answer in time".to_owned()))
    }
}

/// Whether reading on leads nowhere.
fn is_final(error: &KafkaError) -> bool {
    let codes = [
        Code::TopicAuthorizationFailed,
        Code::GroupAuthorizationFailed,
        Code::ClusterAuthorizationFailed,
        Code::UnknownTopicOrPartition,
        Code::UnknownTopic,
        Code::UnknownPartition,
    ];
    matches!(error, KafkaError::MessageConsumptionFatal(_)) || error.rdkafka_error_code().is_some_and(|code| codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use fieldstream_engine_api::LogId;

    use super::*;

    #[test]
    fn marks_are_json_that_a_person_can_read() {
        let partition = PartitionKey { pipeline: "p".into(), log_id: LogId("kafka:c:t".into()), partition: 3 };
        let key = serde_json::to_string(&MarkKey::new(&partition, "alerts")).expect("JSON");
        assert_eq!(key, r#"{"pipeline":"p","sink":"alerts","log":"kafka:c:t","partition":3}"#);
        let durable = Durable { mark: Mark { next_offset: 7, next_decision: 1 }, delivered: 5, refused: 2 };
        let mark = MarkRecord { durable: Some(durable), generation: Generation(4), producer: "x".to_owned() };
        let text = serde_json::to_string(&mark).expect("JSON");
        assert_eq!(text, r#"{"next_offset":7,"next_decision":1,"delivered":5,"refused":2,"generation":4,"producer":"x"}"#);
        assert_eq!(serde_json::from_str::<MarkRecord>(&text).expect("a mark"), mark);
        let fence = MarkRecord { durable: None, ..mark };
        let text = serde_json::to_string(&fence).expect("JSON");
        assert_eq!(text, r#"{"generation":4,"producer":"x"}"#);
        assert_eq!(serde_json::from_str::<MarkRecord>(&text).expect("a mark"), fence);
    }
}
