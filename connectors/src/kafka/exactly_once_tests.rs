//! Transactions and marks against a real Apache Kafka; the mock cluster knows no isolation.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldstream_engine_api::{
    Committed, ConnectContext, Generation, Guarantee, LogId, Mark, PartitionKey, Shared, Sink, SinkBatch, SinkError,
};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::SINK;
use super::live_tests::{ONE_AT_A_TIME, brokers, topic};
use super::sink_tests::{batch, inputs, with_a_large_row};

const PATIENCE: Duration = Duration::from_secs(60);

fn sink(options: &Value) -> Box<dyn Sink> {
    let (pipeline, node) = (Arc::from("p"), Arc::from("alerts"));
    let context = ConnectContext { pipeline, node, data_dir: PathBuf::new(), resume: false, shared: Shared::default() };
    assert_eq!((SINK.check)(options, &inputs()), Ok(Guarantee::ExactlyOnce));
    (SINK.build)(options, &inputs(), &context).expect("options are good")
}

/// A log of this test's own: producers are named after it.
fn partition(topic: &str) -> PartitionKey {
    PartitionKey { pipeline: Arc::from("p"), log_id: LogId(topic.into()), partition: 0 }
}

fn of(partition: &PartitionKey, batch: SinkBatch) -> SinkBatch {
    SinkBatch { partition: partition.clone(), ..batch }
}

fn options(brokers: &str, topic: &str) -> Value {
    json!({ "brokers": [brokers], "topic": topic, "marks": format!("{topic}.marks"), "properties": { "message.max.bytes": "2000" } })
}

/// As the sink's task does it: errors that may pass are tried again.
async fn open(sink: &mut Box<dyn Sink>, partition: &PartitionKey, generation: u64) -> Option<Committed> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sink.open(partition, Generation(generation)).await {
            Ok(opened) => return opened,
            Err(error) => assert!(matches!(error, SinkError::Retry { .. }) && Instant::now() < deadline, "{error}"),
        }
    }
}

async fn commit(sink: &mut Box<dyn Sink>, batch: &SinkBatch) -> Result<Committed, SinkError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match sink.commit(std::slice::from_ref(batch)).await {
            Ok(committed) => return Ok(committed.into_iter().next().expect("one partition")),
            Err(error @ SinkError::Retry { .. }) => assert!(Instant::now() < deadline, "{error}"),
            Err(error) => return Err(error),
        }
    }
}

/// Values of everything committed.
fn committed(brokers: &str, topic: &str) -> Vec<Value> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "reader").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.set("isolation.level", "read_committed").create().expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("Kafka answers");
    let partitions: Vec<i32> = metadata.topics()[0].partitions().iter().map(|p| p.id()).collect();
    let mut list = TopicPartitionList::new();
    partitions.iter().for_each(|p| list.add_partition_offset(topic, *p, Offset::Beginning).expect("an offset"));
    consumer.assign(&list).expect("assigned");
    let (mut ended, mut found) = (BTreeSet::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    while ended.len() < partitions.len() {
        assert!(Instant::now() < deadline, "{topic} is read");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => found.push(serde_json::from_slice(message.payload().expect("a value")).expect("JSON")),
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            _ => {}
        }
    }
    found
}

fn ids(brokers: &str, topic: &str) -> Vec<String> {
    let mut ids: Vec<String> = committed(brokers, topic).iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect();
    ids.sort();
    ids
}

fn expected(numbers: std::ops::Range<usize>) -> Vec<String> {
    let mut ids: Vec<String> = numbers.map(|n| format!("a{n}")).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn marks_and_counts_go_on_and_an_older_owner_is_fenced() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = topic(&brokers, "exact").await;
    let (options, partition) = (options(&brokers, &topic), partition(&topic));
    let mut old = sink(&options);
    assert_eq!(open(&mut old, &partition, 1).await, None, "no mark yet");
    commit(&mut old, &of(&partition, batch(0..100))).await.expect("committed");
    let done = commit(&mut old, &of(&partition, batch(100..200))).await.expect("committed");
    assert_eq!((done.mark.next_offset, done.delivered, done.refused), (200, 200, 0));

    let mut new = sink(&options);
    let found = open(&mut new, &partition, 2).await.expect("a mark");
    assert_eq!((found.mark, found.delivered), (Mark { next_offset: 200, next_decision: 0 }, 200));
    let error = commit(&mut old, &of(&partition, batch(200..300))).await.expect_err("fenced");
    assert!(matches!(error, SinkError::Fenced { owner: Generation(2), .. }), "{error}");
    let done = commit(&mut new, &of(&partition, batch(200..300))).await.expect("committed");
    assert_eq!(done.delivered, 300);
    new.close().await.expect("closed");
    assert_eq!(ids(&brokers, &topic), expected(0..300));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_too_large_lies_with_the_refused_and_in_the_mark() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = topic(&brokers, "refused").await;
    let (options, partition) = (options(&brokers, &topic), partition(&topic));
    let mut first = sink(&options);
    open(&mut first, &partition, 1).await;
    let done = commit(&mut first, &of(&partition, with_a_large_row())).await.expect("committed");
    assert_eq!((done.delivered, done.refused), (2, 1));
    drop(first);
    let mut second = sink(&options);
    let found = open(&mut second, &partition, 2).await.expect("a mark");
    assert_eq!((found.delivered, found.refused), (2, 1), "counts outlive the process");
    assert_eq!(ids(&brokers, &topic), ["a0", "a2"]);
    let refused = committed(&brokers, &format!("{topic}.rejects"));
    let row = &refused[0];
    assert_eq!((refused.len(), &row["code"], &row["offset"], &row["key"]), (1, &json!("too_large"), &json!(1), &json!("d1")), "{row}");
    assert!(row["bytes"].as_u64() > Some(3000) && row["head"].as_str().is_some_and(|head| head.contains("xxx")), "{row}");

    let mut plain = super::sink_tests::sink(&options).await;
    let done = commit(&mut plain, &with_a_large_row()).await.expect("committed");
    assert_eq!((done.delivered, done.refused), (2, 1));
    let done = commit(&mut plain, &batch(3..5)).await.expect("committed");
    assert_eq!((done.delivered, done.refused), (4, 1), "the count stays");
    assert_eq!(committed(&brokers, &format!("{topic}.rejects")).len(), 2, "without transactions they are kept too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_owner_left_open_is_ended_by_its_successor() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = topic(&brokers, "open").await;
    let (options, partition) = (options(&brokers, &topic), partition(&topic));
    // As a worker that no successor has the name of: it has committed a mark, and was killed in its next transaction.
    let mut setup = sink(&options);
    open(&mut setup, &partition, 1).await;
    setup.close().await.expect("closed");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &brokers).set("transactional.id", format!("killed.{topic}")).set("transaction.timeout.ms", "300000");
    let killed: ThreadedProducer<DefaultProducerContext> = config.create().expect("a producer");
    killed.init_transactions(PATIENCE).expect("a transactional producer");
    let marks = format!("{topic}.marks");
    let key = json!({ "pipeline": "p", "sink": "alerts", "log": topic, "partition": 0 }).to_string();
    for offset in [7, 9] {
        let value = json!({ "next_offset": offset, "next_decision": 0, "delivered": 5, "refused": 0, "generation": 2, "producer": format!("killed.{topic}") });
        killed.begin_transaction().expect("begun");
        killed.send(BaseRecord::to(&marks).partition(0).key(&key).payload(&value.to_string())).map_err(|(error, _)| error).expect("sent");
        killed.flush(PATIENCE).expect("there");
        if offset == 7 {
            killed.commit_transaction(PATIENCE).expect("committed");
        }
    }
    let before = Instant::now();
    let mut successor = sink(&options);
    let found = open(&mut successor, &partition, 3).await.expect("a mark");
    assert_eq!((found.mark.next_offset, found.delivered), (7, 5), "what was open is not there");
    assert!(before.elapsed() < Duration::from_secs(60), "the transaction's own timeout is five minutes: {:?}", before.elapsed());
    assert!(killed.commit_transaction(PATIENCE).is_err(), "the killed one is too late");
}
