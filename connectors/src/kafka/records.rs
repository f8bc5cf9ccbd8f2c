//! Rows as records: how they are handed to a producer, how it is known that all of them have arrived, and what becomes of one
//! that is too large.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldstream_engine_api::{KeyedBatch, PartitionKey, Position, SinkBatch};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use serde::Serialize;
use tokio::sync::Notify;

use super::origin::Stamp;
use crate::rows::{RowWriter, text_at};

/// How often room in the producer's queue is looked for when a delivery has not made some.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Bytes of a refused record that are kept.
const HEAD: usize = 1024;

/// A producer whose events a thread of its own serves.
pub(crate) type Producer = ThreadedProducer<Callbacks>;

/// Deliveries of one commit that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
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

    /// Waits until every record has arrived or failed, and gives the first failure.
    pub(crate) async fn outcome(&self, patience: Duration) -> Result<(), Code> {
        tokio::time::timeout(patience, self.settled()).await.unwrap_or(Err(Code::OperationTimedOut))
    }

    /// Like [`Self::outcome`], for as long as it takes.
    pub(crate) async fn settled(&self) -> Result<(), Code> {
        self.all().await;
        self.failure().map_or(Ok(()), Err)
    }
}

/// Callbacks of a producer.
#[derive(Debug, Default)]
pub(crate) struct Callbacks {
    /// The library's last complaint, which says more than the code of a failed delivery.
    complaint: Mutex<Option<String>>,
}

impl Callbacks {
    /// The last complaint since the call before.
    pub(crate) fn take_complaint(&self) -> Option<String> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
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

/// A record to be sent.
pub(crate) struct Outgoing<'a> {
    pub(crate) topic: &'a str,
    /// `None`: where the key says.
    pub(crate) partition: Option<i32>,
    pub(crate) key: Option<&'a str>,
    pub(crate) payload: &'a [u8],
    pub(crate) headers: Vec<(&'static str, String)>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handed {
    /// The producer has it.
    Over,
    /// It is larger than the producer's `message.max.bytes` and never will be sent.
    TooLarge,
    /// The commit has failed; the deliveries know why.
    Failed,
}

/// Hands one record to the producer; waits while its queue is full.
pub(crate) async fn send(producer: &Producer, outgoing: Outgoing<'_>, deliveries: &Arc<Deliveries>) -> Handed {
    let add = |all: OwnedHeaders, (key, value): (&'static str, String)| all.insert(Header { key, value: Some(value.as_str()) });
    let headers = outgoing.headers.into_iter().fold(OwnedHeaders::new(), add);
    let mut record = BaseRecord::with_opaque_to(outgoing.topic, Arc::clone(deliveries)).payload(outgoing.payload).headers(headers);
    (record.key, record.partition) = (outgoing.key, outgoing.partition);
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
            tracing::trace!(topic = %outgoing.topic, "the producer's queue is full");
        }
    }
}

/// A row that is too large for a record, as it lies in the topic of refused rows.
#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    /// Why: `too_large`.
    code: &'static str,
    pipeline: String,
    /// Topic it should have gone to.
    topic: String,
    /// Log, partition and position of what made it: enough to find it again.
    log: String,
    partition: u32,
    offset: u64,
    row: u32,
    tick: u32,
    /// The sink's input it came by.
    input: usize,
    key: Option<String>,
    /// Size of the record's value.
    bytes: usize,
    /// The first bytes of the value, where they are text.
    head: String,
}

impl Refused {
    /// The device it belongs to, in most cases.
    pub(crate) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The record's value.
    pub(crate) fn payload(&self) -> Vec<u8> {
        // Texts and numbers only.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Makes records of rows.
pub(crate) struct Records {
    pub(crate) topic: String,
    /// Column of the key.
    pub(crate) key: String,
    pub(crate) writer: RowWriter,
}

impl Records {
    /// Hands every row of a batch to the producer, with where it comes from if there is a stamp for that. Gives those that are too large.
    pub(crate) async fn send(
        &self,
        producer: &Producer,
        batch: &SinkBatch,
        stamp: Option<&Stamp>,
        deliveries: &Arc<Deliveries>,
    ) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut payload = Vec::new();
        let ids = self.writer.own_ids(&batch.partition);
        for part in &batch.rows {
            for row in 0..part.batch.len() {
                payload.clear();
                let mut headers = self.writer.write(&ids, part.input, &part.batch, row, &mut payload);
                let key = text_at(&part.batch.rows, &self.key, row);
                let mut partition = None;
                if let (Some(stamp), Some(position)) = (stamp, part.batch.keys.position.get(row)) {
                    let (to, header) = stamp.of(&batch.partition, part.input, *position, key.as_deref());
                    headers.push(header);
                    partition = Some(to);
                }
                let outgoing = Outgoing { topic: &self.topic, partition, key: key.as_deref(), payload: &payload, headers };
                match send(producer, outgoing, deliveries).await {
                    Handed::Over => {}
                    Handed::TooLarge => refused.push(self.refused(&batch.partition, part.input, &part.batch, row, &payload)),
                    Handed::Failed => return refused,
                }
            }
        }
        refused
    }

    fn refused(&self, partition: &PartitionKey, input: usize, batch: &KeyedBatch, row: usize, payload: &[u8]) -> Refused {
        let position = batch.keys.position.get(row).copied().unwrap_or(Position::default());
        let key = text_at(&batch.rows, &self.key, row).map(|key| key.chars().take(HEAD).collect());
        let bytes = payload.len();
        tracing::error!(%partition, ?position, bytes, key, topic = %self.topic, "a row is larger than `message.max.bytes` and is refused");
        Refused {
            code: "too_large",
            pipeline: partition.pipeline.to_string(),
            topic: self.topic.clone(),
            log: partition.log_id.to_string(),
            partition: partition.partition,
            offset: position.offset,
            row: position.row,
            tick: position.tick,
            input,
            key,
            bytes,
            head: String::from_utf8_lossy(&payload[..bytes.min(HEAD)]).into_owned(),
        }
    }
}
