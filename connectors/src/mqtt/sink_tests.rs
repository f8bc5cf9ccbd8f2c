//! The sink against the real broker `mosquitto`, where it is installed; our own source reads back.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, DictionaryArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::UInt32Type;
use fieldstream_engine_api::{
    Edge, Generation, Guarantee, KeyedBatch, Keys, LogId, Mark, PartitionKey, Position, Receiver, Sink, SinkBatch, SinkError, SinkInput,
    SinkRows, Space,
};
use serde_json::{Value, json};

use super::SINK;
use super::tests::{Broker, context, next, receiver, subscribed_to};

fn partition() -> PartitionKey {
    PartitionKey { pipeline: Arc::from("p"), log_id: LogId(Arc::from("log")), partition: 0 }
}

fn rows(numbers: std::ops::Range<usize>) -> KeyedBatch {
    let mut keys = Keys::default();
    numbers.clone().for_each(|n| keys.push((n % 2) as u32, 0, Position::new(n as u64, 0)));
    let devices: DictionaryArray<UInt32Type> = numbers.clone().map(|n| Some(["pump-1", "hall/2+"][n % 2])).collect();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(StringArray::from_iter_values(numbers.clone().map(|n| format!("a{n}"))))),
        ("device_id", Arc::new(devices)),
        ("value", Arc::new(Float64Array::from_iter_values(numbers.map(|n| n as f64)))),
    ];
    KeyedBatch::new(RecordBatch::try_from_iter(columns).expect("equal lengths"), keys)
}

fn batch(numbers: std::ops::Range<usize>) -> SinkBatch {
    let complete_to = Mark { next_offset: numbers.end as u64, next_decision: 0 };
    SinkBatch { partition: partition(), rows: vec![SinkRows { input: 0, batch: rows(numbers) }], complete_to }
}

async fn sink(options: &Value) -> Box<dyn Sink> {
    let inputs = [SinkInput { name: Arc::from("too_warm"), edge: Edge { schema: rows(0..1).rows.schema(), key: Space::Series } }];
    assert_eq!((SINK.check)(options, &inputs), Ok(Guarantee::AtLeastOnce));
    let mut sink = (SINK.build)(options, &inputs, &context()).expect("options are good");
    assert_eq!(sink.open(&partition(), Generation(1)).await.expect("opened"), None, "it keeps no mark");
    sink
}

/// Values by topic until `count` have come, and the last payload.
async fn read(source: &mut Box<dyn Receiver>, count: usize) -> (BTreeMap<String, Vec<i64>>, Value) {
    let (mut seen, mut total, mut last) = (BTreeMap::<String, Vec<i64>>::new(), 0, Value::Null);
    while total < count {
        let received = next(source).await;
        let topics = received.block.topics.clone().unwrap_or_default();
        for (index, topic) in topics.iter().enumerate() {
            last = serde_json::from_slice(received.block.payload(index)).expect("JSON");
            let row = if last["data"].is_object() { &last["data"] } else { &last };
            seen.entry(topic.to_string()).or_default().push(row["value"].as_f64().expect("a value") as i64);
            total += 1;
        }
        source.acknowledge(received.handle).await.expect("acknowledged");
    }
    (seen, last)
}

fn every_second(from: i64, to: i64) -> Vec<i64> {
    (from..to).step_by(2).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_published_under_their_device_at_every_quality_of_service() {
    let Some(broker) = Broker::start() else { return };
    let mut source = receiver(&json!({ "url": broker.url(), "client_id": "reader", "topics": ["alerts/#"], "qos": 2 }));
    subscribed_to(&broker, &mut source, "alerts/marker").await;
    for (index, (protocol, qos)) in [("3.1.1", 0), ("3.1.1", 1), ("3.1.1", 2), ("5", 0), ("5", 1), ("5", 2)].into_iter().enumerate() {
        let options = json!({ "url": broker.url(), "protocol": protocol, "client_id": format!("w{index}"), "topic": "alerts/{device_id}", "qos": qos, "inflight": 8 });
        let mut sink = sink(&options).await;
        let committed = sink.commit(&[batch(0..200)]).await.expect("committed");
        assert_eq!((committed[0].delivered, committed[0].mark.next_offset), (200, 200));
        let (seen, last) = read(&mut source, 200).await;
        let expected =
            BTreeMap::from([("alerts/hall%2F2%2B".to_owned(), every_second(1, 200)), ("alerts/pump-1".to_owned(), every_second(0, 200))]);
        assert_eq!(seen, expected, "{protocol} qos {qos}");
        assert_eq!(last["id"], "a199");
        sink.close().await.expect("closed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_is_tried_again_and_messages_are_kept_for_late_readers() {
    let Some(mut broker) = Broker::start() else { return };
    let options = json!({ "url": broker.url(), "topic": "alerts/{device_id}", "retain": true, "envelope": "cloudevents", "timeout": "5s" });
    let mut sink = sink(&options).await;
    sink.commit(&[batch(0..2)]).await.expect("committed");
    broker.stop();
    let error = sink.commit(&[batch(2..4)]).await.expect_err("nobody there");
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    broker.start_again();
    sink.commit(&[batch(2..4)]).await.expect("the same batch again");
    let mut source = receiver(&json!({ "url": broker.url(), "client_id": "late", "topics": ["alerts/#"], "qos": 1 }));
    let (seen, last) = read(&mut source, 2).await;
    assert_eq!(
        seen,
        BTreeMap::from([("alerts/hall%2F2%2B".to_owned(), vec![3]), ("alerts/pump-1".to_owned(), vec![2])]),
        "the newest of each"
    );
    assert_eq!((last["specversion"].as_str(), last["source"].as_str()), (Some("1.0"), Some("/p/too_warm")));
}
