//! A topic that stands for the node's journal: receivers append to it by an idempotent producer, and the pipeline reads it as a member of
//! a consumer group, so that several gateways share the work and other producers may write to it too.

use std::sync::Arc;

use async_trait::async_trait;
use fieldstream_engine_api::{Append, AppendError, Built, BuiltJournal, ConfigError, ConnectContext, JournalKind, SinkError};
use fieldstream_schemas::Decoded;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::Producer as _;
use serde_json::Value;
use tokio::sync::Mutex;

use super::journal_records::{Written, records};
use super::log::{KafkaLog, LogSettings, Make};
use super::options::{self, JournalOptions, Origins, RecordKey, Start, creation_cause};
use super::records::{Callbacks, Deliveries, Handed, Outgoing, Producer, send};
use super::transactions::delivery_error;
use crate::options::parse;

/// Bytes that may wait in the producer. A receiver waits for the end of one append before it begins the next.
const QUEUE_KIB: &str = "65536";
/// Most partitions of a topic that is made.
const MOST_PARTITIONS: i32 = 10_000;

/// `journal: kafka`.
pub const JOURNAL: JournalKind = JournalKind {
    name: "kafka",
    about: "A Kafka topic instead of the node's own journal: several gateways and other producers meet in one log",
    schema: || schemars::schema_for!(JournalOptions).to_value(),
    check: |value| journal_options(value).map(|_| ()),
    log_options: &["topic"],
    build,
};

fn journal_options(value: &Value) -> Built<JournalOptions> {
    let options: JournalOptions = parse(value)?;
    let mut errors = options::check(&options.brokers, &options.topic, options.security.as_ref(), &options.properties);
    if !(1..=MOST_PARTITIONS).contains(&options.partitions) {
        errors.push(ConfigError::new("/partitions", format!("must be between 1 and {MOST_PARTITIONS}")));
    }
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

fn build(value: &Value, sources: &[Arc<str>], context: &ConnectContext) -> Built<BuiltJournal> {
    let options = journal_options(value)?;
    let client = options::client_config(&options.brokers, options.security.as_ref(), &options.properties, context);
    let mut producer = client.clone();
    producer
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("compression.type", options.compression.name())
        .set("linger.ms", "2")
        // The producer tries for as long as it takes: what it gave up and we sent again might be in the log twice.
        .set("message.timeout.ms", "0")
        .set("queue.buffering.max.kbytes", QUEUE_KIB)
        .set("allow.auto.create.topics", "false")
        .set("topic.metadata.propagation.max.ms", "5000");
    let writer = TopicWriter { config: producer, topic: options.topic.clone(), producer: Mutex::default() };
    let consumer = super::consumer_config(client.clone(), options.group, options.instance.as_deref(), &options.properties, context);
    let settings = LogSettings {
        topic: options.topic,
        source: sources.first().cloned().unwrap_or_default(),
        // Whatever was acknowledged is read.
        start: Start::Earliest,
        key: RecordKey::DeviceId,
        origins: Origins::default(),
        instance: options.instance,
        receivers: Some(sources.into()),
    };
    let make = Make::new(client, options.partitions);
    let log = KafkaLog::new(consumer, settings, context.shared.of()).making(make);
    Ok(BuiltJournal { writer: Arc::new(writer), log: Box::new(log) })
}

/// The end of the topic that receivers write to.
struct TopicWriter {
    config: ClientConfig,
    topic: String,
    producer: Mutex<Option<Arc<Producer>>>,
}

impl TopicWriter {
    fn context(&self) -> String {
        format!("write to Kafka topic {}", self.topic)
    }

    async fn producer(&self) -> Result<Arc<Producer>, AppendError> {
        let mut producer = self.producer.lock().await;
        if let Some(producer) = &*producer {
            return Ok(Arc::clone(producer));
        }
        let made = self.config.create_with_context(Callbacks::default());
        let made = Arc::new(made.map_err(|e| AppendError::Fatal { context: self.context(), cause: creation_cause(&e) })?);
        Ok(Arc::clone(producer.insert(made)))
    }

    /// Sends records and waits until all of them are with all replicas. One that the producer itself finds too large is shortened.
    async fn send(&self, producer: &Producer, source: &str, records: &[Written]) -> Result<(), Code> {
        let deliveries = Arc::new(Deliveries::default());
        for record in records {
            if hand_over(producer, &self.topic, source, record, &deliveries).await == Handed::TooLarge {
                let short = record.shortened();
                tracing::error!(topic = %self.topic, source, bytes = record.payload.len(), "too large for a record; its first bytes become a dead letter");
                if hand_over(producer, &self.topic, source, &short, &deliveries).await == Handed::TooLarge {
                    return Err(Code::MessageSizeTooLarge);
                }
            }
        }
        deliveries.settled().await
    }

    /// Sends records one by one: the brokers have found a whole batch too large, and only so it is known which record is.
    async fn send_singly(&self, producer: &Producer, source: &str, records: &[Written]) -> Result<(), Code> {
        for record in records {
            match self.send(producer, source, std::slice::from_ref(record)).await {
                Err(Code::MessageSizeTooLarge) => self.send(producer, source, &[record.shortened()]).await?,
                other => other?,
            }
        }
        Ok(())
    }
}

async fn hand_over(producer: &Producer, topic: &str, source: &str, record: &Written, deliveries: &Arc<Deliveries>) -> Handed {
    let (key, payload) = (record.key.as_deref(), &record.payload);
    send(producer, Outgoing { topic, partition: None, key, payload, headers: record.headers(source) }, deliveries).await
}

#[async_trait]
impl Append for TopicWriter {
    async fn append(&self, source: &str, decoded: &Decoded, _now_us: i64) -> Result<(), AppendError> {
        let records = records(decoded).map_err(|e| AppendError::Fatal { context: self.context(), cause: e.to_string() })?;
        let producer = self.producer().await?;
        let sent = match self.send(&producer, source, &records).await {
            Err(Code::MessageSizeTooLarge) => self.send_singly(&producer, source, &records).await,
            other => other,
        };
        let Err(code) = sent else { return Ok(()) };
        if producer.client().fatal_error().is_some() {
            // Only a new producer can go on.
            self.producer.lock().await.take_if(|kept| Arc::ptr_eq(kept, &producer));
        }
        let complaint = producer.client().context().take_complaint();
        Err(match delivery_error(&self.context(), code, complaint) {
            SinkError::Fatal { context, cause } => AppendError::Fatal { context, cause },
            other => AppendError::Retry { context: self.context(), cause: other.to_string() },
        })
    }
}
