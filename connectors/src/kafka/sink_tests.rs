//! The sink against librdkafka's mock cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{
    ConnectContext, Edge, Generation, Guarantee, KeyedBatch, Keys, LogId, Mark, PartitionKey, Position, Shared, Sink, SinkBatch, SinkError,
    SinkInput, SinkRows, Space,
};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};

use super::SINK;

const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const PARTITIONS: i32 = 4;

pub(super) fn partition() -> PartitionKey {
    PartitionKey { pipeline: Arc::from("p"), log_id: LogId(Arc::from("log")), partition: 0 }
}

/// Rows `a<n>` of devices `d0..d3` in turn.
fn rows(numbers: std::ops::Range<usize>) -> KeyedBatch {
    let mut keys = Keys::default();
    numbers.clone().for_each(|n| keys.push((n % 4) as u32, 0, Position::new(n as u64, 0)));
    let devices: DictionaryArray<UInt32Type> = numbers.clone().map(|n| Some(["d0", "d1", "d2", "d3"][n % 4])).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(StringArray::from_iter_values(numbers.clone().map(|n| format!("a{n}"))))),
        ("device_id", Arc::new(devices)),
        ("value", Arc::new(Float64Array::from_iter_values(numbers.map(|n| n as f64)))),
    ];
    KeyedBatch::new(RecordBatch::try_from_iter(columns).expect("equal lengths"), keys)
}

pub(super) fn batch(numbers: std::ops::Range<usize>) -> SinkBatch {
    let complete_to = Mark { next_offset: numbers.end as u64, next_decision: 0 };
    SinkBatch { partition: partition(), rows: vec![SinkRows { input: 0, batch: rows(numbers) }], complete_to }
}

/// Three rows, the second of them large.
pub(super) fn with_a_large_row() -> SinkBatch {
    let mut large = batch(0..3);
    let ids: ArrayRef = Arc::new(StringArray::from(vec!["a0".to_owned(), "x".repeat(3000), "a2".to_owned()]));
    let rows = &mut large.rows[0].batch;
    let columns = std::iter::once(ids).chain(rows.rows.columns().iter().skip(1).cloned()).collect();
    rows.rows = RecordBatch::try_new(rows.rows.schema(), columns).expect("equal lengths");
    large
}

pub(super) fn inputs() -> Vec<SinkInput> {
    vec![SinkInput { name: Arc::from("too_warm"), edge: Edge { schema: rows(0..1).rows.schema(), key: Space::Series } }]
}

pub(super) async fn sink(options: &Value) -> Box<dyn Sink> {
    let context = ConnectContext {
        pipeline: Arc::from("p"),
        node: Arc::from("alerts"),
        data_dir: PathBuf::new(),
        resume: false,
        shared: Shared::default(),
    };
    let mut options = options.clone();
    options["delivery"] = json!("at_least_once");
    assert_eq!((SINK.check)(&options, &inputs()), Ok(Guarantee::AtLeastOnce));
    let mut sink = (SINK.build)(&options, &inputs(), &context).expect("options are good");
    assert_eq!(sink.open(&partition(), Generation(1)).await.expect("opened"), None, "it keeps no mark");
    sink
}

pub(super) fn consume(brokers: &str, topic: &str, count: usize) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", brokers).set("group.id", "reader").create().expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    let deadline = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while seen.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} records", seen.len());
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            seen.push(message.expect("no error").detach());
        }
    }
    seen
}

pub(super) fn header(message: &OwnedMessage, name: &str) -> Option<String> {
    let found = message.headers()?.iter().find(|h| h.key == name)?;
    found.value.map(|v| String::from_utf8_lossy(v).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_returns_when_all_records_are_there_keyed_by_device() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("alerts", PARTITIONS, 1).expect("a topic");
    let brokers = cluster.bootstrap_servers();
    let mut sink = sink(&json!({ "brokers": [brokers], "topic": "alerts" })).await;
    let committed = sink.commit(&[batch(0..100)]).await.expect("committed");
    assert_eq!((committed[0].mark.next_offset, committed[0].delivered), (100, 100));
    let committed = sink.commit(&[batch(100..200)]).await.expect("committed");
    assert_eq!(committed[0].delivered, 200);
    sink.close().await.expect("closed");

    let seen = consume(&brokers, "alerts", 200);
    for device in ["d0", "d1", "d2", "d3"] {
        let of_device: Vec<&OwnedMessage> = seen.iter().filter(|m| m.key() == Some(device.as_bytes())).collect();
        assert_eq!(of_device.len(), 50);
        assert!(of_device.iter().all(|m| m.partition() == of_device[0].partition()), "one device, one partition");
        let values: Vec<f64> =
            of_device.iter().filter_map(|m| serde_json::from_slice::<Value>(m.payload()?).ok()?["value"].as_f64()).collect();
        assert!(values.is_sorted() && values.len() == 50, "in order");
    }
    assert_eq!(seen.iter().filter_map(|m| header(m, "id")).collect::<std::collections::BTreeSet<_>>().len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cloudevents_carry_their_attributes_in_headers() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("alerts", PARTITIONS, 1).expect("a topic");
    let brokers = cluster.bootstrap_servers();
    let mut sink = sink(&json!({ "brokers": [brokers], "topic": "alerts", "envelope": "cloudevents", "compression": "lz4" })).await;
    sink.commit(&[batch(7..8)]).await.expect("committed");
    let seen = consume(&brokers, "alerts", 1);
    assert_eq!(header(&seen[0], "ce_id").as_deref(), Some("a7"));
    assert_eq!(header(&seen[0], "ce_specversion").as_deref(), Some("1.0"));
    assert_eq!(header(&seen[0], "ce_source").as_deref(), Some("/p/too_warm"));
    let data: Value = serde_json::from_slice(seen[0].payload().expect("a payload")).expect("JSON");
    assert_eq!(data["value"], 7.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_refuses_for_good_is_fatal_and_one_that_is_down_is_tried_again() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("alerts", PARTITIONS, 1).expect("a topic");
    let options = json!({ "brokers": [cluster.bootstrap_servers()], "topic": "alerts", "timeout": "2s" });
    let mut sink = sink(&options).await;
    sink.commit(&[batch(0..4)]).await.expect("committed");

    cluster.broker_down(1).expect("down");
    let error = sink.commit(&[batch(4..8)]).await.expect_err("nobody there");
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    cluster.broker_up(1).expect("up");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = sink.commit(&[batch(4..8)]).await {
        assert!(matches!(error, SinkError::Retry { .. }) && Instant::now() < deadline, "{error}");
    }

    let refusal = [RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED; 8];
    cluster.request_errors(RDKafkaApiKey::Produce, &refusal);
    let error = sink.commit(&[batch(8..9)]).await.expect_err("not allowed");
    assert!(matches!(error, SinkError::Fatal { .. }), "{error}");
}

#[test]
fn wrong_sink_options_are_found() {
    let wrong =
        json!({ "brokers": ["k:1"], "topic": "t", "key": "site", "timeout": "10ms", "linger": "1s", "marks": "a b", "rejects": "" });
    let errors = (SINK.check)(&wrong, &inputs()).expect_err("wrong");
    let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(paths, ["/key", "/timeout", "/marks", "/rejects", "/linger"]);
}
