//! Payloads sent to a topic once more, outside any pipeline: what `fieldstream dlq redrive` needs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};

/// Name of the header that says which dead letter a record comes from.
pub const REDRIVEN_FROM: &str = "redriven_from";
/// Bytes of payload and key that fit into a record; brokers take little more by default.
pub const LARGEST: usize = 1_000_000 - 1024;
/// How long the broker may take for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// What the flush may take longer than that.
const GRACE: Duration = Duration::from_secs(5);

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Device id; decides the partition as every producer of ours decides it.
    pub key: String,
    /// The payload.
    pub payload: Vec<u8>,
    /// Id of the dead letter it comes from.
    pub redriven_from: String,
}

/// Why records could not be sent; some of them may be in the topic.
#[derive(Debug, thiserror::Error)]
#[error("cannot write to Kafka topic {topic}: {cause}")]
pub struct ResendError {
    topic: String,
    cause: String,
}

/// The first delivery that failed.
#[derive(Debug, Default)]
struct Failed(Mutex<Option<KafkaError>>);

impl ClientContext for Failed {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(target: "librdkafka", %error, "{reason}");
    }
}

impl ProducerContext for Failed {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error.clone());
        }
    }
}

/// A producer for one topic. It connects when it first sends.
pub struct Resend {
    producer: BaseProducer<Failed>,
    topic: String,
}

impl std::fmt::Debug for Resend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resend").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl Resend {
    /// A producer for `topic` at `brokers` (`host:port`, several separated by commas), called `name` there.
    ///
    /// # Errors
    /// If the client cannot be made.
    pub fn open(brokers: &str, topic: &str, name: &str) -> Result<Self, ResendError> {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("client.id", name)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("message.timeout.ms", TIMEOUT.as_millis().to_string())
            .set("allow.auto.create.topics", "false");
        let made = config.create_with_context(Failed::default());
        let producer = made.map_err(|e| ResendError { topic: topic.to_owned(), cause: e.to_string() })?;
        Ok(Self { producer, topic: topic.to_owned() })
    }

    /// Sends `records`; all of them are with all replicas when this returns.
    ///
    /// # Errors
    /// If one of them is not; it and others may still have got there.
    pub fn send(&self, records: &[Record]) -> Result<(), ResendError> {
        for record in records {
            let headers = OwnedHeaders::new().insert(Header { key: REDRIVEN_FROM, value: Some(record.redriven_from.as_str()) });
            let sent = self.producer.send(BaseRecord::to(&self.topic).key(&record.key).payload(&record.payload).headers(headers));
            sent.map_err(|(error, _)| self.failure(&error))?;
        }
        let flushed = self.producer.flush(TIMEOUT + GRACE);
        let failed = self.producer.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failed.or(flushed.err()) {
            Some(error) => Err(self.failure(&error)),
            None => Ok(()),
        }
    }

    fn failure(&self, error: &KafkaError) -> ResendError {
        let cause = match error.rdkafka_error_code() {
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition) => "there is no such topic; create it".to_owned(),
            Some(Code::MessageTimedOut) => format!("no broker has answered for {} s", TIMEOUT.as_secs()),
            _ => error.to_string(),
        };
        ResendError { topic: self.topic.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::consumer::{BaseConsumer, Consumer as _};
    use rdkafka::message::{Headers as _, Message as _};
    use rdkafka::mocking::MockCluster;
    use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

    use super::*;

    #[test]
    fn records_are_there_when_send_returns_with_their_key_and_origin() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("readings", 1, 1).expect("a topic");
        let brokers = cluster.bootstrap_servers();
        let record = |n: u32| Record { key: format!("d{n}"), payload: format!("p{n}").into_bytes(), redriven_from: format!("x{n}") };
        Resend::open(&brokers, "readings", "test").expect("open").send(&[record(1), record(2)]).expect("sent");

        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", "reader").create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset("readings", 0, Offset::Beginning).expect("an offset");
        consumer.assign(&list).expect("assigned");
        for n in 1..3 {
            let message = std::iter::repeat_with(|| consumer.poll(TIMEOUT)).flatten().next().expect("a message").expect("no error");
            let header = message.headers().expect("headers").get(0);
            assert_eq!((message.key(), message.payload()), (Some(format!("d{n}").as_bytes()), Some(format!("p{n}").as_bytes())));
            assert_eq!((header.key, header.value), (REDRIVEN_FROM, Some(format!("x{n}").as_bytes())));
        }
    }

    #[test]
    fn a_refused_record_is_an_error() {
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("readings", 1, 1).expect("a topic");
        let resend = Resend::open(&cluster.bootstrap_servers(), "readings", "test").expect("open");
        let large = Record { key: "d".to_owned(), payload: vec![b'x'; 2_000_000], redriven_from: "x".to_owned() };
        let error = resend.send(&[large]).expect_err("too large");
        assert!(error.to_string().starts_with("cannot write to Kafka topic readings: "), "{error}");
    }
}
