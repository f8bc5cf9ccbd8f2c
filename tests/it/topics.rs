//! Topics of a test's own on a real Kafka: made, written as device gateways write, read from their beginning to their end.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::node::PATIENCE;

/// One record: key and value.
pub(crate) type Record = (String, Vec<u8>);

/// Makes a topic whose times are those of the broker.
pub(crate) fn create(brokers: &str, name: &str, partitions: i32) {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client");
    let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let made = runtime.block_on(admin.create_topics([&topic], &AdminOptions::new())).expect("Kafka answers");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
}

/// Produces records keyed by device, as the Java clients partition them, and waits until all are acknowledged.
pub(crate) fn produce(brokers: &str, topic: &str, records: &[Record]) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("partitioner", "murmur2_random").set("enable.idempotence", "true").set("linger.ms", "5");
    let producer: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    for (key, value) in records {
        let deadline = Instant::now() + PATIENCE;
        let mut record = BaseRecord::to(topic).key(key).payload(value);
        while let Err((error, back)) = producer.send(record) {
            assert!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)) && Instant::now() < deadline, "{error}");
            producer.flush(Duration::from_millis(100)).ok();
            record = back;
        }
    }
    producer.flush(PATIENCE).expect("all records are acknowledged");
}

/// Everything in a topic that is committed: keys and values, by partition. A topic that does not exist is empty.
pub(crate) fn read(brokers: &str, topic: &str) -> Vec<Record> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "it-reader").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true").set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("Kafka answers");
    let partitions: Vec<i32> = metadata.topics().iter().flat_map(|t| t.partitions()).map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    for partition in &partitions {
        list.add_partition_offset(topic, *partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("partitions");
    let deadline = Instant::now() + PATIENCE;
    let mut records = Vec::new();
    let mut ended = BTreeSet::new();
    while ended.len() < partitions.len() {
        assert!(Instant::now() < deadline, "{} of {} partitions of {topic} were read", ended.len(), partitions.len());
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let key = String::from_utf8_lossy(message.key().unwrap_or_default()).into_owned();
                records.push((key, message.payload().unwrap_or_default().to_vec()));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            _ => {}
        }
    }
    records
}
