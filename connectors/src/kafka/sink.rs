//! The Kafka sink: its options, and the plain one: an idempotent producer whose commit is done when every record of it is
//! acknowledged by all replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fieldstream_engine_api::{
    Built, Committed, ConfigError, ConnectContext, Generation, Guarantee, PartitionKey, Sink, SinkBatch, SinkError, SinkInput, SinkKind,
};
use fieldstream_schemas::columns::DEVICE_ID;
use rdkafka::ClientConfig;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::Producer as _;
use serde_json::Value;

use super::exactly_once::{ExactlyOnce, Settings};
use super::options::{self, Delivery, Envelope, SinkOptions, creation_cause};
use super::origin::{self, Names, Stamp};
use super::records::{Callbacks, Deliveries, Outgoing, Producer, Records, Refused, send};
use super::topics::{self, TopicError};
use super::transactions::{blocking, delivery_error};
use crate::options::parse;
use crate::rows::{Form, RowWriter, check_form};
use crate::tally::counted;

/// What the deliveries may take longer than their own timeout before the producer is given up.
const GRACE: Duration = Duration::from_secs(10);

/// The `kafka` sink.
pub const SINK: SinkKind = SinkKind {
    name: "kafka",
    about: "Publishes rows to a Kafka topic, keyed by device; exactly once by transactions, or at least once with deterministic ids",
    schema: || schemars::schema_for!(SinkOptions).to_value(),
    check: |value, inputs| sink_options(value, inputs).map(|options| guarantee(options.delivery)),
    place: |_| None,
    build,
};

fn guarantee(delivery: Delivery) -> Guarantee {
    match delivery {
        Delivery::ExactlyOnce => Guarantee::ExactlyOnce,
        Delivery::AtLeastOnce | Delivery::ExactlyOnceAtReader => Guarantee::AtLeastOnce,
    }
}

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
    let timeout = options.timeout();
    if timeout < Duration::from_secs(1) {
        errors.push(ConfigError::new("/timeout", "must be at least 1s"));
    }
    for (path, topic) in [("/marks", Some(&options.marks)), ("/rejects", options.rejects.as_ref())] {
        errors.extend(topic.and_then(|topic| options::check_topic(path, topic)));
    }
    if options.linger >= timeout {
        errors.push(ConfigError::new("/linger", "must be less than `timeout`"));
    }
    if options.delivery == Delivery::ExactlyOnceAtReader {
        errors.extend(origin::check(&options, inputs));
    }
    errors.extend(check_form(form(options.envelope), inputs));
    if errors.is_empty() { Ok(options) } else { Err(errors) }
}

fn build(value: &Value, inputs: &[SinkInput], context: &ConnectContext) -> Built<Box<dyn Sink>> {
    let options = sink_options(value, inputs)?;
    let mut config = options::client_config(&options.brokers, options.security.as_ref(), &options.properties, context);
    let client = config.clone();
    let timeout = options.timeout();
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        .set("compression.type", options.compression.name())
        .set("linger.ms", options.linger.as_millis().to_string())
        .set("message.timeout.ms", timeout.as_millis().to_string())
        .set("allow.auto.create.topics", "false")
        // A topic that is not there after so long is missing; the library would wait for half a minute.
        .set("topic.metadata.propagation.max.ms", "5000");
    let rejects = options.rejects.unwrap_or_else(|| format!("{}.rejects", options.topic));
    let records = Records {
        topic: options.topic,
        key: options.key.unwrap_or_else(|| DEVICE_ID.to_owned()),
        writer: RowWriter::new(form(options.envelope), inputs, &context.pipeline),
    };
    let names = match options.delivery {
        Delivery::ExactlyOnce => None,
        Delivery::AtLeastOnce => Some(None),
        Delivery::ExactlyOnceAtReader => {
            origin::leave_no_gap(&mut config);
            let inputs = inputs.iter().map(|input| Arc::clone(&input.name)).collect();
            Some(Some(Names { sink: Arc::clone(&context.node), inputs }))
        }
    };
    if let Some(names) = names {
        let (producer, delivered, refused) = (None, BTreeMap::new(), BTreeMap::new());
        return Ok(Box::new(KafkaSink { client, config, records, rejects, names, timeout, producer, delivered, refused }));
    }
    config.set("transaction.timeout.ms", timeout.as_millis().to_string());
    let settings = Settings {
        client,
        producer: config,
        pipeline: context.pipeline.to_string(),
        sink: context.node.to_string(),
        marks: options.marks,
        rejects,
        timeout,
    };
    Ok(Box::new(ExactlyOnce::new(settings, records, context.shared.of())))
}

struct KafkaSink {
    /// Connection only.
    client: ClientConfig,
    config: ClientConfig,
    records: Records,
    /// Topic of refused rows.
    rejects: String,
    /// There where records say where they come from.
    names: Option<Names>,
    timeout: Duration,
    producer: Option<(Arc<Producer>, Option<Stamp>)>,
    delivered: BTreeMap<PartitionKey, u64>,
    /// Rows too large for any record, since this process opened the partition.
    refused: BTreeMap<PartitionKey, u64>,
}

impl KafkaSink {
    fn context(&self) -> String {
        format!("write to Kafka topic {}", self.records.topic)
    }

    async fn producer(&mut self) -> Result<(Arc<Producer>, Option<Stamp>), SinkError> {
        if let Some(producer) = &self.producer {
            return Ok(producer.clone());
        }
        let context = self.context();
        let made = self.config.create_with_context(Callbacks::default());
        let producer: Arc<Producer> = Arc::new(made.map_err(|e| SinkError::Fatal { context: context.clone(), cause: creation_cause(&e) })?);
        let stamp = match &self.names {
            Some(names) => Some(Stamp::new(names.clone(), &producer, &self.records.topic, &context).await?),
            None => None,
        };
        Ok(self.producer.insert((producer, stamp)).clone())
    }

    /// Ends the producer. What it has not sent yet it never will: only then may another send it again.
    async fn discard(&mut self, producer: Arc<Producer>) -> Result<(), SinkError> {
        self.producer = None;
        blocking(&self.context(), move || drop(producer)).await
    }

    /// Keeps what was refused where a person finds it.
    async fn set_aside(&self, producer: &Producer, refused: &[Refused], deliveries: &Arc<Deliveries>) -> Result<(), SinkError> {
        if refused.is_empty() {
            return Ok(());
        }
        let topic = self.rejects.as_str();
        topics::ensure(&self.client, topic, &[]).await.map_err(|error| {
            let context = format!("use Kafka topic {topic}");
            match error {
                TopicError::Retry(cause) => SinkError::Retry { context, cause },
                TopicError::Fatal(cause) => SinkError::Fatal { context, cause },
            }
        })?;
        for row in refused {
            let payload = row.payload();
            let outgoing = Outgoing { topic, partition: None, key: row.key(), payload: &payload, headers: Vec::new() };
            // A failure is known to the deliveries.
            let _ = send(producer, outgoing, deliveries).await;
        }
        Ok(())
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
        if self.names.is_some() {
            let ordered: Result<(), String> = batches.iter().try_for_each(origin::check_order);
            ordered.map_err(|cause| SinkError::Fatal { context: self.context(), cause })?;
        }
        let (producer, stamp) = self.producer().await?;
        let deliveries = Arc::new(Deliveries::default());
        let mut too_large = Vec::with_capacity(batches.len());
        for batch in batches {
            let refused = self.records.send(&producer, batch, stamp.as_ref(), &deliveries).await;
            self.set_aside(&producer, &refused, &deliveries).await?;
            too_large.push(refused.len() as u64);
        }
        // With streams the library never gives a record up.
        let patience = if stamp.is_some() { self.timeout } else { self.timeout + GRACE };
        let Err(code) = deliveries.outcome(patience).await else {
            let commit = |(batch, too_large): (&SinkBatch, u64)| {
                let committed = counted(&mut self.delivered, batch);
                let refused = self.refused.entry(batch.partition.clone()).or_default();
                *refused += too_large;
                Committed { delivered: committed.delivered.saturating_sub(*refused), refused: *refused, ..committed }
            };
            return Ok(batches.iter().zip(too_large).map(commit).collect());
        };
        let complaint = producer.client().context().take_complaint();
        // After a fatal error (a gap in the idempotent producer's sequence) only a new producer can go on; in a stream, after any.
        if stamp.is_some() || code == Code::OperationTimedOut || producer.client().fatal_error().is_some() {
            self.discard(producer).await?;
        }
        Err(delivery_error(&self.context(), code, complaint))
    }

    async fn close(&mut self) -> Result<(), SinkError> {
        // Every commit has waited for its records; nothing can be left over.
        match self.producer.take() {
            Some((producer, _)) => self.discard(producer).await,
            None => Ok(()),
        }
    }
}
