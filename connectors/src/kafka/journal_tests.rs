//! `journal: kafka` against a real Apache Kafka (`FIELDSTREAM_TEST_KAFKA`) and, for refusals, librdkafka's mock cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{AppendError, BuiltJournal, ConnectContext, LogError, LogEvent, Payloads, Shared};
use fieldstream_schemas::decode::{DecodeConfig, Decoder, Format};
use fieldstream_schemas::{Decoded, PayloadBlock, PayloadEntry, Readings};
use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::mocking::MockCluster;
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};

use super::JOURNAL;
use super::live_tests::{ONE_AT_A_TIME, admin, brokers};

const PATIENCE: Duration = Duration::from_secs(60);

fn journal(options: &Value) -> BuiltJournal {
    (JOURNAL.check)(options).expect("options are good");
    let context = ConnectContext {
        pipeline: Arc::from(format!("p-{}", uuid::Uuid::new_v4())),
        node: Arc::from("journal"),
        data_dir: PathBuf::new(),
        resume: true,
        shared: Shared::default(),
    };
    (JOURNAL.build)(options, &[Arc::from("field"), Arc::from("yard")], &context).expect("options are good")
}

fn decoded(format: Format, payloads: &[Vec<u8>]) -> Decoded {
    let (mut data, mut entries) = (Vec::new(), Vec::new());
    for (offset, payload) in payloads.iter().enumerate() {
        entries.push(PayloadEntry { offset: offset as u64, start: data.len() as u32, len: payload.len() as u32, ingest_us: Some(1) });
        data.extend_from_slice(payload);
    }
    let mut decoder = Decoder::new(&DecodeConfig { format, ..DecodeConfig::default() }).expect("a sound configuration");
    decoder.decode(&PayloadBlock { data: data.into(), entries, ..PayloadBlock::default() })
}

fn reading(device: &str, second: i64, value: &Value) -> Vec<u8> {
    json!({ "deviceId": device, "sensorId": "s", "timestamp": second * 1000, "value": value }).to_string().into_bytes()
}

/// Text of so many bytes that no codec makes much shorter.
fn noise(bytes: usize) -> Value {
    std::iter::repeat_with(|| uuid::Uuid::new_v4().simple().to_string())
        .flat_map(|s| s.into_bytes())
        .take(bytes)
        .map(char::from)
        .collect::<String>()
        .into()
}

/// What came back: rows as `source device second`, rejects as `source code bytes`.
#[derive(Debug, Default)]
struct Back {
    partitions: usize,
    rows: Vec<String>,
    rejects: Vec<String>,
}

/// Reads until so many rows and rejects have come.
async fn read(log: &mut Box<dyn fieldstream_engine_api::Log>, count: usize) -> Back {
    let mut back = Back::default();
    while back.rows.len() + back.rejects.len() < count {
        match tokio::time::timeout(PATIENCE, log.next()).await.expect("events come") {
            Ok(LogEvent::Assigned(assigned)) => {
                for assignment in assigned {
                    back.partitions += 1;
                    log.seek(assignment.partition, log.start_offset(&assignment)).await.expect("the offset is there");
                }
            }
            Ok(LogEvent::Batch(batch)) => {
                let Payloads::Raw(block) = batch.payloads else { panic!("raw payloads") };
                let mut decoder = Decoder::new(&DecodeConfig { format: Format::Canonical, ..DecodeConfig::default() }).expect("sound");
                let Decoded { rows, rejects, .. } = decoder.decode(&block);
                let readings = Readings::new(&rows).expect("readings");
                let name = |row| fieldstream_schemas::columns::name_at(readings.device_id, row).expect("a device").to_owned();
                back.rows.extend(
                    (0..rows.num_rows()).map(|row| format!("{} {} {}", batch.source, name(row), readings.ts.value(row) / 1_000_000)),
                );
                assert!(readings.ingest_ts.iter().all(|us| us > Some(1_700_000_000_000_000)), "the broker's time");
                back.rejects.extend(rejects.iter().map(|r| format!("{} {} {}", batch.source, r.code, r.payload.len())));
            }
            Err(LogError::Retry { .. }) => {}
            other => panic!("a batch, not {other:?}"),
        }
    }
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_topic_is_made_and_what_is_confirmed_is_there_in_order_by_source() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = format!("journal-{}", uuid::Uuid::new_v4());
    let BuiltJournal { writer, mut log } = journal(&json!({ "brokers": [brokers], "topic": topic, "partitions": 5 }));
    let reading_task = tokio::spawn(async move { read(&mut log, 42).await });
    let confirmed = async {
        for second in 0..20 {
            for (source, device) in [("field", "a"), ("yard", "b")] {
                let rows = decoded(Format::Json, &[reading(device, second, &json!(1.5))]);
                // Until the log has made the topic there is none.
                while let Err(error) = writer.append(source, &rows, 0).await {
                    assert!(matches!(error, AppendError::Retry { .. }), "{error}");
                }
            }
        }
        writer.append("yard", &decoded(Format::Json, &[b"no JSON".to_vec(), b"{}".to_vec()]), 0).await.expect("undecodable payloads");
    };
    tokio::time::timeout(PATIENCE, confirmed).await.expect("Kafka confirms");
    let back = reading_task.await.expect("it reads");
    assert_eq!(back.partitions, 5);
    for (source, device) in [("field", "a"), ("yard", "b")] {
        let of: Vec<&String> = back.rows.iter().filter(|row| row.starts_with(source)).collect();
        assert_eq!(of, (0..20).map(|second| format!("{source} {device} {second}")).collect::<Vec<_>>().iter().collect::<Vec<_>>());
    }
    let mut rejects = back.rejects;
    rejects.sort();
    assert_eq!(rejects, ["yard parse 2", "yard parse 7"]);
    let described =
        admin(&brokers).describe_configs([&ResourceSpecifier::Topic(&topic)], &AdminOptions::new()).await.expect("Kafka answers");
    let config = described.into_iter().next().expect("an answer").expect("a topic");
    assert_eq!(config.get("message.timestamp.type").and_then(|entry| entry.value.clone()).as_deref(), Some("LogAppendTime"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_for_producer_or_brokers_becomes_a_dead_letter_and_the_rest_goes_on() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = format!("journal-{}", uuid::Uuid::new_v4());
    let small = NewTopic::new(&topic, 1, TopicReplication::Fixed(1))
        .set("message.timestamp.type", "LogAppendTime")
        .set("max.message.bytes", "200000");
    admin(&brokers).create_topics([&small], &AdminOptions::new()).await.expect("Kafka answers");
    let BuiltJournal { writer, mut log } = journal(&json!({ "brokers": [brokers], "topic": topic, "compression": "none" }));
    let one = json!(1);
    let payloads = [
        reading("d", 0, &one),
        reading("d", 1, &noise(2_000_000)),
        reading("d", 2, &one),
        reading("d", 3, &noise(300_000)),
        reading("d", 4, &one),
    ];
    tokio::time::timeout(PATIENCE, writer.append("field", &decoded(Format::Json, &payloads), 0))
        .await
        .expect("in time")
        .expect("confirmed");
    writer.append("field", &decoded(Format::Json, &[reading("d", 5, &one)]), 0).await.expect("confirmed");
    let mut back = read(&mut log, 3 + 2 + 1).await;
    while !back.rows.iter().any(|row| row == "field d 5") {
        let more = read(&mut log, 1).await;
        back.rows.extend(more.rows);
        back.rejects.extend(more.rejects);
    }
    // What the brokers had taken before they refused the rest is there twice, like a message that comes again.
    back.rows.sort();
    back.rows.dedup();
    assert_eq!(back.rows, ["field d 0", "field d 2", "field d 4", "field d 5"]);
    assert!(back.rejects.len() >= 2 && back.rejects.iter().all(|reject| reject == "field record_size 65536"), "{:?}", back.rejects);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_is_not_allowed_is_fatal() {
    let cluster: MockCluster<'static, _> = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic("t", 1, 1).expect("a topic");
    let rows = decoded(Format::Json, &[reading("d", 0, &json!(1))]);
    let options = |topic: &str| json!({ "brokers": [cluster.bootstrap_servers()], "topic": topic });
    let writer = journal(&options("t")).writer;
    writer.append("field", &rows, 0).await.expect("confirmed");
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED]);
    let error = tokio::time::timeout(PATIENCE, writer.append("field", &rows, 0)).await.expect("an answer").expect_err("not allowed");
    assert!(matches!(error, AppendError::Fatal { .. }) && error.to_string().starts_with("write to Kafka topic t: "), "{error}");
}

#[test]
fn wrong_options_are_told_at_their_place() {
    let errors = (JOURNAL.check)(&json!({ "brokers": ["x"], "topic": "a b", "partitions": 0 })).expect_err("three errors");
    let paths: Vec<&str> = errors.iter().map(|error| error.path.as_str()).collect();
    assert_eq!(paths, ["/brokers/0", "/topic", "/partitions"]);
}
