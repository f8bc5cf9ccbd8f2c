//! The sink that says where records come from, against librdkafka's mock cluster.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldstream_engine_api::{
    ConnectContext, Edge, Generation, Guarantee, KeyedBatch, Keys, Mark, Position, Shared, Sink, SinkBatch, SinkError, SinkInput, SinkRows,
    Space,
};
use fieldstream_schemas::decode::{DecodeConfig, Decoder};
use fieldstream_schemas::origin::{HEADER, parse};
use fieldstream_schemas::{PayloadBlock, PayloadEntry, readings_schema};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};

use super::SINK;
use super::sink_tests::{PARTITIONS, consume, header, inputs, partition, sink};

const PATIENCE: Duration = Duration::from_secs(60);
const DEVICES: u64 = 16;

/// Readings at the offsets `numbers`, of the devices in turn.
fn readings(numbers: std::ops::Range<u64>) -> SinkBatch {
    let mut block = PayloadBlock::default();
    let mut data = Vec::new();
    for offset in numbers.clone() {
        let text =
            json!({ "deviceId": format!("d{}", offset % DEVICES), "sensorId": "t", "timestamp": 1_000_000 + offset, "value": offset });
        let text = text.to_string();
        block.entries.push(PayloadEntry { offset, start: data.len() as u32, len: text.len() as u32, ingest_us: None });
        data.extend_from_slice(text.as_bytes());
    }
    block.data = data.into();
    let decoded = Decoder::new(&DecodeConfig::default()).expect("the default").decode(&block);
    assert!(decoded.rejects.is_empty(), "{:?}", decoded.rejects);
    let mut keys = Keys::default();
    decoded.positions.iter().for_each(|position| keys.push(0, 0, *position));
    let rows = vec![SinkRows { input: 0, batch: KeyedBatch::new(decoded.rows, keys) }];
    SinkBatch { partition: partition(), rows, complete_to: Mark { next_offset: numbers.end, next_decision: 0 } }
}

fn reading_inputs() -> Vec<SinkInput> {
    vec![SinkInput { name: Arc::from("field"), edge: Edge { schema: readings_schema(), key: Space::Series } }]
}

async fn forwarder(options: Value) -> Box<dyn Sink> {
    let context = ConnectContext {
        pipeline: Arc::from("edge"),
        node: Arc::from("cloud"),
        data_dir: PathBuf::new(),
        resume: false,
        shared: Shared::default(),
    };
    let mut options = options;
    options["delivery"] = json!("exactly_once_at_reader");
    assert_eq!((SINK.check)(&options, &reading_inputs()), Ok(Guarantee::AtLeastOnce));
    let mut sink = (SINK.build)(&options, &reading_inputs(), &context).expect("options are good");
    assert_eq!(sink.open(&partition(), Generation(1)).await.expect("opened"), None, "it keeps no mark");
    sink
}

/// What a reader takes of a topic whose partitions are spread over `partitions` others by key, as a mirror may: offsets in order of arrival.
fn taken(messages: &[OwnedMessage], partitions: usize) -> Vec<u64> {
    let mut highest = BTreeMap::new();
    let mut all = Vec::new();
    for message in messages {
        let value = Bytes::from(header(message, HEADER).expect("each record has a header"));
        let (place, stream) = parse(&value).expect("as it is written");
        let to = message.key().expect("a key").iter().map(|byte| usize::from(*byte)).sum::<usize>() % partitions;
        let last = highest.entry((to, stream.to_owned())).or_insert((0, 0));
        if *last == (0, 0) || place > *last {
            *last = place;
            all.push(place.0);
        }
    }
    all.sort_unstable();
    all
}

/// How many records a topic has.
fn records(brokers: &str, topic: &str) -> usize {
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a consumer");
    let end = |partition| consumer.fetch_watermarks(topic, partition, PATIENCE).expect("the brokers answer").1;
    (0..PARTITIONS).map(|partition| end(partition) as usize).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_record_names_its_stream_and_lies_where_other_producers_put_its_key() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("cloud", PARTITIONS, 1).expect("a topic");
    cluster.create_topic("alerts", PARTITIONS, 1).expect("a topic");
    let brokers = cluster.bootstrap_servers();
    let mut forwarding = forwarder(json!({ "brokers": [brokers], "topic": "cloud" })).await;
    let committed = forwarding.commit(&[readings(1..65)]).await.expect("committed");
    assert_eq!((committed[0].mark.next_offset, committed[0].delivered), (65, 64));
    let found = consume(&brokers, "cloud", 64);
    let first = found.iter().find(|m| header(m, HEADER).is_some_and(|h| h.starts_with("1.0@"))).expect("the first");
    assert_eq!(header(first, HEADER), Some(format!("1.0@log/0/p/cloud/field/{}", first.partition())));
    assert_eq!(taken(&found, 1), (1..65).collect::<Vec<_>>());

    // Another sink lets the library choose.
    let mut other = sink(&json!({ "brokers": [brokers], "topic": "alerts" })).await;
    other.commit(&[super::sink_tests::batch(0..4)]).await.expect("committed");
    let chosen = |messages: &[OwnedMessage], key: &str| messages.iter().find(|m| m.key() == Some(key.as_bytes())).map(Message::partition);
    let others = consume(&brokers, "alerts", 4);
    for key in ["d0", "d1", "d2", "d3"] {
        assert_eq!(chosen(&found, key), chosen(&others, key), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_in_the_middle_is_sent_again_without_a_gap() {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("cloud", PARTITIONS, 1).expect("a topic");
    let brokers = cluster.bootstrap_servers();
    // Small requests, so that a failure hits some of them.
    let options = json!({
        "brokers": [brokers], "topic": "cloud", "timeout": "3s", "linger": "0ms", "compression": "none",
        "properties": { "batch.num.messages": 5 }
    });
    let mut sink = forwarder(options).await;
    sink.commit(&[readings(1..101)]).await.expect("committed");
    let none = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    let faults = [
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION,
        RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD,
    ];
    let (mut next, mut failures) = (101, 0);
    let deadline = Instant::now() + PATIENCE;
    for fault in faults {
        cluster.request_errors(RDKafkaApiKey::Produce, &[none, none, fault, none, fault]);
        let batch = readings(next..next + 100);
        while let Err(error) = sink.commit(std::slice::from_ref(&batch)).await {
            failures += 1;
            assert!(matches!(error, SinkError::Retry { .. } | SinkError::Fatal { .. }) && Instant::now() < deadline, "{error}");
        }
        next += 100;
    }
    assert!(failures > 0, "a record that a broker refuses ends the attempt");
    cluster.broker_down(1).expect("down");
    let error = sink.commit(&[readings(next..next + 100)]).await.expect_err("nobody there");
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    cluster.broker_up(1).expect("up");
    while let Err(error) = sink.commit(&[readings(next..next + 100)]).await {
        assert!(matches!(error, SinkError::Retry { .. }) && Instant::now() < deadline, "{error}");
    }
    let all = consume(&brokers, "cloud", records(&brokers, "cloud"));
    for partitions in [1, 3, 7] {
        assert_eq!(taken(&all, partitions), (1..next + 100).collect::<Vec<_>>(), "spread over {partitions}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_in_no_order_are_not_sent() {
    let mut sink = forwarder(json!({ "brokers": ["127.0.0.1:1"], "topic": "cloud" })).await;
    let mut twice = readings(5..7);
    twice.rows.extend(readings(6..8).rows);
    let mut by_tick = readings(5..6);
    let mut keys = Keys::default();
    keys.push(0, 0, Position { offset: 5, row: 0, tick: 1 });
    by_tick.rows[0].batch = KeyedBatch::new(by_tick.rows[0].batch.rows.clone(), keys);
    for (batch, offset) in [(twice, 6), (by_tick, 5)] {
        let error = sink.commit(&[batch]).await.expect_err("no order").to_string();
        let expected = format!("write to Kafka topic cloud: offset {offset} row 0 of partition p/log/0 comes twice or is made by a tick; ");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn it_takes_readings_and_no_properties_that_break_the_order() {
    let options = json!({
        "brokers": ["k:1"], "topic": "t", "delivery": "exactly_once_at_reader", "properties": { "retries": 3, "max.in.flight": 5 }
    });
    let errors = (SINK.check)(&options, &inputs()).expect_err("wrong");
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "/properties/max.in.flight: `max.in.flight` is set by the connector with this delivery",
        "/properties/retries: `retries` is set by the connector with this delivery",
        "/delivery: `too_warm` carries no readings: only their positions order them (write `delivery: exactly_once`)",
    ];
    assert_eq!(text, expected);
}
