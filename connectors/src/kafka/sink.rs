//! The Kafka sink: an idempotent producer; a commit is done when every record of it is acknowledged by all replicas.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConfigError, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use fieldstream_schemas::columns::DEVICE_ID;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientConfig, ClientContext};
use serde_json::Value;
use tokio::sync::Notify;

use super::options::{self, Compression, Envelope, SinkOptions, creation_cause};
use crate::options::parse;
use crate::rows::{Form, RowWriter, check_form, text_at};
use crate::tally::counted;

/// How often room in the producer's queue is looked for when a delivery has not made some.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What the deliveries may take longer than their own timeout before the producer is given up.
const GRACE: Duration = Duration::from_secs(10);

/// The `kafka` sink.
pub const SINK: SinkKind = SinkKind {
    name: "kafka",
    about: "Publishes rows to a Kafka topic, keyed by device; at least once, with deterministic ids",
    schema: || schemars::schema_for!(SinkOptions).to_value(),
    check: |value, inputs| sink_options(value, inputs).map(|_| Guarantee::AtLeastOnce),
    place: |_| None,
    build,
};

fn form(envelope: Envelope) -> Form {
    match envelope {
        Envelope::Json => Form::Json,
        Envelope::Cloudevents => Form::EventHeaders,
        Envelope::CloudeventsJson => Form::Event,
    }
}

fn sink_options(value: &Value, inputs: &[SinkInput]) -> Built<SinkOptions> {
    let options: SinkOptions = parse(value)?;
    let mut errors = options::check(&options.brokers, &options.topic, options.security.as_ref(), &options.properties);
    if let Some(key) = &options.key {
        for input in inputs.iter().filter(|input| input.edge.schema.column_with_name(key).is_none()) {
            errors.push(ConfigError::new("/key", format!("`{}` has no column `{key}`", input.name)));
        }
    }
    if options.timeout < Duration::from_secs(1) {
        errors.push(ConfigError::new("/timeout", "must be at least 1s"));
    }
    if options.linger >= options.timeout {
        errors.push(ConfigError::new("/linger", "must be less than `timeout`"));
    }
    errors.extend(check_form(form(options.envelope), inputs));
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

fn build(value: &Value, inputs: &[SinkInput], context: &ConnectContext) -> Built<Box<dyn Sink>> {
    let options = sink_options(value, inputs)?;
    let mut config = options::client_config(&options.brokers, options.security.as_ref(), &options.properties, context);
    let compression = match options.compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    };
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("compression.type", compression)
        .set("linger.ms", options.linger.as_millis().to_string())
        .set("message.timeout.ms", options.timeout.as_millis().to_string())
        .set("allow.auto.create.topics", "false");
    Ok(Box::new(KafkaSink {
        writer: RowWriter::new(form(options.envelope), inputs, &context.pipeline),
        key: options.key.unwrap_or_else(|| DEVICE_ID.to_owned()),
        config,
        topic: options.topic,
        timeout: options.timeout,
        producer: None,
        delivered: BTreeMap::new(),
        refused: BTreeMap::new(),
    }))
}

/// Deliveries of one commit that are on their way.
#[derive(Debug, Default)]
struct Deliveries {
    outstanding: AtomicUsize,
    failed: Mutex<Option<Code>>,
    changed: Notify,
}

impl Deliveries {
    fn fail(&self, error: &KafkaError) {
        let code = error.rdkafka_error_code().unwrap_or(Code::Unknown);
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(code);
    }

    fn failure(&self) -> Option<Code> {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self) {
        self.outstanding.fetch_sub(1, Ordering::AcqRel);
        self.changed.notify_one();
    }

    async fn all(&self) {
        loop {
            let changed = self.changed.notified();
            if self.outstanding.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }
}

#[derive(Debug, Default)]
struct Callbacks {
    /// The library's last complaint, which says more than the code of a failed delivery.
    complaint: Mutex<Option<String>>,
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(target: "librdkafka", ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
    }
}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = Arc<Deliveries>;

    fn delivery(&self, result: &DeliveryResult<'_>, deliveries: Arc<Deliveries>) {
        if let Err((error, _)) = result {
            deliveries.fail(error);
        }
        deliveries.settle();
    }
}

struct KafkaSink {
    config: ClientConfig,
    topic: String,
    key: String,
    timeout: Duration,
    writer: RowWriter,
    producer: Option<Arc<ThreadedProducer<Callbacks>>>,
    delivered: BTreeMap<PartitionKey, u64>,
    /// Rows too large for any record, since this process opened the partition.
    refused: BTreeMap<PartitionKey, u64>,
}

/// What became of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Handed {
    /// The producer has it.
    Over,
    /// It is larger than the producer's `message.max.bytes` and never will be sent.
    TooLarge,
    /// The commit has failed.
    Failed,
}

impl KafkaSink {
    fn context(&self) -> String {
        format!("write to Kafka topic {}", self.topic)
    }

    fn producer(&mut self) -> Result<Arc<ThreadedProducer<Callbacks>>, SinkError> {
        if let Some(producer) = &self.producer {
            return Ok(Arc::clone(producer));
        }
        let made = self.config.create_with_context(Callbacks::default());
        let producer = Arc::new(made.map_err(|e| SinkError::Fatal { context: self.context(), cause: creation_cause(&e) })?);
        Ok(Arc::clone(self.producer.insert(producer)))
    }

    /// Hands every row to the producer; waits while its queue is full. Gives the number of rows of each batch that are too large.
    async fn send(&self, producer: &ThreadedProducer<Callbacks>, batches: &[SinkBatch], deliveries: &Arc<Deliveries>) -> Vec<u64> {
        let mut payload = Vec::new();
        let mut too_large = vec![0; batches.len()];
        for (number, batch) in batches.iter().enumerate() {
            let ids = self.writer.own_ids(&batch.partition);
            for part in &batch.rows {
                for row in 0..part.batch.len() {
                    payload.clear();
                    let headers = self.writer.write(&ids, part.input, &part.batch, row, &mut payload);
                    let key = text_at(&part.batch.rows, &self.key, row);
                    match self.send_one(producer, key.as_deref(), &payload, headers, deliveries).await {
                        Handed::Over => {}
                        Handed::TooLarge => {
                            too_large[number] += 1;
                            let (position, bytes) = (part.batch.keys.position[row], payload.len());
                            let partition = &batch.partition;
                            tracing::error!(%partition, ?position, bytes, key, "{}: a row is larger than `message.max.bytes` and is refused", self.context());
                        }
                        Handed::Failed => return too_large,
                    }
                }
            }
        }
        too_large
    }

    async fn send_one(
        &self,
        producer: &ThreadedProducer<Callbacks>,
        key: Option<&str>,
        payload: &[u8],
        headers: Vec<(&'static str, String)>,
        deliveries: &Arc<Deliveries>,
    ) -> Handed {
        let add = |all: OwnedHeaders, (key, value): (&'static str, String)| all.insert(Header { key, value: Some(value.as_str()) });
        let headers = headers.into_iter().fold(OwnedHeaders::new(), add);
        let mut record = BaseRecord::with_opaque_to(&self.topic, Arc::clone(deliveries)).payload(payload).headers(headers);
        record.key = key;
        loop {
            let changed = deliveries.changed.notified();
            deliveries.outstanding.fetch_add(1, Ordering::AcqRel);
            let Err((error, refused)) = producer.send(record) else { return Handed::Over };
            deliveries.settle();
            match error.rdkafka_error_code() {
                Some(Code::QueueFull) if deliveries.failure().is_none() => {}
                // Said by the producer itself, of this record alone. What a broker finds too large is told of a whole batch.
                Some(Code::MessageSizeTooLarge) => return Handed::TooLarge,
                code => {
                    if code != Some(Code::QueueFull) {
                        deliveries.fail(&error);
                    }
                    return Handed::Failed;
                }
            }
            record = refused;
            // Its own settling may be what it is woken by; then it looks once more, which does no harm.
            if tokio::time::timeout(LOOK_AGAIN, changed).await.is_err() {
                tracing::trace!(topic = %self.topic, "the producer's queue is full");
            }
        }
    }

    fn failure(&mut self, code: Code, complaint: Option<String>) -> SinkError {
        let context = self.context();
        let cause = match code {
            Code::UnknownTopicOrPartition | Code::UnknownTopic => "there is no such topic; create it".to_owned(),
            other => complaint.map_or_else(|| other.to_string(), |c| format!("{other}: {c}")),
        };
        match code {
            Code::TopicAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::MessageSizeTooLarge
            | Code::InvalidRecord
            | Code::InvalidTopic => SinkError::Fatal { context, cause },
            _ => SinkError::Retry { context, cause },
        }
    }
}

#[async_trait]
impl Sink for KafkaSink {
    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    async fn open(&mut self, partition: &PartitionKey, _generation: Generation) -> Result<Option<Committed>, SinkError> {
        self.delivered.insert(partition.clone(), 0);
        self.refused.insert(partition.clone(), 0);
        Ok(None)
    }

    async fn commit(&mut self, batches: &[SinkBatch]) -> Result<Vec<Committed>, SinkError> {
        let producer = self.producer()?;
        let deliveries = Arc::new(Deliveries::default());
        let too_large = self.send(&producer, batches, &deliveries).await;
        let in_time = tokio::time::timeout(self.timeout + GRACE, deliveries.all()).await.is_ok();
        let failure = if in_time { deliveries.failure() } else { Some(Code::OperationTimedOut) };
        let Some(code) = failure else {
            let commit = |(batch, too_large): (&SinkBatch, u64)| {
                let committed = counted(&mut self.delivered, batch);
                let refused = self.refused.entry(batch.partition.clone()).or_default();
                *refused += too_large;
                Committed { delivered: committed.delivered.saturating_sub(*refused), refused: *refused, ..committed }
            };
            return Ok(batches.iter().zip(too_large).map(commit).collect());
        };
        let complaint = producer.client().context().complaint.lock().unwrap_or_else(PoisonError::into_inner).take();
        // After a fatal error (a gap in the idempotent producer's sequence) only a new producer can go on.
        if !in_time || producer.client().fatal_error().is_some() {
            self.producer = None;
        }
        Err(self.failure(code, complaint))
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        // Every commit has waited for its records; nothing can be left over.
        if let Some(producer) = self.producer.take() {
            let closed = tokio::task::spawn_blocking(move || drop(producer)).await;
            closed.map_err(|error| SinkError::Retry { context: self.context(), cause: error.to_string() })?;
        }
        Ok(())
    }
}
