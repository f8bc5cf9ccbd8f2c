//! The source against librdkafka's mock cluster. A group join takes it about three seconds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fieldstream_engine_api::{Assignment, ConnectContext, Log, LogError, LogEvent, Payloads, Shared, SourceBuild};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use serde_json::{Value, json};

use super::SOURCE;

const PATIENCE: Duration = Duration::from_secs(60);

fn context() -> ConnectContext {
    ConnectContext {
        pipeline: Arc::from("p"),
        node: Arc::from("field"),
        data_dir: PathBuf::new(),
        resume: false,
        shared: Shared::default(),
    }
}

fn cluster(topic: &str, partitions: i32) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).expect("a mock cluster");
    cluster.create_topic(topic, partitions, 1).expect("a topic");
    cluster
}

/// `count` records in each partition, keyed and numbered `<partition>-<number>`.
fn produce(brokers: &str, topic: &str, partitions: i32, numbers: std::ops::Range<usize>) {
    let producer: BaseProducer = ClientConfig::new().set("bootstrap.servers", brokers).create().expect("a producer");
    for number in numbers {
        for partition in 0..partitions {
            let (key, payload) = (format!("d{partition}"), format!("{partition}-{number}"));
            let record = BaseRecord::to(topic).partition(partition).key(&key).payload(&payload);
            assert!(producer.send(record).is_ok(), "the queue has room");
        }
    }
    producer.flush(PATIENCE).expect("records are delivered");
}

fn log(options: &Value) -> Box<dyn Log> {
    let SourceBuild::Log(build) = SOURCE.build else { panic!("kafka is a log") };
    (SOURCE.check)(options).expect("options are good");
    build(options, &context()).expect("options are good").log
}

async fn next(log: &mut Box<dyn Log>) -> LogEvent {
    tokio::time::timeout(PATIENCE, log.next()).await.expect("events come").expect("no error")
}

/// The next assignments, one an event.
async fn assigned(log: &mut Box<dyn Log>, count: usize) -> Vec<Assignment> {
    let mut all = Vec::new();
    while all.len() < count {
        match next(log).await {
            LogEvent::Assigned(assignments) => all.extend(assignments),
            other => panic!("assignments first, not {other:?}"),
        }
    }
    all
}

/// Payloads by partition until `count` have come.
async fn read(log: &mut Box<dyn Log>, count: usize) -> BTreeMap<u32, Vec<String>> {
    let mut seen: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < count {
        let LogEvent::Batch(batch) = next(log).await else { panic!("a batch") };
        assert_eq!(&*batch.source, "field");
        assert!(batch.append_us.is_some());
        let Payloads::Raw(block) = batch.payloads else { panic!("raw payloads") };
        assert_eq!(block.entries.last().map(|e| e.offset + 1), Some(batch.next_offset));
        let key = format!("d{}", batch.partition).into_bytes();
        assert!(block.keys.as_ref().is_some_and(|keys| keys.iter().all(|k| k.as_deref() == Some(&key[..]))));
        let payloads = (0..block.entries.len()).map(|i| String::from_utf8_lossy(block.payload(i)).into_owned());
        seen.entry(batch.partition).or_default().extend(payloads);
    }
    seen
}

fn expected(partition: u32, numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|n| format!("{partition}-{n}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_before_the_seek_and_everything_from_it_on() {
    let cluster = cluster("readings", 2);
    let brokers = cluster.bootstrap_servers();
    produce(&brokers, "readings", 2, 0..100);
    let mut log = log(&json!({ "brokers": [brokers], "topic": "readings" }));
    let mut assignments = assigned(&mut log, 2).await;
    assignments.sort_by_key(|a| a.partition);
    let held: Vec<_> = assignments.iter().map(|a| (a.partition, a.first_offset, a.end_offset)).collect();
    assert_eq!(held, [(0, 0, 100), (1, 0, 100)]);
    assert!(assignments[0].log_id.0.starts_with("kafka:") && assignments[0].log_id.0.ends_with(":readings"));
    assert_eq!(log.start_offset(&assignments[0]), 0);

    assert!(tokio::time::timeout(Duration::from_millis(300), log.next()).await.is_err(), "nothing before the seek");
    log.seek(0, 40).await.expect("sought");
    assert_eq!(read(&mut log, 60).await, BTreeMap::from([(0, expected(0, 40..100))]), "one partition only");
    log.seek(1, 100).await.expect("sought to the end");
    produce(&brokers, "readings", 2, 100..110);
    let seen = read(&mut log, 20).await;
    assert_eq!(seen, BTreeMap::from([(0, expected(0, 100..110)), (1, expected(1, 100..110))]));

    log.seek(0, 95).await.expect("sought back");
    assert_eq!(read(&mut log, 15).await, BTreeMap::from([(0, expected(0, 95..110))]), "recovery reads again");
    log.acknowledge(0, 110).await.expect("acknowledged");

    let error = log.seek(1, 999).await.expect_err("beyond the end");
    assert!(matches!(&error, LogError::Fatal { cause, .. } if cause.contains("ends at 110")), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_partition_waits_and_the_other_goes_on() {
    let cluster = cluster("readings", 2);
    let brokers = cluster.bootstrap_servers();
    let mut log = log(&json!({ "brokers": [brokers], "topic": "readings", "start": "latest" }));
    for assignment in assigned(&mut log, 2).await {
        let start = log.start_offset(&assignment);
        log.seek(assignment.partition, start).await.expect("sought");
    }
    log.pause(0, true);
    produce(&brokers, "readings", 2, 0..50);
    assert_eq!(read(&mut log, 50).await, BTreeMap::from([(1, expected(1, 0..50))]));
    log.pause(0, false);
    assert_eq!(read(&mut log, 50).await, BTreeMap::from([(0, expected(0, 0..50))]), "in order, from where it stopped");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_member_takes_over_some_partitions_and_gives_them_back() {
    let cluster = cluster("readings", 4);
    let brokers = cluster.bootstrap_servers();
    produce(&brokers, "readings", 4, 0..10);
    let options = json!({ "brokers": [brokers], "topic": "readings", "group": "g", "properties": { "session.timeout.ms": 6000 } });
    let mut first = log(&options);
    for assignment in assigned(&mut first, 4).await {
        first.seek(assignment.partition, 0).await.expect("sought");
    }
    assert_eq!(read(&mut first, 40).await.len(), 4);

    let mut second = log(&options);
    let give_up = async {
        let event = next(&mut first).await;
        let LogEvent::Revoked(revoked) = event else { panic!("partitions are revoked, not {event:?}") };
        assert!(revoked.iter().all(|partition| first.released(*partition)));
        BTreeSet::from_iter(revoked)
    };
    let (revoked, taken) = tokio::join!(give_up, assigned(&mut second, 2));
    assert_eq!(revoked, taken.iter().map(|a| a.partition).collect(), "what the one loses the other gets");
    assert_eq!(revoked.len(), 2, "half of them, the others stay where they are");
    for assignment in &taken {
        second.seek(assignment.partition, 5).await.expect("sought");
    }
    produce(&brokers, "readings", 4, 10..20);
    let (kept, moved) = tokio::join!(read(&mut first, 20), read(&mut second, 30));
    assert!(kept.iter().all(|(p, seen)| !revoked.contains(p) && *seen == expected(*p, 10..20)), "{kept:?}");
    assert!(moved.iter().all(|(p, seen)| revoked.contains(p) && *seen == expected(*p, 5..20)), "{moved:?}");

    drop(second);
    let back = assigned(&mut first, 2).await;
    assert_eq!(back.iter().map(|a| a.partition).collect::<BTreeSet<_>>(), revoked);
}

#[test]
fn wrong_options_are_all_found_at_once_and_show_no_value() {
    let wrong = json!({
        "brokers": ["localhost"], "topic": "a b", "security": { "username": "u" },
        "properties": { "no.such.thing": "hunter2", "fetch.min.bytes": "hunter2", "group.id": "x", "sasl.password": "hunter2" }
    });
    let errors = (SOURCE.check)(&wrong).expect_err("wrong");
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let expected = [
        "/brokers/0: no broker address (write host:port)",
        "/topic: a topic name is 1 to 249 letters, digits, dots, underscores and hyphens",
        "/security: `username` and `password` go together",
        "/properties/fetch.min.bytes: bad value of `fetch.min.bytes` (see librdkafka's CONFIGURATION.md)",
        "/properties/group.id: `group.id` is set by the connector (write `group`)",
        "/properties/no.such.thing: librdkafka knows no property `no.such.thing` (see librdkafka's CONFIGURATION.md)",
        "/properties/sasl.password: `sasl.password` is set by the connector (write `security: {password: ...}`)",
    ];
    assert_eq!(text, expected);
    let secured = json!({ "brokers": ["k:9093"], "topic": "t", "security": { "username": "u", "password": "hunter2", "mechanism": "SCRAM-SHA-256" } });
    let options = super::source_options(&secured).expect("good");
    assert!(!format!("{options:?}").contains("hunter2"), "{options:?}");
}
