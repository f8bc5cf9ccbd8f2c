//! Source and sink against a real Apache Kafka: `FIELDSTREAM_TEST_KAFKA` names its brokers, `FIELDSTREAM_TEST_CTL` the script
//! that stops and starts it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldstream_engine_api::{ConnectContext, Log, LogError, LogEvent, Payloads, Shared, SinkError, SourceBuild};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::SOURCE;
use super::sink_tests::{batch, sink};

const PATIENCE: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 3;

/// One of these tests stops the broker that all of them use.
pub(super) static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

pub(super) fn brokers() -> Option<String> {
    let found = std::env::var("FIELDSTREAM_TEST_KAFKA").ok().filter(|b| !b.is_empty());
    if found.is_none() {
        eprintln!("SKIPPED: FIELDSTREAM_TEST_KAFKA names no broker, the tests against a real Kafka did not run");
    }
    found
}

pub(super) fn admin(brokers: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", brokers).create().expect("an admin client")
}

pub(super) async fn topic(brokers: &str, name: &str) -> String {
    let name = format!("{name}-{}", uuid::Uuid::new_v4());
    let new = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1)).set("message.timestamp.type", "LogAppendTime");
    let made = admin(brokers).create_topics([&new], &AdminOptions::new()).await.expect("Kafka answers");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    name
}

fn log(options: &Value) -> Box<dyn Log> {
    let SourceBuild::Log(build) = SOURCE.build else { panic!("kafka is a log") };
    let context = ConnectContext {
        pipeline: Arc::from("p"),
        node: Arc::from("field"),
        data_dir: PathBuf::new(),
        resume: false,
        shared: Shared::default(),
    };
    build(options, &context).expect("options are good").log
}

async fn event(log: &mut Box<dyn Log>) -> Result<LogEvent, LogError> {
    tokio::time::timeout(PATIENCE, log.next()).await.expect("events come")
}

/// Offsets of the payloads by partition until `count` have come. Errors that pass by themselves are waited out.
async fn read(log: &mut Box<dyn Log>, count: usize) -> BTreeMap<u32, Vec<u64>> {
    let mut seen: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    while seen.values().map(Vec::len).sum::<usize>() < count {
        match event(log).await {
            Ok(LogEvent::Batch(batch)) => {
                let Payloads::Raw(block) = batch.payloads else { panic!("raw payloads") };
                assert!(block.entries.iter().all(|e| e.ingest_us.is_some_and(|us| us > 1_700_000_000_000_000)));
                seen.entry(batch.partition).or_default().extend(block.entries.iter().map(|e| e.offset));
            }
            Err(LogError::Retry { .. }) => {}
            other => panic!("a batch, not {other:?}"),
        }
    }
    seen
}

async fn seek_all(log: &mut Box<dyn Log>) -> BTreeMap<u32, u64> {
    let mut assignments = Vec::new();
    while assignments.len() < PARTITIONS as usize {
        let LogEvent::Assigned(some) = event(log).await.expect("no error") else { panic!("assignments first") };
        assignments.extend(some);
    }
    for assignment in &assignments {
        let start = log.start_offset(assignment);
        log.seek(assignment.partition, start).await.expect("sought");
    }
    assignments.into_iter().map(|a| (a.partition, a.end_offset)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_go_through_a_real_topic_and_deleted_records_are_noticed() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = topic(&brokers, "round-trip").await;
    let group = format!("g-{topic}");
    let mut sink = sink(&json!({ "brokers": [brokers], "topic": topic })).await;
    sink.commit(&[batch(0..2000)]).await.expect("committed");
    let mut log = log(&json!({ "brokers": [brokers], "topic": topic, "group": group }));
    let ends = seek_all(&mut log).await;
    assert_eq!(ends.values().sum::<u64>(), 2000);
    let seen = read(&mut log, 2000).await;
    for (partition, offsets) in &seen {
        assert!(offsets.iter().copied().eq(0..ends[partition]), "all of it, in order");
    }

    let full = *seen.keys().next().expect("a partition with records");
    log.acknowledge(full, 7).await.expect("acknowledged");
    let reader: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &group).create().expect("a consumer");
    let mut asked = TopicPartitionList::new();
    asked.add_partition(&topic, full as i32);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let committed = reader.committed_offsets(asked.clone(), PATIENCE).expect("Kafka answers");
        if committed.find_partition(&topic, full as i32).is_some_and(|p| p.offset() == Offset::Offset(7)) {
            break;
        }
        assert!(Instant::now() < deadline, "the group offset follows");
    }

    let mut below = TopicPartitionList::new();
    below.add_partition_offset(&topic, full as i32, Offset::Offset(10)).expect("an offset");
    admin(&brokers).delete_records(&below, &AdminOptions::new()).await.expect("Kafka answers");
    let error = log.seek(full, 3).await.expect_err("deleted");
    assert!(matches!(error, LogError::Truncated { wanted: 3, first_offset: 10, .. }), "{error}");
    log.seek(full, 10).await.expect("what is left");
    assert!(read(&mut log, ends[&full] as usize - 10).await[&full].iter().copied().eq(10..ends[&full]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_said_so() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = format!("missing-{}", uuid::Uuid::new_v4());
    let mut log = log(&json!({ "brokers": [brokers], "topic": topic }));
    let error = event(&mut log).await.expect_err("no topic");
    assert!(matches!(&error, LogError::Retry { cause, .. } if cause.contains("no such topic")), "{error}");
    let mut sink = sink(&json!({ "brokers": [brokers], "topic": topic, "timeout": "3s" })).await;
    let error = sink.commit(&[batch(0..1)]).await.expect_err("no topic");
    assert!(matches!(&error, SinkError::Retry { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_loses_nothing() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let Ok(ctl) = std::env::var("FIELDSTREAM_TEST_CTL") else {
        eprintln!("SKIPPED: FIELDSTREAM_TEST_CTL names no script, Kafka was not restarted");
        return;
    };
    let control = |verb: &str| assert!(Command::new(&ctl).args([verb, "kafka"]).status().expect("the script runs").success());
    let topic = topic(&brokers, "restart").await;
    let mut sink = sink(&json!({ "brokers": [brokers], "topic": topic, "timeout": "2s" })).await;
    // Longer than a broker's start on a busy machine takes: the partitions must stay ours.
    let mut log = log(&json!({ "brokers": [brokers], "topic": topic, "properties": { "session.timeout.ms": 60000 } }));
    seek_all(&mut log).await;
    sink.commit(&[batch(0..500)]).await.expect("committed");
    assert_eq!(read(&mut log, 500).await.values().map(Vec::len).sum::<usize>(), 500);
    control("stop");
    let error = sink.commit(&[batch(500..600)]).await.expect_err("nobody there");
    assert!(matches!(error, SinkError::Retry { .. }), "{error}");
    control("start");
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = sink.commit(&[batch(500..600)]).await {
        assert!(matches!(error, SinkError::Retry { .. }) && Instant::now() < deadline, "{error}");
    }
    let seen = read(&mut log, 100).await;
    assert!(seen.values().all(|offsets| offsets.is_sorted()), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_fenced_once_enters_again() {
    let Some(brokers) = brokers() else { return };
    let _turn = ONE_AT_A_TIME.lock().await;
    let topic = topic(&brokers, "fenced").await;
    let group = format!("g-{topic}");
    let mut sink = sink(&json!({ "brokers": [brokers], "topic": topic })).await;
    sink.commit(&[batch(0..300)]).await.expect("committed");
    let mut log = log(&json!({ "brokers": [brokers], "topic": topic, "group": group, "instance": "one" }));
    seek_all(&mut log).await;
    read(&mut log, 300).await;

    // Another of the same name is let in instead, and goes away.
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &brokers).set("group.id", &group).set("group.instance.id", "one");
    config.set("partition.assignment.strategy", "cooperative-sticky");
    let intruder: BaseConsumer = config.create().expect("a consumer");
    intruder.subscribe(&[&topic]).expect("subscribed");
    let deadline = Instant::now() + PATIENCE;
    while intruder.assignment().expect("an assignment").count() == 0 {
        assert!(Instant::now() < deadline, "the other member was not let in");
        let _ = intruder.poll(Duration::from_millis(50));
    }
    drop(intruder);

    let mut ours = PARTITIONS;
    while ours > 0 {
        match event(&mut log).await {
            Ok(LogEvent::Revoked(some)) => ours -= some.len() as i32,
            Ok(LogEvent::Batch(_)) | Err(LogError::Retry { .. }) => {}
            other => panic!("the group takes all of it, not {other:?}"),
        }
    }
    let mut again = Vec::new();
    while again.len() < PARTITIONS as usize {
        match event(&mut log).await {
            Ok(LogEvent::Assigned(some)) => again.extend(some),
            Ok(LogEvent::Revoked(none)) if none.is_empty() => {}
            other => panic!("all of it comes back, not {other:?}"),
        }
    }
    for assignment in &again {
        log.seek(assignment.partition, assignment.first_offset).await.expect("sought");
    }
    assert_eq!(read(&mut log, 300).await.values().map(Vec::len).sum::<usize>(), 300);
}
